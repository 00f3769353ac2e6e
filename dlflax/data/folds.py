"""A Dataset cut into folds: each example is in the test data of one of them."""

import dataclasses

import numpy as np

from dlflax.data.dataset import Dataset, DiskArray
from dlflax.data.order import folds_of
from dlflax.errors import InputError


def folds(dataset: Dataset, count: int, seed: int) -> list[Dataset]:
    """The `count` Datasets whose test data are a fold each, and whose training data are the others:
    the same share of each class in all, whole groups where there are "groups". A test or validation
    split of the data's own takes part like all else. InputError for data that cannot be cut so."""
    inputs, targets = dataset.train["inputs"], dataset.train.get("targets")
    if targets is None:
        raise InputError("--folds is for examples with targets, not for a series: leave it out.")
    names = [
        name for name, array in dataset.train.items()
        if name in dataset.test and len(array) == len(inputs)
    ]  # fmt: skip
    whole = {name: _joined(dataset.train[name], dataset.test[name]) for name in names}
    n = len(whole["inputs"])
    if not 2 <= count <= n:
        raise InputError(f"--folds {count} must be from 2 to the number of examples, {n:,}.")
    of = folds_of(whole["targets"], count, seed, whole.get("groups"))
    return [
        dataclasses.replace(
            dataset,
            source=f"{dataset.source}, fold {fold + 1} of {count}",
            train={name: _rows(array, of != fold) for name, array in whole.items()},
            test={name: _rows(array, of == fold) for name, array in whole.items()},
        )
        for fold in range(count)
    ]


def _joined(first, second):
    if isinstance(first, DiskArray) and first.array is getattr(second, "array", None):
        return DiskArray(first.array, np.concatenate([first.index, second.index]))
    return np.concatenate([first[:], second[:]])


def _rows(array, chosen):
    if isinstance(array, DiskArray):
        return DiskArray(array.array, array.index[chosen])
    return array[chosen]
