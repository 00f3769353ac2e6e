"""The contract of a data source, and what a run trains, validates and tests with."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlflax.data.encoder import DiskArray, Encoder, Examples, Plain
from dlflax.data.splits import Split, split_rows
from dlflax.data.target import Target
from dlflax.errors import InputError
from dlflax.files import host_memory


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples as a source has them, and how they are to be split."""

    examples: Examples
    split: Split
    name: str
    """That of what was read, whatever was asked for."""
    source: str
    """The origin of the bytes."""
    checksum: str
    """SHA-256 of all that is read, by which a resume knows the data."""
    notes: tuple[str, ...] = ()
    """Sentences that were said when it was read."""
    findings: tuple[str, ...] = ()
    """The notes by which the scores must be judged, such as leaks: a run repeats them at its
    end and saves them in results.json."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name -> text of files about the reading that belong into the run folder."""
    stands_in_for: str = ""
    """Name of the data set that was asked for, where this one replaces it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes or labels, by number."""
        return self.examples.classes

    @property
    def train(self) -> dict[str, Any]:
        """The columns and "targets", raw, of all examples that are not tested on."""
        return self._part(False)

    @property
    def test(self) -> dict[str, Any]:
        """The columns and "targets", raw, of the examples that are tested on."""
        return self._part(True)

    def _part(self, tested: bool) -> dict[str, Any]:
        rows = self.split.rows(self.examples, 0.0, 0, lambda sentence: None)
        chosen = np.zeros(len(self.examples), bool)
        chosen[rows["test"]] = True
        part = self.examples.take(np.flatnonzero(chosen if tested else ~chosen))
        return dict(part.columns) | ({} if part.target is None else {"targets": part.target})


class Source(abc.ABC):
    """A data source: a frozen dataclass, whose fields are flags.

    `data.Arrays` is one for NumPy arrays in memory. Errors of the user are `errors.InputError`, one
    sentence.
    """

    @abc.abstractmethod
    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Reads everything. `log` gets a sentence for what the user should know."""

    @abc.abstractmethod
    def encoder(self, train: Examples, log: Callable[[str], None]) -> Encoder:
        """Returns the encoder fitted on the training examples, which are all that it is given. A
        function of its arguments alone, or no run could resume."""

    def token_vectors(self, encoder: Any, log: Callable[[str], None]) -> np.ndarray | None:
        """Returns what the embedding of tokens begins with, float32 (vocabulary, size), NaN where a
        token has none; None where all of it is random."""
        return None


@dataclasses.dataclass(frozen=True)
class Splits:
    """The data of a run, to train, validate and test with: arrays "inputs" and, where there is a
    target, "targets", the examples along the first axis; val is None where nothing is held out."""

    train: dict[str, Any]
    val: dict[str, Any] | None
    test: dict[str, Any]
    encoder: Encoder
    """That they were made by."""
    examples: Mapping[str, Examples] = dataclasses.field(default_factory=dict)
    """The raw examples of "train", "val" and "test"."""
    notes: tuple[str, ...] = ()
    """Sentences on what was done with the data, which a run prints."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The files of the Dataset."""
    vectors: np.ndarray | None = None
    """The vectors of `Source.token_vectors`."""
    weights_sha256: str = ""
    """SHA-256 of pretrained weights, which the inputs are features of, or training begins with."""

    @property
    def target(self) -> Target:
        """The target of the encoder."""
        return self.encoder.target

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the target's classes or labels, by number."""
        return self.encoder.target.classes

    def plain(self, part: str) -> Plain | None:
        """Returns `Encoder.plain` of the examples of a part."""
        return self.encoder.plain(self.examples[part])

    def names(self, part: str = "test") -> list[str]:
        """Returns the names of the examples of a part, numbers where they have none."""
        examples = self.examples[part]
        return list(map(str, examples.names or range(len(examples))))

    def summary(self) -> dict[str, Any]:
        """Returns the data in words, shape and type of an example, and the notes, as JSON values.
        They have the number of examples of each class in train, validation and test, too."""
        parts = {"train": self.train, "validation": self.val, "test": self.test}
        inputs = self.test["inputs"]
        counted = {
            "examples": self.encoder.describe(),
            "input_shape": list(inputs.shape[1:]),
            "input_type": str(inputs.dtype),
            **{name: examples(part) if part else 0 for name, part in parts.items()},
        }
        targets = self.train.get("targets")
        if self.class_names and targets is not None and targets.dtype.kind in "iu":
            counts = [_count(part, len(self.class_names)) for part in parts.values()]
            counted["classes"] = {
                name: {part: int(count[i]) for part, count in zip(parts, counts, strict=True)}
                for i, name in enumerate(self.class_names)
            }  # fmt: skip
        return {**counted, "notes": list(self.notes)}


def read_dataset(source: Source, log: Callable[[str], None] = print) -> Dataset:
    """Returns what the source loads; the sentences that `log` gets meanwhile are its notes."""
    notes: list[str] = []

    def note(sentence: str) -> None:
        notes.append(sentence)
        log(sentence)

    return dataclasses.replace(source.load(note), notes=tuple(notes))


def make_splits(
    source: Source, dataset: Dataset, validation: float, seed: int,
    log: Callable[[str], None] = lambda sentence: None,
) -> Splits:  # fmt: skip
    """Splits a Dataset, fits the source's encoder on the training part, and encodes all parts.
    `log` gets the sentences. Raises InputError for data that cannot be split so."""
    notes = list(dataset.notes)

    def note(sentence: str) -> None:
        notes.append(sentence)
        log(sentence)

    try:
        rows = split_rows(dataset.examples, dataset.split, validation, seed, note)
    except InputError as error:
        raise InputError(f"{dataset.source}: {error}") from error
    examples = _in_memory(dataset.examples)
    parts = {name: examples.take(at) for name, at in rows.items()}
    encoder = source.encoder(parts["train"], note)
    arrays = {name: encoder.encode(part) for name, part in parts.items()}
    vectors = source.token_vectors(encoder, note)
    return Splits(
        arrays["train"], arrays.get("val"), arrays["test"], encoder, parts, tuple(notes),
        dataset.files, vectors,
    )  # fmt: skip


def _in_memory(examples: Examples) -> Examples:
    """Returns the examples with their arrays on disk read, where these take less than a quarter of
    the memory."""
    on_disk = {n: c for n, c in examples.columns.items() if isinstance(c, DiskArray)}
    if not on_disk or sum(c.nbytes for c in on_disk.values()) >= host_memory() / 4:
        return examples
    read = {name: np.ascontiguousarray(column[:]) for name, column in on_disk.items()}
    return dataclasses.replace(examples, columns={**examples.columns, **read})


def _count(part, classes: int) -> np.ndarray:
    """int (classes,): how many examples of each class, or with each label, a part has."""
    if not part:
        return np.zeros(classes, int)
    targets = part["targets"]
    return targets.sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=classes)


def examples(data: Mapping[str, Any]) -> int:
    """Returns how many examples arrays {"inputs": (n, ...), ...} hold."""
    return len(data["inputs"])
