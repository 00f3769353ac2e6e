"""NumPy arrays in memory as a data source."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dlflax.data.dataset import Dataset, Splits
from dlflax.data.images import read_pictures
from dlflax.data.order import split
from dlflax.errors import InputError
from dlflax.files import opened


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """NumPy arrays in memory: Arrays({"inputs": x, "targets": y}, {"inputs": ..., "targets": ...}).

    inputs (n, ...): floats, ints, or uint8 pictures (n, h, w, c), c 1 or 3, which the model sees as
    floats in 0..1. targets: class numbers int (n,), floats (n,) or (n, k), or whatever the task
    takes. Other arrays (n, ...) reach the task in the batch. float64 becomes float32.

    The arrays are not saved with a run: what resumes it has to make the same ones again.
    """

    train: Annotated[Any, tyro.conf.Suppress] = dataclasses.field(
        default=None, metadata={"saved": False}
    )
    """To train and validate with."""
    test: Annotated[Any, tyro.conf.Suppress] = dataclasses.field(
        default=None, metadata={"saved": False}
    )
    """To test with, once, at the end."""
    class_names: tuple[str, ...] = ()
    """Of classes or labels, by number (default: the numbers)."""
    name: str = "arrays"
    """What the data are called."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """The arrays, checked. InputError, one sentence, for what cannot be examples."""
        parts, digest = {}, hashlib.sha256()
        for part in ("train", "test"):
            given = getattr(self, part)
            if not hasattr(given, "items") or "inputs" not in given:
                raise InputError(
                    f'Arrays: {part} must be a dict with "inputs" and, unless the task is '
                    'reconstruction, "targets": {"inputs": x, "targets": y}.'
                )
            parts[part] = {name: _checked(part, name, array) for name, array in given.items()}
            lengths = {name: len(array) for name, array in parts[part].items()}
            if len(set(lengths.values())) > 1 or not all(lengths.values()):
                counts = ", ".join(f"{name} {count:,}" for name, count in lengths.items())
                raise InputError(
                    f"Arrays: the arrays of {part} must have as many rows each, at least one: they "
                    f"have {counts}."
                )
            for name, array in parts[part].items():
                digest.update(f"{part} {name} {array.dtype} {array.shape}".encode())
                digest.update(array)
        for name, array in parts["train"].items():
            other = parts["test"].get(name)
            if other is None or other.shape[1:] != array.shape[1:] or other.dtype != array.dtype:
                shown = "nothing" if other is None else f"{other.dtype} {other.shape[1:]} a row"
                raise InputError(
                    f"Arrays: train has {name} of {array.dtype} {array.shape[1:]} a row and test "
                    f"{shown}: both must have the same."
                )
        return Dataset(
            self.name, f"arrays {self.name!r}", parts["train"], parts["test"],
            self._names(parts["train"].get("targets")), digest.hexdigest(),
        )  # fmt: skip

    def _names(self, targets) -> tuple[str, ...]:
        if self.class_names or targets is None:
            return tuple(self.class_names)
        if targets.ndim == 2:
            return tuple(str(i) for i in range(targets.shape[1]))
        if targets.ndim == 1 and targets.dtype.kind in "iu":
            return tuple(str(i) for i in range(max(0, int(targets.max())) + 1))
        return ()

    def split(self, dataset: Dataset, validation: float, seed: int) -> Splits:
        """The share `validation` of the training rows, drawn by `seed`, is held out."""
        train, val = split(dict(dataset.train), validation, seed)
        inputs, test = dataset.train["inputs"], dict(dataset.test)
        pictures = inputs.dtype == np.uint8 and inputs.ndim == 4 and inputs.shape[3] in (1, 3)
        return Splits(
            train, val, test, class_names=dataset.class_names,
            kind="picture" if pictures else "array", unit="row",
            test_names=[str(i) for i in range(len(test["inputs"]))],
            info={"light_on_dark": False, "dtype": str(inputs.dtype)},
        )  # fmt: skip

    def read(
        self, inputs: list[str], data: Mapping[str, Any], folder: Path
    ) -> tuple[list[str], str, dict[str, np.ndarray]]:
        """Files .npy, (..., one row) or (n, ...) each; or pictures, where the arrays are some."""
        if not inputs:
            raise InputError("name one or more .npy files after the run folder.")
        shape, dtype = tuple(data["input_shape"]), np.dtype(data["dtype"])
        if dtype == np.uint8 and not all(path.endswith(".npy") for path in inputs):
            return read_pictures(inputs, data)
        names, rows = [], []
        for path in inputs:
            try:
                with opened(path):  # a pipe would be waited for
                    array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                reason = getattr(error, "strerror", None) or "not an array of NumPy"
                raise InputError(f"{path} cannot be read as a .npy file: {reason}.") from error
            array = array[None] if array.shape == shape else array
            if array.shape[1:] != shape or array.dtype.kind not in "fiub":
                raise InputError(
                    f"{path} has {array.dtype} in shape {array.shape}: the model takes {dtype} in "
                    f"shape {shape}, or (n, ...) of it."
                )
            names += [path] if len(array) == 1 else [f"{path}[{i}]" for i in range(len(array))]
            rows.append(array.astype(dtype))
        return names, "row", {"inputs": np.concatenate(rows)}


def _checked(part: str, name: str, array) -> np.ndarray:
    array = np.ascontiguousarray(array)
    if array.dtype.kind not in "fiub" or array.ndim < 1:
        raise InputError(
            f"Arrays: {name} of {part} must be an array of numbers with the examples along the "
            f"first axis, not {array.dtype} in shape {array.shape}."
        )
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype in (np.int64, np.uint32, np.uint64) or array.dtype == bool:
        if array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
            raise InputError(f"Arrays: {name} of {part} has whole numbers beyond 32 bits.")
        array = array.astype(np.int32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise InputError(
            f"Arrays: {name} of {part} has NaN or infinity in row {row}: leave it out."
        )
    return array
