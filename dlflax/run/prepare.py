"""Reading and splitting of a run's data, and preparation of its training."""

import dataclasses
from collections.abc import Callable

from dlflax import data, self_check, train, transfer
from dlflax.config.config import Config, check
from dlflax.config.stand_in import apply_stand_in
from dlflax.report.progress import announcement
from dlflax.train.check import (
    adapt_to_small_data,
    bind_to_data,
    check_batch_size,
    reject_unused_flags,
)

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Inputs of a training besides the Config."""

    dataset: data.Dataset
    examples: data.Splits
    """Splits of the data source."""
    start: transfer.Start
    """Start of the training, whose splits may be features of a frozen backbone."""
    abstract: train.State
    """Shapes of the trained State."""


def read_data(
    config: Config, log: Log = print, dataset: data.Dataset | None = None
) -> tuple[Config, data.Dataset]:
    """Returns (the Config, adapted to data that stand in for others; the Dataset). dataset: if it
    is loaded already. Raises InputError for invalid combinations."""
    check(config)
    if config.bag_folds:
        config = dataclasses.replace(config, data=config.data.for_blend())
    if dataset is None:
        with announcement("reading the data ...", log):
            dataset = data.read_dataset(config.data, log)
    return apply_stand_in(config, dataset, log), dataset


def split_data(config: Config, dataset: data.Dataset, log: Log) -> tuple[Config, data.Splits]:
    """Returns (the Config with its Recipe bound to the data, their Splits). Raises InputError for
    invalid combinations, RunError if the self-check of this installation fails."""
    self_check.check()
    # folds take the place of a validation split that is drawn, unless there are many examples
    is_given = getattr(dataset.split, "in_validation", None) is not None
    has_split = is_given or len(dataset.examples) > config.data.max_bag
    share = 0.0 if config.bag_folds and not has_split else config.val_split
    splits = data.make_splits(config.data, dataset, share, config.seed, log)
    recipe = adapt_to_small_data(bind_to_data(config.recipe, config.hparams, splits), splits, log)
    return dataclasses.replace(config, recipe=recipe), splits


def prepare(config: Config, dataset: data.Dataset, log: Log = print) -> tuple[Config, Setup]:
    """Returns (the Config with its Recipe bound to the data, the Setup with its splits, pretrained
    weights and features of a frozen backbone). Raises as `split_data`."""
    config, examples = split_data(config, dataset, log)
    check_batch_size(config.recipe.batch_size, data.num_examples(examples.train))
    start = transfer.prepare(
        config.transfer, config.recipe, config.hparams, examples, config.seed, log
    )
    if config.class_weights == "balanced":
        start = balance(start)
    splits = start.splits
    abstract = train.abstract(start.recipe, config.hparams, splits.train["inputs"][:1])
    start_numbers = transfer.start_hparams(config.transfer, config.recipe, config.hparams)
    reject_unused_flags(
        config.given, (), [(start.recipe, abstract)], config.hparams, splits.train, start_numbers
    )
    examples = dataclasses.replace(examples, weights_sha256=splits.weights_sha256)
    return config, Setup(dataset, examples, start, abstract)


def balance(start: transfer.Start) -> transfer.Start:
    """Returns the Start with the task's loss "weight" for each training example."""
    splits = start.splits
    weight = start.recipe.task.example_weights(splits.train["targets"], len(splits.class_names))
    splits = dataclasses.replace(splits, train={**splits.train, "weight": weight})
    return dataclasses.replace(start, splits=splits)
