"""Folds of a Dataset: each example is in the test split of one of them."""

import dataclasses

from dlflax.data.dataset import Dataset
from dlflax.data.order import assign_folds
from dlflax.data.splits import ByTime, Given
from dlflax.errors import InputError


def folds(dataset: Dataset, count: int, seed: int) -> list[Dataset]:
    """Returns `count` Datasets, each tested on another fold and trained on the others.

    Folds have the same share of each class, or consist of whole groups; test and validation splits
    of the data set are ignored. Raises InputError for a Dataset that cannot be split into folds."""
    examples, split = dataset.examples, dataset.split
    if examples.target is None or isinstance(split, ByTime):
        raise InputError("--folds is for examples with targets, not for a series: remove the flag.")
    n, groups = len(examples), split.groups
    if not 2 <= count <= n:
        raise InputError(f"--folds {count} must be from 2 to the number of examples, {n:,}.")
    fold_of = assign_folds(examples.target, count, seed, groups)
    by_class = not isinstance(split, Given) or split.by_class
    return [
        dataclasses.replace(
            dataset,
            source=f"{dataset.source}, fold {fold + 1} of {count}",
            split=Given(fold_of == fold, None, by_class, groups),
        )
        for fold in range(count)
    ]
