"""A Dataset cut into folds: each example is in the test data of one of them."""

import dataclasses

from dlflax.data.dataset import Dataset
from dlflax.data.order import folds_of
from dlflax.data.splits import ByTime, Given
from dlflax.errors import InputError


def folds(dataset: Dataset, count: int, seed: int) -> list[Dataset]:
    """Returns `count` Datasets, each tested on another fold and trained on the others. All have the
    same share of each class, or whole groups where there are any. A test or
    validation part of the data's own takes part like all else. Raises InputError for data that
    cannot be cut so."""
    examples, split = dataset.examples, dataset.split
    if examples.target is None or isinstance(split, ByTime):
        raise InputError("--folds is for examples with targets, not for a series: leave it out.")
    n, groups = len(examples), split.groups_of()
    if not 2 <= count <= n:
        raise InputError(f"--folds {count} must be from 2 to the number of examples, {n:,}.")
    fold_of = folds_of(examples.target, count, seed, groups)
    by_class = not isinstance(split, Given) or split.by_class
    return [
        dataclasses.replace(
            dataset,
            source=f"{dataset.source}, fold {fold + 1} of {count}",
            split=Given(fold_of == fold, None, by_class, groups),
        )
        for fold in range(count)
    ]
