"""The search space: which numbers and structures are tried."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Mapping
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
    """Name -> Optuna distribution, in declared order: an Hparams field ("learning_rate"), one of
    STRUCTURE ("batch_size"; things by their short names) or a field of the model
    ("model.features", whose tuples are "32,64")."""
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Name -> the one value that was given."""
    recipes: tuple[train.Recipe, ...] = ()
    """Whose things have short names, besides those shipped."""
    defaults: dict[str, Any] | None = None
    """The defaults of a run: its numbers, or the nearest to them that are searched;
    None where one of its choices is not among those that are searched."""
    guess: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The guess of a user, of some or all names."""
    known: list[tuple[dict[str, Any], float]] = dataclasses.field(default_factory=list)
    """Trials of another study, (parameters, value), the lowest value being the best."""

    def structures(self) -> int:
        """Number of structures, hence programs to compile."""
        return math.prod(len(d.choices) for n, d in self.distributions.items() if structural(n))

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the choices, the last name changing fastest."""
        names = list(self.distributions)
        choices = [self.distributions[name].choices for name in names]
        return [dict(zip(names, point, strict=True)) for point in itertools.product(*choices)]

    def apply(
        self, params: Mapping[str, Any], recipe: train.Recipe, hparams: train.Hparams
    ) -> tuple[train.Recipe, train.Hparams]:
        """(recipe, hparams) with a trial's parameters, or the fixed values, put in."""
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


def structural(name: str) -> bool:
    """True if another value is another program."""
    return name.startswith("model.") or name in STRUCTURE


def space(
    tokens: Mapping[str, tuple[str, ...]],
    recipe: train.Recipe,
    hparams: train.Hparams | None = None,
    grid: bool = False,
    recipes: tuple[train.Recipe, ...] = (),
) -> Space:
    """The space from its words: {"learning_rate": ("1e-4", "1e-2", "log"), "model.features":
    ("32", "32,64")}.

    For a number of Hparams: LOW HIGH is a range, LOW HIGH log a logarithmic one, three or more
    values (or two and the word choice) are choices, one value fixes it, none leaves it alone. For a
    field of the recipe or its model every value is a choice. grid: all values are choices.
    recipes: whose things may be named, besides those shipped. Raises InputError naming the flag
    when a word is not what it should be.
    """
    hparams, recipes = hparams or train.Hparams(), (*recipes, recipe)
    distributions, fixed = {}, {}
    for name, words in tokens.items():
        if not words:
            continue
        flag = f"--space.{name.replace('_', '-')} {' '.join(words)}"
        kind = words[-1] if words[-1] in ("log", "linear", "choice") else None
        given = words[:-1] if kind else words
        values = [_value(name, word, recipe, hparams, recipes, flag) for word in given]
        if not values:
            raise InputError(f"{flag}: give one or more values before {kind}.")
        for value in values if structural(name) else ():
            try:
                check_recipe(Space({}, {}, recipes).apply({name: value}, recipe, hparams)[0])
            except InputError as error:
                raise InputError(f"{flag}: {str(error).removeprefix('--')}") from error
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
    return Space(distributions, fixed, recipes, _defaults(distributions, recipe, hparams))


def _defaults(distributions, recipe, hparams):
    """`Space.defaults`."""
    found = {}
    for name, distribution in distributions.items():
        value = _current(name, recipe, hparams)
        if isinstance(distribution, FloatDistribution):
            value = min(max(value, distribution.low), distribution.high)
        elif not structural(name):  # choices of a number
            value = min(distribution.choices, key=lambda choice, value=value: abs(choice - value))
        elif value not in distribution.choices:
            return None
        found[name] = value
    return found


def _current(name, recipe, hparams):
    """Returns what the recipe or hparams have, as a parameter of a trial."""
    if not structural(name):
        return float(getattr(hparams, name))
    if name.startswith("model."):
        value = getattr(recipe.model, name.removeprefix("model."))
    elif name in SLOTS:
        value = short_names(name, recipe)
    else:
        value = getattr(recipe, name)
    return _text(value) if isinstance(value, tuple) else value


def _text(items: tuple) -> str:
    return ",".join(map(str, items)) or "none"


def _names(text: str) -> tuple[str, ...]:
    """Returns the names in the `_text` of some."""
    return () if text == "none" else tuple(text.split(","))


def parameter(name, word, recipe, hparams, space: Space, flag: str):
    """The word as a parameter of a trial. InputError naming the flag when it cannot be one."""
    value = _value(name, word, recipe, hparams, (*space.recipes, recipe), flag)
    return _text(value) if isinstance(value, tuple) else value


def _value(name, word, recipe, hparams, recipes, flag):
    """The word as a value of that field. InputError when it cannot be one."""
    if not structural(name):
        try:
            check_hparams(hparams.replace(**{name: float(word)}))
        except InputError as error:  # which is a ValueError too
            raise InputError(f"{flag}: {str(error).removeprefix('--hparams.')}") from error
        except ValueError as error:
            raise InputError(f"{flag}: {word!r} is not a number.") from error
        return float(word)
    if name in SLOTS:
        known, several = components(name, recipes), SLOTS[name].several
        if unknown := {*(_names(word) if several else (word,))} - {*known}:
            more = ", several as crop,flip, or none" if several else ""
            raise InputError(f"{flag}: {unknown.pop()!r} must be one of {', '.join(known)}{more}.")
        return word
    owner, field = (recipe.model, name[6:]) if name.startswith("model.") else (recipe, name)
    return _field_value(owner, field, word, flag)


def _field_value(owner, field, word, flag):
    hint = typing.get_type_hints(type(owner)).get(field)
    if typing.get_origin(hint) is Literal:
        if word not in typing.get_args(hint):
            right = ", ".join(typing.get_args(hint))
            raise InputError(f"{flag}: {word!r} must be one of {right}.")
        return word
    current = getattr(owner, field)
    right = {
        bool: "true or false", int: "whole numbers", float: "numbers", str: "text",
        tuple: "whole numbers, those of several layers as 32,64",
    }.get(type(current))  # fmt: skip
    if right is None:
        raise InputError(f"{flag}: a field that holds {current!r:.60} cannot be searched.")
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False}[word.lower()]
        if isinstance(current, tuple):
            return tuple(int(number) for number in word.split(","))
        return type(current)(word)
    except (KeyError, ValueError) as error:
        raise InputError(f"{flag}: {word!r} is not right, it takes {right}.") from error
