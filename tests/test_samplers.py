"""Samplers: the Gaussian process as one of Optuna's, by Optuna's own suite; those of a sweep."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import TrialState
from searching import GRID, SPACE

from dlflax.errors import InputError
from dlflax.tune import GaussianProcess
from dlflax.tune.study import open_study
from dlflax.tune.suggest import gaussian_process
from dlflax.tune.suggest.encoding import Encoding, sobol
from dlflax.tune.suggest.samplers import check_sampler, make_sampler, seed_of
from dlflax.tune.suggest.space import Space


@pytest.mark.slow
class TestOptunasOwnSuite(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """The claims that Optuna makes of every sampler."""

    @pytest.fixture
    def sampler(self):
        return lambda: GaussianProcess(seed=0, startup=3)


def ask_and_tell(study, sampler, space, count, batch=4):
    """Trains a bowl, in batches."""
    for _ in range(0, count, batch):
        trials = study.ask(sampler, space.distributions, [None] * batch)
        with study.writing():
            for trial in trials:
                value = (trial.params["x"] - 2) ** 2 + trial.params["z"]
                study.tell(trial.number, TrialState.COMPLETE, value, {})
    return [trial.params for trial in study.trials()]


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "qmc"])
def test_a_finite_space_ends_when_every_configuration_was_tried(name):
    space = Space(GRID)
    with open_study(None, None, "s", "minimize") as study:
        tried = ask_and_tell(study, make_sampler(name, space, 0), space, 20, batch=2)
    everything = sorted(tuple(point[name] for name in GRID) for point in space.grid())
    assert sorted(tuple(params[name] for name in GRID) for params in tried[:18]) == everything
    assert all(params in space.grid() for params in tried[18:])  # all was tried: one again


def test_a_grid_is_in_declared_order():
    space = Space(GRID)
    with open_study(None, None, "s", "minimize") as study:
        assert ask_and_tell(study, make_sampler("grid", space, 0), space, 18, 2) == space.grid()


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_gaussian_process_sees_pending_trials_and_the_best_report_of_pruned_ones(direction):
    """The same suggestions as from the module itself, whatever the state of a trial."""
    encoding, sign = Encoding(SPACE), 1 if direction == "minimize" else -1
    states = [TrialState.COMPLETE] * 9 + [TrialState.PRUNED] * 3 + [TrialState.RUNNING] * 2
    finished, pending = [], []
    with open_study(None, None, "s", direction) as study:
        points = [sobol(encoding, 1, k) for k in range(15)]
        asked = study.ask(make_sampler("gp", Space(SPACE), 0), SPACE, points)
        with study.writing():
            for trial, state in zip(asked, [*states, TrialState.FAIL], strict=True):
                value = trial.params["x"] ** 2
                if state == TrialState.RUNNING:
                    pending.append(trial.params)
                    continue
                study.report(trial.number, {1: sign * value, 2: sign * (value + 9)})
                complete = state == TrialState.COMPLETE
                study.tell(trial.number, state, sign * value if complete else None, {})
                if state != TrialState.FAIL:
                    finished.append((trial.params, value))
        found = study.ask(make_sampler("gp", Space(SPACE), 0), SPACE, [None, None])
    fitted = gaussian_process.fit(encoding, finished)
    for trial in found:
        seed = seed_of(0, trial.number)
        expected = gaussian_process.suggest(encoding, fitted, pending, seed)
        assert trial.params == expected
        pending.append(expected)


def test_the_gaussian_process_is_fitted_once_for_a_count_of_finished_trials(monkeypatch):
    fits, fit = [], gaussian_process.fit

    def count(encoding, finished, known):
        fits.append(len(finished))
        return fit(encoding, finished, known)

    monkeypatch.setattr(gaussian_process, "fit", count)
    space = Space(SPACE)
    with open_study(None, None, "s", "minimize") as study:
        ask_and_tell(study, make_sampler("gp", space, 0), space, 20, batch=5)
    assert fits == [10, 15]


def test_plain_optuna_uses_it():
    study = optuna.create_study(sampler=GaussianProcess(seed=0, startup=6))
    study.optimize(
        lambda t: (t.suggest_float("x", -5, 5) - 1) ** 2 + t.suggest_int("n", 1, 900), 25
    )
    assert study.best_value < 20


def test_the_best_trials_of_another_study_are_among_the_first():
    unit = {name: FloatDistribution(0, 1) for name in ("x", "y", "z")}
    known = [({"x": k / 9, "y": 0.5, "z": 0.5}, float(k)) for k in reversed(range(9))]
    space = Space(unit, known=known)
    with open_study(None, None, "s", "minimize") as study:
        asked = study.ask(make_sampler("gp", space, 0), unit, [None] * 9)
    best = [{"x": k / 9, "y": 0.5, "z": 0.5} for k in range(4)]
    assert [trial.params for trial in asked[2::2]] == best


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("annealing", "use one of gp, tpe, cmaes, random, qmc, grid, or module:Class"),
        ("nowhere:Sampler", "--sampler nowhere:Sampler cannot be imported"),
        ("optuna.samplers:Sampler", "cannot be imported"),
        ("optuna.pruners:NopPruner", "must be a subclass of optuna.samplers.BaseSampler"),
    ],
)
def test_samplers_that_are_none(name, reason):
    with pytest.raises(InputError, match=reason):
        check_sampler(name)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="cmaes needs the package cmaes"):
        check_sampler("cmaes")
    check_sampler("gp")


def test_any_sampler_of_optunas():
    space = Space(SPACE)
    check_sampler("optuna.samplers:NSGAIISampler")
    runs = []
    for _ in range(2):
        with open_study(None, None, "s", "minimize") as study:
            sampler = make_sampler("optuna.samplers:NSGAIISampler", space, 4)
            runs.append(ask_and_tell(study, sampler, space, 8))
    assert runs[0] == runs[1] and len({str(params) for params in runs[0]}) == 8


PROCESS = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import math
from dlflax.tune.suggest import gaussian_process
from dlflax.tune.suggest.encoding import Encoding, sobol
sys.path.insert(0, 'tests')
from searching import SPACE
encoding = Encoding(SPACE)
points = [sobol(encoding, 0, k) for k in range(100)]
done = [(point, math.sin(point["x"]) + point["y"] ** 2) for point in points]
fitted = gaussian_process.fit(encoding, done)
print([gaussian_process.suggest(encoding, fitted, points[:2], seed) for seed in range(4)])
"""


@pytest.mark.slow
def test_suggestions_do_not_depend_on_cores_or_threads():
    """Matrices of more than 64 rows are what BLAS would share among threads."""
    said = {
        subprocess.run(
            [sys.executable, "-c", PROCESS, cores], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[1], env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
        ).stdout
        for cores, threads in [("1", "1"), ("2", "2"), ("2", "4")]
    }  # fmt: skip
    assert len(said) == 1
