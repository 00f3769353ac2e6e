"""The search space: the numbers and structures of trials."""

import dataclasses
import itertools
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from dlflax import train
from dlflax.errors import InputError
from dlflax.train.check import check_hparams, check_recipe
from dlflax.train.slots import SLOTS, components, replace_components, short_names

# fields of a Recipe, and the loss of its task
STRUCTURE = ("batch_size", "compute_dtype", "ema", *sorted(SLOTS.keys() - {"task", "step"}))


@dataclasses.dataclass(frozen=True)
class Space:
    """The numbers and structures that are searched over."""

    distributions: dict[str, BaseDistribution]
    """Name -> Optuna distribution, in declared order. Names: fields of Hparams, those of STRUCTURE
    (with short names as choices), and "model.FIELD" (with tuples as "32,64")."""
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)  # name -> its only value
    recipes: tuple[train.Recipe, ...] = ()  # whose parts have short names, like the shipped ones
    defaults: dict[str, Any] | None = None
    """The defaults of a run, numbers as near as the space allows; None where a default choice is
    not searched."""
    guess: dict[str, Any] = dataclasses.field(default_factory=dict)  # a user's, for some names
    known: list[tuple[dict[str, Any], float]] = dataclasses.field(default_factory=list)
    """Trials of another study, (parameters, value), lower is better."""

    def grid(self) -> list[dict[str, Any]]:
        """Returns every combination of the choices, the last name changing fastest."""
        points = itertools.product(*(d.choices for d in self.distributions.values()))
        return [dict(zip(self.distributions, point, strict=True)) for point in points]

    def structures(self) -> list[dict[str, Any]]:
        """Returns the parameters of every structure, each a program to compile."""
        choices = {name: d for name, d in self.distributions.items() if is_structural(name)}
        return Space(choices).grid()

    def first_trials(self) -> list[dict[str, Any]]:
        """Returns the parameters of the first trials: the defaults, and the guess, which has the
        defaults, or else the sampler's suggestions, of all other names."""
        defaults = self.defaults or {}
        guess = self.guess and {**defaults, **self.guess}
        return [params for params in (defaults, guess) if params]

    def apply(
        self, params: Mapping[str, Any], recipe: train.Recipe, hparams: train.Hparams
    ) -> tuple[train.Recipe, train.Hparams]:
        """Returns (recipe, hparams) with a trial's parameters, or the fixed values."""
        for name, value in params.items():
            if name.startswith("model."):
                field = name.removeprefix("model.")
                if isinstance(getattr(recipe.model, field), tuple) and not isinstance(value, tuple):
                    value = tuple(int(number) for number in str(value).split(","))
                recipe = dataclasses.replace(recipe, model=recipe.model.clone(**{field: value}))
            elif name in SLOTS:
                chosen = {name: _names(value) if SLOTS[name].several else value}
                recipe = replace_components(recipe, chosen, (*self.recipes, recipe))
            elif name in STRUCTURE:
                recipe = dataclasses.replace(recipe, **{name: value})
            else:
                hparams = hparams.replace(**{name: value})
        return recipe, hparams


def is_structural(name: str) -> bool:
    """True if each value takes a program of its own."""
    return name.startswith("model.") or name in STRUCTURE


def space(
    tokens: Mapping[str, tuple[str, ...]], recipe: train.Recipe,
    hparams: train.Hparams | None = None, grid: bool = False,
    recipes: tuple[train.Recipe, ...] = (),
) -> Space:  # fmt: skip
    """Returns the space of words, such as {"learning_rate": ("1e-4", "1e-2", "log"),
    "model.features": ("32", "32,64")}.

    For a number of Hparams: LOW HIGH is a range, LOW HIGH log a logarithmic one, three or more
    values (or two and the word choice) are choices, one value fixes it, none is no search. For a
    field of the recipe or its model, and in a grid, every value is a choice. recipes: may name
    their parts, besides the shipped ones. Raises InputError naming the flag of a wrong word.
    """
    hparams, recipes = hparams or train.Hparams(), (*recipes, recipe)
    distributions, fixed = {}, {}
    for name, words in tokens.items():
        if not words:
            continue
        flag = f"--space.{name.replace('_', '-')} {' '.join(words)}"
        kind = words[-1] if words[-1] in ("log", "linear", "choice") else None
        given = words[:-1] if kind else words
        values = [_value(name, word, recipe, recipes, flag) for word in given]
        if not values:
            raise InputError(f"{flag}: give one or more values before {kind}.")
        for value in values:
            changed = Space({}, {}, recipes).apply({name: value}, recipe, hparams)
            try:
                check_recipe(changed[0])
                check_hparams(changed[1])
            except InputError as error:
                reason = str(error).removeprefix("--").removeprefix("hparams.")
                raise InputError(f"{flag}: {reason}") from error
        discrete = grid or is_structural(name)
        if kind in ("log", "linear") and discrete:
            owner = "a grid" if grid else "a field of the structure"
            raise InputError(f"{flag}: {owner} needs values to choose from, not a range.")
        if len(set(values)) < len(values):
            raise InputError(f"{flag}: a value is there twice; every value must differ.")
        discrete = discrete or kind == "choice" or (len(values) > 2 and not kind)
        if discrete and len(values) > 1:
            distributions[name] = CategoricalDistribution(list(map(_choice, values)))
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
    return Space(distributions, fixed, recipes, _defaults(distributions, recipe, hparams))


def _defaults(distributions, recipe, hparams) -> dict[str, Any] | None:
    """Returns `Space.defaults`."""
    params = {}
    for name, distribution in distributions.items():
        if not is_structural(name):
            value = float(getattr(hparams, name))
        elif name in SLOTS:
            value = _choice(short_names(name, recipe))
        else:
            value = _choice(getattr(*_owner(name, recipe)))
        if isinstance(distribution, FloatDistribution):
            value = min(max(value, distribution.low), distribution.high)
        elif not is_structural(name):  # choices of a number
            value = min(distribution.choices, key=lambda choice, value=value: abs(choice - value))
        elif value not in distribution.choices:
            return None
        params[name] = value
    return params


def _owner(name: str, recipe) -> tuple[Any, str]:
    """Returns (the recipe or its model, the name of its field)."""
    if name.startswith("model."):
        return recipe.model, name.removeprefix("model.")
    return recipe, name


def _choice(value):
    """Returns a value as Optuna saves it: a tuple as text."""
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else value


def _names(text: str) -> tuple[str, ...]:
    """Returns the tuple of names of a `_choice`."""
    return () if text == "none" else tuple(text.split(","))


def guess(words: Sequence[str], space: Space, recipe) -> dict[str, Any]:
    """Returns the parameters of NAME=VALUE words (--prior). Raises InputError for one that is not
    in the space."""
    params = {}
    for word in words:
        flag, (name, equals, text) = f"--prior {word}", word.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in space.distributions:
            raise InputError(
                f"{flag}: give NAME=VALUE of a searched parameter, one of "
                f"{', '.join(space.distributions)}; such as --prior learning_rate=1e-3."
            )
        if name in params:
            raise InputError(f"{flag}: {name} is there twice.")
        value = _choice(_value(name, text, recipe, (*space.recipes, recipe), flag))
        if not is_within(space.distributions[name], value):
            raise InputError(f"{flag}: it is outside --space.{name.replace('_', '-')}.")
        params[name] = value
    return params


def is_within(distribution, value) -> bool:
    """True if a parameter may have the value."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


def _value(name, word, recipe, recipes, flag):
    """Returns the word as a value of that field. Raises InputError naming the flag."""
    if not is_structural(name):
        try:
            return float(word)
        except ValueError as error:
            raise InputError(f"{flag}: {word!r} is not a number.") from error
    if name in SLOTS:
        known, several = components(name, recipes), SLOTS[name].several
        if unknown := {*(_names(word) if several else (word,))} - {*known}:
            more = ", several as crop,flip, or none" if several else ""
            raise InputError(f"{flag}: {unknown.pop()!r} must be one of {', '.join(known)}{more}.")
        return word
    owner, field = _owner(name, recipe)
    hint = typing.get_type_hints(type(owner)).get(field)
    if typing.get_origin(hint) is Literal:
        if word not in typing.get_args(hint):
            choices = ", ".join(typing.get_args(hint))
            raise InputError(f"{flag}: {word!r} must be one of {choices}.")
        return word
    current = getattr(owner, field)
    expected = {
        bool: "true or false", int: "whole numbers", float: "numbers", str: "text",
        tuple: "whole numbers, those of several layers as 32,64",
    }.get(type(current))  # fmt: skip
    if expected is None:
        raise InputError(f"{flag}: a field that holds {current!r:.60} cannot be searched.")
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False}[word.lower()]
        if isinstance(current, tuple):
            return tuple(int(number) for number in word.split(","))
        return type(current)(word)
    except (KeyError, ValueError) as error:
        raise InputError(f"{flag}: {word!r} is invalid; expected {expected}.") from error
