"""The slots of a Recipe: its parts that are dataclasses or functions, and their short names."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dlflax.errors import InputError
from dlflax.train.augment import AUGMENTATIONS
from dlflax.train.losses import LOSSES
from dlflax.train.optim import OPTIMIZERS, SCHEDULES
from dlflax.train.recipe import Recipe
from dlflax.train.tasks import TASKS


class Slot(NamedTuple):
    """A part of a Recipe, or the loss of its task."""

    shipped: Mapping[str, Any]  # short name -> thing
    help: str
    arguments: str = ""  # of its call; none for a task, which is a subclass of Task
    several: bool = False  # True for a tuple of things


SLOTS = {
    "task": Slot(TASKS, "What kind of job it is."),
    "optimizer": Slot(OPTIMIZERS, "Update rule.", "learning_rate, hparams"),
    "schedule": Slot(SCHEDULES, "Shape of the learning rate.", "step, hparams"),
    "augment": Slot(
        AUGMENTATIONS, "Random changes of training inputs, in this order; what has no strength "
        "gets one.", "key, batch, hparams", several=True,
    ),
    "loss": Slot(LOSSES, "Loss of the task, if not its own.", "outputs, batch, hparams"),
    "step": Slot({}, "", "recipe, state, hparams, batch"),
}  # fmt: skip


def short_name(slot: str, thing) -> str:
    """Returns the name of a thing on the command line: as those shipped, or by its class or
    function."""
    for name, shipped in SLOTS[slot].shipped.items():
        if shipped == thing:
            return name
    class_name = getattr(thing, "__name__", type(thing).__name__)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()


def short_names(slot: str, recipe: Recipe) -> str | tuple[str, ...]:
    """Returns the short name of the thing in a slot, a tuple of them for one of several."""
    names = tuple(short_name(slot, thing) for thing in _things_in(slot, recipe))
    return names if SLOTS[slot].several else names[0]


def things(slot: str, recipes: Iterable[Recipe]) -> dict[str, Any]:
    """Returns short name -> thing of those shipped for a slot, and of those in the recipes."""
    by_name = dict(SLOTS[slot].shipped)
    for recipe in recipes:
        for thing in _things_in(slot, recipe):
            by_name.setdefault(short_name(slot, thing), thing)
    return by_name


def _things_in(slot: str, recipe: Recipe) -> tuple:
    thing = getattr(recipe.task if slot == "loss" else recipe, slot)
    return thing if SLOTS[slot].several else (thing,)


def with_things(recipe: Recipe, chosen: Mapping[str, Any], recipes: Iterable[Recipe]) -> Recipe:
    """Returns the recipe with things by their names: {"optimizer": "adamw", "augment": ("flip",)}.
    Those that have the name already stay, with fields of their own."""
    for slot in SLOTS:  # the task before its loss
        names = chosen.get(slot)
        if names is None or names == short_names(slot, recipe):
            continue
        known = things(slot, recipes)
        thing = tuple(known[name] for name in names) if SLOTS[slot].several else known[names]
        if slot == "loss":
            if "loss" not in {field.name for field in dataclasses.fields(recipe.task)}:
                raise InputError(
                    f"--loss {names}: {type(recipe.task).__name__} has a loss of its own; remove "
                    "the flag, or choose another --task."
                )
            slot, thing = "task", dataclasses.replace(recipe.task, loss=thing)
        recipe = dataclasses.replace(recipe, **{slot: thing})
    return recipe
