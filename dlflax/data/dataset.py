"""The contract of a data source, and the splits of a run."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from dlflax.data.encoder import DiskArray, Encoder, Examples, Plain
from dlflax.data.splits import Split, split_rows
from dlflax.data.target import Target
from dlflax.errors import InputError
from dlflax.files import host_memory


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The raw examples of a source, and their split."""

    examples: Examples
    split: Split
    name: str
    """Name of the data set that was read, which may replace another."""
    source: str
    """Origin of the bytes."""
    checksum: str
    """SHA-256 of all data, which must be the same when a run is resumed."""
    notes: tuple[str, ...] = ()
    """Sentences logged while it was read."""
    findings: tuple[str, ...] = ()
    """Notes that qualify the scores, such as leaks. A run repeats and saves them at its end."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name -> text of files for the run folder, about the reading."""
    stands_in_for: str = ""
    """Name of the requested data set that this one replaces."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes or labels, by number."""
        return self.examples.classes

    @property
    def train(self) -> dict[str, Any]:
        """The raw columns and "targets" of all but the test examples."""
        return self._raw(False)

    @property
    def test(self) -> dict[str, Any]:
        """The raw columns and "targets" of the test examples."""
        return self._raw(True)

    def _raw(self, test: bool) -> dict[str, Any]:
        in_test = self.split.rows(self.examples, 0.0, 0, lambda sentence: None)["test"]
        rows = np.flatnonzero(np.isin(np.arange(len(self.examples)), in_test) == test)
        part = self.examples.take(rows)
        return dict(part.columns) | ({} if part.target is None else {"targets": part.target})


class Source(abc.ABC):
    """A data source: a frozen dataclass, whose fields are flags. A user's mistakes raise
    `errors.InputError`, with one sentence."""

    max_bag: ClassVar[float] = math.inf
    """Examples from which a validation split suffices in place of the folds of a bag."""
    has_trial_bags: ClassVar[bool] = True
    """True if a trial of a sweep can be a bag; False: it is one network."""

    @abc.abstractmethod
    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Reads all examples. `log` gets sentences for the user."""

    @abc.abstractmethod
    def encoder(self, train: Examples, log: Callable[[str], None]) -> Encoder:
        """Returns the encoder fitted on the training examples: a function of its arguments alone,
        or no run could resume."""

    def for_blend(self) -> "Source":
        """Returns the source whose inputs all models of a blend can read; default: itself."""
        return self

    def token_vectors(self, encoder: Any, log: Callable[[str], None]) -> np.ndarray | None:
        """Returns initial embeddings of tokens, float32 (vocabulary, size), NaN for a token without
        one; None if all are random."""
        return None


@dataclasses.dataclass(frozen=True)
class Splits:
    """The encoded splits of a run: arrays "inputs" and, if there is a target, "targets".

    Examples are along the first axis; val is None if nothing is held out."""

    train: dict[str, Any]
    val: dict[str, Any] | None
    test: dict[str, Any]
    encoder: Encoder
    """The encoder of the arrays."""
    examples: Mapping[str, Examples] = dataclasses.field(default_factory=dict)
    """The raw examples of "train", "val" and "test"."""
    notes: tuple[str, ...] = ()
    """Sentences on the data, which a run prints."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """`Dataset.files`."""
    vectors: np.ndarray | None = None
    """Embeddings of `Source.token_vectors`."""
    weights_sha256: str = ""
    """SHA-256 of the pretrained weights that computed the inputs, or that training begins with."""

    @property
    def target(self) -> Target:
        """The target of the encoder."""
        return self.encoder.target

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the target's classes or labels, by number."""
        return self.encoder.target.classes

    def plain(self, split: str) -> Plain | None:
        """Returns `Encoder.plain` of the examples of a split."""
        return self.encoder.plain(self.examples[split])

    def names(self, split: str = "test") -> list[str]:
        """Returns the names of the examples of a split, by default their numbers."""
        examples = self.examples[split]
        return list(map(str, examples.names or range(len(examples))))

    def summary(self) -> dict[str, Any]:
        """Returns a description of examples, sizes of splits and classes, and notes, for JSON."""
        splits = {"train": self.train, "validation": self.val, "test": self.test}
        inputs = self.test["inputs"]
        summary = {
            "examples": self.encoder.describe(),
            "input_shape": list(inputs.shape[1:]),
            "input_type": str(inputs.dtype),
            **{name: num_examples(split) if split else 0 for name, split in splits.items()},
        }
        targets = self.train.get("targets")
        if self.class_names and targets is not None and targets.dtype.kind in "iu":
            counts = {n: _count_classes(split, self.class_names) for n, split in splits.items()}
            summary["classes"] = {
                name: {split: int(count[i]) for split, count in counts.items()}
                for i, name in enumerate(self.class_names)
            }
        return {**summary, "notes": list(self.notes)}


def _record(notes: list[str], log: Callable[[str], None]) -> Callable[[str], None]:
    """Returns a log that appends to notes, too."""

    def record(sentence: str) -> None:
        notes.append(sentence)
        log(sentence)

    return record


def read_dataset(source: Source, log: Callable[[str], None] = print) -> Dataset:
    """Loads a source; the sentences that `log` gets are the Dataset's notes, too."""
    notes: list[str] = []
    dataset = source.load(_record(notes, log))
    return dataclasses.replace(dataset, notes=tuple(notes))


def make_splits(
    source: Source, dataset: Dataset, validation: float, seed: int,
    log: Callable[[str], None] = lambda sentence: None,
) -> Splits:  # fmt: skip
    """Splits a Dataset, fits the source's encoder on the train split, and encodes all splits.
    Raises InputError for data that cannot be split."""
    notes = list(dataset.notes)
    record = _record(notes, log)
    try:
        rows = split_rows(dataset.examples, dataset.split, validation, seed, record)
    except InputError as error:
        raise InputError(f"{dataset.source}: {error}") from error
    examples = _read_from_disk(dataset.examples)
    splits = {name: examples.take(index) for name, index in rows.items()}
    encoder = source.encoder(splits["train"], record)
    arrays = {name: encoder.encode(split) for name, split in splits.items()}
    vectors = source.token_vectors(encoder, record)
    return Splits(
        arrays["train"], arrays.get("val"), arrays["test"], encoder, splits, tuple(notes),
        dataset.files, vectors,
    )  # fmt: skip


def _read_from_disk(examples: Examples) -> Examples:
    """Reads arrays on disk into memory, if they take less than a quarter of it."""
    on_disk = {n: c for n, c in examples.columns.items() if isinstance(c, DiskArray)}
    if sum(c.nbytes for c in on_disk.values()) >= host_memory() / 4:
        return examples
    read = {name: np.ascontiguousarray(column[:]) for name, column in on_disk.items()}
    return dataclasses.replace(examples, columns={**examples.columns, **read})


def _count_classes(split, names: tuple[str, ...]) -> np.ndarray:
    targets = split["targets"] if split else np.zeros(0, int)
    return targets.sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=len(names))


def num_examples(data: Mapping[str, Any]) -> int:
    """Returns the number of examples n in arrays {"inputs": (n, ...), ...}."""
    return len(data["inputs"])
