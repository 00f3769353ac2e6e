"""One line from data to a model: inputs that nobody prepared, and what a model can do."""

import datetime
import doctest
import json
import re
import sys
import types
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

import dlflax
from dlflax import automl
from dlflax.errors import InputError
from dlflax.run.prepare import split_data

RNG = np.random.default_rng(0)
N = 60
A = RNG.normal(size=N).round(3)
YES = np.where(A > 0, "yes", "no")
NUMBER = 3 * A + RNG.normal(size=N).round(3)
DAYS = pd.date_range("2024-01-01", periods=N)
REVIEWS = [f"{'good' if i % 2 else 'poor'} film number {i} of them" for i in range(N)]
SIDES = RNG.integers(0, 2, N)
IMAGES = np.uint8(RNG.integers(0, 100, (N, 8, 8)) + 100 * SIDES[:, None, None])


def frame(**columns):
    return pd.DataFrame({"a": A, **columns, "y": YES})


def folder(tmp_path, classes, count=12):
    for name in classes:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.uint8(RNG.integers(0, 255, (16, 16, 3)))
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


TABLES = {  # name -> (data, target, the sentence about them)
    "plain": (frame(), "y", "table of 60 rows; classification of y, 2 classes"),
    "index as data": (frame().set_index("a"), "y", "2 classes"),
    "time index": (frame().set_index(DAYS), "y", "2 classes"),
    "names are ints": (pd.DataFrame(np.c_[A, NUMBER]), None, "regression of 1"),
    "numpy": (np.c_[A, NUMBER], YES, "classification of target"),
    "numpy of objects": (np.array([[1, "red"], [None, "blue"]] * 30, object), YES, "2 classes"),
    "booleans": (np.c_[A, A], A > 0, "2 classes"),
    "lists of lists": (np.c_[A, NUMBER].tolist(), YES.tolist(), "2 classes"),
    "frame and series": (frame()[["a"]], pd.Series(NUMBER, name="price"), "regression of price"),
    "all missing": (frame(b=np.nan, c=None), "y", "2 classes"),
    "categorical": (frame(b=pd.Categorical(YES[::-1])), "y", "2 classes"),
    "datetimes": (frame(b=DAYS, c=[datetime.date(2024, 1, 1 + i % 28) for i in range(N)]), "y",
                  "2 classes"),
    "zones and durations": (frame(b=DAYS.tz_localize("Europe/Paris"), c=DAYS - DAYS[0]), "y",
                            "2 classes"),
    "nullable": (frame(b=pd.array([1, None] * 30, "Int64"), c=pd.array([True, None, False] * 20,
                 "boolean")), "y", "2 classes"),
    "several types": (frame(b=[1, "x", 2.5, None, True, (1, 2)] * 10), "y", "2 classes"),
    "missing targets": (pd.DataFrame({"a": A, "y": [None, *YES[1:]]}), "y", "table of 59 rows"),
    "polars": (pl.from_pandas(frame()), "y", "2 classes"),
    "polars and its series": (pl.from_pandas(frame()).select("a"), pl.Series("kind", YES),
                              "classification of kind"),
    "arrow": (pa.Table.from_pandas(frame()), "y", "2 classes"),
    "dict of columns": ({"a": A, "y": YES}, "y", "2 classes"),
    "rows": ([{"a": a, "y": y} for a, y in zip(A.tolist(), YES.tolist(), strict=True)], "y",
             "2 classes"),
}  # fmt: skip
OTHERS = {
    "texts": (REVIEWS, SIDES, "60 texts; classification"),
    "series of texts": (pd.Series(REVIEWS), pd.Series(YES), "60 texts; classification"),
    "frame of texts": (pd.DataFrame({"note": REVIEWS, "y": [None, *YES[1:]]}), "y", "59 texts"),
    "images": (IMAGES, SIDES, "60 images; classification, 2 classes"),
    "float images": (np.float32(IMAGES[..., None] / 255), NUMBER, "60 images; regression"),
}
SERIES = {"horizon": 4, "window": 8, "task": "forecast"}
FORECASTS = {
    "array": (A.cumsum(), None),
    "list": (A.cumsum().tolist(), None),
    "pandas": (pd.Series(A.cumsum(), DAYS, name="sales"), None),
    "frame": (pd.DataFrame({"day": DAYS, "sales": A.cumsum()}), "sales"),
    "index": (pd.DataFrame({"sales": A.cumsum(), "other": A}, DAYS), "sales"),
}
TWICE = frame().rename(columns={"a": "y"})
REFUSED = {  # name -> (arguments, a part of the sentence)
    "None": ((None,), "give a data frame"),
    "number": ((3,), "give a data frame"),
    "empty list": (([],), "the data are empty"),
    "empty frame": ((frame()[:0], "y"), "no rows"),
    "names twice": ((TWICE, "y"), "two columns 'y'"),
    "one row": ((frame()[:1], "y"), "two classes"),
    "one class": ((frame().assign(y="x"), "y"), "two classes"),
    "constant number": ((frame().assign(y=1.5), "y"), "the same in all training rows"),
    "no target": ((frame(), "z"), "'z' is no column of the data frame, which has a, y"),
    "one column": ((frame()[["a"]],), "task='forecast'"),
    "too few targets": ((np.c_[A, A], YES[:5]), "60 inputs, but 5 targets"),
    "array without target": ((np.c_[A, A],), "fit(X, y)"),
    "wide target": ((np.c_[A, A], np.c_[A, A]), "one value per example"),
    "ragged": (([[1, 2], [3]], [0, 1]), "give a data frame"),
    "complex": ((np.c_[A, A] * 1j, YES), "complex128"),
    "texts alone": ((REVIEWS,), "texts need a label each"),
    "texts and numbers": ((REVIEWS, NUMBER), "classes"),
    "files": (([__file__] * 5, YES[:5]), "not a list of files"),
    "unknown file": (("houses.csv", "price"), "houses.csv does not exist"),
    "four channels": ((np.zeros((N, 8, 8, 4), np.uint8), SIDES), "1 or 3 channels"),
    "pixels up to 16": ((IMAGES / 16.0, SIDES), "from 0 to 1 as floats"),
    "three images": ((IMAGES[:3], SIDES[:3]), "give 10 or more"),
    "unknown task": ((frame(), "y", 60, "ranking"), "task 'ranking' must be one of"),
    "short series": ((A[:7], None, 60, "forecast"), "has 7 numbers: a series needs more"),
}


@pytest.fixture
def prepared(place, monkeypatch):
    """fit that ends before the training: (sentences, Config, splits)."""
    sentences = []

    def run(experiment, config, log, dataset, *others):
        result.extend(split_data(config, dataset, log))
        (config.run_dir / "config.json").touch()

    def fit(data, target=None, time_limit=60, task="auto", **options):
        del sentences[:], result[:]
        automl.fit(data, target, time_limit, task=task, log=sentences.append, **options)
        return sentences, *result

    result = []
    monkeypatch.setattr(automl, "run", types.SimpleNamespace(**{**vars(automl.run), "run": run}))
    monkeypatch.setattr(automl, "Model", lambda *_: None)
    monkeypatch.setattr("dlflax.self_check.check", lambda: None)
    return fit


@pytest.mark.parametrize("name", [*TABLES, *OTHERS])
def test_an_input_is_recognized(prepared, name):
    data, target, expected = {**TABLES, **OTHERS}[name]
    sentences, config, splits = prepared(data, target)
    (said,) = (s for s in sentences if s.startswith("inferred:"))
    assert expected in said
    assert len(splits.train["inputs"]) > 30 and np.isfinite(splits.train["inputs"]).all()
    assert not [s for s in sentences if re.search("--[a-z]", s)]


@pytest.mark.parametrize("name", FORECASTS)
def test_a_series_is_recognized(prepared, name):
    data, target = FORECASTS[name]
    sentences, config, splits = prepared(data, target, **SERIES)
    assert "series" in sentences[-1] or any("forecast of 4 steps" in s for s in sentences)
    assert splits.encoder.window == 8 and splits.train["inputs"].shape[1:] == (200, 2)
    last = splits.encoder.own_window[-1][0]
    assert last == pytest.approx(A.cumsum()[-1])


@pytest.mark.parametrize("name", REFUSED)
def test_an_input_is_refused_by_a_sentence(prepared, name, tmp_path):
    arguments, expected = REFUSED[name]
    with warnings.catch_warnings(), pytest.raises(InputError) as error:
        warnings.simplefilter("ignore")
        prepared(*arguments)
    sentence = str(error.value)
    assert expected in sentence and "\n" not in sentence and sentence.endswith(".")
    assert not re.search("--[a-z]", sentence)
    assert not list(tmp_path.glob("runs/*/*"))  # no folder of a run that never began


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("houses.csv", "size;price\n" + "".join(f"{i};{i % 7 + i / 9:.3f}\n" for i in range(N)),
         "table of 60 rows; regression of price"),
        ("notes.csv", "Text,Label\n" + "".join(f"{t},{i % 2}\n" for i, t in enumerate(REVIEWS)),
         "60 texts"),
        ("notes.jsonl", "".join(json.dumps({"text": t, "label": i % 2}) + "\n"
                                for i, t in enumerate(REVIEWS)), "60 texts"),
    ],
)  # fmt: skip
def test_a_file_is_recognized(prepared, tmp_path, name, text, expected):
    sentences, *_ = prepared(write(tmp_path, name, text))
    assert any(expected in sentence for sentence in sentences)


def test_folders(prepared, tmp_path, monkeypatch):
    photos = folder(tmp_path, ["cat", "dog"])
    monkeypatch.setitem(automl.EXTRAS, "efficientnet", ("no_such_module",))
    sentences, config, splits = prepared(photos)
    assert any("24 images; classification, 2 classes" in s for s in sentences)
    assert any("trained from scratch" in s for s in sentences)
    with pytest.raises(InputError, match="target requires labels_csv"):
        prepared(photos, "age")
    alone = folder(tmp_path / "one", ["cat"])
    with pytest.raises(InputError) as error:
        prepared(alone)
    assert "\n" not in str(error.value)


def test_options_are_fields(prepared):
    _, config, _ = prepared(
        frame(id=YES), "y", drop_columns=("id",), epochs=7, batch_size=16, dropout=0.3, seed=3
    )  # fmt: skip
    assert (config.epochs, config.recipe.batch_size, config.hparams.dropout) == (7, 16, 0.3)
    assert (config.data.drop_columns, config.seed) == (("id",), 3)
    for options, expected in (
        ({"epoch": 3}, "did you mean epochs?"),
        ({"drop_columns": "id"}, "should be tuple[str, ...]"),
        ({"epochs": 0}, "epochs 0 must be 1 or more"),
        ({"time_limit": "60"}, "option time_limit is '60', and should be float"),
        ({"horizon": 3}, "'horizon' does not exist for these data"),
        ({"time_limit": -1}, "time_limit -1 must be from 1 to"),
    ):
        with pytest.raises(InputError, match=re.escape(expected)):
            prepared(frame(), "y", **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of a table with a category, constant and missing values."""
    path = tmp_path_factory.mktemp("fit") / "run"
    data = frame(b=[1.0, None] * 30, c="<b>", d=["<i>", "x"] * 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlflax.report.figures.draw", lambda *_: {})
        patch.setattr("dlflax.run.baseline_scores.fit_baselines", lambda *_: {})
        return (
            dlflax.fit(data, "y", epochs=8, run_dir=path, log=None, time_limit=0, bag_folds=0),
            data,
            path,
        )


def test_a_model_of_a_table(model, capsys):
    fitted, data, path = model
    probabilities = fitted.predict_proba(data)
    answers = fitted.predict(data)
    assert capsys.readouterr().out == ""
    assert probabilities.shape == (N, 2) and fitted.class_names == ("no", "yes")
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    for row, answer in zip(probabilities, answers, strict=True):
        assert answer["probabilities"] == pytest.approx(dict(zip(("no", "yes"), row, strict=True)))
    again = fitted.predict_proba(str(path / "data.parquet"))
    np.testing.assert_array_equal(again, probabilities)
    scores = fitted.evaluate(data)
    assert scores["accuracy"] == np.mean(np.array(["no", "yes"])[probabilities.argmax(1)] == YES)
    assert {row["column"] for row in fitted.explain()} == {"a", "b", "d"}
    with pytest.raises(InputError, match="takes images"):
        fitted.explain(data)


def test_summary_and_leaderboard(model):
    fitted, _, path = model
    results = json.loads((path / "results.json").read_text())
    results["baselines"] = {"a <b> model": {"accuracy": 1.5, "loss": 0.5, "per_class": {}}}
    test = {"accuracy": -1.0}
    results["members"] = [{"name": "network", "models": 5, "weight": 0.7, "test": test}]
    results["findings"] = ["<script>alert(1)</script> is a finding."]
    (path / "results.json").write_text(json.dumps(results))
    board = fitted.leaderboard()
    assert board[0] == {"model": "a <b> model", "accuracy": 1.5, "loss": 0.5}
    assert [row["model"] for row in board[1:]] == ["this model (MLP)", "5 x network"]
    assert board[2] == {"model": "5 x network", "accuracy": -1.0, "weight": 0.7}
    assert pd.DataFrame(board)["accuracy"][0] == 1.5
    lines = str(board).splitlines()
    assert len(lines) == 4 and lines[0].split()[:3] == ["model", "accuracy", "loss"]
    text = fitted.summary()
    for part in ("Classification by MLP", "12 test", "c: dropped", "b: number, ", "is a finding",
                 "accuracy"):  # fmt: skip
        assert part in text
    page = fitted._repr_html_()
    assert "&lt;script&gt;" in page and "<script>" not in page and "a &lt;b&gt; model" in page
    assert "Model MLP" in repr(fitted)


def test_a_copy_predicts_the_same(model, tmp_path):
    fitted, data, path = model
    copy = fitted.save(tmp_path / "copy")
    assert {file.name for file in copy.iterdir()} >= {"model.safetensors", "README.md"}
    assert str(path.parent) not in "".join(
        file.read_text() for file in copy.iterdir() if file.suffix != ".safetensors"
    )
    moved = dlflax.load(copy, log=lambda line: None)
    np.testing.assert_array_equal(moved.predict_proba(data), fitted.predict_proba(data))
    assert moved.summary().count("\n") == fitted.summary().count("\n")
    assert moved.export("stablehlo").exists()
    with pytest.raises(InputError, match="is not empty"):
        fitted.save(copy)
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-4], content[:-4] + b"abcd", b""):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match="model.safetensors is damaged"):
            dlflax.load(copy).predict_proba(data)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["recipe"]["model"]["features"] = [10**6]
    (copy / "config.json").write_text(json.dumps(config))
    weights.write_bytes(content)
    with pytest.raises(InputError, match="does not have the arrays of the model"):
        dlflax.load(copy).predict_proba(data)  # nothing of that size was allocated


class FakeHub:
    """A hub in a folder."""

    def __init__(self, root):
        self.root, self.sizes, self.fetched = root, {}, 0

    def create_repo(self, repository, private, exist_ok):
        (self.root / repository).mkdir(parents=True)

    def upload_folder(self, repo_id, folder_path, commit_message):
        for file in folder_path.iterdir():
            (self.root / repo_id / file.name).write_bytes(file.read_bytes())

    def model_info(self, repository, revision, files_metadata):
        files = [
            types.SimpleNamespace(
                rfilename=file.name, size=self.sizes.get(file.name, file.stat().st_size)
            )
            for file in (self.root / repository).iterdir()
        ]
        return types.SimpleNamespace(siblings=files, sha="abc")

    def snapshot_download(self, repository, revision, local_dir, allow_patterns):
        self.fetched += 1
        local_dir.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            (local_dir / name).write_bytes((self.root / repository / name).read_bytes())


def test_push_and_load(model, place, monkeypatch):
    fitted, data, _ = model
    with pytest.raises(InputError, match="DLFLAX_OFFLINE=1 forbids it"):
        fitted.push("me/houses")
    hub = FakeHub(place / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.delenv("DLFLAX_OFFLINE")
    assert fitted.push("me/houses").endswith("me/houses")
    (hub.root / "me/houses/evil.py").write_text("raise SystemExit")
    (hub.root / "me/houses/encoder.pickle").write_bytes(b"evil")
    loaded = dlflax.load("hf:me/houses", log=lambda line: None)
    np.testing.assert_array_equal(loaded.predict_proba(data), fitted.predict_proba(data))
    fetched = {file.name for file in (place / "cache").rglob("*") if file.is_file()}
    assert not fetched & {"evil.py", "encoder.pickle"}
    card = (hub.root / "me/houses/README.md").read_text()
    assert 'dlflax.load("hf:me/houses")' in card and card.startswith("---\nlibrary_name: dlflax")
    hub.sizes = {"model.safetensors": 10**15}
    with pytest.raises(InputError, match="model.safetensors of 1,000,000,000 MB"):
        dlflax.load("hf:me/houses")
    assert hub.fetched == 1
    hub.sizes = {}
    (hub.root / "me/houses/encoder.json").unlink()
    with pytest.raises(InputError, match="is no model of dlflax: it has no encoder.json"):
        dlflax.load("hf:me/houses")
    for wrong in ("hf:me", "hf:../../etc/passwd", "hf:a/b/c"):
        with pytest.raises(InputError, match="is no repository"):
            dlflax.load(wrong)


def test_a_repository_runs_no_code(model, place, monkeypatch):
    """Its JSON names code, which is there to be imported, and is not."""
    copy = model[0].save(place / "copy")
    (place / "evil.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(place)
    config = json.loads((copy / "config.json").read_text())
    config["defined_in"] = {"module": "evil"}
    (copy / "config.json").write_text(json.dumps(config))
    assert dlflax.load(copy).predict([{"a": 1.0, "b": None, "d": "x"}])
    config["config"]["recipe"]["model"]["class"] = "evil:Net"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="evil:Net"):
        dlflax.load(copy)
    assert "evil" not in sys.modules


def test_resume_needs_the_same_data(model, prepared):
    _, data, path = model
    prepared(data, "y", run_dir=path, resume=True)
    with pytest.raises(InputError, match="already holds a run: add resume"):
        prepared(data, "y", run_dir=path)
    with pytest.raises(InputError, match="run/data.parquet has other data"):
        prepared(data[::-1], "y", run_dir=path, resume=True)
    assert dlflax.load(path).evaluate(str(path / "data.parquet"))["loss"] > 0


def test_arrays_have_the_columns_of_the_training(prepared):
    x = np.c_[np.ones(N), A, NUMBER]  # the constant is dropped
    encoder = prepared(x, YES)[2].encoder
    raw = encoder.raw(encoder.parse(x))
    np.testing.assert_array_equal(raw, x[:, 1:])
    np.testing.assert_array_equal(encoder.raw(encoder.parse(x[0])), x[:1, 1:])
    np.testing.assert_array_equal(
        encoder.raw(encoder.parse(pd.DataFrame(x).add_prefix("x"))), x[:, 1:]
    )


@pytest.mark.slow
def test_heatmaps_of_images(place):
    fitted = dlflax.fit(IMAGES, SIDES, 0, epochs=1, log=None)
    maps = fitted.explain(IMAGES[:3, :, :, None])
    assert maps.shape == (3, 8, 8) and maps.min() >= 0 and maps.max() <= 1
    assert fitted.predict(IMAGES[:2, :, :, None])[1]["class"] in ("0", "1")
    with pytest.raises(InputError, match="has no importance.csv"):
        fitted.explain()


def test_the_example_of_the_docstring(place):
    found = doctest.testmod(automl, verbose=False)
    assert found.attempted >= 3 and not found.failed


def test_a_notebook_cannot_serve(model):
    import asyncio

    async def serve():
        model[0].serve()

    with pytest.raises(InputError, match="as a notebook does"):
        asyncio.run(serve())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLES, *OTHERS])
def test_an_input_becomes_a_model(place, name):
    data, target, _ = {**TABLES, **OTHERS}[name]
    fitted = dlflax.fit(data, target, epochs=1, bag_folds=0, log=None)
    assert fitted.leaderboard() and fitted.summary()
