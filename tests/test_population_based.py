"""Population-based training: who takes over from whom, with what numbers, and after a kill."""

import dataclasses
import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from test_batch_checkpoint import Killed, arrays, killed_when_saved

import experiments
from dlflax import run, train
from dlflax.models import MLP
from dlflax.train import population
from dlflax.train.layout import layout_for
from dlflax.tune import checkpoint, cli, population_based, sweep
from dlflax.tune.encoding import Encoding

pytestmark = pytest.mark.usefixtures("place")

RECIPE = train.Recipe(MLP(features=(8,), num_outputs=10), batch_size=64, optimizer=train.SGD())


def test_the_worst_take_over_from_the_best():
    values = np.array([0.5, 0.1, 0.9, 0.2, math.inf, 0.3, 0.8, 0.4])
    taken = population_based.taken_over(values, 0, 3)
    assert set(taken) == {4, 2} and set(taken.values()) <= {1, 3}
    assert taken == population_based.taken_over(values, 0, 3)
    seen = {tuple(population_based.taken_over(values, 0, e).values()) for e in range(40)}
    assert len(seen) == 4  # each of the two from each of the best
    # all that diverged take over, but not from each other
    lost = np.array([math.inf] * 6 + [0.1, 0.2])
    assert set(population_based.taken_over(lost, 0, 1)) == set(range(6))
    assert population_based.taken_over(np.full(4, math.inf), 0, 1) == {}
    assert population_based.taken_over(np.full(4, 0.5), 0, 1) == {}  # none is better
    assert population_based.taken_over(np.array([0.5]), 0, 1) == {}
    assert population_based.taken_over(np.array([0.5, 0.1]), 0, 1) == {0: 1}


def test_numbers_change_within_their_range():
    encoding = Encoding({
        "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "momentum": CategoricalDistribution([0.0, 0.5, 0.9]),
        "l2": FloatDistribution(1e-3, 1e-3),
    })  # fmt: skip
    rng, params = np.random.default_rng(0), {"learning_rate": 9e-2, "momentum": 0.5, "l2": 1e-3}
    found = [population_based.changed(encoding, params, rng) for _ in range(400)]
    rates = np.array([each["learning_rate"] for each in found])
    assert rates.min() >= 1e-4 and rates.max() <= 1e-1
    near = np.isclose(rates, 9e-2 * 0.8) | np.isclose(rates, 1e-1)  # 1.25 times is cut
    assert 0.65 < near.mean() < 0.85
    assert {each["momentum"] for each in found} == {0.0, 0.5, 0.9}
    assert {each["l2"] for each in found} == {1e-3}


def test_a_lane_goes_on_as_the_one_that_it_took_over():
    """The State is that of the source: with the same numbers and order it ends there too."""
    data = arrays()
    hparams = [train.Hparams(learning_rate=rate) for rate in (0.1, 1e30, 0.01)]
    seeds = np.full((3, 1), 7)  # one order for all
    inputs = data.train["inputs"][:1]
    layout = layout_for(RECIPE, hparams[0], inputs, 3, None)
    members = population.Population(
        RECIPE, hparams, seeds, data.train, data.test, epochs=4, layout=layout, keep_best=True
    )
    members.train(2)
    assert list(members.diverged) == [1]
    members.take_over({1: 0})
    assert not members.diverged
    members.trainings[1][0].hparams_by_epoch = {"learning_rate": [1e30, 1e30, 0.1]}
    members.train(4)
    first, second, third = (row[0] for row in members.histories)
    assert first == second and len(first) == 4 and third != first
    best = members.best(10)
    np.testing.assert_array_equal(best[0, 0][1], best[1, 0][1])


def test_a_run_with_numbers_of_its_own_in_each_epoch():
    """As one whose schedule gives the same rates."""

    def steps(step, hparams):
        return train.Constant()(step, hparams) * np.float32(0.1) ** (step >= 8)

    data = arrays()
    common = dict(train=data.train, val=data.test, epochs=3)
    numbers = {"learning_rate": [0.1, 0.01]}  # the last one stays
    hparams = train.Hparams(learning_rate=0.1)
    given = train.fit(RECIPE, hparams, **common, hparams_by_epoch=numbers)
    other = dataclasses.replace(RECIPE, schedule=steps)
    right = train.fit(other, hparams, **common)
    for mine, theirs in zip(given.history, right.history, strict=True):
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)
    assert [row["learning_rate"] for row in given.history] == pytest.approx([0.1, 0.01, 0.01])


def run_sweep(folder, **options):
    config = sweep.Sweep(
        recipe=RECIPE, data=arrays(), trials=6, epochs=6, search="pbt", ensemble=2,
        space={"learning_rate": ("1e-3", "1e2", "log"), "momentum": ("0", "0.9")},
        run_dir=folder, study="s", **options,
    )  # fmt: skip
    results = sweep.run_sweep("bayes_opt", "digits", config, lambda line: None)
    return (folder / "trials.csv").read_bytes(), results


@pytest.mark.figures
@pytest.mark.slow
def test_killed_after_every_epoch_it_decides_the_same(place, monkeypatch):
    right, results = run_sweep(place / "whole")
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    killed_when_saved(monkeypatch)
    kills = 0
    while True:
        try:
            table, _ = run_sweep(place / "killed")
            break
        except Killed:
            kills += 1
    assert table == right and kills == 6
    assert (place / "whole" / "schedules.png").exists()
    # the retrained best has the numbers of its epochs, and can be used
    saved = run.load_config(place / "whole" / "best")["config"]["hparams_by_epoch"]
    assert set(saved) == {"learning_rate", "momentum"}
    assert all(len(values) == 6 for values in saved.values())
    assert math.isfinite(results["test"]["loss"])


@pytest.mark.parametrize(
    ("flags", "right"),
    [
        ("--seeds 2", "--seeds does not go"), ("--patience 2", "--patience does not go"),
        ("--prune 2", "--prune does not go"), ("--trials auto", "--trials auto does not go"),
        ("--population 3", "--population does not go"), ("--epochs 1", "must be less than"),
        ("--sampler tpe", "decides by itself"), ("--slice 9", "must be less than"),
        ("--space.model.features 4 8", "not the structure"),
    ],
)  # fmt: skip
def test_what_it_cannot_have(capsys, flags, right):
    words = ["mnist", "--dataset", "digits", "--model", "mlp", "--epochs", "3", "--trials", "4"]
    words += ["--search", "pbt"]
    with pytest.raises(SystemExit) as exit_:
        cli.main("bayes_opt", experiments, ("gp", "tpe"), [*words, *flags.split()], "")
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and right in error and "Traceback" not in error
