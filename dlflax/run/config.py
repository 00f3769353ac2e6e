"""Config: everything that decides a run."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from dlflax import data, self_check, train
from dlflax.errors import InputError
from dlflax.report.loggers import Log
from dlflax.train import hparams
from dlflax.train.augment import augment_batch
from dlflax.train.batch import abstract_batch, check_keys
from dlflax.train.tasks import Task

MOST_OF_A_SIZE = 2**31 - 1  # of a model


# metadata: "resume" is for `resume`, and what is not "saved" is not in config.json
@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. Saved as config.json."""

    recipe: Annotated[train.Recipe, tyro.conf.arg(name="")]
    """Structure: another value is another program."""
    hparams: Any = train.Hparams()
    """Numbers: another value compiles nothing."""
    data: Annotated[Any, tyro.conf.arg(name="")] = data.Images()
    """The source of the examples, a `data.Source`."""
    transfer: Annotated[Any, tyro.conf.arg(name="")] = None
    """The use of pretrained weights, as `transfer.Transfer`."""
    epochs: int = 5
    """Passes over the training data."""
    seed: int = 0
    """Decides the validation split, the initial weights, the order and all randomness."""
    validation: float = 0.1
    """Share of the training data held out for validation; 0 trains on all of it."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class counts the more, the fewer examples it has (n / (classes * its n))."""
    patience: int = 0
    """Stop after this many epochs without a better validation score; 0 never stops early."""
    reduce_on_plateau: int = 0
    """Halve the learning rate after this many such epochs; 0 never does."""
    folds: int = 0
    """Cross-validate: train so many times, each time testing on another part of all the data."""
    run_dir: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """Folder of the run (default: runs/EXPERIMENT/TIME)."""
    resume: bool = dataclasses.field(default=False, metadata={"resume": "free"})
    """Continue the run in --run-dir, or the newest one."""
    devices: int = dataclasses.field(default=0, metadata={"resume": "local"})
    """Devices that share every batch; 0: all, but one on a CPU, which has all cores already."""
    shard_state: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Share out the parameters over the devices too, for a model too large for one."""
    distributed: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Join the other hosts: found by SLURM, TPU pods, Open MPI or $JAX_COORDINATOR_ADDRESS."""
    profile: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Write a trace of some steps to profile/ in the run's folder, for TensorBoard or Perfetto."""
    baseline: Literal["auto", "none"] = dataclasses.field(
        default="auto", metadata={"resume": "local"}
    )
    """auto: state simple models, fitted on the same data, beside the network's test scores."""
    log: Log = dataclasses.field(default="none", metadata={"resume": "local"})
    """Loggers of scores and images, besides TensorBoard's files."""
    verbose: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Print more: every epoch, every parameter of the network, the scores of each class."""
    given: Annotated[tuple[str, ...], tyro.conf.Suppress] = dataclasses.field(
        default=(), metadata={"saved": False}
    )
    """Flags of numbers that the user gave, such as hparams.momentum: refused if they do nothing."""
    stand_ins: Annotated[dict[str, dict[str, Any]], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict, metadata={"saved": False}
    )
    """Name of a data set -> fields with other values where it stands in for the one asked for."""


def check(config: Config) -> None:
    """InputError for numbers that no run can have."""
    hparams.check(config.hparams)
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed} must be from 0 to {2**32 - 1}.")
    for name, least in (("epochs", 1), ("patience", 0), ("reduce_on_plateau", 0), ("devices", 0),
                        ("folds", 0)):  # fmt: skip
        check_count(name, getattr(config, name), least)
    if not 0 <= config.validation < 1:
        raise InputError(f"--validation {config.validation:g} must be from 0 up to below 1.")
    if config.run_dir is not None and str(config.run_dir) in ("", "."):
        raise InputError("--run-dir must name a folder of its own, such as runs/mnist/first.")
    if config.validation == 0 and (config.patience or config.reduce_on_plateau):
        raise InputError(
            "--patience and --reduce-on-plateau must be 0 with --validation 0: they go by the "
            "validation score."
        )
    check_recipe(config.recipe, config.data)


def check_recipe(recipe: train.Recipe, source: Any = None) -> None:
    """InputError for what no Recipe can have. source: of the data, whose ranges are checked too."""
    check_count("batch_size", recipe.batch_size, 1)
    check_task(recipe.task)
    parts = (("task", recipe.task), ("task.loss", recipe.task.loss),
             *(("task.metrics", each) for each in recipe.task.metrics),
             ("optimizer", recipe.optimizer), ("schedule", recipe.schedule),
             *(("augment", each) for each in recipe.augment), ("data", source))  # fmt: skip
    for flag, thing in parts:
        kind = type(thing)
        if dataclasses.is_dataclass(thing) and "__dataclass_fields__" not in vars(kind):
            # its inherited __init__ would set the fields to the parent's values
            raise InputError(
                f"{kind.__name__} must itself be decorated with @dataclasses.dataclass("
                "frozen=True), as what it is a subclass of."
            )
        if dataclasses.is_dataclass(thing):
            hparams.check_ranges(thing, flag)
    for field in dataclasses.fields(recipe.model):
        value = getattr(recipe.model, field.name)
        for size in value if isinstance(value, tuple) else (value,):
            if isinstance(size, int) and abs(size) > MOST_OF_A_SIZE:  # XLA has no such shapes
                flag = f"--model.{field.name.replace('_', '-')}"
                raise InputError(f"{flag} {size} must be {MOST_OF_A_SIZE:,} or less.")


def check_count(name: str, value: int, least: int, most: int = 10**9) -> None:
    """InputError for a count outside its range."""
    flag = name.replace("_", "-")
    if value < least:
        raise InputError(f"--{flag} {value} must be {least} or more.")
    if value > most:
        raise InputError(f"--{flag} {value} must be {most:,} or less.")


USUAL_BATCH = 1024  # a batch up to this size is made smaller where there are not as many examples
FEW = 30  # validation examples, below which their scores are mostly chance


def fit_to_few(recipe: train.Recipe, splits: data.Splits, log) -> train.Recipe:
    """The recipe with a batch no larger than the training data; `log` gets a sentence for that, and
    for validation data that are too few to choose by."""
    n = data.examples(splits.train)
    if n < recipe.batch_size <= USUAL_BATCH:
        log(f"note: there are {n:,} training examples: --batch-size {n} instead of "
            f"{recipe.batch_size}")  # fmt: skip
        recipe = dataclasses.replace(recipe, batch_size=n)
    held_out = data.examples(splits.val) if splits.val else FEW
    if held_out < FEW:
        log(f"note: {held_out} validation examples are too few to choose an epoch or a model by")
    return recipe


def load(source, log) -> data.Dataset:
    """Returns what the source loads, with what it says of it."""
    said: list[str] = []

    def note(sentence: str) -> None:
        said.append(sentence)
        log(sentence)

    dataset = source.load(note)
    return dataclasses.replace(dataset, notes=tuple(said))


def prepare_data(config: Config, log, dataset: data.Dataset | None = None):
    """(Dataset, Splits, the recipe bound to them) of what config names; dataset: if it is loaded
    already. `log` gets what was made of the data. InputError when they do not go together;
    RunError where this installation computes wrong."""
    self_check.check()
    dataset = dataset or load(config.data, log)
    splits = data.make_splits(config.data, dataset, config.validation, config.seed, log)
    splits = dataclasses.replace(splits, notes=(*dataset.notes, *splits.notes))
    recipe = bind_to_data(config.recipe, config.hparams, splits)
    return dataset, splits, fit_to_few(recipe, splits, log)


def check_batch_size(batch_size: int, n: int) -> None:
    """InputError when there are not as many training examples, n."""
    if batch_size > n:
        raise InputError(
            f"--batch-size {batch_size} is larger than the {n:,} training examples: use {n} or "
            "less."
        )


def bind_to_data(recipe: train.Recipe, hparams: train.Hparams, splits: data.Splits) -> train.Recipe:
    """The recipe with what of it the data and the task, not the user, decide: fields of its model.
    InputError when data, task and model do not go together."""
    for part in (splits.train, splits.val, splits.test):
        check_keys(part or {})
    recipe = dataclasses.replace(recipe, task=recipe.task.for_data(splits))
    model, kind = recipe.model, type(recipe.model).__name__
    has = {field.name for field in dataclasses.fields(model)}
    # the members of an ensemble have these fields already
    of_data = {} if isinstance(model, train.Ensemble) else splits.encoder.model_fields()
    for name, value in of_data.items():
        if name not in has:
            raise InputError(
                f"--model: a {kind} has no field {name}, which these data decide ({value}): use "
                "another model, or give yours such a field."
            )
    numbers = train.as_traced(hparams)

    @functools.cache
    def bound():
        fields = {k: v for k, v in recipe.task.model_fields(splits).items() if k in has}
        return dataclasses.replace(recipe, model=model.clone(**{**of_data, **fields}))

    def outputs():
        return train.output_shape(bound(), numbers, splits.train["inputs"][:1])

    for part in (splits.train, splits.val, splits.test):
        if part is not None:
            recipe.task.check_arrays(part, outputs)
    recipe.task.check(splits, outputs)
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


def refuse_unused(given, unused: set[str], recipe: train.Recipe) -> None:
    """InputError for a flag that the user gave, "hparams.NAME" or "space.NAME", of a number that
    nothing reads. recipe: one of those that do not."""
    for flag in given:
        if flag.partition(".")[2] in unused:
            augment = ", ".join(type(each).__name__ for each in recipe.augment)
            raise InputError(
                f"--{flag.replace('_', '-')} does nothing here: neither the model "
                f"{type(recipe.model).__name__} nor {type(recipe.optimizer).__name__} nor "
                f"{augment or 'any augmentation (there is none)'} reads it; leave it out."
            )


def unused_numbers(names, recipes, hparams, data) -> set[str]:
    """Returns those of the names that are numbers of hparams and that no recipe reads in a step."""
    left = {field.name for field in dataclasses.fields(hparams)} & set(names)
    for recipe in recipes:
        if left:
            left -= train.used_numbers(recipe, hparams, data)
    return left


def weighted(class_weights: str, task, splits: data.Splits) -> data.Splits:
    """Training examples with a "weight", by which their losses count, as the task gives it.
    InputError where the task has none."""
    if class_weights == "none":
        return splits
    weight = task.example_weights(splits.train["targets"], len(splits.class_names))
    return dataclasses.replace(splits, train={**splits.train, "weight": weight})


def more_epochs_change_the_past(config: Config, epochs: int, steps_per_epoch: int) -> bool:
    """True if the learning rates of the steps in `epochs` epochs would have been others with
    config.epochs in all than with `epochs`."""
    steps = np.arange(epochs * steps_per_epoch, dtype=np.float32)

    def rates(total):
        numbers = config.hparams.replace(total_steps=float(total * steps_per_epoch))
        numbers = train.as_traced(numbers)  # float32, as in training: a file may have any number
        rates = config.recipe.schedule(steps, numbers)
        return np.broadcast_to(np.asarray(rates), steps.shape)

    return not np.array_equal(rates(epochs), rates(config.epochs))
