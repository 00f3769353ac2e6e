"""The shipped commands, shrunk, on real data: what a run writes, what kills it, what it refuses."""

import csv
import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import experiments
from dlflax import run, train
from dlflax.files import file_lock
from dlflax.inference.predict import Predictor
from dlflax.models import CNN
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.checkpoint_files import MANIFEST
from experiments import fashion_mnist, mnist

ROOT = Path(__file__).parents[1]
MNIST = ROOT.parent / "shared" / "data" / "mnist"
FAST = ["--model", "mlp", "--model.features", "32"]


pytestmark = pytest.mark.usefixtures("place")


def train_mnist(*args, module=mnist):
    """`python -m experiments.mnist ARGS` in this process. Returns results.json."""
    run.main(module.__name__.split(".")[-1], module.PRESETS, module.ARCHITECTURES, list(args))
    runs = sorted(Path("runs").glob("*/*/results.json")) or sorted(Path().glob("*/results.json"))
    return json.loads(runs[-1].read_text())


def refused(capsys, *args, code=2):
    """The one sentence on stderr of a command that must end with this exit code."""
    with pytest.raises(SystemExit) as exit_:
        train_mnist(*args)
    assert exit_.value.code == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def predicted(folder, path):
    """What `predict` answers for one picture."""
    ((_, values),) = Predictor(folder, experiments).answers([path])
    return values


def parameters(folder):
    saved = run.load_config(folder)
    config = run.config_from_json(saved["config"], folder, run.Experiment("mnist"))
    inputs = Predictor(folder, experiments).example()["inputs"]
    abstract = train.abstract(config.recipe, config.hparams, inputs)
    checkpoints = Checkpoints(folder / "checkpoints", config.recipe.task)
    state, history, _ = checkpoints.restore_last(abstract)
    return jax.tree.leaves(state.params), history


def test_two_architectures_of_one_class():
    module = types.ModuleType("two")
    module.PRESETS = {"default": mnist.DEFAULT}
    module.ARCHITECTURES = {"small": CNN((4,)), "large": CNN((8, 8))}
    for name, features in (("small", (4,)), ("large", (8, 8))):
        config = run.parse(run.Experiment("two", module), ["--model", name])
        assert config.recipe.model.features == features


@pytest.mark.figures
def test_a_run_leaves_everything(capsys):
    flags = ["--model.features", "8", "--epochs", "3", "--hparams.dropout", "0.1"]
    results = train_mnist(*flags, "--patience", "3")
    out = capsys.readouterr().out
    assert "NOT MNIST" in out and "digits, not of mnist" in out
    assert "epoch  3/3" in out and "\x1b" not in out  # no terminal: plain lines
    assert results["experiment"] == "mnist" and results["dataset"] == "digits"
    assert results["model"] == "CNN" and results["parameters"] == 101_146
    assert results["hparams"]["dropout"] == 0.1 and results["seed"] == 0
    assert results["epochs_run"] == 3 and 1 <= results["best_epoch"] <= 3
    for name in ("seconds", "compile_seconds", "examples_per_second"):
        assert results[name] > 0
    assert set(results["train"]) >= {"loss", "accuracy"}
    assert set(results["val"]) == {"loss", "accuracy", "macro_f1"}
    assert set(results["test"]) == {
        "loss", "accuracy", "macro_f1", "macro_precision", "macro_recall", "per_class",
        "calibration_error", "roc_auc", "average_precision",
    }  # fmt: skip
    assert results["test"]["accuracy"] > 0.85
    support = [c["support"] for c in results["test"]["per_class"].values()]

    (folder,) = Path("runs/mnist").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["name"] == "digits" and len(config["data"]["sha256"]) == 64
    assert sum(support) == config["data"]["test"]
    assert config["versions"]["jax"] == jax.__version__
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert int(best["epoch"]) == results["best_epoch"]
    assert float(best["val_loss"]) == results["val"]["loss"]
    for name in ("curves", "confusion_matrix", "wrong_predictions"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
    assert list((folder / "tensorboard").glob("events*"))

    # predict, from the same folder
    digit = np.zeros((60, 60), np.uint8)
    digit[10:50, 28:34] = 255
    Image.fromarray(255 - digit).save("one.png")
    assert predicted(folder, "one.png")["class"] == "1"

    # a finished run is not tested again
    before = (folder / "results.json").read_bytes()
    train_mnist("--resume")
    assert "finished already" in capsys.readouterr().out
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.figures
def test_validation_0_trains_on_all(capsys):
    arguments = (*FAST, "--val-split", "0", "--hparams.dropout", "0.2")
    train_mnist(*arguments, "--run-dir", "whole", "--epochs", "3")
    out = capsys.readouterr().out
    assert "1,438 train, no validation, 359 test" in out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3 and not any("*" in line or "val" in line for line in lines)
    results = json.loads(Path("whole/results.json").read_text())
    assert "val" not in results and results["best_epoch"] == 3 == results["epochs_run"]
    sizes = run.load_config(Path("whole"))["data"]
    assert (sizes["train"], sizes["validation"]) == (1438, 0)
    rows = list(csv.DictReader(Path("whole/metrics.csv").read_text().splitlines()))
    assert len(rows) == 3 and not any(name.startswith("val") for name in rows[0])
    assert Path("whole/curves.png").exists() and list(Path("whole/tensorboard").glob("events*"))

    train_mnist(*arguments, "--run-dir", "parts", "--epochs", "1")
    train_mnist("--run-dir", "parts", "--resume", "--epochs", "3")
    for a, b in zip(parameters(Path("whole"))[0], parameters(Path("parts"))[0], strict=True):
        np.testing.assert_array_equal(a, b)
    resumed = json.loads(Path("parts/results.json").read_text())
    assert resumed["test"] == results["test"]
    line = refused(capsys, "--run-dir", "parts", "--resume", "--val-split", "0.1")
    assert "val_split was 0.0, now 0.1" in line

    # predict takes the last checkpoint
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save("x.png")
    before = predicted("whole", "x.png")
    for checkpoint in Path("whole/checkpoints").iterdir():
        if int(checkpoint.name) != 135:  # 3 epochs of 45 steps
            shutil.rmtree(checkpoint)
    assert before == predicted("whole", "x.png")


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.exists(), reason="no MNIST files beside the repository")
def test_one_epoch_of_mnist_itself():
    flags = ["--epochs", "1", "--batch-size", "128", "--model.features", "8"]
    results = train_mnist("--data", str(MNIST), *flags)
    assert results["dataset"] == "mnist"
    assert results["test"]["accuracy"] > 0.96


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").exists(),
    reason="Debian's dataset-fashion-mnist is not installed",
)
@pytest.mark.slow
def test_one_epoch_of_fashion_mnist():
    results = train_mnist(*FAST, "--epochs", "1", "--batch-size", "128", module=fashion_mnist)
    assert results["dataset"] == "fashion_mnist"
    assert results["test"]["accuracy"] > 0.75


@pytest.mark.slow
def test_the_best_preset_trains():
    results = train_mnist(
        *("--preset", "best", "--epochs", "2", "--batch-size", "64"),
        *("--model.features", "4", "--model.dense", "16"),
    )
    assert results["val"]["loss"] < 2.4 and results["hparams"]["rotate_degrees"] > 0


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
runpy.run_module("experiments.mnist", run_name="__main__", alter_sys=True)
"""


def start(folder, *args, run_python=(ROOT / "tests/plain.py", "experiments.mnist")):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *run_python, *FAST, "--run-dir", str(folder)]
        + ["--batch-size", "8", "--epochs", "12", "--hparams.dropout", "0.2"]
        + ["--baseline", "none", *args],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_when(process, condition, number=signal.SIGKILL):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended before it was killed: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(number)
    return process.communicate()


@pytest.mark.slow
def test_killed_anywhere_the_result_is_the_same_to_the_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    out, err = process.communicate()
    assert process.returncode == 0, err

    def steps(folder):
        found = (folder / "checkpoints").glob("*")
        return [int(p.name) for p in found if p.name.isdigit()]

    def finished(count):
        return lambda: sum((killed / "checkpoints" / str(s) / MANIFEST).exists()
                           for s in steps(killed)) >= count  # fmt: skip

    kill_when(start(killed), finished(2))  # in mid-epoch
    before = max(steps(killed))
    process = start(killed, "--resume")
    _, err = kill_when(process, lambda: max(steps(killed)) > before, signal.SIGTERM)
    assert process.returncode == 75 and "is saved in" in err and "Traceback" not in err
    before = max(steps(killed))
    assert (killed / "checkpoints" / str(before) / MANIFEST).exists()

    def saving():  # a newer checkpoint is there, its manifest is not
        new = [s for s in steps(killed) if s > before]
        return any(not (killed / "checkpoints" / str(s) / MANIFEST).exists() for s in new)

    kill_when(start(killed, "--resume"), saving)
    # while Orbax still writes its temporary folder
    process = start(killed, "--resume")
    kill_when(process, lambda: any((killed / "checkpoints").glob("*tmp*")))
    process = start(killed, "--resume")
    out, err = process.communicate()
    assert process.returncode == 0 and "resuming after epoch" in out, err

    (a, history_a), (b, history_b) = parameters(whole), parameters(killed)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert [r["val_loss"] for r in history_a] == [r["val_loss"] for r in history_b]
    results = [json.loads((f / "results.json").read_text()) for f in (whole, killed)]
    assert results[0]["test"] == results[1]["test"] and results[0]["val"] == results[1]["val"]


@pytest.mark.slow
def test_a_failed_write_says_so_and_keeps_what_is_saved(tmp_path):
    """No file may grow over 20 kB: what a full disk does, with another reason."""
    process = start(tmp_path / "run", "--epochs", "2")
    assert process.communicate()[1] == ""
    limited = ("-c", LIMITED)
    process = start(tmp_path / "run", "--resume", "--epochs", "3", run_python=limited)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "could not save the checkpoint of step 486" in err
    assert "the checkpoint of step 324 is safe" in err
    process = start(tmp_path / "run", "--resume", "--epochs", "3")
    assert process.communicate()[1] == ""


def test_one_process_alone_writes_a_folder(capsys):
    """Until it is done: then the folder is open again."""
    Path("r").mkdir()
    with file_lock(Path("r/.lock")) as is_free:
        assert is_free
        assert "is being written by another process" in refused(capsys, *FAST, "--run-dir", "r")
        assert not Path("r/config.json").exists()
    assert train_mnist(*FAST, "--run-dir", "r", "--epochs", "1")["epochs_run"] == 1


def test_resume_refuses_another_setup(capsys):
    train_mnist(*FAST, "--run-dir", "r", "--epochs", "1", "--hparams.l2", "0.001")
    capsys.readouterr()
    line = refused(capsys, "--run-dir", "r", "--resume", "--batch-size", "16", "--seed", "1")
    assert "recipe.batch_size was 32, now 16; seed was 0, now 1" in line
    line = refused(capsys, "--run-dir", "r", "--resume", "--model", "cnn")
    assert "recipe.model.class was 'dlflax.models:MLP', now 'dlflax.models:CNN'" in line
    line = refused(capsys, "--run-dir", "r", "--resume", "--preset", "best")
    assert "recipe.schedule.class was 'dlflax.train:Constant', now 'dlflax.train:Cosine'" in line
    line = refused(capsys, "--run-dir", "r")
    assert "already holds a run: add --resume" in line
    # what is not given is what it was, and more epochs go on
    results = train_mnist("--run-dir", "r", "--resume", "--epochs", "2")
    assert results["epochs_run"] == 2 and results["hparams"]["l2"] == 0.001
    assert results["model"] == "MLP"


def test_divergence_is_one_sentence_and_keeps_the_checkpoints(capsys):
    train_mnist(*FAST, "--run-dir", "r", "--epochs", "1", "--optimizer", "sgd")
    config = json.loads(Path("r/config.json").read_text())
    config["config"]["hparams"]["learning_rate"] = 1e30
    Path("r/config.json").write_text(json.dumps(config))
    capsys.readouterr()
    line = refused(capsys, "--run-dir", "r", "--resume", "--epochs", "2", code=1)
    assert "NaN or infinite at step 4" in line and "learning rate 1e+30" in line
    assert "--hparams.learning-rate" in line
    assert parameters(Path("r"))[1][-1]["epoch"] == 1


def write_idx(folder, images, labels, test_labels=None):
    folder.mkdir(exist_ok=True)
    for prefix, y in (("train", labels), ("t10k", labels if test_labels is None else test_labels)):
        x = images[: len(y)] if prefix == "t10k" else images
        header = struct.pack(">IIII", 0x803, len(x), 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + x.tobytes())
        header = struct.pack(">II", 0x801, len(y))
        with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(header + y.astype(np.uint8).tobytes())


def test_bad_input_is_one_sentence(capsys, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 28, 28)).astype(np.uint8)
    labels = np.arange(200) % 10
    write_idx(tmp_path / "short", images, labels[:150])
    write_idx(tmp_path / "range", images, labels + 5)
    write_idx(tmp_path / "empty", images, labels % 9)
    Path("file").write_text("x")
    (tmp_path / "lost").mkdir()
    cases = {
        ("--data", "nowhere"): "nowhere",
        ("--data", "lost"): "lost",
        ("--data", "short"): "short",
        ("--data", "range"): "range",
        ("--data", "empty"): "empty",
        ("--hparams.learning-rate", "-1"): "--hparams.learning-rate -1 must be above 0",
        ("--hparams.dropout", "1"): "--hparams.dropout 1 must be 0 or more and below 1",
        ("--batch-size", "100000"): "--batch-size 100000 is larger than the 1,294 training",
        ("--batch-size", "0"): "--batch-size 0 must be 1 or more",
        ("--epochs", "0"): "--epochs 0 must be 1 or more",
        ("--seed", "-1"): "--seed -1 must be",
        ("--val-split", "1.5"): "--val-split 1.5 must be from 0 up to below 1",
        ("--val-split", "0", "--patience", "2"): "--patience and --plateau-patience must be 0",
        ("--val-split", "0", "--plateau-patience", "2"): "must be 0 with --val-split 0",
        ("--model.features", "8", "8", "8", "8", "8"): "--model.features",
        ("--run-dir", "file/run"): "--run-dir file/run cannot be created: Not a directory",
        ("--resume",): "runs/mnist has no run",
        ("--dataset", "no_such_set"): "no_such_set",
    }
    for args, sentence in cases.items():
        assert sentence in refused(capsys, *args), args
    assert not Path("runs").exists()
    with pytest.raises(SystemExit) as exit_:  # tyro's own
        train_mnist("--model.activation", "rellu")
    assert exit_.value.code == 2
    assert "rellu" in capsys.readouterr().err


def test_predict_refuses_with_a_sentence(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.predict", "nowhere", "x.png"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: nowhere is not a run folder: no readable config.json in it.\n"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["dlflax", "jax"])
def test_a_cached_program_is_loaded_in_silence(tmp_path, first):
    program = f"import {first}, jax; from dlflax.run import exit_codes\n"
    program += "exit_codes.with_exit_codes(lambda: print(jax.jit(lambda x: x + 1)(1.0)))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL"):
        environment.pop(name, None)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "2.0\n", "")
    if first == "dlflax":
        assert any((tmp_path / "dlflax" / "xla").iterdir())
