"""Samplers, which suggest the parameters of a trial: Optuna's, a Gaussian process, a grid."""

import functools
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace

from dlflax.errors import InputError
from dlflax.report.sweep.pareto import cost_name
from dlflax.tune.study import score
from dlflax.tune.suggest import cost, gaussian_process
from dlflax.tune.suggest.encoding import Encoding, sobol
from dlflax.tune.suggest.space import Space

STARTUP = 10  # trials of a Sobol sequence before the Gaussian process chooses
SAMPLERS = ("gp", "tpe", "cmaes", "random", "qmc", "grid")


def seed_of(seed: int, number: int) -> int:
    """Returns the seed of a trial's suggestion."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class GaussianProcess(BaseSampler):
    """Bayesian optimization by a Gaussian process, for any Optuna study of one objective.

    A suggestion is a function of the seed and of all trials with lower numbers. The first `startup`
    trials, and all while none is finished, are points of a scrambled Sobol sequence. search_space:
    None for the parameters that all finished trials have in common. known: (parameters, value) of
    another study, lower is better; every second one of the first trials repeats one of the best.
    """

    def __init__(
        self, seed: int | None = None, *,
        search_space: Mapping[str, BaseDistribution] | None = None, startup: float = STARTUP,
        known: Sequence[tuple[Mapping[str, Any], float]] = (),
    ):  # fmt: skip
        self._seed = int(np.random.SeedSequence().entropy) if seed is None else seed
        self._space, self._startup, self._known = search_space, startup, known
        self._common = IntersectionSearchSpace(include_pruned=True)
        self._fitted: tuple[Any, Any] = (None, None)

    def infer_relative_search_space(self, study, trial):
        """Returns the parameters that are chosen together. Raises ValueError for a study of several
        objectives."""
        _check_objectives(study)
        space = self._space if self._space is not None else self._common.calculate(study)
        return {name: d for name, d in space.items() if not d.single() or self._space}

    def sample_relative(self, study, trial, search_space):
        _check_objectives(study)
        if not search_space:
            return {}
        encoding, direction = Encoding(search_space), study.direction.name.lower()
        earlier = [
            other for other in study.get_trials(deepcopy=False)
            if other.number < trial.number and search_space.keys() <= other.params.keys()
        ]  # fmt: skip
        finished = [other for other in earlier if score(other, direction) is not None]
        if trial.number < self._startup or not finished:
            best = sorted(self._known, key=lambda pair: pair[1])  # stable: the first on a tie
            index, is_odd = divmod(trial.number, 2)
            if trial.number and not is_odd and index - 1 < len(best):
                return dict(best[index - 1][0])
            return sobol(encoding, self._seed, trial.number)
        pending = [other.params for other in earlier if not other.state.is_finished()]
        fitted = self._fit(encoding, finished, direction, trial.number)
        seed = seed_of(self._seed, trial.number)
        return gaussian_process.suggest(encoding, fitted, pending, seed)

    def sample_independent(self, study, trial, param_name, param_distribution):
        _check_objectives(study)
        seed = [self._seed, trial.number, *param_name.encode()]
        sampler = RandomSampler(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _fit(self, encoding, finished, direction, number):
        """Returns the model of the finished trials, fitted once until another is finished."""
        sign, name = 1 if direction == "minimize" else -1, cost_name(finished)
        group = number // cost.BATCH if name else 0  # trials with the same weights
        key = [trial.number for trial in finished], encoding.distributions, group
        if self._fitted[0] != key:
            values = [sign * score(trial, direction) for trial in finished]
            if name:
                costs = [trial.user_attrs[name] for trial in finished]
                values = cost.scalarize(values, costs, self._seed, number)
            done = list(zip((trial.params for trial in finished), values, strict=True))
            known = () if name else self._known
            self._fitted = key, gaussian_process.fit(encoding, done, known)
        return self._fitted[1]


def _check_objectives(study) -> None:
    """Raises ValueError, as Optuna's samplers do, for a study of several objectives."""
    if len(study.directions) > 1:
        raise ValueError("GaussianProcess is for studies of one objective.")


class Grid(BaseSampler):
    """A grid: trial k has point k."""

    def __init__(self, points: Sequence[Mapping[str, Any]]):
        self._points = points

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self._points[trial.number % len(self._points)][param_name]


class SweepSampler(BaseSampler):
    """A sampler that is made anew for every trial, by its number, so that a search that was killed
    continues with the same suggestions. make: seed -> sampler; distributions: all parameters."""

    def __init__(
        self, make: Callable[[int], BaseSampler], distributions: Mapping[str, Any], seed: int
    ):
        self._make, self._seed, self._distributions = make, seed, dict(distributions)

    def infer_relative_search_space(self, study, trial):
        return self._distributions

    def sample_relative(self, study, trial, search_space):
        """Returns all parameters of a trial, in a finite space new ones."""
        sampler = self._make(seed_of(self._seed, trial.number))
        sampler.before_trial(study, trial)
        together = sampler.infer_relative_search_space(study, trial)
        params = sampler.sample_relative(study, trial, together)
        params = {
            name: params[name] if name in params
            else sampler.sample_independent(study, trial, name, distribution)
            for name, distribution in self._distributions.items()
        }  # fmt: skip
        encoding = Encoding(self._distributions)
        if not encoding.size():
            return params
        rng, draws = np.random.default_rng([self._seed, trial.number]), 0
        tried = {
            encoding.key(other.params) for other in study.get_trials(deepcopy=False)
            if other.number < trial.number and self._distributions.keys() <= other.params.keys()
        }  # fmt: skip
        while encoding.key(params) in tried and draws < 100:
            (params,) = encoding.spread(rng.random((1, len(self._distributions))))
            draws += 1
        if encoding.key(params) in tried:
            params = encoding.first_new(tried) or params
        return params

    def sample_independent(self, study, trial, param_name, param_distribution):
        """Returns a random value of a parameter that the space does not have."""
        sampler = RandomSampler(seed_of(self._seed, trial.number))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study, trial, state, values):
        self._make(seed_of(self._seed, trial.number)).after_trial(study, trial, state, values)


def check_sampler(sampler: str) -> None:
    """Raises InputError for an unknown sampler, or one whose package is missing."""
    if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise InputError(
            "--sampler cmaes needs the package cmaes: pip install cmaes, or use --sampler gp."
        )
    if sampler not in SAMPLERS:
        _load_sampler(sampler)


def make_sampler(name: str, space: Space, seed: int) -> BaseSampler:
    """Returns the sampler of a sweep: one of SAMPLERS, or module:Class of any other one, whose
    `seed`, if it takes one, depends on the trial. Raises InputError as `check_sampler`."""
    if name == "grid":
        return Grid(space.grid())
    if name in ("gp", "qmc"):  # one object, which caches its fit and seeds every trial itself
        startup = STARTUP if name == "gp" else np.inf
        process = GaussianProcess(
            seed, search_space=space.distributions, startup=startup, known=space.known
        )
        return SweepSampler(lambda _: process, space.distributions, seed)
    if name == "tpe":  # independent of the defaults of this version of Optuna
        make = functools.partial(TPESampler, multivariate=True, constant_liar=True)
    elif name == "cmaes":
        make = functools.partial(CmaEsSampler, warn_independent_sampling=False)
    else:
        make = RandomSampler if name == "random" else _load_sampler(name)
    sampler = None if "seed" in inspect.signature(make).parameters else make()

    def with_seed(seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return sampler or make(seed=seed)

    return SweepSampler(with_seed, space.distributions, seed)


def load_class(flag: str, name: str) -> Any:
    """Returns the class module:Class. Raises InputError where it cannot be imported."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{flag} {name} cannot be imported: {error}.") from error


def _load_sampler(name: str) -> type[BaseSampler]:
    if ":" not in name:
        raise InputError(
            f"--sampler {name}: use one of {', '.join(SAMPLERS)}, or module:Class of a sampler of "
            "Optuna's, such as optuna.samplers:NSGAIISampler."
        )
    sampler = load_class("--sampler", name)
    if not (isinstance(sampler, type) and issubclass(sampler, BaseSampler)):
        raise InputError(f"--sampler {name} must be a subclass of optuna.samplers.BaseSampler.")
    return sampler
