"""What every source of examples gives: a Dataset as it was read, and the Splits of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples in memory, as a source has them.

    `train` and `test` hold "inputs" and "targets": for images uint8 (n, height, width, channels)
    and int32 (n,), for texts str (n,) and int32 (n,), for a series float32 (n, channels) and
    nothing else. `source` says where the bytes came from; `checksum` is the SHA-256 of all of
    them. `name` is that of what was read, whatever was asked for.
    """

    name: str
    source: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    class_names: tuple[str, ...]
    checksum: str


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a run trains, validates and tests with: arrays "inputs" and "targets", the examples
    along the first axis; val is None where nothing is held out."""

    train: dict[str, Any]
    val: dict[str, Any] | None
    test: dict[str, Any]
    model: dict[str, Any]
    """Fields of the model that the data decide, such as num_outputs."""
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What predicting needs to know of the data, as JSON values."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name -> text of files that belong into the run folder."""
