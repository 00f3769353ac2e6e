"""Two objectives: what a trial costs, the front, and how both decide the next trials."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from searching import search

import experiments
from dlflax import train
from dlflax.report.sweep import pareto
from dlflax.tune import sweep_command
from dlflax.tune.study import open_study
from dlflax.tune.suggest import cost
from dlflax.tune.suggest.space import Space
from experiments.mnist import ARCHITECTURES, PRESETS

pytestmark = pytest.mark.usefixtures("place")


def trials_of(values, costs, states=None):
    found = []
    for i, (value, each) in enumerate(zip(values, costs, strict=True)):
        made = create_trial(
            value=value, user_attrs={"parameters": each},
            state=(states or {}).get(i, TrialState.COMPLETE),
        )  # fmt: skip
        made.number = i
        found.append(made)
    return found


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_front_is_what_no_other_trial_beats(direction):
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, costs = rng.integers(0, 8, 30).tolist(), rng.integers(1, 8, 30).tolist()
        trials = trials_of([float(value) for value in values], costs)
        found = pareto.front(trials, direction)
        sign = 1 if direction == "minimize" else -1
        points = np.stack([sign * np.array(values), costs], 1)
        beaten = [
            any((other <= point).all() and (other < point).any() for other in points)
            for point in points
        ]
        right = {tuple(point) for point, b in zip(points.tolist(), beaten, strict=True) if not b}
        assert {(sign * t.value, t.user_attrs["parameters"]) for t in found} == right
        assert len(found) == len(right)  # equal trials are named once
        assert [t.user_attrs["parameters"] for t in found] == sorted(
            t.user_attrs["parameters"] for t in found
        )


def test_what_was_pruned_or_diverged_is_not_on_the_front():
    trials = trials_of([0.1, 0.2, float("inf")], [10, 20, 1], {0: TrialState.PRUNED})
    assert [t.number for t in pareto.front(trials, "minimize")] == [1]
    assert "trial 1 (20, 0.2000)" in pareto.findings(trials, "minimize", "val_loss")[0]
    assert pareto.findings([], "minimize", "val_loss") == []


def test_one_number_for_both():
    values, costs = [0.1, 0.5, 0.3, np.inf], [1e6, 1e3, 1e4, 1e5]
    orders = set()
    for index in range(0, 200, cost.BATCH):
        weighed = cost.scalarize(values, costs, 0, index)
        np.testing.assert_array_equal(weighed, cost.scalarize(values, costs, 0, index + 1))
        assert weighed[3] > weighed[2]  # worse in both
        orders.add(int(np.argmin(weighed)))
    assert orders == {0, 1, 2}  # every trial of the front is the best for some weights
    assert np.isfinite(cost.scalarize([0.1], [5], 0, 0)).all()


def test_what_a_model_costs():
    mlp = ARCHITECTURES["mlp"].clone(features=(32,), num_outputs=10)
    inputs = np.zeros((80, 28, 28, 1), np.uint8)
    recipe = dataclasses.replace(PRESETS["default"].recipe, model=mlp)
    hparams = train.Hparams()
    assert cost.cost("parameters", recipe, hparams, inputs) == 784 * 32 + 32 + 32 * 10 + 10
    assert cost.cost("flops", recipe, hparams, inputs) == 2 * (784 * 32 + 32 * 10)
    wide = dataclasses.replace(recipe, model=mlp.clone(features=(8192,)))
    slow, fast = (cost.cost("milliseconds", each, hparams, inputs) for each in (wide, recipe))
    assert slow > fast > 0


@pytest.mark.slow
def test_the_search_spreads_over_the_front():
    """A loss that falls with the width: with two objectives narrow ones are searched as well."""
    space = {
        "learning_rate": FloatDistribution(1e-4, 1, log=True),
        "width": CategoricalDistribution([8, 16, 32, 64, 128, 256]),
    }

    def outcome(params, two):
        loss = 1 / params["width"] ** 0.5 + 0.1 * (np.log10(params["learning_rate"]) + 2) ** 2
        return float(loss), {"parameters": 10.0 * params["width"]} if two else {}

    counts, gaps = {}, {}
    for two in (False, True):
        with open_study(None, None, "s", "minimize") as study:
            search(study, Space(space), lambda params, two=two: outcome(params, two), "gp", 48, 8)
            trials = study.trials()
        counts[two] = sum(t.params["width"] <= 32 for t in trials[16:])
        gaps[two] = [
            min(t.value for t in trials if t.params["width"] == width) - width**-0.5
            for width in (8, 16, 32, 64, 128, 256)
            if any(t.params["width"] == width for t in trials)
        ]
    assert counts[True] > 2 * counts[False]
    assert len(gaps[True]) == 6 and np.mean(gaps[True]) < 0.05  # each near its best


TINY = "--dataset digits --model mlp --epochs 2 --ensemble-size 0 --run-dir s"


def sweep(*flags, search="bayes_opt", samplers=("gp", "tpe")):
    sweep_command.main(search, experiments, samplers, ["mnist", *TINY.split(), *flags], "")


@pytest.mark.figures
@pytest.mark.slow
def test_a_sweep_with_two_objectives(capsys):
    flags = ["--trials", "6", "--population-size", "3", "--space.model.features", "16", "32"]
    sweep(*flags, "--objective", "val_accuracy", "parameters")
    results = json.loads(Path("s/results.json").read_text())
    rows = list(csv.DictReader(Path("s/trials.csv").read_text().splitlines()))
    sizes = {str(n): 784 * n + n + 10 * n + 10 for n in (16, 32)}
    assert all(float(row["parameters"]) == sizes[row["model.features"]] for row in rows)
    found = {rows[n]["parameters"] for n in results["front"]}
    assert 1 <= len(found) == len(results["front"]) <= 2
    assert results["best"]["number"] in results["front"]  # the best value is always there
    out = capsys.readouterr().out
    assert "No other trial is better in both parameters and val_accuracy" in out
    assert (
        Path("s/pareto_front.png").exists() and "Pareto front" in Path("s/report.html").read_text()
    )
    sweep(*flags, "--objective", "val_accuracy", "parameters")
    assert json.loads(Path("s/results.json").read_text())["front"] == results["front"]


@pytest.mark.parametrize(
    ("flags", "right"),
    [
        ("val_loss", "one, or two"),
        ("weight", "must be parameters, flops or milliseconds"),
        ("parameters", "no structure is searched"),
        (
            "parameters --search halving --reduction-factor 2",
            "--search halving goes by one objective",
        ),
        ("parameters --sampler tpe", "--sampler tpe goes by one"),
        ("parameters --search freeze-thaw", "goes by one objective"),
        ("parameters --trials auto", "goes by one objective"),
    ],
)
def test_what_two_objectives_cannot_be(capsys, flags, right):
    words = flags.split()
    first = ["val_loss", "val_accuracy"] if right.startswith("one") else ["val_loss"]
    with pytest.raises(SystemExit) as exit_:
        sweep("--objective", *first, *words)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and right in error and "Traceback" not in error
