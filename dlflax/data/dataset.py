"""What every source of examples gives: a Dataset as it was read, and the Splits of a run."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Rows:
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
    """Examples in memory, as a source has them.

    `train` and `test` hold "inputs" and "targets": for images uint8 (n, height, width, channels)
    and int32 (n,), for texts str (n,) and int32 (n,), for a series float32 (n, channels) and
    nothing else; images from single files also "files", their names. `source` says where the bytes
    came from; `checksum` is the SHA-256 of all of them. `name` is that of what was read, whatever
    was asked for.
    """

    name: str
    source: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    class_names: tuple[str, ...]
    checksum: str
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name -> text of files about the reading that belong into the run folder."""


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


def host_memory() -> int:
    """Bytes of memory that this machine, or the container on it, has."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max", or another system
            limits.append(int(Path(path).read_text()))
    return min(limits)
