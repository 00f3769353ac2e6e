"""Which hyperparameters to try: the search space, samplers through Optuna, and the search loop.

`search` is a loop of three lines: take trials from a `storage`, train them all at once, record
them. A suggestion is a pure function of (what was recorded before, seed, index), so a search that
was killed goes on as if it had not been.
"""

import copy
import dataclasses
import importlib.util
import itertools
import math
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from dlflax import optim, train
from dlflax.augment import Operation
from dlflax.errors import InputError
from dlflax.storage import Outcome, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would report every study and trial

Sampler = Literal["tpe", "gp", "cmaes", "random", "qmc", "grid"]
NEEDS = {"gp": "torch", "cmaes": "cmaes"}  # package that a sampler imports
STRUCTURE = ("optimizer", "schedule", "batch_size", "augment", "compute_dtype", "ema")


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched over."""

    distributions: dict[str, BaseDistribution]
    """Name -> Optuna distribution, in declared order: an Hparams field ("learning_rate"), a Recipe
    field ("batch_size") or a field of the model ("model.features", whose tuples are "32,64")."""
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Name -> the one value that was given."""

    def structures(self) -> int:
        """How many structures there are, hence programs to compile."""
        return math.prod(len(d.choices) for n, d in self.distributions.items() if structural(n))

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the choices, the last name changing fastest."""
        names = list(self.distributions)
        choices = [self.distributions[name].choices for name in names]
        return [dict(zip(names, point, strict=True)) for point in itertools.product(*choices)]


def structural(name: str) -> bool:
    """Whether another value is another program."""
    return name.startswith("model.") or name in STRUCTURE


def space(tokens: Mapping[str, tuple[str, ...]], recipe: train.Recipe, grid: bool = False) -> Space:
    """The space from its words: {"learning_rate": ("1e-4", "1e-2", "log"), "model.features":
    ("32", "32,64")}.

    For a number of Hparams: LOW HIGH is a range, LOW HIGH log a logarithmic one, three or more
    values (or two and the word choice) are choices, one value fixes it, none leaves it alone. For a
    field of the recipe or its model every value is a choice. grid: all values are choices.
    Raises InputError naming the flag when a word is not what it should be.
    """
    distributions, fixed = {}, {}
    for name, words in tokens.items():
        if not words:
            continue
        flag = f"--space.{name.replace('_', '-')} {' '.join(words)}"
        kind = words[-1] if words[-1] in ("log", "linear", "choice") else None
        values = [_value(name, word, recipe, flag) for word in (words[:-1] if kind else words)]
        if not values:
            raise InputError(f"{flag}: give one or more values before {kind}.")
        if kind in ("log", "linear") and (grid or structural(name)):
            what = "a grid" if grid else "a field of the structure"
            raise InputError(f"{flag}: {what} needs values to choose from, not a range.")
        choices = grid or structural(name) or kind == "choice" or (len(values) > 2 and not kind)
        if len(set(values)) < len(values):
            raise InputError(f"{flag}: a value is there twice; every value must differ.")
        if choices and len(values) > 1:
            distributions[name] = CategoricalDistribution(
                [_text(value) if isinstance(value, tuple) else value for value in values]
            )
        elif len(values) == 1 and kind in (None, "choice"):
            fixed[name] = values[0]
        elif len(values) != 2:
            raise InputError(f"{flag}: a range is LOW HIGH, or LOW HIGH log.")
        else:
            low, high = values
            if low > high:
                raise InputError(f"{flag}: the low end {low:g} is above the high end {high:g}.")
            if kind == "log" and low <= 0:
                raise InputError(f"{flag}: a log range must begin above 0.")
            distributions[name] = FloatDistribution(low, high, log=kind == "log")
    if not distributions:
        raise InputError(
            "nothing to search over: give a range or choices, such as "
            "--space.learning-rate 1e-4 1e-2 log."
        )
    return Space(distributions, fixed)


def apply(
    params: Mapping[str, Any], recipe: train.Recipe, hparams: optim.Hparams
) -> tuple[train.Recipe, optim.Hparams]:
    """(recipe, hparams) with a trial's parameters, or a space's fixed values, put in."""
    for name, value in params.items():
        if name.startswith("model."):
            field = name.removeprefix("model.")
            if isinstance(getattr(recipe.model, field), tuple) and not isinstance(value, tuple):
                value = tuple(int(number) for number in str(value).split(","))
            recipe = dataclasses.replace(recipe, model=recipe.model.clone(**{field: value}))
        elif name in STRUCTURE:
            if name == "augment" and not isinstance(value, tuple):
                value = () if value == "none" else tuple(value.split(","))
            recipe = dataclasses.replace(recipe, **{name: value})
        else:
            hparams = hparams.replace(**{name: value})
    return recipe, hparams


def _text(items: tuple) -> str:
    return ",".join(map(str, items)) or "none"


def _value(name: str, word: str, recipe: train.Recipe, flag: str):
    """The word as a value of that field. InputError when it cannot be one."""
    owner, field = (recipe.model, name[6:]) if name.startswith("model.") else (recipe, name)
    if not structural(name):
        try:
            optim.check(optim.Hparams(**{name: float(word)}))
        except InputError as error:  # which is a ValueError too
            raise InputError(f"{flag}: {str(error).removeprefix('--hparams.')}") from error
        except ValueError as error:
            raise InputError(f"{flag}: {word!r} is not a number.") from error
        return float(word)
    if name == "augment":
        operations = () if word == "none" else tuple(word.split(","))
        if unknown := set(operations) - set(typing.get_args(Operation)):
            right = ", ".join(typing.get_args(Operation))
            raise InputError(
                f"{flag}: {unknown.pop()!r} must be one of {right}, several as crop,flip, or none."
            )
        return operations
    hint = typing.get_type_hints(type(owner)).get(field)
    if typing.get_origin(hint) is Literal:
        if word not in typing.get_args(hint):
            right = ", ".join(typing.get_args(hint))
            raise InputError(f"{flag}: {word!r} must be one of {right}.")
        return word
    current = getattr(owner, field)
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False}[word.lower()]
        if isinstance(current, tuple):
            return tuple(int(number) for number in word.split(","))
        return type(current)(word)
    except (KeyError, ValueError) as error:
        right = {
            bool: "true or false", int: "whole numbers", float: "numbers",
            tuple: "whole numbers, those of several layers as 32,64",
        }[type(current)]  # fmt: skip
        raise InputError(f"{flag}: {word!r} is not right, it takes {right}.") from error


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
