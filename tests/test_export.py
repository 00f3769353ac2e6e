"""A model as a file: ONNX and StableHLO say what the model says, for every architecture, with what
comes before and after the network in the file."""

import csv
import json
import math
import shutil
import subprocess
import sys
import zlib
from datetime import datetime, timedelta
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import dlflax
from dlflax import data, models, run, train
from dlflax.errors import InputError
from dlflax.inference import export
from dlflax.inference.predict import Predictor
from dlflax.run.exit_codes import with_exit_codes
from dlflax.train.check import bind_to_data
from dlflax.train.recipe import init_on_devices
from dlflax.train.tasks import TASKS
from experiments import export as command

pytestmark = pytest.mark.usefixtures("place")

PICTURES, TOKENS = ((28, 28, 1), "uint8"), ((12,), "int32")
RGB = ((32, 32, 3), "uint8")
CASES = {
    "mlp": (models.MLP((16,)), PICTURES),
    "cnn": (models.CNN(features=(4, 20), dense=(8,)), PICTURES),
    "cnn matmul": (models.CNN(implementation="matmul"), PICTURES),
    "lstm": (models.RNN(features=(8,)), PICTURES),
    "gru both ways": (
        models.RNN("gru", (8, 8), True, "max", vocabulary=50), TOKENS,
    ),
    "simple cell": (models.RNN("simple", (8,), pooling="mean", vocabulary=50), TOKENS),
    "transformer": (models.Transformer(depth=1, hidden_dim=16), PICTURES),
    "transformer of tokens": (
        models.Transformer(1, 16, positions="rotary", pooling="cls", vocabulary=50), TOKENS,
    ),
    "autoencoder": (models.Autoencoder((16,), 4, variational=True), PICTURES),
    "small resnet": (models.SmallResNet((4, 8), 1), RGB),
    "vgg": (models.VGG("11", (8, 8)), RGB),
    "resnet 18": (models.ResNet("18"), RGB),
    "resnet 50": (models.ResNet("50"), RGB),
    "efficientnet": (models.EfficientNetLite0(), RGB),
    "minilm": (models.MiniLM(50), TOKENS),
}  # fmt: skip
QUICK = ("mlp",)
FORMATS = {"onnx": export._onnx, "stablehlo": export._stablehlo}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_every_architecture_is_the_same_in_a_file(name, monkeypatch):
    monkeypatch.setattr(models.minilm, "DEPTH", 1)
    monkeypatch.setitem(models.resnet.BLOCKS, "50", (2, 1, 1, 1))
    monkeypatch.setitem(models.resnet.BLOCKS, "18", (2, 1, 1, 1))
    model, (shape, dtype) = CASES[name]
    generator = np.random.default_rng(0)
    largest = 8 if shape == RGB[0] else 64
    inputs = generator.integers(0, 50, (largest, *shape)).astype(dtype)
    inputs[:, -3:] = 0  # padding, for texts
    variables = jax.jit(model.init)(jax.random.key(0), train.floats(jnp.asarray(inputs[:1])))
    variables = {k: v for k, v in variables.items() if k != "losses"}

    def function(arrays):
        outputs = model.apply(variables, train.floats(arrays["inputs"]))
        return {"doubled": 2 * outputs, "outputs": outputs}

    raw = data.Spec(shape, dtype, "")
    wanted = np.asarray(jax.jit(function)({"inputs": inputs})["outputs"])
    for to, write in FORMATS.items():
        content, loaded = write([function], raw)
        answer = loaded(content)
        for size in (1, 7, largest):
            found = answer(inputs[:size])
            for output, times in (("outputs", 1), ("doubled", 2)):
                near = 1e-5 * times * max(1, np.abs(wanted).max())  # logits may be large
                np.testing.assert_allclose(
                    found[output], times * wanted[:size], atol=near, rtol=0, err_msg=to
                )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, zoo):
    """Copies of runs of several kinds of data, to write beside."""
    place = tmp_path_factory.mktemp("runs")
    for name in ("digits", "texts", "table", "series"):
        shutil.copytree(zoo(name), place / name)
    shutil.copy(zoo("series").parent / "series.csv", place)
    return place


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def untrained(source, task, model, folder):
    """A Predictor of a model with its first weights, as of a run on these data."""
    dataset = source.load(lambda _: None)
    splits = data.make_splits(source, dataset, 0.2, 0)
    hparams = train.Hparams()
    recipe = bind_to_data(train.Recipe(model, TASKS[task]), hparams, splits)
    predictor = object.__new__(Predictor)
    vars(predictor).update(
        config=run.Config(recipe, data=source), encoder=splits.encoder, tta=0, folder=folder,
        calibration={}, experiment="none", log=lambda _: None,
        data={"sha256": dataset.checksum, "name": "synthetic", "weights_sha256": None},
        _state=init_on_devices(recipe, hparams, splits.train["inputs"][:1], 0, None),
    )  # fmt: skip
    return predictor


def write_table(file, seed, rows, more_levels=()):
    """Numbers of all offsets and scales, categories, missing values; the target is the last."""
    generator = np.random.default_rng([seed, rows])
    offsets = np.random.default_rng(seed).choice([0, -3, 1.7e9, 1.2e8, -4e12, 1e-9], 4)
    scales = np.random.default_rng(seed).choice([1, 600, 1e-6, 1e5, 1e-12], 4)
    columns = {}
    for i, (offset, scale) in enumerate(zip(offsets, scales, strict=True)):
        values = offset + scale * generator.normal(size=rows)
        missing = generator.random(rows) < (0.2 if i % 2 else 0)
        pairs = zip(values.tolist(), missing, strict=True)
        columns[f"x{i}"] = ["" if no else repr(v) for v, no in pairs]
    levels = ["red", "bläu", "10", "7.50", "a b", ""][seed % 3 :] + list(more_levels)
    columns["c"] = generator.choice(levels, rows).tolist()
    if seed % 2:
        days = [datetime(2019, 3, 1) + timedelta(int(d)) for d in generator.integers(0, 900, rows)]
        columns["day"] = [day.strftime("%d.%m.%Y") for day in days]
        words = generator.choice(["old", "new", "big", "far"], (rows, 3)).tolist()
        columns["remark"] = [f"{' '.join(some)} {i}" for i, some in enumerate(words)]
    numbers = (offsets[0] + 1e3 * generator.normal(size=rows)).tolist()
    columns["y"] = generator.choice(["up", "down"], rows).tolist() if seed % 4 == 0 else numbers
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([list(columns), *zip(*columns.values(), strict=True)])


def hashes(words):
    numbers = [0.0] * 64
    for code in (zlib.crc32(word.encode()) for word in words):
        numbers[code % 64] += 1 if code >> 31 else -1
    return [number / max(1, math.hypot(*numbers)) for number in numbers]


@pytest.mark.parametrize(
    "seed", [n if n < 5 else pytest.param(n, marks=pytest.mark.slow) for n in range(12)]
)
def test_any_row_of_any_table_gets_the_answer_of_predict(seed, tmp_path):
    """From the texts of a CSV file, by what FILE.json says alone."""
    write_table(tmp_path / "table.csv", seed, 60)
    write_table(tmp_path / "new.csv", seed, 15, ("never seen",))
    task = "regression" if seed % 4 else "classification"
    source = data.Table(data=tmp_path / "table.csv", num_bins=seed % 3 * 4, target="y")
    predictor = untrained(source, task, models.MLP((16,)), tmp_path)
    path = export.export(predictor, log=lambda _: None)
    about = json.loads(path.with_name("model.onnx.json").read_text(encoding="utf-8"))
    assert about["inputs"]["dtype"] == "float64" and about["difference"] < 1e-6
    with (tmp_path / "new.csv").open(newline="", encoding="utf-8") as new:
        given = list(csv.DictReader(new))

    def place(column, text):
        if column["type"] == "time":
            day = datetime.strptime(text, "%d.%m.%Y")
            days = (day - datetime(1970, 1, 1)).days
            return [days, day.year, day.month, day.weekday(), 0]
        if column["type"] == "text":
            return hashes(text.split())
        if not text:
            return [np.nan]
        levels = column.get("levels")
        return [float(text) if levels is None else 1 + levels.index(text) if text in levels else 0]

    rows = [sum((place(c, row[c["name"]]) for c in about["columns"]), []) for row in given]
    (found,) = session(path).run(None, {"inputs": np.float64(rows)})
    answers = [values for _, values in predictor.answers([str(tmp_path / "new.csv")])]
    if seed % 4 == 0:
        wanted, scale = [list(each["probabilities"].values()) for each in answers], 1.0
    else:
        wanted, scale = [each["values"] for each in answers], predictor.encoder.target.scale[0]
    np.testing.assert_allclose(found / scale, np.float64(wanted) / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("offset", "swing"), [(1.2e8, 4), (1.7e9, 1e-3), (0, 1e-9), (-5e11, 1e7)])
def test_any_window_of_any_series_gets_the_answer_of_predict(offset, swing, tmp_path):
    steps = np.arange(120)
    values = np.stack([
        offset + swing * np.sin(steps / 3 + np.random.default_rng(0).normal(size=120)),
        1.7e9 + 600 * (steps % 5),
    ], 1)  # fmt: skip
    lines = [f"{i},{y!r},{seen!r}" for i, (y, seen) in enumerate(values.tolist())]
    (tmp_path / "s.csv").write_text("\n".join(["t,y,seen", *lines]), encoding="utf-8")
    source = data.Series(
        data=tmp_path / "s.csv", target="y", past_covariates=("seen",), window=8, horizon=3
    )
    predictor = untrained(source, "forecast", models.MLP((16,)), tmp_path)
    path, scale = export.export(predictor, log=lambda _: None), predictor.encoder.target.scale
    (found,) = session(path).run(None, {"inputs": values[None, -8:]})
    ((_, wanted),) = predictor.answers([])
    np.testing.assert_allclose(found[0] / scale, np.divide(wanted["forecast"], scale), atol=1e-6)
    if abs(offset) > 1e6 * swing or offset > 1e8 - 1:
        with pytest.raises(InputError, match="takes? float32, which cannot hold .* --to onnx"):
            export.export(predictor, "stablehlo", log=lambda _: None)
        assert not list(tmp_path.glob("*.stablehlo*"))
    source.data.unlink()  # the run itself has the end of its series
    said = []
    export.export(predictor, log=said.append)
    assert "on 1 example of the run" in said[-1]


def test_images_of_any_mode_get_the_answer_of_predict(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(16):
        (folder := tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), "uint8")).save(folder / f"{i}.png")
    source = data.ImageFolder(data=tmp_path / "images", image_size=16)
    predictor = untrained(source, "classification", models.MLP((8,)), tmp_path)
    path = export.export(predictor, log=lambda _: None)
    files, pixels = [], []
    for mode in ("L", "RGB", "P", "1", "CMYK", "RGBA"):
        image = Image.fromarray(generator.integers(0, 256, (16, 16, 3), "uint8")).convert(mode)
        files.append(str(tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"))
        image.save(files[-1])
        pixels.append(np.asarray(Image.open(files[-1]).convert("RGB")))
    (found,) = session(path).run(None, {"inputs": np.stack(pixels)})
    wanted = [list(v["probabilities"].values()) for _, v in predictor.answers(files)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_table_whose_file_is_gone_is_tried_with_values_of_its_own_size(tmp_path):
    times = [[str(1_700_000_000 + 7 * i), str(i % 9)] for i in range(60)]
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["t", "y"], *times])
    source, said = data.Table(data=tmp_path / "table.csv", target_type="number"), []
    predictor = untrained(source, "regression", models.MLP((16,)), tmp_path)
    source.data.unlink()
    export.export(predictor, log=said.append)
    assert "on 64 random rows" in said[-1]
    with pytest.raises(InputError, match="float32, which cannot hold"):
        export.export(predictor, "stablehlo", log=said.append)


def test_pictures(runs):
    model = dlflax.load(runs / "digits", log=lambda _: None)
    said = []
    path = export.export(runs / "digits", "onnx", runs / "digits.onnx", said.append)
    assert path == runs / "digits.onnx"
    assert "largest difference from predict on 64 test examples" in said[-1]
    images = data.Images("digits").load(lambda _: None).test["inputs"][:50]
    (found,) = session(path).run(["probabilities"], {"inputs": images})
    wanted = [list(each["probabilities"].values()) for each in model.predict(images)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # calibrated as predict's
    about = json.loads((runs / "digits.onnx.json").read_text(encoding="utf-8"))
    assert about["classes"] == list("0123456789") and about["inputs"]["shape"] == ["n", 28, 28, 1]
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(properties["classes"]) == about["classes"] and about["temperature"] > 0


def test_texts(runs):
    model = dlflax.load(runs / "texts", log=lambda _: None)
    path = model.export()
    assert path == runs / "texts" / "model.onnx"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(runs / "texts" / "tokenizer.json"))
    tokens = np.zeros((1, *model.input_shape), np.int32)
    ids = tokenizer.encode("a good day").ids
    tokens[0, : len(ids)] = ids
    (found,) = session(path).run(None, {"inputs": tokens})
    (wanted,) = model.predict("a good day")
    assert found[0] == pytest.approx(list(wanted["probabilities"].values()), abs=1e-5)


def test_a_row_of_a_table(runs):
    said = []
    model = dlflax.load(runs / "table", log=said.append)
    path = model.export(file=runs / "row.onnx")
    assert "test examples" in said[-1]
    about = json.loads((runs / "row.onnx.json").read_text(encoding="utf-8"))
    levels = about["columns"][1]["levels"]
    (runs / "new.csv").write_text("a,colour\n0.5,red\n,green\n", encoding="utf-8")
    wanted = [each["values"][0] for each in model.predict(str(runs / "new.csv"))]
    rows = np.float64([[0.5, levels.index("red") + 1], [np.nan, 0]])
    (found,) = session(path).run(None, {"inputs": rows})
    assert found.ravel() == pytest.approx(wanted, rel=1e-5)


def test_a_window_of_a_series(runs):
    said = []
    model = dlflax.load(runs / "series", log=said.append)
    path = model.export(file=runs / "series.onnx")
    assert "test examples" in said[-1]  # and not random ones
    rows = [line.split(",") for line in (runs / "series.csv").read_text("utf-8").split()[1:]]
    raw = np.float64([[float(y), float(day)] for _, y, day in rows[-30:]])
    text = "\n".join(["t,y,day", *(",".join(r) for r in rows[-30:])])
    more = [f"{600 + i},,{(600 + i) % 7}" for i in range(7)]  # what is known beforehand
    (runs / "next.csv").write_text("\n".join([text, *more]), encoding="utf-8")
    (wanted,) = model.predict(str(runs / "next.csv"))
    later = np.float64([[0, (600 + i) % 7] for i in range(7)])
    window = np.concatenate([raw[-14:], later])[None]
    names = ["forecast", "low", "high"]
    for name, values in zip(names, session(path).run(names, {"inputs": window}), strict=True):
        assert values[0] == pytest.approx(wanted[name], abs=1e-4)


def test_stablehlo_runs_by_jax_alone(runs):
    path = export.export(runs / "digits", "stablehlo", runs / "digits.stablehlo", lambda _: None)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert {"cpu", "cuda", "tpu"} <= set(program.platforms)
    images = data.Images("digits").load(lambda _: None).test["inputs"][:5]
    found = np.asarray(program.call(images)["probabilities"])
    wanted = dlflax.load(runs / "digits", log=lambda _: None).predict(images)
    np.testing.assert_allclose(
        found, [list(each["probabilities"].values()) for each in wanted], atol=1e-5
    )


def test_the_file_needs_neither_jax_nor_this_package(runs, tmp_path):
    path = export.export(runs / "digits", "onnx", runs / "alone.onnx", lambda _: None)
    only = tmp_path / "packages"
    only.mkdir()
    for package in (onnxruntime, np):
        place = Path(package.__file__).parent
        (only / place.name).symlink_to(place)
        for libraries in place.parent.glob(f"{place.name}.libs"):
            (only / libraries.name).symlink_to(libraries)
    for name in ("flatbuffers", "packaging", "google", "coloredlogs", "humanfriendly"):
        if (place.parent / name).exists():
            (only / name).symlink_to(place.parent / name)
    script = (
        f"import sys; sys.path.append({str(only)!r}); import numpy, onnxruntime;"
        f"s = onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider']);"
        "p = s.run(None, {'inputs': numpy.zeros((3, 28, 28, 1), 'uint8')})[0];"
        "print(p.shape, abs(p.sum(1) - 1).max() < 1e-5, 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True
    )
    assert done.stdout.split("\n")[0] == "(3, 10) True False", done.stderr


def test_a_file_that_differs_is_not_written(runs, monkeypatch):
    monkeypatch.setattr(export, "_largest_difference", lambda *_: float("nan"))
    sentence = "is not written: largest difference from predict .* nan, .*: try --to onnx"
    with pytest.raises(InputError, match=sentence):
        export.export(runs / "digits", "stablehlo", runs / "wrong.stablehlo", lambda _: None)
    assert not list(runs.glob("*wrong*"))


def test_the_largest_difference_is_of_every_output_and_size():
    inputs = np.float64(np.arange(128).reshape(64, 2))
    wanted = {"small": inputs[:, :1] * 1e-3, "large": inputs * 1000.0 + 1e9}
    scales = {"small": np.float64([1.0]), "large": np.float64([1.0, 1000.0])}

    def differ(name, by, size):
        def answer(some):
            rows = some[:, 0].astype(int) // 2
            found = {k: v[rows].copy() for k, v in wanted.items()}
            found[name][-1] += by if len(some) == size else 0
            return found

        return export._largest_difference(wanted, scales, answer, inputs)

    assert differ("small", 0, 7) == 0
    assert differ("small", 1e-3, 7) == pytest.approx(1e-3)
    assert differ("large", np.float64([0, 2.0]), 64) == pytest.approx(2e-3)
    assert np.isnan(differ("large", np.nan, 1))


def test_data_that_are_gone_are_replaced_by_random_ones(runs, tmp_path):
    folder, said = tmp_path / "run", []
    shutil.copytree(runs / "texts", folder)
    saved = (folder / "config.json").read_text(encoding="utf-8")
    saved = saved.replace("notes.csv", "gone.csv")
    (folder / "config.json").write_text(saved, encoding="utf-8")
    export.export(folder, "stablehlo", tmp_path / "gone.stablehlo", said.append)
    assert "64 random inputs" in said[-1]


def test_bad_input_is_one_sentence(runs, tmp_path, monkeypatch, capsys):
    import jax2onnx

    def ended(*args):
        with pytest.raises(SystemExit) as stopped:
            with_exit_codes(lambda: command.command(*args))
        return stopped.value.code, capsys.readouterr().err

    assert ended(tmp_path / "none")[0] == 2
    code, said = ended(runs / "digits", "stablehlo", tmp_path / "no" / "folder" / "x")
    assert code == 2 and said.count("\n") == 1 and "cannot be written" in said

    def fails(*_, **__):
        raise NotImplementedError("no such primitive")

    monkeypatch.setattr(jax2onnx, "to_onnx", fails)
    code, said = ended(runs / "digits")
    assert code == 2 and "no such primitive): use --to stablehlo" in said
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    code, said = ended(runs / "digits")
    assert code == 2 and "pip install 'dlflax[export]'" in said
    with pytest.raises(InputError):
        dlflax.load(tmp_path / "none")
