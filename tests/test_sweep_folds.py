"""Sweeps whose trials are bags: scores, ensemble and time limit; refusals, inputs of every kind."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from scipy.special import softmax
from sklearn.metrics import log_loss

import dlflax
import experiments
from dlflax import run, train
from dlflax.data import Arrays
from dlflax.data.order import assign_folds
from dlflax.models import MLP
from dlflax.run import time_limit
from dlflax.run.time_limit import Clock
from dlflax.train.tasks import Classification, MultiLabel, Regression
from dlflax.tune import sweep_command, time_plan
from dlflax.tune.pool.training import Job, Trial, train_order, trial_seeds
from dlflax.tune.suggest.space import Space
from dlflax.tune.sweep import run_sweep
from dlflax.tune.sweep_config import Sweep

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(61, 4)))
CLASSES = (X[:, 0] + X[:, 1] > 0).astype(np.int32) + (X[:, 2] > 1)
RATES = Space({"learning_rate": FloatDistribution(1e-3, 1e-1)}, {})


def test_a_trial_s_score_is_that_of_examples_held_out():
    fold_of, arrays = assign_folds(CLASSES, 3, 0), {"inputs": X, "targets": CLASSES}
    recipe = train.Recipe(MLP(features=(3,), num_outputs=3), batch_size=16)
    job = Job(
        recipe, train.Hparams(), RATES, epochs=2, seed=3, num_seeds=3, patience=0,
        plateau_patience=0, metric="loss", sign=1, rank="mean", population_map="map",
        has_folds=True,
    )  # fmt: skip
    parts = {"train": arrays, "val": arrays, "fold_of": fold_of}

    def trained(*goals):
        order = [Trial(number, {"learning_rate": rate}) for number, rate in enumerate([0.01, 0.05])]
        for goal in goals:
            for trial in order:
                trial.goal = goal
            order, _ = train_order(job, lambda: parts, order, 2, threshold=math.inf)
        return order

    for trial, again in zip(trained(2), trained(1, 2), strict=True):
        outputs, hparams = np.empty((61, 3)), train.Hparams(**trial.params)
        for fold, model in enumerate(trial.models):
            outputs[fold_of == fold] = model.outputs
        rows, seed = fold_of == 1, int(trial_seeds(3, trial.number, 3)[1]) if trial.number else 4
        train_set, val_set = ({n: a[part] for n, a in arrays.items()} for part in (~rows, rows))
        alone = train.fit(recipe, hparams, train_set, val_set, epochs=2, seed=seed).best
        expected = train.predict(recipe, alone, train.as_float32(hparams), X[rows])
        np.testing.assert_allclose(outputs[rows], expected, atol=1e-5)
        assert trial.value == pytest.approx(log_loss(CLASSES, softmax(outputs, 1)), rel=1e-5)
        last = [history[1]["val_loss"] for history, _ in trial.records]
        assert trial.values[1] == pytest.approx(np.average(last, weights=np.bincount(fold_of)))
        assert trial.attrs == {}
        # paused after an epoch, it has the same bits
        assert (again.value, again.values) == (trial.value, trial.values)
        for model, other in zip(trial.models, again.models, strict=True):
            jax.tree.map(np.testing.assert_array_equal, model.variables, other.variables)


def sweep_table(*flags, of="tabular"):
    """`python -m sweeps.random_search tabular FLAGS` in this process."""
    sweep_command.main("random_search", experiments, ("random", "qmc"), [of, *flags], "")


REFUSED = {
    "--num-seeds is for one network a trial": "--num-seeds 2",
    "--refit-full has no effect on bags": "--refit-full",
    "--devices has no effect on a bag": "--devices 2",
    "--time-limit is for one local worker": "--time-limit 60 --workers 2",
    "--time-limit is for --search full": "--time-limit 60 --search halving",
    "--time-limit leaves no time for --refit-full":
        "--time-limit 60 --refit-full --bag-folds 0",
    "--folds is for a single run": "--folds 3",
    "--val-split 0: a sweep compares": "--bag-folds 0 --val-split 0 --patience 0",
    "--blend none is for --bag-folds": "--bag-folds 0 --blend none",
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(sentence, place, capsys):
    with pytest.raises(SystemExit) as end:
        sweep_table(*REFUSED[sentence].split())
    assert end.value.code == 2 and sentence in capsys.readouterr().err


def test_a_series_has_no_folds(place, capsys):
    """Its sweep tunes one network, and says so."""
    with pytest.raises(SystemExit) as end:
        sweep_table("--dataset", "sunspots", "--bag-folds", "3", "--horizon", "9999", of="forecast")
    assert end.value.code == 2
    assert "a trial is one network, scored on --val-split" in capsys.readouterr().out


def test_trials_are_planned_once(place, monkeypatch):
    monkeypatch.setattr(time_limit.time, "perf_counter", lambda: 150.0)
    monkeypatch.setattr(time_limit.time, "process_time", lambda: 99.0)
    config = Sweep(train.Recipe(MLP()), time_limit=100.0, trials=64, run_dir=place)
    clock = Clock(100.0, 130.0)  # 66 s are left
    Path("plan.json").write_text('{"epochs": 7}')
    number = {"value": 1.0, "user_attrs": {"seconds": 5.0}}

    def reason(count, clock=clock):
        trials = [create_trial(**number) for _ in range(count)]
        trials += [create_trial(state=TrialState.WAITING)]
        return time_plan.reason_to_stop(config, 4, clock, trials)

    assert reason(0) is None and json.loads(Path("plan.json").read_text()) == {"epochs": 7}
    assert reason(4) is None  # three more populations of 20 s
    assert json.loads(Path("plan.json").read_text())["trials"] == 16
    assert reason(12) is None
    assert reason(16) == "time limit of 100 s: 16 of 64 trials"
    assert reason(8, Clock(100.0, 75.0)) == "time limit of 100 s: 8 of 64 trials"  # it is late
    assert json.loads(Path("plan.json").read_text()) == {"epochs": 7, "trials": 8}
    assert reason(8) and reason(4) is None  # another process has the same plan


@pytest.mark.slow
def test_the_ensemble_is_the_blend_of_a_run(zoo, place, capsys):
    """It has the run's own linear model and trees, and continues without training."""
    folder, flags = Path("s"), ["--data", str(zoo("bag").parent / "table.csv"), "--bag-folds", "3"]
    flags += ["--model.features", "8", "--epochs", "2", "--baseline", "none", "--run-dir", "s"]
    flags += ["--population-size", "2"]
    sweep_table(*flags, "--trials", "4")
    assert "96 train\n" in capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert results["traces"] == 1 and results["candidates"].keys() == {"ensemble"}
    best = json.loads((folder / "best" / "results.json").read_text())
    alone = json.loads((zoo("bag") / "results.json").read_text())
    members, others = ({m["name"]: m for m in r["members"]} for r in (best, alone))
    for name in others.keys() - {"network"}:
        assert members[name]["val"] == others[name]["val"], name
    assert members.keys() - others.keys() == {f"trial {number}" for number in range(4)}
    assert "trial 0 alone" in best["baselines"] and "trial 1 alone" not in best["baselines"]
    network, row = others["network"], {"a": 1.0, "colour": "red"}
    assert members["trial 0"]["val"] == pytest.approx(network["val"], rel=1e-5)
    scores = [members[name]["val"]["loss"] for name in sorted(members) if "trial" in name]
    assert min(scores) == pytest.approx(results["best"]["value"], rel=1e-5)
    assert results["val"]["loss"] <= min(m["val"]["loss"] for m in members.values()) + 1e-4
    assert len(dlflax.load(folder / "best", log=lambda _: None).predict([row])) == 1

    before = (folder / "ensemble" / "results.json").stat().st_mtime_ns
    sweep_table(*flags, "--trials", "4")
    assert (folder / "ensemble" / "results.json").stat().st_mtime_ns == before
    sweep_table(*flags, "--trials", "5")
    more = json.loads((folder / "best" / "results.json").read_text())
    assert sum("trial" in member["name"] for member in more["members"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("folds", ["3", "0"])
def test_a_sweep_keeps_its_time_limit(folds, zoo, place, capsys):
    flags = ["--data", str(zoo("bag").parent / "table.csv"), "--bag-folds", folds, "--trials",
             "1000", "--model.features", "4", "--epochs", "50", "--patience", "0", "--baseline",
             "none", "--time-limit", "14", "--population-size", "2"]  # fmt: skip
    sweep_table(*flags, "--run-dir", "s")
    out, plan = capsys.readouterr().out, json.loads(Path("s/plan.json").read_text())
    trials = json.loads(Path("s/results.json").read_text())["trials"]
    assert plan["trials"] == trials < 1000
    assert f"time limit of 14 s: {trials} of 1,000 trials" in out
    # the same plan is the same sweep
    Path("again").mkdir()
    Path("again/plan.json").write_bytes(Path("s/plan.json").read_bytes())
    sweep_table(*flags, "--run-dir", "again")
    assert Path("again/trials.csv").read_bytes() == Path("s/trials.csv").read_bytes()


def arrays(targets, **options):
    parts = [{"inputs": X[rows], "targets": targets[rows]} for rows in (slice(50), slice(50, 61))]
    return Arrays(*parts, **options)


RARE = np.where(np.arange(61) % 20 == 3, 2, CLASSES % 2).astype(np.int32)  # three in 50
INPUTS = {
    "a class of three": (arrays(RARE), Classification()),
    "labels": (arrays(np.stack([CLASSES > 0, CLASSES > 1], 1)), MultiLabel()),
    "targets": (arrays(np.stack([X[:, 0], X[:, 1] * X[:, 2]], 1)), Regression()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_every_kind(name, place):
    source, task = INPUTS[name]
    config = Sweep(
        train.Recipe(MLP(features=(3,)), task, batch_size=16), data=source, bag_folds=4, epochs=2,
        space={"learning_rate": ("1e-2", "1e-1", "log")}, trials=3, population_size=2,
        sampler="qmc", baseline="none", run_dir=Path("s"),
    )  # fmt: skip
    results = run_sweep("random_search", "arrays", config, lambda line: None)
    assert results["trials"] == 3 and results["model"] == "ensemble"
    best = run.load_config(Path("s/best"))
    assert best["requested"]["bag_folds"] == 4 and math.isfinite(results["val"]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--group g", "--drop-columns g", "--objective val_accuracy",
                                   "--class-weights balanced", "--ensemble-size 0",
                                   "--search halving --epochs 3"])  # fmt: skip
def test_tables_of_every_kind(flags, place):
    """With texts, dates, groups, fewer groups than folds."""
    lines = ["g,text,when,size,kind"]
    for i in range(90):
        words = f"{'good' if i % 3 else 'poor'} day {RNG.integers(40)} of {RNG.integers(30)} here"
        row = i % 5, words, f"2024-01-{1 + i % 28:02}", RNG.normal(), "ab"[i % 3 > 0]
        lines.append(",".join(map(str, row)))
    Path("t.csv").write_text("\n".join(lines))
    sweep_table(
        "--data", "t.csv", "--epochs", "2", "--model.features", "4", "--trials", "3",
        "--baseline", "none", "--blend", "none", "--run-dir", "s", *flags.split(),
    )  # fmt: skip
    results = json.loads(Path("s/results.json").read_text())
    assert results["complete"] + results["pruned"] == 3 and results["test"]["accuracy"] > 0
