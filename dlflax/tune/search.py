"""Which trials come next: samplers through Optuna, and the search loop.

`search` is a loop of three lines: take trials from a store, train them all at once, record them. A
suggestion is a pure function of (what was recorded before, seed, index), so a search that was
killed continues as if it had not been.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from dlflax.errors import InputError
from dlflax.tune.space import Space
from dlflax.tune.trial import Outcome, Trial

Sampler = Literal["tpe", "gp", "cmaes", "random", "qmc", "grid"]
NEEDS = {"gp": "torch", "cmaes": "cmaes"}  # package that a sampler imports


def check_sampler(sampler: Sampler) -> None:
    """InputError when the package that the sampler needs is not installed."""
    package = NEEDS.get(sampler)
    if package and importlib.util.find_spec(package) is None:
        raise InputError(
            f"--sampler {sampler} needs the package {package}: pip install {package}, or use "
            "--sampler tpe."
        )


def trial_seeds(seed: int, index: int, count: int) -> np.ndarray:
    """uint32 (count,): what the trial of that index is trained with, whatever its place in a
    population."""
    return np.random.SeedSequence([seed, index]).generate_state(count + 1)[1:]


def suggest(
    sampler: Sampler,
    space: Space,
    seed: int,
    direction: str,
    history: list[FrozenTrial],
    indices: list[int],
) -> list[Trial]:
    """One Trial for each index, given the trials so far: a pure function.

    Optuna's samplers are asked in an in-memory copy of the study, which costs 1.6 ms a trial with
    TPE where asking through SQLite costs 40, with a new sampler seeded by (seed, index) each.
    """
    if sampler == "grid":
        grid = space.grid()
        return [Trial(index, grid[index]) for index in indices]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Clip non-finite values")  # gp, as it should be
        study = optuna.create_study(direction=direction, pruner=optuna.pruners.NopPruner())
        if sampler == "qmc":  # a sequence: every point is the next one of the same sampler
            study.sampler = _sampler(sampler, seed)
            points = [study.ask(space.distributions).params for _ in range(max(indices) + 1)]
            return [Trial(index, points[index]) for index in indices]
        for trial in history if sampler != "random" else ():
            if trial.state == TrialState.WAITING:  # ask() would hand it out
                trial = copy.copy(trial)
                trial.state = TrialState.RUNNING
            study.add_trial(trial)
        trials = []
        for index in indices:
            study.sampler = _sampler(
                sampler, int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
            )
            study.ask(space.distributions)
            asked = study.get_trials(deepcopy=False)[-1]
            # relative_params: only of use while a trial runs
            attrs = {k: v for k, v in asked.system_attrs.items() if "relative_params" not in k}
            trials.append(Trial(index, dict(asked.params), attrs))
        return trials


def _sampler(name, seed):
    make = {
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
        "cmaes": optuna.samplers.CmaEsSampler,
        "random": optuna.samplers.RandomSampler,
        "qmc": optuna.samplers.QMCSampler,
    }[name]
    more = {"warn_independent_sampling": False} if name in ("gp", "cmaes", "qmc") else {}
    if name == "qmc":
        more["scramble"] = True  # else every seed gives the same points
    return make(seed=seed, **more)


def search(
    objective: Callable[[list[Trial]], list[Outcome]],
    space: Space,
    store,
    *,
    sampler: Sampler = "tpe",
    trials: int,
    population: int = 1,
    seed: int = 0,
) -> None:
    """Tries configurations until `trials` of them are recorded in `store` (`storage.open_study`).

    objective trains `population` of them at once and returns an Outcome for each. A grid ends with
    its last point.
    """
    if sampler == "grid":
        trials = min(trials, len(space.grid()))

    def suggest_next(history, indices):
        return suggest(sampler, space, seed, store.direction, history, indices)

    while batch := store.take(suggest_next, population, trials):
        store.record(batch, objective(batch))


def halving_rungs(epochs: int, eta: int) -> list[int]:
    """Epochs after which all but one in `eta` stop, ascending (Karnin et al. 2013; Jamieson and
    Talwalkar 2016): 9 epochs with eta 3 -> [1, 3]."""
    rungs, rung = [], epochs // eta
    while rung >= 1:
        rungs.append(rung)
        rung //= eta
    return rungs[::-1]
