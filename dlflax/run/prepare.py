"""The first two steps of a run: its data are read and split, its training is made ready."""

import dataclasses
from collections.abc import Callable

from dlflax import data, self_check, train, transfer
from dlflax.report.progress import announcement
from dlflax.run.config import Config, check
from dlflax.run.stand_in import with_stand_in
from dlflax.train.check import (
    bind_to_data,
    check_batch_size,
    fit_to_few,
    refuse_unused,
    unused_numbers,
)

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Job:
    """All that training needs besides the Config, ready."""

    dataset: data.Dataset
    examples: data.Splits
    """The splits as the data source made them."""
    start: transfer.Start
    """The training's beginning; its splits may be features of the examples."""
    abstract: train.State
    """Shapes of the State that is trained."""


def read_data(
    config: Config, log: Log = print, dataset: data.Dataset | None = None
) -> tuple[Config, data.Dataset]:
    """Returns (the Config for its data, which may stand in for others; the Dataset). dataset: if it
    is loaded already. Raises InputError for what does not go together."""
    check(config)
    if dataset is None:
        with announcement("reading the data ...", log):
            dataset = data.read_dataset(config.data, log)
    return with_stand_in(config, dataset, log), dataset


def split_data(config: Config, dataset: data.Dataset, log: Log) -> tuple[Config, data.Splits]:
    """Returns (the Config with its Recipe bound to the data, their Splits). Raises InputError for
    what does not go together, RunError where this installation computes wrong."""
    self_check.check()
    splits = data.make_splits(config.data, dataset, config.validation, config.seed, log)
    recipe = fit_to_few(bind_to_data(config.recipe, config.hparams, splits), splits, log)
    return dataclasses.replace(config, recipe=recipe), splits


def prepare(config: Config, dataset: data.Dataset, log: Log = print) -> tuple[Config, Job]:
    """Returns (the Config with its Recipe bound to the data, the Job): splits the data, prepares
    pretrained weights, and features of a frozen backbone. Raises as `split_data`."""
    config, examples = split_data(config, dataset, log)
    check_batch_size(config.recipe.batch_size, data.num_examples(examples.train))
    start = transfer.prepare(
        config.transfer, config.recipe, config.hparams, examples, config.seed, log
    )
    if config.class_weights == "balanced":
        start = balance(start)
    splits = start.splits
    abstract = train.abstract(start.recipe, config.hparams, splits.train["inputs"][:1])
    views = transfer.numbers_of_start(config.transfer, config.recipe, config.hparams)
    names = {flag.partition(".")[2] for flag in config.given}
    unused = unused_numbers(names, [(start.recipe, abstract)], config.hparams, splits.train)
    refuse_unused(config.given, unused - {*views}, start.recipe)
    examples = dataclasses.replace(examples, weights_sha256=splits.weights_sha256)
    return config, Job(dataset, examples, start, abstract)


def balance(start: transfer.Start) -> transfer.Start:
    """Returns the Start with a "weight" of each training example, by which its loss counts, as the
    task gives it. Raises InputError where the task has none."""
    splits = start.splits
    weight = start.recipe.task.example_weights(splits.train["targets"], len(splits.class_names))
    splits = dataclasses.replace(splits, train={**splits.train, "weight": weight})
    return dataclasses.replace(start, splits=splits)
