"""--logger: what reaches MLflow's own file store, and Weights & Biases; neither stops a run."""

import sys
import types
from pathlib import Path

import pytest

from dlflax import run
from dlflax.report import loggers
from experiments import mnist

pytestmark = [pytest.mark.usefixtures("place"), pytest.mark.figures]
FLAGS = ["--dataset", "digits", "--model", "mlp", "--model.features", "32", "--epochs", "2"]


def trained(*flags):
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*FLAGS, "--run-dir", "run", *flags])


@pytest.fixture
def store(place, monkeypatch):
    """MLflow's client of a store of its own."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((place / "store").as_uri())
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::mlflow", "ignore::FutureWarning")
def test_mlflow_has_what_the_run_has(store):
    trained("--logger", "mlflow")
    experiment = store.get_experiment_by_name("mnist")
    (found,) = store.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    losses = store.get_metric_history(found.info.run_id, "train_loss")
    assert [m.step for m in losses] == [41, 82] and losses[0].value > losses[1].value
    assert found.data.metrics["test_accuracy"] > 0.5
    assert found.data.params["learning_rate"] == "0.001"
    pictures = {each.path for each in store.list_artifacts(found.info.run_id)}
    assert "confusion_matrix.png" in pictures
    trained("--logger", "mlflow", "--resume", "--epochs", "3")  # goes on with the same one
    (found,) = store.search_runs([experiment.experiment_id])
    losses = store.get_metric_history(found.info.run_id, "train_loss")
    assert {m.step for m in losses} == {41, 82, 123}


@pytest.mark.filterwarnings("ignore:::mlflow", "ignore::FutureWarning")
@pytest.mark.slow
def test_a_store_that_fails_is_one_warning(store, monkeypatch, capsys):
    import mlflow

    def fails(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(mlflow.MlflowClient, "log_metric", fails)
    trained("--logger", "mlflow")
    out = capsys.readouterr().out
    assert out.count("nothing more is sent to MLflow (the disk is full)") == 1
    assert Path("run/results.json").exists() and "figures, metrics and checkpoints" in out


@pytest.mark.slow
def test_weights_and_biases(monkeypatch):
    """By a stand-in: what it is told."""
    told, config, summary = [], {}, {}

    class Run:
        def log(self, values, step=None):
            told.append((step, values))

        def finish(self):
            told.append("finished")

    made = Run()
    made.config = types.SimpleNamespace(update=lambda v, allow_val_change: config.update(v))
    made.summary = summary
    begun = []
    wandb = types.ModuleType("wandb")
    wandb.Image = lambda path: f"picture {Path(path).name}"
    wandb.util = types.SimpleNamespace(generate_id=lambda: "abc")
    wandb.init = lambda **options: begun.append(options) or made
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trained("--logger", "wandb")
    assert begun[0]["project"] == "mnist" and begun[0]["id"] == "abc"
    assert [step for step, values in told[:2]] == [41, 82] and "val_loss" in told[0][1]
    assert (None, {"confusion_matrix": "picture confusion_matrix.png"}) in told
    assert told[-1] == "finished" and config["dropout"] == 0.25 and "test_accuracy" in summary
    trained("--logger", "wandb", "--resume", "--epochs", "3")
    assert begun[1]["id"] == "abc" and begun[1]["resume"] == "allow"

    def refuses(**_):
        raise RuntimeError("no network")

    wandb.init, said = refuses, []
    silent = loggers.start("wandb", "mnist", Path("run"), None, said.append)
    silent.scalars({"loss": 1.0}, 1)
    silent.close()
    assert said == ["warning: nothing is sent to Wandb (no network)."]


class Failing(loggers.Logger):
    """Takes one row, then none."""

    def __init__(self, rows, starts=True):
        if not starts:
            raise OSError("no disk")
        self.rows = rows

    def scalars(self, row, step):
        self.rows.append(row)
        if len(self.rows) > 1:
            raise ValueError("enough")

    def figure(self, name, path, step):
        self.rows.append(name)

    hparams = close = lambda self, *_: None


def test_a_logger_that_fails_stops_nothing():
    said, good, bad = [], [], []
    several = loggers.Loggers(
        {"none": lambda: Failing([], starts=False), "bad": lambda: Failing(bad),
         "good": lambda: loggers.Loggers({"inner": lambda: Failing(good)}, said.append)},
        said.append,
    )  # fmt: skip
    for step in range(3):
        several.scalars({"loss": 1.0}, step)
    several.figure("curves", Path("x"), 1)
    several.close()
    assert len(bad) == 2 == len(good)
    assert said == [
        "warning: nothing is sent to none (no disk).",
        "warning: nothing more is sent to bad (enough).",
        "warning: nothing more is sent to inner (enough).",
    ]


def test_a_package_that_is_missing_is_one_sentence(monkeypatch, capsys):
    for kind in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, kind, None)
        with pytest.raises(SystemExit) as stopped:
            trained("--logger", kind, "--run-dir", kind)
        assert stopped.value.code == 2
        assert f"pip install 'dlflax[{kind}]'" in capsys.readouterr().err
