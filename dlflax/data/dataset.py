"""The contract of a data source: a Dataset as it was read, and the Splits of a run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dlflax.files import printable


class Source(Protocol):
    """Where examples come from: a frozen dataclass, whose fields are flags, with these methods.

    `data.Arrays` is one for NumPy arrays in memory. One of yours needs `load` and `split` to train,
    and `read` to predict. Errors of the user are `errors.InputError`, one sentence.
    """

    def load(self, log: Callable[[str], None] = print) -> "Dataset":
        """Reads everything. `log` gets a sentence for what the user should know."""

    def split(self, dataset: "Dataset", validation: float, seed: int) -> "Splits":
        """What a run trains, validates and tests with: the share `validation` of the training
        examples is held out (0: none). A function of its arguments alone, or no run can resume."""

    def read(
        self, inputs: list[str], data: Mapping[str, Any], folder: Path
    ) -> tuple[list[str], str, dict[str, np.ndarray]]:
        """What a user gave to `predict` (files, texts), as the model wants it: (their names, what
        one is, "file" say, the batch with "inputs" (n, ...)). data: what config.json says of the
        data, `Splits.info` among it; folder: of the run, with `Splits.files`."""

    # A source whose `read` computes something may have raw(data) -> Raw: an exported model is then
    # given what it computes from; that of another is given "inputs".


class DiskArray:
    """Some rows of an array that lies on disk (`numpy.memmap`): read when they are indexed.

    Has what training asks of an array: shape, dtype, ndim, nbytes, len, and indexing of the first
    axis by an int, a slice or int32 (n,), which gives a NumPy array in memory.
    """

    def __init__(self, array, index):
        self.array, self.index = array, np.asarray(index)
        self.shape, self.dtype = (len(self.index), *array.shape[1:]), array.dtype
        self.ndim = len(self.shape)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key) -> np.ndarray:
        return np.asarray(self.array[self.index[key]])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples as a source has them.

    `train` and `test` hold arrays with the examples along the first axis, "inputs" and mostly
    "targets": of pictures uint8 (n, height, width, channels), of texts str (n,), of a series
    float64 (n,) and nothing else. `source` says where the bytes came from; `checksum` is the
    SHA-256 of all of them, by which a resume knows them. `name` is that of what was read, whatever
    was asked for. "groups", str (n,), are examples that belong together (of one patient, say): a
    split keeps each group on one side.
    """

    name: str
    source: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    class_names: tuple[str, ...]
    checksum: str
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name -> text of files about the reading that belong into the run folder."""
    notes: tuple[str, ...] = ()
    """Sentences that were said when it was read."""
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the source's `split` needs of it, such as names of columns."""
    stands_in_for: str = ""
    """Name of the data set that was asked for, where this one replaces it."""

    def __post_init__(self):
        object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a run trains, validates and tests with: arrays "inputs" and, where the task wants them,
    "targets", the examples along the first axis; val is None where nothing is held out.

    Inputs are uint8 pictures (n, h, w, c), which the model sees as floats in 0..1, or floats or
    ints (n, ...); other arrays (n, ...) reach the task in the batch.
    """

    train: dict[str, Any]
    val: dict[str, Any] | None
    test: dict[str, Any]
    class_names: tuple[str, ...] = ()
    """Of classes or labels, by number."""
    kind: str = "array"
    """What an example is: picture, text, series, array."""
    unit: str = "row"
    """What a user calls one: file, text, row."""
    test_names: Sequence[str] | None = None
    """What the test examples are called, (n,), for tables of mistakes."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that the model must have, as the data decide them, such as the vocabulary of texts."""
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What predicting needs to know of the data, as JSON values."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name -> text of files that belong into the run folder."""
    notes: tuple[str, ...] = ()
    """Sentences on what was done with the data, which a run prints."""
    vectors: np.ndarray | None = None
    """Of tokens, float32 (vocabulary, size), NaN where one has none: what the model's embedding is
    to begin with."""
    plain: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """What simple models (`train.baselines`) read in place of the inputs: kind, such as texts ->
    {"train", "val", "test": values (n, ...)}, without val where nothing is held out."""

    def __post_init__(self):
        object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))

    def summary(self) -> dict[str, Any]:
        """What the data were taken for, as JSON values: the kind, shape and type of an example, how
        many there are of each class in train, validation and test, and what was said of them."""
        parts = {"train": self.train, "validation": self.val, "test": self.test}
        inputs = self.test["inputs"]
        counted = {
            "kind": self.kind,
            "input_shape": list(inputs.shape[1:]),
            "input_type": str(inputs.dtype),
            **{name: examples(part) if part else 0 for name, part in parts.items()},
        }
        targets = self.train.get("targets")
        if self.class_names and targets is not None and targets.dtype.kind in "iu":
            counts = [_count(part, len(self.class_names)) for part in parts.values()]
            counted["classes"] = {
                name: {of: int(count[i]) for of, count in zip(parts, counts, strict=True)}
                for i, name in enumerate(self.class_names)
            }  # fmt: skip
        return {**counted, "notes": list(self.notes)}


@dataclasses.dataclass(frozen=True)
class Raw:
    """What an exported model is given, of a source that has `raw`."""

    shape: tuple[int, ...]
    """Of one example."""
    dtype: str
    meaning: str
    """Of its numbers, for the user."""
    batch: Callable[[Any], dict[str, Any]]
    """Traceable: (n, *shape) -> the batch that `Source.read` gives."""
    of: Callable[[Splits], np.ndarray]
    """The test examples of Splits, so: (n, *shape)."""


def _count(part, classes: int) -> np.ndarray:
    """int (classes,): how many examples of each class, or with each label, a part has."""
    if not part:
        return np.zeros(classes, int)
    targets = part["targets"]
    return targets.sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=classes)


def examples(data: Mapping[str, Any]) -> int:
    """How many examples arrays {"inputs": (n, ...), ...} hold."""
    return len(data["inputs"])
