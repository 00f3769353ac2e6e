"""Checks before a training: its numbers, the parts of its Recipe, and both against the data."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from dlflax import data
from dlflax.errors import InputError
from dlflax.train.augment import augment_batch
from dlflax.train.batch import abstract_batch, check_keys
from dlflax.train.ensemble import Ensemble
from dlflax.train.hparams import Hparams, Range, as_traced
from dlflax.train.recipe import Recipe, output_shape
from dlflax.train.state import State
from dlflax.train.step import step
from dlflax.train.tasks import Task

MOST_OF_A_SIZE = 2**31 - 1  # of a model
USUAL_BATCH = 1024  # a batch up to this size is made smaller where there are not as many examples
FEW = 30  # validation examples, below which their scores are mostly chance


def check_hparams(hparams: Hparams) -> None:
    """Raises InputError for a number outside its range. For plain numbers, not traced ones."""
    kind, fields = type(hparams).__name__, dataclasses.fields(hparams)
    if len(jax.tree.leaves(hparams)) != len(fields):
        raise InputError(
            f"{kind} must be decorated with @flax.struct.dataclass and hold numbers alone, as "
            "dlflax.train.Hparams does."
        )
    check_ranges(hparams, "hparams")


def check_ranges(thing, flag: str) -> None:
    """Raises InputError for a field of a dataclass that is outside of the range of its `number`."""
    for field in dataclasses.fields(thing):
        allowed = field.metadata.get("range", Range() if isinstance(thing, Hparams) else None)
        if allowed is None:
            continue
        value = getattr(thing, field.name)
        if not isinstance(value, (int, float, np.number)) or value not in allowed:
            shown = f"{value:g}" if isinstance(value, (int, float)) else repr(value)
            raise InputError(f"--{flag}.{field.name.replace('_', '-')} {shown} must be {allowed}.")


def check_recipe(recipe: Recipe, source: Any = None) -> None:
    """Raises InputError for what no Recipe can have. source: of the data, checked likewise."""
    check_count("batch_size", recipe.batch_size, 1)
    check_task(recipe.task)
    parts = (("task", recipe.task), ("task.loss", recipe.task.loss),
             *(("task.metrics", metric) for metric in recipe.task.metrics),
             ("optimizer", recipe.optimizer), ("schedule", recipe.schedule),
             *(("augment", change) for change in recipe.augment), ("data", source))  # fmt: skip
    for flag, thing in parts:
        kind = type(thing)
        if dataclasses.is_dataclass(thing) and "__dataclass_fields__" not in vars(kind):
            # its inherited __init__ would set the fields to the parent's values
            raise InputError(
                f"{kind.__name__} must itself be decorated with @dataclasses.dataclass("
                "frozen=True), as what it is a subclass of."
            )
        if dataclasses.is_dataclass(thing):
            check_ranges(thing, flag)
    for field in dataclasses.fields(recipe.model):
        value = getattr(recipe.model, field.name)
        for size in value if isinstance(value, tuple) else (value,):
            if isinstance(size, int) and abs(size) > MOST_OF_A_SIZE:  # XLA has no such shapes
                flag = f"--model.{field.name.replace('_', '-')}"
                raise InputError(f"{flag} {size} must be {MOST_OF_A_SIZE:,} or less.")


def check_count(name: str, value: int, least: int, most: int = 10**9) -> None:
    """Raises InputError for a count outside its range."""
    if not least <= value <= most:
        limit = f"{least} or more" if value < least else f"{most:,} or less"
        raise InputError(f"--{name.replace('_', '-')} {value} must be {limit}.")


def check_task(task) -> None:
    """Raises InputError for what is not a `Task`, and for metrics without names of their own."""
    if not isinstance(task, Task):
        raise InputError(
            f"--task: {type(task).__name__} must inherit from dlflax.train.tasks.Task, which lists "
            "the methods to write."
        )
    names = [metric.name for metric in task.metrics]
    for name in names:
        if names.count(name) > 1 or name == "loss" or "/" in name or not name:
            raise InputError(
                f"{type(task).__name__} has a metric named {name!r}: give each a name of its own, "
                "not loss, without a slash."
            )
    task.metric(task.monitor)


def bind_to_data(recipe: Recipe, hparams: Hparams, splits: data.Splits) -> Recipe:
    """Returns the recipe with the fields of its model that the data and the task decide. Raises
    InputError when data, task and model do not go together."""
    for part in (splits.train, splits.val, splits.test):
        check_keys(part or {})
    recipe = dataclasses.replace(recipe, task=recipe.task.for_data(splits))
    model, kind = recipe.model, type(recipe.model).__name__
    has = {field.name for field in dataclasses.fields(model)}
    # the members of an ensemble have these fields already
    of_data = {} if isinstance(model, Ensemble) else splits.encoder.model_fields()
    for name, value in of_data.items():
        if name not in has:
            raise InputError(
                f"--model: a {kind} has no field {name}, which these data decide ({value}): use "
                "another model, or give yours such a field."
            )

    @functools.cache
    def bound():
        fields = {k: v for k, v in recipe.task.model_fields(splits).items() if k in has}
        return dataclasses.replace(recipe, model=model.clone(**{**of_data, **fields}))

    def outputs():
        return output_shape(bound(), hparams, splits.train["inputs"][:1])

    for part in (splits.train, splits.val, splits.test):
        if part is not None:
            recipe.task.check_arrays(part, outputs)
    recipe.task.check(splits, outputs)
    numbers = as_traced(hparams)
    _try(bound(), numbers, splits.train, outputs())
    return bound()


def _try(recipe, numbers, data, outputs) -> None:
    """Raises InputError where an augmentation is not for such inputs, or the loss or a metric not
    for such outputs and batches. Computes nothing."""
    batch = abstract_batch(data, 2)
    outputs = jax.ShapeDtypeStruct((2, *outputs.shape[1:]), np.float32)
    augment = functools.partial(augment_batch, recipe, numbers, key=jax.random.key(0))
    batch = jax.eval_shape(augment, batch)
    loss, task = recipe.task.loss, type(recipe.task).__name__
    name = f"the loss {getattr(loss, '__name__', type(loss).__name__)} of {task}"
    try:
        shape = jax.eval_shape(loss, outputs, batch, numbers).shape
    except Exception as error:  # a loss of one's own can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        shapes = ", ".join(f"{key} {array.shape}" for key, array in batch.items())
        raise InputError(
            f"{name} fails on outputs {outputs.shape} and a batch of {shapes} ({reason}): a loss "
            'takes (outputs, batch, hparams), and the targets are batch["targets"].'
        ) from error
    if shape != (2,):
        raise InputError(
            f"{name} must give one number for each example, (n,): for two it gives shape {shape}."
        )


def fit_to_few(recipe: Recipe, splits: data.Splits, log) -> Recipe:
    """Returns the recipe with a batch no larger than the training data. `log` gets a sentence for
    that, and for validation data that are too few to choose by."""
    n = data.num_examples(splits.train)
    if n < recipe.batch_size <= USUAL_BATCH:
        log(f"note: there are {n:,} training examples: --batch-size {n} instead of "
            f"{recipe.batch_size}")  # fmt: skip
        recipe = dataclasses.replace(recipe, batch_size=n)
    held_out = data.num_examples(splits.val) if splits.val else FEW
    if held_out < FEW:
        log(f"note: {held_out} validation examples are too few to choose an epoch or a model by")
    return recipe


def check_batch_size(batch_size: int, n: int) -> None:
    """Raises InputError when there are not as many training examples, n."""
    if batch_size > n:
        raise InputError(
            f"--batch-size {batch_size} is larger than the {n:,} training examples: use {n} or "
            "less."
        )


def refuse_unused(given, unused: set[str], recipe: Recipe) -> None:
    """Raises InputError for a given flag, "hparams.NAME" or "space.NAME", of an unused number.
    recipe: one that does not read it."""
    for flag in given:
        if flag.partition(".")[2] in unused:
            augment = ", ".join(type(change).__name__ for change in recipe.augment)
            raise InputError(
                f"--{flag.replace('_', '-')} does nothing here: neither the model "
                f"{type(recipe.model).__name__} nor {type(recipe.optimizer).__name__} nor "
                f"{augment or 'any augmentation (there is none)'} reads it; leave it out."
            )


def unused_numbers(
    names: Iterable[str], recipes: Iterable[tuple[Recipe, State]], hparams: Hparams, train_set
) -> set[str]:
    """Returns those of the names that are numbers of hparams and that no recipe reads in a step.
    recipes: each with its `abstract` State. Computes nothing."""
    fields = [field.name for field in dataclasses.fields(hparams)]
    unused, numbers, batch = {*names} & {*fields}, as_traced(hparams), abstract_batch(train_set, 2)
    for recipe, state in recipes if unused else ():
        one = functools.partial(recipe.step or step, recipe)
        program = jax.make_jaxpr(one)(state, numbers, batch)
        read = {id(variable) for equation in program.eqns for variable in equation.invars}
        variables = program.jaxpr.invars[len(jax.tree.leaves(state)) :]
        unused -= {n for n, v in zip(fields, variables, strict=False) if id(v) in read}
        if not unused:
            break
    return unused
