"""An experiment of one's own, in a file outside of the repository: the text of the docs as it
stands, through every command, in real processes; another that replaces the training step."""

import base64
import csv
import importlib
import importlib.util
import json
import os
import py_compile
import re
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dlflax
import experiments
from dlflax import run, train
from dlflax.config.experiment import from_presets, from_run_folder
from dlflax.config.saved import load_encoder
from dlflax.config.serialize import is_own
from dlflax.data import Examples, make_splits
from dlflax.errors import InputError
from dlflax.inference.predict import Predictor
from dlflax.testing import SourceSuite, TaskSuite
from dlflax.train import population
from dlflax.train.check import bind_to_data
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.checkpoint_files import MANIFEST
from dlflax.train.layout import Layout
from dlflax.train.population import Population
from dlflax.train.recipe import init_on_devices

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_own_experiment.md").read_text(encoding="utf-8")
_, RINGS, SAM = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NNX, SUITES = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
OWN_DATA = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
(SOUNDS,) = re.findall(r"```python\n(.*?)```", OWN_DATA, re.DOTALL)
(NEIGHBOURS,) = re.findall(r"```python\n(.*?)```", METRICS, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with rings.py, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rings.py").write_text(RINGS)
    np.save(tmp_path / "points.npy", np.float32([[0.9, 0.1], [2, 0]]))
    return tmp_path


def start(place, *args):
    """Starts `python ARGS`, without figures but for those of a sweep's report."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if "sweeps.report" not in args:
        args = [ROOT / "tests" / "plain.py", *args[args[0] == "-m" :]]
    return subprocess.Popen(
        [sys.executable, *args], cwd=place, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ran(place, *args, code=0):
    """What a command prints, which must end with this exit code."""
    process = start(place, *args)
    out, err = process.communicate()
    assert process.returncode == code and "Traceback" not in err, err
    return out if code == 0 else err


def parameters(folder, experiment):
    saved = run.load_config(folder)
    config = run.config_from_json(saved["config"], folder, experiment)
    inputs = load_encoder(folder, experiment).batch(np.zeros((1, 2), np.float32))["inputs"]
    abstract = train.abstract(config.recipe, config.hparams, inputs)
    checkpoints = Checkpoints(folder / "checkpoints", config.recipe.task)
    return jax.tree.leaves(checkpoints.restore_last(abstract).state.params)


def test_the_files_are_short():
    assert len(RINGS.splitlines()) <= 60 and len(NEIGHBOURS.splitlines()) <= 70
    assert len(SOUNDS.splitlines()) <= 90 and max(map(len, SOUNDS.splitlines())) <= 100


@pytest.mark.slow
def test_the_suites_of_the_page(place):
    (place / "test_rings.py").write_text(SUITES)
    out = ran(place, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_rings.py")
    assert re.search(r"(?m)^2\d passed", out), out


@pytest.mark.slow
def test_train_kill_resume_sweep_continue_predict_compare(place):
    flags = ["--epochs", "30", "--batch-size", "4", "--hparams.gamma", "1.5", "--hparams.dropout"]
    flags += ["0.1", "--baseline", "none"]
    ran(place, "rings.py", *flags, "--run-dir", "whole")
    process = start(place, "rings.py", *flags, "--run-dir", "killed")
    while len(list((place / "killed").glob(f"checkpoints/*/{MANIFEST}"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (place / "killed" / "results.json").exists()
    out = ran(place, "rings.py", "--run-dir", "killed", "--resume")
    assert "resuming after epoch" in out and "changed" not in out
    experiment = run.find("rings.py", experiments)
    for a, b in zip(*(parameters(place / n, experiment) for n in ("whole", "killed")), strict=True):
        np.testing.assert_array_equal(a, b)
    whole, killed = (
        json.loads((place / name / "results.json").read_text()) for name in ("whole", "killed")
    )
    assert whole["test"] == killed["test"] and whole["task"] == "Rings"
    assert whole["test"]["accuracy"] > 0.9 and whole["hparams"]["gamma"] == 1.5

    saved = json.loads((place / "whole" / "config.json").read_text())
    assert saved["defined_in"]["file"] == str(place / "rings.py")
    assert saved["config"]["recipe"]["model"]["class"] == "rings:Net"
    assert saved["config"]["recipe"]["optimizer"] == {"function": "rings:adopt"}

    predict = ["-m", "experiments.predict", "whole", "points.npy"]
    named = ["--experiment", "rings.py"]
    answers = ran(place, *predict, *named).splitlines()
    assert [re.sub(r" \(.*", "", line) for line in answers] == [
        "points.npy[0]: inner", "points.npy[1]: outer"
    ]  # fmt: skip

    # a sweep over a number of one's own, and more trials of it
    sweep = ["-m", "sweeps.random_search", "rings.py", "--run-dir", "sweep", "--epochs", "3"]
    sweep += ["--space.learning-rate", "0.01", "--population-size", "4", "--baseline", "none"]
    sweep += ["--trials"]
    assert "1 structure: 1 compile" in ran(place, *sweep, "4")
    results = json.loads((place / "sweep" / "results.json").read_text())
    assert results["traces"] == 1 and list(results["best"]["hparams"]) == ["gamma"]
    with open(place / "sweep" / "trials.csv") as file:
        before = list(csv.DictReader(file))
    assert "continuing after 4 recorded trials" in ran(place, *sweep, "6")
    with open(place / "sweep" / "trials.csv") as file:
        after = list(csv.DictReader(file))
    assert after[:4] == before and len(after) == 6
    assert "gamma" in before[0] and results["objective"] == "val_accuracy"
    ran(place, "-m", "experiments.predict", "sweep", "points.npy", *named)
    assert results["commands"]["predict"].endswith(f"INPUT... --experiment {place / 'rings.py'}")
    ran(place, "-m", "experiments.export", "sweep", "--to", "stablehlo", *named)
    ran(place, "-m", "sweeps.report", "sweep")  # a table and figures: of no class

    out = ran(place, "-m", "experiments.compare", "rings.py", "--epochs", "2", "--run-dir", "table")
    assert "test accuracy" in out and (place / "table" / "comparison.csv").exists()

    # another file under the same name, and a run whose experiment is not named
    (place / "rings.py").write_text(RINGS.replace("width: int = 32", "width: int = 32  # as it is"))
    assert "has changed since" in ran(place, "rings.py", "--run-dir", "killed", "--resume")
    assert ran(place, *predict, *named).splitlines() == answers
    for command in ("predict", "export", "serve"):
        err = ran(place, "-m", f"experiments.{command}", "whole", code=2)
        assert NOT_NAMED in err and f"add --experiment {place / 'rings.py'} (in Python" in err
    (place / "other.py").write_text(RINGS.replace("Net", "Other"))
    err = ran(place, "other.py", "--run-dir", "whole", "--resume", code=2)
    assert "names rings:Net" in err and "to resume, python FILE --resume" in err


SAM_EXPERIMENT = (
    "import flax\nfrom dlflax import run\nfrom dlflax.data import Images, make_splits\n"
    "from dlflax.models import MLP\nfrom dlflax.train import Hparams, Recipe, number\n"
    + SAM
    + """
@flax.struct.dataclass
class MyHparams(Hparams):
    rho: float = number(0.05, at_least=0)

RECIPE = Recipe(MLP((16,)), step=sam)
PRESETS = {"default": run.Config(RECIPE, MyHparams(), Images("digits"), epochs=2)}
SPACE = {"rho": ("0", "0.1", "0.3")}
"""
)


def test_a_step_of_ones_own_alone_and_as_a_lane(place):
    """With radius 0 it is the shipped step; with another it is not, and a lane equals it alone."""
    (place / "my_sam.py").write_text(SAM_EXPERIMENT)
    experiment = run.find("my_sam.py", experiments)
    config = experiment.presets["default"]
    splits = make_splits(config.data, config.data.load(print), 0.1, 0)
    data = splits.train, splits.val
    plain = train.Recipe(config.recipe.model)
    losses = {
        rho: [row["val_loss"] for row in train.fit(
            config.recipe, config.hparams.replace(rho=rho), *data, epochs=2, seed=3).history]
        for rho in (0.0, 0.3)
    }  # fmt: skip
    expected = train.fit(plain, config.hparams, *data, epochs=2, seed=3).history
    np.testing.assert_allclose(losses[0.0], [row["val_loss"] for row in expected], rtol=1e-5)
    assert abs(losses[0.3][-1] - losses[0.0][-1]) > 1e-3

    population.train_epoch.clear_cache()
    before = population.traces
    trials = Population(
        config.recipe, [config.hparams.replace(rho=rho) for rho in losses],
        np.full((2, 1), 3, np.uint32), *data, epochs=2, layout=Layout("vmap", 2, 2),
    )  # fmt: skip
    trials.train(2)
    for (history,), alone in zip(trials.histories, losses.values(), strict=True):
        np.testing.assert_allclose([row["val_loss"] for row in history], alone, rtol=1e-4)
    assert population.traces == before + 1


def neighbours(place):
    """The page's module, imported from its file."""
    (place / "neighbours.py").write_text(NEIGHBOURS)
    return run.find("neighbours.py", experiments)


class TestNeighbours(TaskSuite):
    """A loss over the batch, and a metric of all examples."""

    loss_is_per_example = False

    @pytest.fixture
    def job(self, place):
        config = neighbours(place).presets["default"]
        return config.recipe.task, config.recipe.model, config.data


def test_metric_learning(place, capsys):
    """It learns, by a metric that decides the best epoch and a sweep."""
    experiment = neighbours(place)
    run.main("neighbours.py", experiment.presets, args=["--epochs", "3", "--run-dir", "first"])
    results = json.loads((place / "first" / "results.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((place / "first" / "metrics.csv").read_text("utf-8").splitlines()))
    values = [float(row["val_recall@1"]) for row in rows]
    assert results["best_epoch"] == 1 + np.argmax(values)
    assert results["val"]["recall@1"] == max(values) and results["test"]["recall@1"] > 0.9
    predictor = Predictor("first", experiments, "neighbours.py")
    inputs = np.zeros((1, 28, 28, 1), np.uint8)
    ((_, answer),) = predictor.answer_examples(Examples({"inputs": inputs}), draw=False)
    assert np.linalg.norm(answer["embedding"]) == pytest.approx(1)


@pytest.mark.slow
def test_metric_learning_is_swept(place):
    (place / "neighbours.py").write_text(NEIGHBOURS)
    ran(place, "-m", "sweeps.random_search", "neighbours.py", "--trials", "4", "--epochs", "2",
        "--run-dir", "swept", "--baseline", "none")  # fmt: skip
    trials = list(csv.DictReader((place / "swept" / "trials.csv").read_text("utf-8").splitlines()))
    values = [float(trial["val_recall@1"]) for trial in trials]
    found = json.loads((place / "swept" / "results.json").read_text(encoding="utf-8"))
    assert len(values) == 4 and max(values) > 0.8
    assert found["best"]["value"] == max(values)


def nnx_rings(place):
    """rings.py with the page's NNX module as its model."""
    start, end = RINGS.index("class Net("), RINGS.index("def focal_loss")
    (place / "nnx_rings.py").write_text(RINGS[:start] + NNX + "\n\n" + RINGS[end:])
    return run.find("nnx_rings.py", experiments)


def test_an_nnx_module_is_a_model(place, capsys):
    """BatchNorm and dropout train; resumed to the bit; as members; predicted and exported."""
    experiment = nnx_rings(place)
    flags = ["--model.width", "16", "--batch-size", "8", "--val-split", "0.25"]
    for folder, epochs in (("whole", "6"), ("parts", "4")):
        run.main("nnx_rings.py", experiment.presets,
                 args=[*flags, "--epochs", epochs, "--run-dir", folder])  # fmt: skip
    run.main("nnx_rings.py", experiment.presets,
             args=["--epochs", "6", "--run-dir", "parts", "--resume"])  # fmt: skip
    results = [json.loads((place / f / "results.json").read_text()) for f in ("whole", "parts")]
    assert results[0]["test"] == results[1]["test"] and results[0]["test"]["accuracy"] > 0.8
    model = dlflax.load("whole", experiment="nnx_rings.py")
    points = np.load("points.npy")
    assert [answer["class"] for answer in model.predict(points)] == ["inner", "outer"]
    first, again = (model.predict(points)[0]["probability"] for _ in range(2))
    assert first == again  # dropout and batch statistics are those of an evaluation
    file = model.export("stablehlo")
    assert file.exists() and "largest difference" in capsys.readouterr().out

    config = experiment.presets["default"]
    splits = make_splits(config.data, config.data.load(print), 0.25, 0)
    recipe = bind_to_data(config.recipe, config.hparams, splits)
    alone = train.fit(recipe, config.hparams, splits.train, splits.val, epochs=2)
    start = init_on_devices(recipe, config.hparams, splits.train["inputs"][:1], 0, None)
    for old, new in zip(jax.tree.leaves(start.collections),
                        jax.tree.leaves(alone.state.collections), strict=True):  # fmt: skip
        assert np.any(old != new)
    members = Population(recipe, [config.hparams] * 2, [[0]] * 2, splits.train, splits.val,
                         epochs=2, layout=Layout("vmap", 2, 2))  # fmt: skip
    members.train(2)
    for name in ("train_loss", "val_loss"):
        together = [row[name] for row in members.histories[1][0]]
        np.testing.assert_allclose(together, [row[name] for row in alone.history], rtol=1e-4)


@pytest.mark.slow
def test_an_nnx_module_is_swept(place):
    nnx_rings(place)
    ran(place, "-m", "sweeps.random_search", "nnx_rings.py", "--trials", "4", "--epochs", "2",
        "--run-dir", "swept", "--space.model.width", "8", "16")  # fmt: skip
    found = json.loads((place / "swept" / "results.json").read_text(encoding="utf-8"))
    assert found["best"]["hparams"]["model.width"] in (8, 16)


def write_sounds(folder, seed, count=25):
    """WAV files of low and of high tones, with noise, of different lengths."""
    rng = np.random.default_rng(seed)
    for name, frequency in (("low", 300), ("high", 1500)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            time_of = np.arange(3000 + rng.integers(0, 2000)) / 8000
            tone = np.sin(2 * np.pi * frequency * (1 + 0.2 * rng.normal()) * time_of)
            values = np.int16(8000 * (tone + 0.3 * rng.normal(size=len(time_of))))
            with wave.open(str(folder / name / f"{i}.wav"), "wb") as file:
                file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
                file.writeframes(values.tobytes())


@pytest.fixture
def sounds(place):
    """The page's experiment, and its data."""
    (place / "sounds.py").write_text(SOUNDS)
    write_sounds(place / "sounds", 0, 50)
    write_sounds(place / "new", 1, 4)
    return run.find("sounds.py", experiments)


class TestSounds(SourceSuite):
    @pytest.fixture
    def source(self, sounds):
        return sounds.presets["default"].data

    def user_input(self, source, splits, folder):
        return splits.examples["test"].names[0]


def test_a_kind_of_data_of_ones_own(sounds, place, capsys):
    """It trains, predicts a folder, evaluates a labelled one, is exported and served."""
    from starlette.testclient import TestClient

    from dlflax.inference import serve

    run.main("sounds.py", sounds.presets, args=["--run-dir", "r"])
    results = json.loads((place / "r" / "results.json").read_text(encoding="utf-8"))
    assert results["test"]["accuracy"] > 0.9
    model = dlflax.load("r", experiment="sounds.py", log=lambda _: None)
    assert model.class_names == ("high", "low")
    answers = model.predict("new")
    assert [Path(answer["sound"]).parent.name for answer in answers] == ["high"] * 4 + ["low"] * 4
    right = [answer["class"] == Path(answer["sound"]).parent.name for answer in answers]
    assert model.evaluate("new")["accuracy"] == pytest.approx(np.mean(right))
    file = model.export("stablehlo")
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    encoder = load_encoder(place / "r", sounds)
    waves = encoder.raw(encoder.parse_with_targets(place / "new"))
    exported = np.asarray(program.call(waves)["probabilities"])
    said = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(exported, said, atol=1e-5)
    content = (place / "new" / "low" / "0.wav").read_bytes()
    predictor = Predictor("r", experiments, "sounds.py", log=lambda _: None)
    with TestClient(serve.app(predictor), base_url="http://localhost") as client:
        card = client.get("/card").json()
        assert card["takes"] == "sounds" and card["media"] == ["audio/*"]
        sent = client.post("/predict", content=content, headers={"content-type": "audio/wav"})
        listed = client.post("/predict", json={"sounds": [base64.b64encode(content).decode()] * 2})
        wrong = client.post("/predict", content=b"x", headers={"content-type": "audio/wav"})
    (answer,) = sent.json()["answers"]
    assert answer["probabilities"] == pytest.approx(answers[4]["probabilities"], abs=1e-5)
    assert len(listed.json()["answers"]) == 2
    assert wrong.status_code == 422 and "no WAV file" in wrong.json()["error"]
    with pytest.raises(InputError, match="nowhere.wav is no file"):
        model.predict("nowhere.wav")


@pytest.mark.slow
def test_a_kind_of_data_of_ones_own_by_commands(sounds, place, browser):
    """Killed, resumed to the same bits, swept, predicted from a folder, asked on its page."""
    flags = ["--epochs", "30", "--batch-size", "2", "--baseline", "none"]
    ran(place, "sounds.py", *flags, "--run-dir", "whole")
    process = start(place, "sounds.py", *flags, "--run-dir", "killed")
    while len(list((place / "killed").glob(f"checkpoints/*/{MANIFEST}"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ran(place, "sounds.py", "--run-dir", "killed", "--resume")
    tests = [json.loads((place / f / "results.json").read_text())["test"]
             for f in ("whole", "killed")]  # fmt: skip
    assert tests[0] == tests[1]
    ran(place, "-m", "sweeps.random_search", "sounds.py", "--trials", "4", "--epochs", "2",
        "--run-dir", "swept", "--baseline", "none")  # fmt: skip
    out = ran(place, "-m", "experiments.predict", "swept", "new", "--experiment", "sounds.py")
    assert len(out.splitlines()) == 8
    process = start(place, "-m", "experiments.serve", "whole", "--port", "0", "--experiment",
                    "sounds.py")  # fmt: skip
    try:
        address = next(re.search(r"http://\S+", line) for line in process.stdout if "http" in line)
        page = browser.new_page()
        page.goto(address[0])
        page.set_input_files("#file", place / "new" / "low" / "0.wav")
        page.wait_for_selector("#answer")
        assert page.inner_text("#answer") in ("low", "high")
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.slow
def test_a_module_is_an_experiment_too(place, monkeypatch):
    (place / "my_package").mkdir()
    (place / "my_package" / "__init__.py").touch()
    (place / "my_package" / "rings.py").write_text(RINGS)
    monkeypatch.syspath_prepend(place)
    out = ran(place, "-m", "sweeps.grid_search", "my_package.rings", "--epochs", "1",
              "--space.gamma", "0", "2", "--space.dropout", "--space.l2", "--space.learning-rate",
              "0.01", "--run-dir", "grid")  # fmt: skip
    assert "2 trials of 1 epoch" in out
    assert "my_package.rings:Net" in (place / "grid" / "best" / "config.json").read_text()
    named = ["--experiment", "my_package.rings"]
    out = ran(place, "-m", "experiments.predict", "grid", "points.npy", *named)
    assert "points.npy[0]" in out
    err = ran(place, "-m", "experiments.predict", "grid", "points.npy", code=2)
    assert NOT_NAMED in err and "add --experiment my_package.rings (in Python" in err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import nothing_like_this", "line 1: ModuleNotFoundError: No module named"),
        ("x = 1\nx = (", "line 2: SyntaxError"),
        ("PRESETS = {}", 'it needs PRESETS = {"default": run.Config'),
        ("x = 1", 'it needs PRESETS = {"default": run.Config'),
        (None, "does not exist: give the .py file of an experiment"),
    ],
)
def test_a_file_that_is_no_experiment(place, text, sentence):
    if text is not None:
        (place / "broken.py").write_text(text)
    with pytest.raises(InputError) as error:
        run.find("broken.py", experiments)
    assert sentence in str(error.value) and "broken" in str(error.value)


EVIL = """
from pathlib import Path
Path(r"{mark}").touch()
import dataclasses

@dataclasses.dataclass(frozen=True)
class Adam:
    b1: float = 0.9
    def __post_init__(self):
        Path(r"{mark}").touch()
    def __call__(self, learning_rate, hparams):
        Path(r"{mark}").touch()

def loss(outputs, batch, hparams):
    Path(r"{mark}").touch()

PRESETS = {{}}
"""


@pytest.fixture
def strangers(place, monkeypatch):
    """A finished run, and a function that swaps what its config.json names at one place; `evil` is
    a module that Python can import, in the run's folder and beside it, alone and in packages."""
    # a process of pytest-xdist has no file, as a notebook
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "pytest", raising=False)
    ran(place, "rings.py", "--epochs", "1", "--run-dir", "given", "--baseline", "none")
    records = (place / "cache").rglob("*.json")
    assert not any("rings" in path.read_text() for path in records)  # of what ran here
    mark, evil = place / "mark", EVIL.format(mark=place / "mark")
    for name in ("evil", "pack/__init__", "pack/evil", "given/evil", "given/pack/__init__"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / f"{name}.py").write_text(evil)
    monkeypatch.syspath_prepend(place)
    path, encoder = place / "given" / "config.json", place / "given" / "encoder.json"
    saved, saved_encoder = json.loads(path.read_text()), encoder.read_text()

    def answer(change, named="rings.py", encoder_class=None):
        config = json.loads(json.dumps(saved))
        change(config)
        path.write_text(json.dumps(config))
        encoder.write_text(json.dumps({"class": encoder_class}) if encoder_class else saved_encoder)
        before = {*sys.modules}
        with pytest.raises(InputError) as error:
            Predictor(place / "given", experiments, named, lambda _: None).answers(["points.npy"])
        assert not mark.exists(), "a stranger's code ran"
        added = {name for name in {*sys.modules} - before if not is_own(name)}
        assert added <= {"experiment_file_rings"}, added
        assert "\n" not in str(error.value)
        return str(error.value)

    return answer


def put(place, value):
    """A change of one place of config.json: ("recipe", "optimizer")."""

    def change(saved):
        at = saved["config"]
        for name in place[:-1]:
            at = at[name]
        at[place[-1]] = value

    return change


PLACES = [
    ("recipe", "model"), ("recipe", "task"), ("recipe", "task", "loss"), ("recipe", "optimizer"),
    ("recipe", "schedule"), ("recipe", "step"), ("hparams",), ("data",),
]  # fmt: skip
NOT_NAMED = "code outside of dlflax, which runs only if you name an experiment that defines or "


def test_a_strangers_folder_chooses_no_code(strangers, place):
    names = [
        "evil:Adam", "os:system", "builtins:eval", "subprocess:Popen", "antigravity:x",
        "shutil:rmtree", "pathlib:Path", "dataclasses:Field", "pack:Adam", "pack.evil:Adam",
        "pack.__init__:Adam", "given.evil:Adam", ".evil:Adam", "..evil:Adam", "evil.:Adam",
        "./evil:Adam", "evil.py:Adam", f"{place}/evil:Adam", f"{place}/evil.py:Adam",
        "experiment_file_evil:Adam", "__main__:Adam", "sys.modules:Adam", "rings.evil:Adam",
        "numpy:save", "optax:adam", "flax.linen.module:nowrap", "jax:jit", "runpy:run_path",
        "dlflax\0:x", " dlflax.run:main", "DLFLAX.run:main", "sweeps.bayes_opt:experiments",
    ]  # fmt: skip
    for where in PLACES:
        for name in names:
            for key in ("class", "function"):
                assert NOT_NAMED in strangers(put(where, {key: name, "b1": 0.5})), (where, name)
    for name in names:
        assert NOT_NAMED in strangers(lambda saved: None, encoder_class=name)
        members = {"class": "dlflax.train:Ensemble", "members": [{"class": name}]}
        assert NOT_NAMED in strangers(put(("recipe", "model"), members))
    # of dlflax, but of another kind than the place wants
    for where, name, key in [
        (("recipe", "model"), "dlflax.train:Adam", "class"),
        (("recipe", "optimizer"), "dlflax.models:MLP", "class"),
        (("recipe", "optimizer"), "dlflax.run:main", "function"),
        (("recipe", "step"), "dlflax.run:find", "function"),
        (("recipe", "task"), "dlflax.data:Images", "class"),
        (("recipe", "task", "loss"), "dlflax.cache:cache_folder", "function"),
        (("hparams",), "dlflax.train:State", "class"),
        (("data",), "dlflax.transfer:Transfer", "class"),
        (("data",), "dlflax.files:write_json", "function"),
        (("recipe", "optimizer"), "dlflax.config.run_folder:write_files", "function"),
        (("recipe", "step"), "dlflax.train.checkpoint_files:write", "function"),
        (("recipe", "model"), "rings:Rings", "class"),
        (("recipe", "optimizer"), "rings:rings", "class"),
    ]:
        assert "nothing was called" in strangers(put(where, {key: name})), (where, name)
    # reached through a module that is trusted, and defined elsewhere
    for name in [
        "dlflax.files:os.execvp", "dlflax.files:os", "dlflax.files:Path", "dlflax.files:Path.touch",
        "dlflax.files:read_bytes.__globals__", "dlflax.config.experiment:importlib.import_module",
        "dlflax.config.saved:Config.__init__.__globals__", "dlflax.data:ImageFolder.__class__",
        "experiments.mnist:run.main", "rings:np.save", "rings:Classification", "rings:dataclasses",
        "rings:MyHparams.replace", "rings:Rings.check", "rings:train.step", "rings:RECIPE",
        "rings:", "rings:Net.__init_subclass__", "rings\n:x", "rings:a\n", "jax.numpy:save",
        "flax.linen:nowrap",
    ]:  # fmt: skip
        for where in PLACES:
            for key in ("class", "function"):
                sentence = strangers(put(where, {key: name}))
                assert "nothing was called" not in sentence, (where, name)
    for name in (
        "dlflax.evil:x", "dlflax..evil:x", "dlflax.run.:x", "dlflax.a\0b:x", "dlflax./evil:x",
        "experiments.evil:Adam", "experiments.mnist.evil:Adam", "experiments.:x",
        f"dlflax.{'a' * 5000}:x", f"experiments.{place}/evil:Adam",
    ):  # fmt: skip
        sentence = strangers(put(("recipe", "optimizer"), {"class": name}))
        assert "cannot be imported" in sentence, name
    for value in (None, 3, "os:system", [], {"class": "CNN"}, {"class": ":x"}, {"class": None}):
        strangers(put(("recipe", "optimizer"), value))
    for change in (
        lambda saved: saved.update(defined_in={"module": "evil"}),
        lambda saved: saved.update(defined_in={"file": str(place / "given" / "evil.py")}),
        lambda saved: saved.update(defined_in={"file": str(place / "evil.py"), "sha256": "0"}),
        lambda saved: saved["defined_in"].update(file=str(place / "evil.py")),
        lambda saved: saved["defined_in"].update(file="evil.py"),
        lambda saved: saved["defined_in"].update(file=f"{place}/given/../rings.py"),
        lambda saved: saved["defined_in"].update(file="a\0b\n" + "x" * 5000),
        lambda saved: saved.update(defined_in={"module": "evil.rings"}),
        lambda saved: saved.update(defined_in={"module": "os"}),
    ):
        assert NOT_NAMED in strangers(change, named=None)
    change = {"file": f"{place}/given/x; touch {place}/mark #.py"}
    quoted = f"--experiment '{place}/given/x; touch {place}/mark #.py' (in"  # nor when it is pasted
    assert quoted in strangers(lambda saved: saved.update(defined_in=change), named=None)
    for saved_as in ("experiments.evil", "dlflax.evil"):
        change = {"module": saved_as}
        sentence = strangers(lambda saved, change=change: saved.update(defined_in=change), None)
        assert f"names the module {saved_as}, which cannot be imported" in sentence


def test_a_folder_that_shadows_the_shipped_experiments(place, monkeypatch):
    (place / "experiments").mkdir()
    for name in ("__init__", "mnist", "evil"):
        (place / "experiments" / f"{name}.py").write_text(EVIL.format(mark=place / "mark"))
    monkeypatch.syspath_prepend(place)
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    assert not is_own("experiments.mnist") and is_own("dlflax.run")
    saved = {"experiment": "mnist", "defined_in": {"module": "experiments.mnist"}}
    experiment = from_run_folder(saved, place, None, None, print)
    for name in ("experiments.mnist:Adam", "experiments.evil:Adam", "experiments:Adam"):
        with pytest.raises(InputError, match=f"names {name}, {NOT_NAMED}"):
            experiment.resolve(name, place / "config.json")
    assert not (place / "mark").exists() and "experiments" not in sys.modules


USER_MODULES = {
    "nets.py": "import dataclasses, os, shutil, subprocess\n"
    "@dataclasses.dataclass(frozen=True)\nclass Used:\n    def __call__(self, r, h): return r\n",
    "tools.py": "from nets import *\ndef adopt(rate, hparams): return rate\n",
    "pairs/__init__.py": "from pairs.source import Pairs\n",
    "pairs/encoder.py": "class Encoder: pass\n",
    "pairs/source.py": "from pairs.encoder import Encoder\nfrom dlflax.data import Images\n"
    "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Pairs(Images): pass\n",
    "unrelated.py": "class Unrelated: pass\n",
    "mine.py": "import os, subprocess, shutil, optax, numpy as np, flax.linen as nn, tools\n"
    "from dlflax import models, run, train\nfrom nets import Used\nfrom pairs import Pairs\n"
    "RECIPE = train.Recipe(models.MLP((4,)), optimizer=Used())\n"
    "PRESETS = {'default': run.Config(RECIPE, train.Hparams(), Pairs('digits'))}\n",
}


@pytest.mark.parametrize("name", ["mine.py", "mine", "{place}/mine.py"])
def test_a_named_experiment_and_what_it_imports(place, monkeypatch, name):
    """Modules that it imports itself, and those of its presets; no library, and nothing else that
    happens to be loaded."""
    # a process of pytest-xdist has no file, as a notebook
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "pytest", raising=False)
    for file, text in USER_MODULES.items():
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_text(text)
    monkeypatch.syspath_prepend(place)
    for module in ("nets", "tools", "pairs", "pairs.source", "pairs.encoder", "mine", "unrelated"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.import_module("unrelated")
    saved = {"experiment": "x", "defined_in": {"file": str(place / "moved.py")}}

    def resolve(reference, **options):
        return experiment.resolve(reference, place / "config.json", **options)

    experiment = from_run_folder(saved, place, None, None, print)
    for reference in ("mine:Used", "nets:Used", "unrelated:Unrelated"):
        with pytest.raises(InputError, match=f"{NOT_NAMED}.*add --experiment {place}/moved.py"):
            resolve(reference)
    assert "nets" not in sys.modules
    experiment = from_run_folder(saved, place, name.format(place=place), None, print)
    for reference in ("nets:Used", "tools:adopt", "pairs.source:Pairs", "pairs.encoder:Encoder"):
        assert resolve(reference).__name__ == reference.partition(":")[2]
    for reference in (
        "os:system", "posix:system", "subprocess:Popen", "subprocess:run", "shutil:rmtree",
        "builtins:exec", "optax:adam", "optax._src.alias:adam", "flax.linen.module:nowrap",
        "jax:jit", "numpy:save", "numpy:set_printoptions", "pytest:main", "unrelated:Unrelated",
        "__main__:x", "pairs:Pairs",
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{NOT_NAMED}.*add --experiment FILE"):
            resolve(reference)
    for reference in (
        "tools:Used", "tools:nets.Used", "nets:os.system", "nets:os",
        "nets:dataclasses.make_dataclass", "nets:Used.__init__.__globals__",
    ):  # fmt: skip
        with pytest.raises(InputError, match="and that module defines no"):
            resolve(reference)
    assert resolve("optax:adam", libraries=True) is optax.adam


@pytest.mark.slow
def test_a_file_that_is_named_is_run_as_it_is(strangers, place, monkeypatch):
    """Its own bytes decide, not what Python has compiled of it; a change of it is noted."""
    ours, evil = place / "rings.py", (place / "evil.py").read_bytes()
    monkeypatch.syspath_prepend(place / "given")  # as where `python -m` is called in that folder
    said = []

    def answer(experiment="rings.py"):
        said.clear()
        return dlflax.load("given", said.append, experiment=experiment).predict("points.npy")

    expected = answer()
    assert not said
    poisoned = importlib.util.cache_from_source(str(ours))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(place / "evil.py"), poisoned, invalidation_mode=mode)
    sys.modules.pop("experiment_file_rings")
    assert answer() == expected and not (place / "mark").exists() and not said

    # moved and edited
    (place / "mine").mkdir()
    (place / "mine" / "helper.py").write_text("WIDTH = 32\n")
    (place / "given" / "helper.py").write_bytes(evil)
    other = place / "mine" / "rings.py"
    other.write_text(f"from helper import *\n{RINGS}".replace("= 32", "= WIDTH"))
    ours.unlink()
    assert NOT_NAMED in strangers(lambda saved: None, None)
    assert "rings.py does not exist" in strangers(lambda saved: None)
    for _ in range(2):  # named once, and not named again
        assert answer(str(other)) == expected and not (place / "mark").exists()
        assert said == [f"note: {other} has changed since the run began: the result may differ"]
        assert NOT_NAMED in strangers(lambda saved: None, None)


LOAD = "dlflax.load('runs/own', lambda _: None, {}).predict('points.npy')[0]['class']"
SCRIPT = f"{RINGS.replace('PRESETS', 'presets')}    import dlflax\n    print({LOAD.format(0)})\n"
SHOW = f"import dlflax, sys\nprint({LOAD.format('0, *sys.argv[1:]')})\n"


@pytest.mark.slow
def test_the_running_script_is_named(place):
    """A script loads its own run, whatever its presets are called, and so does one that imports
    nothing of it and names it."""
    (place / "script.py").write_text(SCRIPT)
    (place / "show.py").write_text(SHOW)
    flags = ["--epochs", "12", "--run-dir", "runs/own"]
    assert ran(place, "script.py", *flags).splitlines()[-1] == "inner"
    out = ran(place, "script.py", "--resume", *flags)
    assert out.splitlines()[-1] == "inner" and "finished already" in out
    assert ran(place, "show.py", "script.py") == "inner\n"
    process = start(place, "show.py")
    assert f"add --experiment {place / 'script.py'} (in Python" in process.communicate()[1]


FIELDS = """
import collections.abc, os, jax, flax.linen as nn, jax.numpy as jnp
from dlflax import run
from dlflax.data import Images
from dlflax.train import Hparams, Recipe

@jax.jit
def doubled(x):
    return 2 * x

def plain(x):
    return x

class Net(nn.Module):
    act: collections.abc.Callable = nn.relu
    dtype: jnp.dtype = jnp.dtype("float32")
    num_outputs: int = 10

PRESETS = {"default": run.Config(Recipe(Net()), Hparams(), Images("digits"))}
"""


def test_what_a_model_s_field_may_name(place):
    (place / "fields.py").write_text(FIELDS)
    experiment = run.find("fields.py", experiments)
    config = experiment.presets["default"]

    def load(**fields):
        saved = run.to_json(config)
        saved["recipe"]["model"] |= fields
        return run.config_from_json(saved, place, experiment).recipe.model

    module = experiment.module
    for function in (
        nn.relu, nn.gelu, jnp.tanh, jnp.mean, jnp.maximum, nn.max_pool, nn.softmax,
        jax.nn.initializers.zeros, module.doubled, module.plain,
    ):  # fmt: skip
        model = module.Net(act=function, dtype=jnp.dtype("bfloat16"))
        saved = run.to_json(model)
        assert load(**saved) == model, function
    for name in (
        "os:system", "fields:os.system", "fields:jnp.save", "fields:Net", "fields:Images",
        "jax.numpy:load", "jax.numpy:save", "jax.numpy:savez", "jax.numpy:linalg.svd",
        "jax.numpy:set_printoptions", "jax.numpy:ndarray", "flax.linen:nowrap", "flax.linen:jit",
        "flax.linen:Module.apply", "flax.linen:intercept_methods", "flax:linen", "jax:jit",
        "flax.linen.initializers:Any", "optax:Params", "dlflax.files:read_json",
        "dlflax.train.checkpoint_files:write", "dlflax.run:main", "builtins:open",
    ):  # fmt: skip
        with pytest.raises(InputError, match="names "):
            load(act={"function": name})
    for name in ("O", "S9", "datetime64", "f4,f4", "nothing", ["f4"], None, {"names": []}):
        with pytest.raises(InputError):
            load(dtype={"dtype": name})


@pytest.mark.slow
def test_what_config_json_cannot_hold_is_said(place):
    (place / "lambdas.py").write_text(
        RINGS.replace("optimizer=adopt", "optimizer=lambda rate, hparams: optax.sgd(rate)")
    )
    err = ran(place, "lambdas.py", "--epochs", "1", code=2)
    assert "recipe.optimizer" in err and "no lambdas" in err
    (place / "plain.py").write_text(
        RINGS.replace("@dataclasses.dataclass(frozen=True)\nclass Rings", "class Rings")
    )
    assert "Rings must itself be decorated" in ran(place, "plain.py", "--epochs", "1", code=2)
    (place / "number.py").write_text(RINGS)
    err = ran(place, "number.py", "--hparams.gamma", "-1", code=2)
    assert "--hparams.gamma -1 must be 0 or more and finite" in err


def test_presets_with_other_architectures_are_another_experiment():
    """As those of a module that imports PRESETS alone."""
    module = importlib.import_module("experiments.mnist")
    same = from_presets("mnist", module.PRESETS, module.ARCHITECTURES)
    assert same.architectures == module.ARCHITECTURES
    assert from_presets("mnist", module.PRESETS, {}).module is not module
