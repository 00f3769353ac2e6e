"""Checks before training: hparams, the Recipe's components, and both against the data."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from dlflax import data
from dlflax.errors import InputError
from dlflax.train.augment import augment_batch
from dlflax.train.batch import abstract_batch, check_keys
from dlflax.train.ensemble import Ensemble
from dlflax.train.hparams import Hparams, Range, as_float32
from dlflax.train.recipe import Recipe, output_shape
from dlflax.train.state import State
from dlflax.train.step import step
from dlflax.train.tasks import Task

MAX_SIZE = 2**31 - 1  # of a dimension, in XLA
MAX_SHRINKABLE_BATCH = 1024  # largest batch size that shrinks to the number of examples
MIN_VALIDATION = 30  # validation examples below which scores are mostly chance


def check_hparams(hparams: Hparams) -> None:
    """Raises InputError for a value outside its range. hparams: plain numbers, not traced."""
    class_name, fields = type(hparams).__name__, dataclasses.fields(hparams)
    if len(jax.tree.leaves(hparams)) != len(fields):
        raise InputError(
            f"{class_name} must be decorated with @flax.struct.dataclass and hold only numbers, as "
            "dlflax.train.Hparams does."
        )
    check_ranges(hparams, "hparams")


def check_ranges(instance, flag: str) -> None:
    """Raises InputError for a field of a dataclass that is outside the range of its `number`."""
    default = Range() if isinstance(instance, Hparams) else None
    for field in dataclasses.fields(instance):
        value, valid = getattr(instance, field.name), field.metadata.get("range", default)
        if valid and not (isinstance(value, (int, float, np.number)) and value in valid):
            text = f"{value:g}" if isinstance(value, (int, float)) else repr(value)
            raise InputError(f"--{flag}.{field.name.replace('_', '-')} {text} must be {valid}.")


def check_recipe(recipe: Recipe, source: Any = None) -> None:
    """Raises InputError for invalid components of a Recipe, and of the data source."""
    check_count("batch_size", recipe.batch_size, 1)
    check_count("micro_batch", recipe.micro_batch, 0)
    micro = recipe.micro_batch
    if micro and (micro == recipe.batch_size or recipe.batch_size % micro):
        raise InputError(
            f"--micro-batch {micro} must be less than --batch-size {recipe.batch_size}, and divide "
            "it."
        )
    check_task(recipe.task)
    task = recipe.task
    components = (("task", task), ("task.loss", task.loss),
                  *(("task.metrics", metric) for metric in task.metrics),
                  ("optimizer", recipe.optimizer), ("schedule", recipe.schedule),
                  *(("augment", change) for change in recipe.augment),
                  ("data", source))  # fmt: skip
    for flag, component in components:
        if not dataclasses.is_dataclass(component):
            continue
        if "__dataclass_fields__" not in vars(type(component)):
            # its inherited __init__ would set the fields to the parent's values
            raise InputError(
                f"{type(component).__name__} must itself be decorated with @dataclasses.dataclass("
                "frozen=True), like its parent class."
            )
        check_ranges(component, flag)
    for field in dataclasses.fields(recipe.model):
        value = getattr(recipe.model, field.name)
        for size in value if isinstance(value, tuple) else (value,):
            if isinstance(size, int) and abs(size) > MAX_SIZE:
                flag = f"--model.{field.name.replace('_', '-')}"
                raise InputError(f"{flag} {size} must be {MAX_SIZE:,} or less.")


def check_count(name: str, value: int, least: int, most: int = 10**9) -> None:
    """Raises InputError for a count outside its range."""
    if not least <= value <= most:
        limit = f"{least} or more" if value < least else f"{most:,} or less"
        raise InputError(f"--{name.replace('_', '-')} {value} must be {limit}.")


def check_task(task) -> None:
    """Raises InputError unless task is a `Task` whose metrics have valid, distinct names."""
    if not isinstance(task, Task):
        raise InputError(
            f"--task: {type(task).__name__} must inherit from dlflax.train.tasks.Task, which lists "
            "the methods to write."
        )
    names = [metric.name for metric in task.metrics]
    for name in names:
        if names.count(name) > 1 or name == "loss" or "/" in name or not name:
            raise InputError(
                f"{type(task).__name__} has a metric named {name!r}: give each metric a distinct "
                "name, not loss, without a slash."
            )
    task.metric(task.monitor)


def bind_to_data(recipe: Recipe, hparams: Hparams, splits: data.Splits) -> Recipe:
    """Returns the recipe with a model of the size that data and task require. Raises InputError if
    data, task and model do not match."""
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    for part in parts:
        check_keys(part)
    recipe = dataclasses.replace(recipe, task=recipe.task.for_data(splits))
    model, task = recipe.model, recipe.task
    field_names = {field.name for field in dataclasses.fields(model)}
    # the members of an ensemble have these fields already
    data_fields = {} if isinstance(model, Ensemble) else splits.encoder.model_fields()
    for name, value in data_fields.items():
        if name not in field_names:
            raise InputError(
                f"--model: {type(model).__name__} has no field {name}, which these data set "
                f"({value}): use another model, or add the field to yours."
            )

    @functools.cache
    def bind():
        fields = {k: v for k, v in task.model_fields(splits).items() if k in field_names}
        return dataclasses.replace(recipe, model=model.clone(**{**data_fields, **fields}))

    def outputs():
        return output_shape(bind(), hparams, splits.train["inputs"][:1])

    for part in parts:
        task.check_arrays(part, outputs)
    task.check(splits, outputs)
    _trace_loss(bind(), as_float32(hparams), splits.train, outputs())
    return bind()


def _trace_loss(recipe, hparams, data, outputs) -> None:
    """Raises InputError if augmentations or loss cannot take a batch of these shapes."""
    outputs = jax.ShapeDtypeStruct((2, *outputs.shape[1:]), np.float32)
    augment = functools.partial(augment_batch, recipe, hparams, key=jax.random.key(0))
    batch = jax.eval_shape(augment, abstract_batch(data, 2))
    loss, task = recipe.task.loss, type(recipe.task).__name__
    name = f"the loss {getattr(loss, '__name__', type(loss).__name__)} of {task}"
    try:
        shape = jax.eval_shape(loss, outputs, batch, hparams).shape
    except Exception as error:  # a user's loss can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        shapes = ", ".join(f"{key} {array.shape}" for key, array in batch.items())
        raise InputError(
            f"{name} fails on outputs {outputs.shape} and a batch of {shapes} ({reason}): a loss "
            'takes (outputs, batch, hparams), and the targets are batch["targets"].'
        ) from error
    if shape != (2,):
        raise InputError(
            f"{name} must return one number per example, (n,): for two it returns shape {shape}."
        )


def adapt_to_small_data(recipe: Recipe, splits: data.Splits, log) -> Recipe:
    """Returns the recipe with a batch size of at most the train split. Logs the change, and a
    validation split that is too small for selection."""
    n = data.num_examples(splits.train)
    if n < recipe.batch_size <= MAX_SHRINKABLE_BATCH:
        size = n - n % (recipe.micro_batch or 1) or n
        log(f"note: there are {n:,} training examples: --batch-size {size} instead of "
            f"{recipe.batch_size}")  # fmt: skip
        micro = recipe.micro_batch if recipe.micro_batch < size else 0
        recipe = dataclasses.replace(recipe, batch_size=size, micro_batch=micro)
    n = data.num_examples(splits.val) if splits.val else MIN_VALIDATION
    if n < MIN_VALIDATION:
        log(f"note: {n} validation examples are too few to choose an epoch or a model by")
    return recipe


def check_batch_size(batch_size: int, n: int) -> None:
    """Raises InputError if batch_size exceeds the number of training examples, n."""
    if batch_size > n:
        raise InputError(
            f"--batch-size {batch_size} is larger than the {n:,} training examples: use {n} or "
            "less."
        )


def reject_unused_flags(
    given: Iterable[str], names: Iterable[str], recipes: Sequence[tuple[Recipe, State]],
    hparams: Hparams, train_set, read_elsewhere: Iterable[str] = (),
) -> set[str]:  # fmt: skip
    """Returns the names of Hparams, among `names` and the given flags, that no recipe's step reads.
    Raises InputError for such a flag, "hparams.NAME" or "space.NAME", unless `read_elsewhere`.
    recipes: each with its `abstract` State. Only traced."""
    fields, batch = [f.name for f in dataclasses.fields(hparams)], abstract_batch(train_set, 2)
    flags = {flag: flag.partition(".")[2] for flag in given}
    unused, hparams = {*names, *flags.values()} & {*fields}, as_float32(hparams)
    for recipe, state in recipes if unused else ():
        program = jax.make_jaxpr(functools.partial(recipe.step or step, recipe))(
            state, hparams, batch
        )
        read = {id(variable) for equation in program.eqns for variable in equation.invars}
        variables = program.jaxpr.invars[len(jax.tree.leaves(state)) :]
        unused -= {n for n, v in zip(fields, variables, strict=False) if id(v) in read}
        if not unused:
            break
    for flag, name in flags.items():
        if name in unused - {*read_elsewhere}:
            recipe = recipes[0][0]
            augment = ", ".join(type(change).__name__ for change in recipe.augment)
            raise InputError(
                f"--{flag.replace('_', '-')} does nothing here: neither the model "
                f"{type(recipe.model).__name__} nor {type(recipe.optimizer).__name__} nor "
                f"{augment or 'any augmentation (there is none)'} reads it; remove the flag."
            )
    return unused
