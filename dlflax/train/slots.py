"""Slots of a Recipe: its components, dataclasses or functions, and their short names."""

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
    """A component of a Recipe, or the loss of its task."""

    shipped: Mapping[str, Any]  # short name -> component
    help: str
    arguments: str = ""  # of its call; none for a task, which is a subclass of Task
    several: bool = False  # True for a tuple of components


SLOTS = {
    "task": Slot(TASKS, "Loss, metrics and type of the outputs."),
    "optimizer": Slot(OPTIMIZERS, "Update rule.", "learning_rate, hparams"),
    "schedule": Slot(SCHEDULES, "Shape of the learning rate.", "step, hparams"),
    "augment": Slot(
        AUGMENTATIONS, "Random changes of training inputs, in this order; strengths that are all 0 "
        "get defaults.", "key, batch, hparams", several=True,
    ),
    "loss": Slot(LOSSES, "Loss of the task, instead of its default.", "outputs, batch, hparams"),
    "step": Slot({}, "", "recipe, state, hparams, batch"),
}  # fmt: skip


def short_name(slot: str, component) -> str:
    """Returns the name of a component on the command line: the shipped name, or that of its class
    or function."""
    for name, shipped in SLOTS[slot].shipped.items():
        if shipped == component:
            return name
    class_name = getattr(component, "__name__", type(component).__name__)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()


def short_names(slot: str, recipe: Recipe) -> str | tuple[str, ...]:
    """Returns the short name of a slot's component; a tuple if the slot has several."""
    names = tuple(short_name(slot, component) for component in _components_in(slot, recipe))
    return names if SLOTS[slot].several else names[0]


def components(slot: str, recipes: Iterable[Recipe]) -> dict[str, Any]:
    """Returns short name -> component: the shipped ones of a slot, and those of the recipes."""
    by_name = dict(SLOTS[slot].shipped)
    for recipe in recipes:
        for component in _components_in(slot, recipe):
            by_name.setdefault(short_name(slot, component), component)
    return by_name


def _components_in(slot: str, recipe: Recipe) -> tuple:
    component = getattr(recipe.task if slot == "loss" else recipe, slot)
    return component if SLOTS[slot].several else (component,)


def replace_components(
    recipe: Recipe, names: Mapping[str, Any], recipes: Iterable[Recipe]
) -> Recipe:
    """Returns the recipe with components by name: {"optimizer": "adamw", "augment": ("flip",)}. A
    component that already has the name stays, with the values of its fields."""
    for slot, properties in SLOTS.items():  # the task before its loss
        name = names.get(slot)
        if name is None or name == short_names(slot, recipe):
            continue
        by_name = components(slot, recipes)
        component = tuple(by_name[n] for n in name) if properties.several else by_name[name]
        if slot == "loss":
            if "loss" not in {field.name for field in dataclasses.fields(recipe.task)}:
                raise InputError(
                    f"--loss {name}: {type(recipe.task).__name__} has a loss of its own; remove "
                    "the flag, or choose another --task."
                )
            slot, component = "task", dataclasses.replace(recipe.task, loss=component)
        recipe = dataclasses.replace(recipe, **{slot: component})
    return recipe
