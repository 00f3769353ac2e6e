"""A model as a file: ONNX and StableHLO say what the model says, for every architecture, with what
comes before and after the network in the file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import dlflax
from dlflax import data, models, train
from dlflax.errors import InputError, RunError
from dlflax.run import export
from dlflax.run.exit_codes import with_exit_codes
from experiments import export as command

pytestmark = pytest.mark.usefixtures("place")

PICTURES, TOKENS = ((28, 28, 1), "uint8"), ((12,), "int32")
RGB = ((32, 32, 3), "uint8")
CASES = {
    "mlp": (models.MLP((16,)), PICTURES),
    "cnn": (models.CNN(features=(4, 20), dense=(8,)), PICTURES),
    "cnn matmul": (models.CNN(formulation="matmul"), PICTURES),
    "lstm": (models.RNN(features=(8,)), PICTURES),
    "gru both ways": (
        models.RNN("gru", (8, 8), True, "max", vocabulary=50), TOKENS,
    ),
    "simple cell": (models.RNN("simple", (8,), pooling="mean", vocabulary=50), TOKENS),
    "transformer": (models.Transformer(depth=1, width=16), PICTURES),
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

    def function(inputs):
        outputs = model.apply(variables, train.floats(inputs))
        return {"doubled": 2 * outputs, "outputs": outputs}

    raw = data.Spec(shape, dtype, "")
    wanted = np.asarray(jax.jit(function)(inputs)["outputs"])
    for to, write in FORMATS.items():
        content, loaded = write(function, raw)
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


def test_pictures(runs):
    model = dlflax.load(runs / "digits", log=lambda _: None)
    said = []
    path = export.export(runs / "digits", "onnx", runs / "digits.onnx", said.append)
    assert path == runs / "digits.onnx"
    assert "largest difference from the model on 64 test examples" in said[-1]
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
    rows = np.float32([[0.5, levels.index("red") + 1], [np.nan, 0]])
    (found,) = session(path).run(None, {"inputs": rows})
    assert found.ravel() == pytest.approx(wanted, rel=1e-5)


def test_a_window_of_a_series(runs):
    said = []
    model = dlflax.load(runs / "series", log=said.append)
    path = model.export(file=runs / "series.onnx")
    assert "test examples" in said[-1]  # and not random ones
    rows = [line.split(",") for line in (runs / "series.csv").read_text("utf-8").split()[1:]]
    raw = np.float32([[y, day] for _, y, day in rows[-30:]])
    text = "\n".join(["t,y,day", *(",".join(r) for r in rows[-30:])])
    more = [f"{600 + i},,{(600 + i) % 7}" for i in range(7)]  # what is known beforehand
    (runs / "next.csv").write_text("\n".join([text, *more]), encoding="utf-8")
    (wanted,) = model.predict(str(runs / "next.csv"))
    later = np.float32([[0, (600 + i) % 7] for i in range(7)])
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
    with pytest.raises(RunError, match="is not written: largest difference"):
        export.export(runs / "digits", "stablehlo", runs / "wrong.stablehlo", lambda _: None)
    assert not list(runs.glob("*wrong*"))


def test_the_largest_difference_is_of_every_output_and_size():
    def function(inputs):
        return {"small": inputs[:, :1] * 1e-3, "large": inputs * 1000.0}

    inputs = np.float32(np.arange(128).reshape(64, 2))

    def wrong(name, by, size):
        def answer(some):
            found = {k: np.array(v) for k, v in function(jnp.asarray(some)).items()}
            found[name][-1] += by if len(some) == size else 0
            return found

        return answer

    differ = export._largest_difference
    assert differ(function, wrong("small", 0, 7), inputs) == 0
    assert differ(function, wrong("small", 1e-3, 7), inputs) == pytest.approx(1e-3, rel=1e-3)
    assert differ(function, wrong("large", 127.0, 64), inputs) == pytest.approx(1e-3, rel=1e-3)
    assert np.isnan(differ(function, wrong("large", np.nan, 1), inputs))


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
