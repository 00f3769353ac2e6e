"""A run and a sweep that dlflax 0.1 began, as `tests/data/version_0_1.tar.gz` has them, go on here.

They are of `experiments.mnist --model mlp --model.features 2` on scikit-learn's digits; beside them
lies what 0.1 itself made of them with more epochs and more trials.
"""

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import experiments
from dlflax import run
from dlflax.errors import InputError
from dlflax.run.predict import Predictor
from dlflax.tune import cli
from experiments import mnist

FLAGS = ["--model", "mlp", "--model.features", "2", "--epochs", "1", "--population", "2"]


@pytest.fixture(autouse=True)
def saved(place):
    with tarfile.open(Path(__file__).parent / "data" / "version_0_1.tar.gz") as archive:
        archive.extractall(place, filter="data")


def rows(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def test_a_run_resumes(capsys):
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES,
             ["--run-dir", "run", "--resume", "--epochs", "4"])  # fmt: skip
    assert "resuming after epoch 2" in capsys.readouterr().out
    for here, there in zip(rows("run/metrics.csv"), rows("metrics_of_4_epochs.csv"), strict=True):
        for name in ("train_loss", "val_loss", "val_accuracy"):
            # another optimization level of XLA than in the run of 0.1
            assert float(here[name]) == pytest.approx(float(there[name]), rel=1e-4)
    ours, theirs = (
        json.loads(Path(name).read_text())
        for name in ("run/results.json", "run_with_4_epochs.json")
    )
    assert ours["test"]["loss"] == pytest.approx(theirs["test"]["loss"], rel=1e-4)
    assert ours["test"].keys() == {
        *theirs["test"],
        "calibration_error",
        "roc_auc",
        "average_precision",
    }


def test_a_run_and_a_sweep_predict():
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save("x.png")
    for folder in ("run", "sweep"):
        ((_, values),) = Predictor(Path(folder), experiments).answers(["x.png"])
        assert len(values["probabilities"]) == 10


@pytest.mark.slow
def test_a_sweep_continues(capsys):
    arguments = ["mnist", *FLAGS, "--trials", "4", "--run-dir", "sweep"]
    cli.main("random_search", experiments, ("random", "qmc"), arguments, "")
    assert "continuing after 2 recorded trials" in capsys.readouterr().out
    for here, there in zip(rows("sweep/trials.csv"), rows("trials_of_4.csv"), strict=True):
        assert here["learning_rate"] == there["learning_rate"] and here["l2"] == there["l2"]
        assert float(here["val_loss"]) == pytest.approx(float(there["val_loss"]), rel=1e-3)


def test_what_0_1_did_not_know_is_refused():
    path = Path("run/config.json")
    saved = json.loads(path.read_text())
    saved["config"]["recipe"]["optimizer"] = "adagrad"
    path.write_text(json.dumps(saved))
    with pytest.raises(InputError, match="run/config.json is damaged"):
        Predictor(Path("run"), experiments)
