"""The sweep commands, shrunk, on real data: what they leave, what they refuse."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import experiments
from dlflax import train
from dlflax.errors import InputError
from dlflax.inference.predict import Predictor
from dlflax.tune import ensemble_selection, finish, sweep_command
from dlflax.tune.pool import sweep_report, workers
from dlflax.tune.study import open_study

SAMPLERS = {
    "bayes_opt": ("gp", "tpe", "cmaes"),
    "random_search": ("random", "qmc"),
    "grid_search": ("grid",),
}
FAST = ["--model", "mlp", "--model.features", "32"]


pytestmark = pytest.mark.usefixtures("place")


def sweep_mnist(*args, search="random_search"):
    """`python -m sweeps.SEARCH ARGS` in this process. Returns results.json."""
    sweep_command.main(search, experiments, SAMPLERS[search], [*args], "")
    (written,) = Path().glob("runs/sweeps/*/results.json")
    return json.loads(written.read_text())


def table(folder):
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


@pytest.mark.figures
def test_a_sweep_leaves_everything_and_goes_on(capsys):
    flags = [*FAST, "--epochs", "2", "--population-size", "4"]
    flags += ["--space.model.features", "16", "32,16"]
    results = sweep_mnist(*flags, "--trials", "10", "--space.learning-rate", "1e-3", "1e30", "log")
    out = capsys.readouterr().out
    assert "10 trials of 2 epochs by random, 2 structures: 2 compiles" in out
    assert "4 at once by map or vmap over 2 cpu devices" in out
    assert results["structures"] == 2 and results["traces"] == 2
    assert results["trials"] == 10 and results["failed"] == results["pruned"] == 0
    assert results["diverged"] >= 1 and results["complete"] == 10 - results["diverged"]
    assert results["trials_per_minute"] > 0 and results["test"]["accuracy"] > 0.5

    folder = Path("runs/sweeps/mnist_random_search")
    rows = table(folder)
    values = [float(row["val_loss"]) for row in rows]
    assert values.index(min(values)) == results["best"]["number"]
    assert values.count(np.inf) == results["diverged"]
    assert [row["state"] == "diverged" for row in rows] == [v == np.inf for v in values]
    for name in ("history", "slice", "parallel_coordinates", "learning_curves"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
    assert "data:image/png;base64," in (folder / "report.html").read_text()
    assert len(list((folder / "tensorboard").glob("trial_*/events*"))) == 10

    # the candidates are runs like any other, and the best one by validation is in best/
    scores = {name: each["val"]["loss"] for name, each in results["candidates"].items()}
    assert scores.keys() >= {"trained", "retrained"} and results["val"]["loss"] == min(
        scores.values()
    )
    assert results["model"] == min(scores, key=scores.get)
    assert results["test"] == results["candidates"][results["model"]]["test"]
    assert scores["trained"] == pytest.approx(results["best"]["value"], rel=1e-5)
    for name in ("trained", "retrained"):
        config = json.loads((folder / name / "config.json").read_text())["config"]
        assert config["hparams"]["learning_rate"] == results["best"]["hparams"]["learning_rate"]
        assert config["seed"] == 0
        tested = json.loads((folder / name / "results.json").read_text())["test"]
        assert tested == results["candidates"][name]["test"]
    chosen, best = (folder / name / "results.json" for name in (results["model"], "best"))
    assert chosen.read_bytes() == best.read_bytes()
    assert f"best model: {finish.WORDS[results['model']]}" in out
    Image.fromarray(np.pad(np.full((40, 6), 255, np.uint8), ((10, 10), (27, 27)))).save("one.png")
    ((_, answer),) = Predictor(folder, experiments).answers(["one.png"])
    assert len(answer["probabilities"]) == 10

    # the same command again neither trains nor tests; with more trials it goes on
    before = (folder / "best" / "results.json").stat().st_mtime_ns
    flags += ["--space.learning-rate", "1e-3", "1e30", "log"]
    assert sweep_mnist(*flags, "--trials", "10")["traces"] == 0
    assert (folder / "best" / "results.json").stat().st_mtime_ns == before
    assert sweep_mnist(*flags, "--trials", "11")["trials"] == 11
    assert table(folder)[:10] == rows
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        sweep_mnist(*flags, "--epochs", "3")
    assert exit_.value.code == 2
    assert "epochs was 2, now 3" in capsys.readouterr().err


@pytest.mark.slow
def test_grid_seeds_and_halving(capsys):
    flags = [*FAST, "--space.learning-rate", "1e-5", "3e-3", "--space.dropout", "0", "0.2"]
    flags += ["--space.l2", "--epochs", "4", "--num-seeds", "2", "--rank", "pessimistic"]
    flags += ["--search", "halving", "--reduction-factor", "2"]
    results = sweep_mnist(*flags, search="grid_search")
    assert (results["trials"], results["complete"], results["pruned"]) == (4, 1, 3)
    rows = table(Path("runs/sweeps/mnist_grid_search"))
    grid = [(float(row["learning_rate"]), float(row["dropout"])) for row in rows]
    assert grid == [(1e-5, 0.0), (1e-5, 0.2), (3e-3, 0.0), (3e-3, 0.2)]
    assert [row["state"] for row in rows[:2]] == ["pruned", "pruned"]
    assert all(float(row["std"]) > 0 for row in rows)
    assert (
        "one in 2 continues after epoch 1, 2" in (out := capsys.readouterr().out) and " ± " in out
    )


@pytest.mark.slow
def test_maximizing_accuracy_and_retraining_on_all():
    results = sweep_mnist(
        *FAST, "--epochs", "2", "--trials", "4", "--objective", "val_accuracy", "--sampler", "qmc",
        "--refit-full",
    )  # fmt: skip
    values = [float(r["val_accuracy"]) for r in table(Path("runs/sweeps/mnist_random_search"))]
    assert max(values) == results["best"]["value"] and results["val"] is None
    config = json.loads(Path("runs/sweeps/mnist_random_search/best/config.json").read_text())
    assert config["data"]["validation"] == 0
    assert config["config"]["epochs"] == results["best"]["best_epoch"]


REFUSED = {
    "above the high end": ["--space.learning-rate", "1e-2", "1e-4"],
    "must begin above 0": ["--space.l2", "0", "1e-3", "log"],
    "not a number": ["--space.dropout", "low", "high"],
    "dropout 1.5 must be 0 or more and below 1": ["--space.dropout", "0", "1.5"],
    "one of sgd": ["--space.optimizer", "adam", "adagrad"],
    "whole numbers": ["--space.model.features", "32", "big"],
    "model.features .*1 or more": ["--space.model.features", "32", "0"],
    "space.batch-size 0 32: batch-size 0 must be 1 or more": ["--space.batch-size", "0", "32"],
    "space.batch-size -1: batch-size -1 must be 1": ["--space.batch-size", "-1"],
    "'nan' is invalid; expected whole numbers": ["--space.batch-size", "nan", "32"],
    "'' is invalid; expected whole numbers": ["--space.batch-size", "", "32"],
    "learning-rate nan must be": ["--space.learning-rate", "nan", "1e-2"],
    "2,147,483,647 or less": ["--space.model.features", "32", "99999999999"],
    "larger than the": ["--space.batch-size", "32", "100000"],
    "nothing to search": ["--space.learning-rate", "--space.dropout", "--space.l2"],
    "contradict": ["--hparams.dropout", "0.5"],
    "--population-size 1000000 needs about": ["--population-size", "1000000"],
    "--trials 0 must be 1": ["--trials", "0"],
    "--reduction-factor 1 must be from 2": ["--search", "halving", "--reduction-factor", "1"],
    "from 2 to the epochs of a trial, --epochs 2": ["--search", "halving", "--epochs", "2"],
    "--epochs-per-round 0 must be 1": [
        "--search",
        "freeze-thaw",
        "--epochs-per-round",
        "0",
        "--sampler",
        "gp",
    ],
    "--search asha is not one of its choices: There are freeze-thaw, full, halving": [
        "--search",
        "asha",
    ],
    "begins trials all over the space, not by --sampler random": ["--search", "freeze-thaw"],
    "--distributed is for one model on several hosts": ["--distributed"],
    "--workers 0 must be 1": ["--workers", "0"],
    "--launcher-options is for": ["--launcher-options", "time=60"],
    "time must be NAME=VALUE": ["--launcher", "slurm", "--launcher-options", "time"],
    "on validation data": ["--val-split", "0"],
    "--storage .*cannot be used": ["--storage", "sqlite:////nowhere/a.db"],
    "--storage mongodb://host cannot be used": ["--storage", "mongodb://host"],
    "use an address that Optuna opens, such as sqlite:///a.db": ["--storage", "a.db"],
    "choose one of autoencoder, cats_vs_dogs, cifar10, fashion_mnist, fore": ["imagenet"],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_sentence(reason, capsys):
    args = REFUSED[reason]
    with pytest.raises(SystemExit) as exit_:
        sweep_mnist(*args, *([] if args == ["imagenet"] else FAST))
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert re.search(reason, lines[0]), lines[0]
    assert not list(Path().glob("runs/sweeps/*/best"))


def test_a_grid_of_a_range_is_refused(capsys):
    with pytest.raises(SystemExit):
        sweep_mnist("--space.learning-rate", "1e-4", "1e-2", "log", search="grid_search")
    assert "a grid needs values" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("trials_alone")
def test_memory_is_flat_over_100_trials(monkeypatch):
    used, real = [], workers.train_order

    def measured(*given):
        outcomes = real(*given)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        used.append(pages * os.sysconf("SC_PAGE_SIZE"))
        return outcomes

    monkeypatch.setattr(workers, "train_order", measured)
    flags = [*FAST, "--epochs", "1", "--trials", "104", "--population-size", "8"]
    sweep_command.main("random_search", experiments, ("random",), ["mnist", *flags], "")
    assert len(used) == 13
    assert used[-1] < 1.05 * used[0], used


def test_every_experiment_can_be_swept(capsys):
    for name in ("mnist", "fashion_mnist"):
        with pytest.raises(SystemExit) as exit_:
            sweep_command.main(
                "bayes_opt", experiments, SAMPLERS["bayes_opt"], [name, "--help"], "words"
            )
        assert exit_.value.code == 0
        assert "--space.learning-rate" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.baselines
def test_a_sweep_that_was_stopped_has_its_report(monkeypatch, capsys):
    """Written after its first population, and by `sweeps.report` at any time."""
    train_order = workers.train_order

    def stopped(job, data, order, *more):
        if order[0].number == 4:
            raise KeyboardInterrupt
        return train_order(job, data, order, *more)

    flags = [*FAST, "--epochs", "1", "--trials", "8", "--population-size", "4"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(workers, "train_order", stopped)
        sweep_mnist(*flags)
    folder = Path("runs/sweeps/mnist_random_search")
    assert len(table(folder)) == 4 and not (folder / "results.json").exists()
    page = (folder / "report.html").read_text()
    assert "the defaults, trial 0" in page or "better than the defaults" in page
    assert "The validation split has 144 examples only" in page

    (folder / "report.html").unlink()
    results = sweep_report.write_report(folder)
    assert (results["trials"], results["complete"]) == (4, 4)
    assert "144 examples" in (folder / "report.html").read_text()

    capsys.readouterr()
    finished = sweep_mnist(*flags)
    out = capsys.readouterr().out
    assert out.count("accuracy   macro F1") == 1, "the winner's table is printed once"
    assert finished["findings"] and f"- {finished['findings'][0]}" in out
    (verdict,) = json.loads((folder / "best" / "results.json").read_text())["findings"]
    assert verdict in out and "sweeps." not in verdict
    again = sweep_report.write_report(folder)
    assert again["test"] == finished["test"] and again["trials"] == 8


@pytest.mark.slow
def test_no_report_of_what_is_no_sweep(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        sweep_report.write_report(tmp_path)
    sweep_mnist(*FAST, "--epochs", "1", "--trials", "2", "--population-size", "2")
    folder = Path("runs/sweeps/mnist_random_search")
    with pytest.raises(InputError, match="of a run, not of a sweep"):
        sweep_report.write_report(folder / "best")
    with pytest.raises(InputError, match="other.db is missing"):
        sweep_report.write_report(folder, f"sqlite:///{tmp_path}/other.db")
    assert not (tmp_path / "other.db").exists()
    (folder / "results.json").write_text("{")
    assert sweep_report.write_report(folder)["trials"] == 2
    written = json.loads((folder / "config.json").read_text())
    del written["search"]
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match="config.json is damaged"):
        sweep_report.write_report(folder)
    (folder / "config.json").write_text(json.dumps({**written, "search": "random_search"}))
    (folder / "study.journal").unlink()
    with pytest.raises(InputError, match="study.journal is missing"):
        sweep_report.write_report(folder)


def test_a_report_that_cannot_be_written_stops_nothing(monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no disk")

    monkeypatch.setattr(sweep_report, "write", fail)
    said = []
    with (
        open_study(None, None, "a", "minimize") as study,
        sweep_report.Watch(Path("nowhere"), study, 4, 1, 4, said.append) as watch,
    ):
        watch.show()
    assert len(said) == 1 and said[0].startswith("warning: no report while the sweep runs (")


def test_a_model_that_cannot_be_built_is_refused_before_the_sweep(capsys, monkeypatch):
    """Whatever it raises."""

    def failing(*_):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(train, "abstract", failing)
    with pytest.raises(SystemExit) as exit_:
        sweep_mnist(*FAST, "--space.model.features", "16", "8")
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: --space: model.features 16 cannot be built (ZeroDivisionError")


def test_an_ensemble_of_another_study_is_not_predicted_with(monkeypatch):
    """The journal was deleted, or more trials found no ensemble."""
    folder = Path("runs/sweeps/mnist_random_search")
    flags = [*FAST, "--epochs", "1", "--population-size", "2", "--baseline", "none"]
    monkeypatch.setattr(ensemble_selection, "build", lambda *_: None)
    sweep_mnist(*flags, "--trials", "2")
    (folder / "ensemble").mkdir()  # of an earlier end of this study
    sweep_mnist(*flags, "--trials", "4")
    assert not (folder / "ensemble").exists()
    (aside,) = folder.glob("ensemble_*")
    aside.rename(folder / "ensemble")

    (folder / "study.journal").unlink()
    began = []

    def stop(*_):
        began.append({path.name for path in folder.iterdir()})
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "train_order", stop)
    with pytest.raises(SystemExit):
        sweep_mnist(*flags, "--trials", "2")
    left = {"ensemble", "trained", "retrained", "best", "results.json", "report.html"}
    assert not left & began[0]
    assert list(folder.glob("best_*/checkpoints")) and list(folder.glob("ensemble_*"))
    (folder / "best").mkdir()  # as if killed before it was moved aside
    with pytest.raises(SystemExit):
        sweep_mnist(*flags, "--trials", "2")
    assert len(began) == 2 and "best" not in began[1]
