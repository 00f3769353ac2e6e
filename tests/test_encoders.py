"""An example means one thing: by every way in, alone or among others, in every command."""

import ast
import csv
import dataclasses
import io
import json
import logging
import os
import re
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_diabetes

import dlflax
from dlflax import run
from dlflax.config import saved
from dlflax.data import (
    Arrays,
    Classes,
    Encoder,
    Examples,
    ImageFolder,
    Images,
    Spec,
    Table,
    Text,
    Upload,
    join,
    make_splits,
)
from dlflax.data.target import Nothing, Numbers
from dlflax.errors import InputError
from experiments import predict, tabular

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("place")


def encoder_of(source):
    return make_splits(source, source.load(lambda _: None), 0.2, 0).encoder


def write(name, header, rows, delimiter=","):
    with open(name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return Path(name)


def same(encoder, *given):
    """The inputs, which are the same bits for each of these."""
    first, *others = (encoder.encode(encoder.parse(each))["inputs"] for each in given)
    for other in others:
        np.testing.assert_array_equal(first, other)
    return first


def mixed_table(place, decimal=".", delimiter=","):
    """A table of numbers, some missing, and of words, as a file writes it."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(90):
        number = "" if i % 11 == 0 else f"{rng.normal() * 10:.3f}".replace(".", decimal)
        rows.append([number, str(int(rng.integers(0, 9))), "rgb"[i % 3], f"{i % 2}"])
    path = write(place / "table.csv", ["x", "count", "colour", "y"], rows, delimiter)
    return Table(data=path)


@pytest.fixture(scope="module", params=[".,", ".;", ".\t", ".|", ",;", ",\t", ",|"])
def table(request, tmp_path_factory):
    """(its encoder, the decimal mark): tables of each decimal mark and delimiter."""
    return encoder_of(mixed_table(tmp_path_factory.mktemp("table"), *request.param)), request.param[
        0
    ]


CELL = st.one_of(st.none(), st.integers(-50, 50), st.floats(-1e6, 1e6).map(lambda x: round(x, 3)))
ROW = st.fixed_dictionaries(
    {"x": CELL, "count": st.integers(0, 9), "colour": st.sampled_from(["r", "g", "b", "new", None])}
)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=5))
def test_rows_are_the_same_by_every_way_in(table, rows, tmp_path_factory):
    encoder, decimal = table
    folder = tmp_path_factory.mktemp("rows")
    names = ["x", "count", "colour"]
    cells = [
        ["" if v is None else str(v).replace(".", decimal) if k == "x" else str(v)
         for k, v in ((name, row[name]) for name in names)] for row in rows
    ]  # fmt: skip
    path = write(folder / "rows.csv", names, cells, encoder.delimiter)
    frame = pd.DataFrame(rows, dtype=object)
    together = same(encoder, str(path), Upload(path.read_bytes(), "rows.csv"), rows, frame)
    for i, row in enumerate(rows):  # alone, and with columns that the model does not read
        alone = same(encoder, [row], [{"y": "1", **row, "z": "?"}])
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "diabetes"])
def test_a_table_of_numbers_is_an_array_too(name):
    source = Table(name)
    splits = make_splits(source, source.load(lambda _: None), 0.2, 0)
    rows = splits.encoder.raw(splits.examples["test"])
    names = [column.name for column in splits.encoder.columns]
    frame = pd.DataFrame(rows, columns=names)
    shuffled = frame[names[::-1]]
    found = same(splits.encoder, rows, frame, shuffled, frame.to_dict("records"))
    np.testing.assert_array_equal(found, splits.test["inputs"])


def png(array, mode=None, format="PNG"):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_image_is_the_same_as_a_file_bytes_and_in_a_folder(mode, place):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(place / "photos" / name / f"{i}.png")
    encoder = encoder_of(ImageFolder(data=place / "photos", image_size=16))
    pixels = rng.integers(0, 256, (30, 20, 3), np.uint8)
    format = "TIFF" if mode == "CMYK" else "PNG"
    content = png(pixels, None if mode == "I;16" else mode, format)
    if mode == "I;16":
        content = png(rng.integers(0, 2**16, (30, 20)).astype(np.uint16))
    (place / "new" / "dog").mkdir(parents=True)
    path = place / "new" / "dog" / f"a.{format.lower()}"
    path.write_bytes(content)
    inputs = same(encoder, str(path), Upload(content, path.name), [str(path)])
    same(encoder, str(path), inputs, inputs.astype(np.int64))
    labelled = encoder.parse_with_targets(place / "new")
    np.testing.assert_array_equal(encoder.encode(labelled)["inputs"], inputs)
    assert labelled.target.tolist() == [1]
    together = join([encoder.parse(str(path)), encoder.parse(inputs)])
    np.testing.assert_array_equal(encoder.encode(together)["inputs"], np.repeat(inputs, 2, 0))


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8"), max_size=60).filter(str.strip), min_size=1, max_size=4
    )
)
def test_a_text_is_the_same_alone_and_among_others(text_encoder, texts):
    together = same(text_encoder, texts, pd.Series(texts), pd.DataFrame({"text": texts}))
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(same(text_encoder, text, [text])[0], together[i])
        sent = Upload(text.encode())
        np.testing.assert_array_equal(same(text_encoder, sent)[0], together[i])


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    rows = [[f"{'good' if i % 2 else 'bad'} film number {i}", i % 2] for i in range(60)]
    path = write(tmp_path_factory.mktemp("texts") / "films.csv", ["text", "label"], rows)
    return encoder_of(Text(data=path, tokenizer="bpe", vocab_size=300))


@pytest.mark.parametrize(("decimal", "mark"), [".,", ",;", ".\t"])
@pytest.mark.parametrize("covariates", [(), ("price",)])
def test_a_series_is_the_same_by_every_way_in(decimal, mark, covariates, place):
    from dlflax.data import Series

    rng = np.random.default_rng(0)
    rows = [
        [f"2020-{i // 28 + 1:02}-{i % 28 + 1:02}", f"{x:.2f}".replace(".", decimal), f"{i % 5}"]
        for i, x in enumerate(rng.normal(size=100).cumsum())
    ]  # fmt: skip
    header = ["number", "sales", "price"]
    rows = [[str(i), *row[1:]] for i, row in enumerate(rows)]
    path = write("sales.csv", header, rows, mark)
    series = Series(data=path, target="sales", past_covariates=covariates, window=10, horizon=4)
    encoder = encoder_of(series)
    typed = [
        {"number": int(n), "sales": float(x.replace(",", ".")), "price": int(p)} for n, x, p in rows
    ]
    frame = pd.DataFrame(typed)
    same(encoder, str(path), Upload(path.read_bytes(), "a.csv"), typed, frame, None)


@pytest.mark.figures
def test_a_model_compiles_a_few_programs_whatever_it_is_asked(zoo, caplog):
    model = dlflax.load(zoo("digits"), log=lambda _: None)
    images = np.zeros((60, *model.input_shape), np.uint8)
    images[:, 5:20, 12:15] = 255
    for count in (1, 8, 60):
        model.predict(images[:count])
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        answers = [model.predict(images[:count]) for count in range(2, 60, 7)]
    assert not [r for r in caplog.records if "Finished XLA compilation" in r.message]
    for some in answers:
        assert some[0]["probabilities"] == pytest.approx(answers[0][0]["probabilities"], abs=1e-6)


def test_a_loaded_model_outlives_a_change_of_folder(zoo, place, monkeypatch):
    os.symlink(zoo("digits"), place / "run")
    model = dlflax.load("run", log=lambda _: None)
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert len(model.predict(np.zeros((1, *model.input_shape), np.uint8))) == 1


def run_table(rows, header=("a", "b", "y"), *flags, delimiter=","):
    path = write("table.csv", header, rows, delimiter)
    run.main("tabular", tabular.PRESETS, {},
             ["--data", str(path), "--epochs", "4", "--baseline", "none", "--run-dir", "run",
              "--bag-folds", "0",
              *flags])  # fmt: skip
    said = []
    return dlflax.load("run", log=said.append), said


def numbers(count=80):
    rng = np.random.default_rng(0)
    return [[f"{a:.3f}", f"{b:.3f}", f"{3 * a + b:.3f}"] for a, b in rng.normal(size=(count, 2))]


def test_evaluation_takes_the_target_by_its_name(place):
    """Whatever columns stand behind it, and however few rows there are."""
    rows = numbers()
    model, _ = run_table(rows)
    wanted = model.evaluate("table.csv")
    more = write("more.csv", ["a", "b", "y", "z"], [[*row, "7.5"] for row in rows])
    assert model.evaluate(more) == wanted
    few = write("few.csv", ["y", "b", "a"], [row[::-1] for row in rows[:3]])
    guessed = np.array([answer["values"][0] for answer in model.predict(str(few))])
    truth = np.array([float(row[2]) for row in rows[:3]])
    assert model.evaluate(few)["rmse"] == pytest.approx(np.sqrt(np.mean((guessed - truth) ** 2)))
    with pytest.raises(InputError, match="lacks the column y, which the model predicts"):
        model.evaluate(write("none.csv", ["a", "b"], [row[:2] for row in rows]))


def test_missing_marks_are_the_encoder_s(place):
    """Not those of the version that reads it."""
    encoder = encoder_of(mixed_table(place))
    marks = ("", "-")
    columns = [
        dataclasses.replace(column, format=dataclasses.replace(column.format, missing=marks))
        if hasattr(column, "format") else dataclasses.replace(column, missing_marks=marks)
        for column in encoder.columns
    ]  # fmt: skip
    other = dataclasses.replace(encoder, columns=tuple(columns))
    row = {"x": "-", "count": "3", "colour": "-"}
    same(other, [row], [{**row, "x": None, "colour": None}])
    with pytest.raises(InputError, match="x has 'na'"):
        other.encode(other.parse([{**row, "x": "na"}]))
    encoder.encode(encoder.parse([{**row, "x": "na"}]))


def test_every_row_counts(place):
    """Of a class that is rare in the new file, or that training did not have."""
    rng = np.random.default_rng(0)
    rows = [[f"{x:.2f}", f"{x * x:.2f}", "low" if x < 0 else "high"] for x in rng.normal(size=90)]
    model, said = run_table(rows)
    new = [*rows[:4], ["0.1", "0.01", "odd"], ["0.2", "0.04", "odd"]]
    path = write("new.csv", ["a", "b", "y"], new)
    right = [a["class"] == row[2] for a, row in zip(model.predict(str(path)), new, strict=True)]
    found = model.evaluate(path)
    assert found["accuracy"] == pytest.approx(np.mean(right)) and np.isfinite(found["loss"])
    assert "2 of 6 examples are of classes that the model does not have" in said[-1]
    one = write("one.csv", ["a", "b", "y"], [rows[0]])  # data of one class
    assert model.evaluate(one)["accuracy"] in (0, 1)


def test_a_number_means_the_same_alone(place):
    """The training column has decimal commas; a row of "2,500" is two and a half."""
    rng = np.random.default_rng(0)
    rows = [[f"{x:.1f}".replace(".", ","), "1", f"{2 * x:.2f}".replace(".", ",")]
            for x in rng.uniform(0, 9, 90)]  # fmt: skip
    model, _ = run_table(rows, delimiter=";")
    alone = write("alone.csv", ["a", "b"], [["2,500", "1"]], ";")
    together = write("together.csv", ["a", "b"], [["2,500", "1"], ["2,5", "1"], ["7,1", "1"]], ";")
    a, b, _ = (answer["values"] for answer in model.predict(str(together)))
    assert model.predict(str(alone))[0]["values"] == pytest.approx(a, rel=1e-5)
    assert a == b == pytest.approx(model.predict([{"a": 2.5, "b": 1}])[0]["values"], rel=1e-5)
    with pytest.raises(InputError, match="the column a has '1.001,5.2'"):
        model.predict([{"a": "1.001,5.2", "b": "1"}])


def test_the_file_of_answers_is_no_file_that_is_asked_about(place, capsys):
    run_table(numbers())
    write("new.csv", ["a", "b"], [["1", "2"]])
    before = Path("new.csv").read_bytes()
    for name in ("new.csv", "../" + place.name + "/new.csv"):
        with pytest.raises(InputError, match="--csv .*new.csv is one of the inputs"):
            predict.command(Path("run"), ("new.csv",), csv=Path(name))
    assert Path("new.csv").read_bytes() == before


def test_nan_and_infinity_mean_the_same_everywhere(place):
    from dlflax.inference.export import export_stages, join_stages
    from dlflax.inference.predict import Predictor

    rows = [["" if i % 9 == 0 else row[0], *row[1:]] for i, row in enumerate(numbers())]
    model, _ = run_table(rows)
    given = [[None, 1.0], [np.nan, 1.0]]
    frame = pd.DataFrame(given, columns=["a", "b"])
    path = write("missing.csv", ["a", "b"], [["", "1"], ["nan", "1.0"]])
    wanted = [answer["values"] for answer in model.predict(str(path))]
    assert [answer["values"] for answer in model.predict(frame)] == wanted
    assert [a["values"] for a in model.predict(frame.to_dict("records"))] == wanted
    stages, _ = export_stages(Predictor("run", log=lambda _: None))
    made = join_stages(stages)({"inputs": np.float32([[np.nan, 1.0]])})["values"]
    np.testing.assert_allclose(made[0], wanted[0], rtol=1e-4)
    for infinite in ([{"a": np.inf, "b": 1}], np.array([[np.inf, 1.0]]), [{"a": "-inf", "b": 1}]):
        (answer,) = model.predict(infinite)
        assert answer["values"] == pytest.approx(wanted[0], rel=1e-6)


@dataclasses.dataclass(frozen=True)
class Odd(Encoder):
    """Has fields that are named like fields of others."""

    target: Nothing
    scale: tuple[float, ...]
    classes: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    names: str
    path: str
    data: int

    def parse(self, given, limits=None):
        return Examples({"inputs": np.float32([given])})

    def spec(self):
        return Spec(self.shape, "float32", "numbers")


@dataclasses.dataclass(frozen=True)
class Fitted(Odd):
    mean: np.ndarray
    table: dict[str, tuple]


def test_fields_may_have_any_name_but_a_method_s(place):
    odd = Odd(Nothing(), (0.95,), ("a",), "sound", (2,), "n", "p", 3)
    saved.save_encoder(place, odd)
    import sys

    experiment = run.Experiment("odd", sys.modules[__name__])
    assert saved.load_encoder(place, experiment) == odd
    fitted = Fitted(Nothing(), (), (), "", (2,), "", "", 1, np.eye(3), {"a": (1.5, np.ones(2))})
    saved.save_encoder(place, fitted)
    again = saved.load_encoder(place, experiment)
    np.testing.assert_array_equal(again.mean, np.eye(3))
    np.testing.assert_array_equal(again.table["a"][1], [1, 1])
    assert again.table["a"][0] == 1.5
    (place / "encoder.mean.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"encoder.mean.npy cannot be read as a .npy file"):
        saved.load_encoder(place, experiment)

    @dataclasses.dataclass(frozen=True)
    class Hiding(Odd):
        batch: int = 3

    with pytest.raises(InputError, match="Hiding has a field named batch, as a method"):
        Hiding(Nothing(), (), (), "", (2,), "", "", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": []}, {"delimiter": 3}, {"target": {"class": "os:system", "names": ["ls"]}},
        {"class": "dlflax.models:MLP"}, {"format": {"decimal": "x"}}, {"more": 1}, None,
    ],
)  # fmt: skip
def test_a_damaged_encoder_is_one_sentence(zoo, place, change):
    text = json.loads((zoo("wine") / "encoder.json").read_text())
    if change and "format" in change:
        text["columns"][0]["format"] |= change["format"]
    else:
        text = {**text, **change} if change else []
    (place / "encoder.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match=r"encoder\.json") as error:
        saved.load_encoder(place, run.Experiment("wine"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_older_folders_are_one_sentence(zoo, place, version):
    config = json.loads((zoo("wine") / "config.json").read_text())
    config["versions"]["dlflax"] = version
    (place / "old").mkdir()
    (place / "old" / "config.json").write_text(json.dumps(config))
    sentence = f"old was written by dlflax {version}: read it with commit b547de7"
    with pytest.raises(InputError, match=sentence):
        dlflax.load("old")


def test_a_class_without_a_training_example_is_named():
    rng = np.random.default_rng(0)
    parts = [{"inputs": rng.normal(size=(n, 2)), "targets": np.arange(n) % 2} for n in (20, 6)]
    source = Arrays(*parts, class_names=("a", "b", "never"))
    with pytest.raises(InputError, match="the class 'never' has no example to train on"):
        make_splits(source, source.load(lambda _: None), 0.2, 0)


def test_the_unit_of_a_target():
    values = np.random.default_rng(0).normal(5, 3, (40, 2))
    target = Numbers.fit(values, ("a", "b"))
    np.testing.assert_allclose(target.decode(target.encode(values)), values, rtol=1e-5)
    assert Classes(("x", "y")).numbers(["y", "z", "x"]).tolist() == [1, -1, 0]


def test_no_kind_of_data_is_a_string_outside_of_data():
    """Nor is a source or an encoder asked by `hasattr`."""
    kinds = {"picture", "pictures", "image", "images", "text", "texts", "table", "tables", "array"}
    for room in ("train", "transfer", "run", "tune", "report", "models"):
        for path in (ROOT / "dlflax" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                    assert not words & kinds, f"{path}:{node.lineno}"
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(has|get)attr\((\w+\.)*(source|encoder|data),", text), path


def test_idx_files_are_evaluated(place, zoo):
    """Of a run on images of that size."""
    import gzip
    import struct

    dataset = Images("digits").load(lambda _: None)
    images, targets = dataset.test["inputs"][:50, :, :, 0], dataset.test["targets"][:50]
    for name, array in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", targets)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (place / f"{name}.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    model = dlflax.load(zoo("digits"), log=lambda _: None)
    found = model.evaluate(place)
    assert found["accuracy"] == pytest.approx(
        model.evaluate(images[..., None], targets)["accuracy"]
    )


def test_numbers_of_a_regression_have_their_unit_in_every_split(place):
    table = load_diabetes()
    rows = [[*map(str, x), str(y)] for x, y in zip(table.data[:200], table.target, strict=False)]
    run_table(rows, [*table.feature_names, "y"], "--epochs", "20")
    results = json.loads(Path("run/results.json").read_text())
    last = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))[-1]
    for value in (*(results[s]["rmse"] for s in ("train", "val", "test")), last["val_rmse"]):
        assert 20 < float(value) < 200  # in deviations it would be about 1
