"""NumPy arrays in memory as a data source."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro

from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Encoder, Examples, Form, Limits, Spec, TooMuch, as_path
from dlflax.data.image.encoder import ImageEncoder
from dlflax.data.npy import read_npy
from dlflax.data.splits import Given
from dlflax.data.target import Classes, Labels, Nothing, Numbers
from dlflax.errors import InputError

_Unsaved = Annotated[Any, tyro.conf.Suppress]


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(Source):
    """NumPy arrays in memory: Arrays({"inputs": x, "targets": y}, {"inputs": ..., "targets": ...}).

    inputs (n, ...): floats, ints, or uint8 images (n, h, w, c), c 1 or 3, scaled to 0..1 for the
    model. targets: class numbers int (n,), floats (n,) or (n, k), or what else the task accepts.
    Other arrays (n, ...) are in the task's batch, too. float64 becomes float32.

    The arrays are not saved with a run: a program that resumes the run must make the same ones.
    """

    train: _Unsaved = dataclasses.field(default=None, metadata={"saved": False})
    """Training and validation examples."""
    test: _Unsaved = dataclasses.field(default=None, metadata={"saved": False})
    """Test examples."""
    class_names: tuple[str, ...] = ()
    """Names of classes or labels, by number (default: the numbers)."""
    name: str = "arrays"
    """The name of the data."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Checks the arrays. Raises InputError, one sentence, for arrays without valid examples."""
        digest = hashlib.sha256()
        train, test = (self._check_split(name, digest) for name in ("train", "test"))
        for name, array in train.items():
            other = test.get(name)
            if other is None or other.shape[1:] != array.shape[1:] or other.dtype != array.dtype:
                shown = "nothing" if other is None else f"{other.dtype} {other.shape[1:]} a row"
                raise InputError(
                    f"Arrays: train has {name} of {array.dtype} {array.shape[1:]} a row and test "
                    f"{shown}: both must have the same."
                )
        columns = {name: np.concatenate([train[name], test[name]]) for name in train}
        target = columns.pop("targets", None)
        counts = len(train["inputs"]), len(test["inputs"])
        names = [str(i) for count in counts for i in range(count)]
        style = {"classes": self._names(train.get("targets"))}
        examples = Examples(columns, target, names, self.class_names, style)
        split = Given(np.repeat([False, True], counts), by_class=False)
        return Dataset(examples, split, self.name, f"arrays {self.name!r}", digest.hexdigest())

    def _check_split(self, split: str, digest: Any) -> dict[str, np.ndarray]:
        """Returns the arrays of a split, and adds them to the digest."""
        given = getattr(self, split)
        if not isinstance(given, Mapping) or "inputs" not in given:
            raise InputError(
                f'Arrays: {split} must be a dict with "inputs" and, unless the task is '
                'reconstruction, "targets": {"inputs": x, "targets": y}.'
            )
        arrays = {name: _check_array(split, name, array) for name, array in given.items()}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1 or not all(lengths.values()):
            counts = ", ".join(f"{name} {count:,}" for name, count in lengths.items())
            raise InputError(
                f"Arrays: the arrays of {split} must have the same number of rows, at least one: "
                f"they have {counts}."
            )
        for name, array in arrays.items():
            digest.update(f"{split} {name} {array.dtype} {array.shape}".encode())
            digest.update(array)
        return arrays

    def _names(self, targets) -> tuple[str, ...]:
        if self.class_names or targets is None:
            return tuple(self.class_names)
        if targets.ndim == 2:
            return tuple(map(str, range(targets.shape[1])))
        if targets.ndim == 1 and targets.dtype.kind in "iu":
            return tuple(map(str, range(max(0, int(targets.max())) + 1)))
        return ()

    def encoder(self, train: Examples, log: Callable[[str], None]) -> Encoder:
        """Returns an encoder of images, or of any other arrays."""
        inputs, target = train.columns["inputs"], _fit_target(train)
        if inputs.dtype == np.uint8 and inputs.ndim == 4 and inputs.shape[3] in (1, 3):
            return ImageEncoder(target, inputs.shape[1:])
        return ArrayEncoder(target, inputs.shape[1:], str(inputs.dtype))


@dataclasses.dataclass(frozen=True)
class ArrayEncoder(Encoder):
    """Arrays of one shape and dtype, unchanged."""

    form: ClassVar = Form("row", "inputs", {"type": "array"}, widget="array")

    target: Classes | Labels | Numbers | Nothing
    shape: tuple[int, ...]
    """The shape of an example."""
    dtype: str

    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Returns one example or several of an array, nested lists, or a .npy file."""
        if self.dtype not in ("uint8", "int32", "float32", "float16", "int8", "int16", "uint16"):
            raise InputError(f"encoder.json is damaged: dtype {self.dtype!r} is none of a model's.")
        if given is None:
            raise InputError("name one or more .npy files after the run folder.")
        file = "" if as_path(given) is None else str(given)
        try:
            array = read_npy(Path(given)) if file else np.asarray(given)
        except ValueError as error:
            raise InputError(
                str(error) if file else "inputs must be an array of numbers."
            ) from error
        array = array[None] if array.shape == self.shape else array
        if array.dtype.kind not in "fiub" or array.shape[1:] != self.shape:
            place = f"{file} has" if file else "predict was given"
            raise InputError(
                f"{place} {array.dtype} in shape {array.shape}: the model takes {self.dtype} in "
                f"shape {self.shape}, or (n, ...) of it."
            )
        if limits and len(array) > limits.rows:
            raise TooMuch(f"a request may have {limits.rows} inputs.")
        with np.errstate(over="ignore"):  # refused below
            cast = array.astype(self.dtype)
        if not np.isfinite(cast).all() or cast.dtype.kind != "f" and (cast != array).any():
            raise InputError(f"predict takes finite numbers of {self.dtype}: the array has others.")
        names = [f"{file}[{i}]" if file else str(i) for i in range(len(cast))]
        return Examples({"inputs": cast}, None, [file] if file and len(cast) == 1 else names)

    def encode(self, examples: Examples) -> dict[str, Any]:
        others = {name: c for name, c in examples.columns.items() if name != "inputs"}
        return {**super().encode(examples), **others}

    def spec(self) -> Spec:
        return Spec(self.shape, self.dtype, "as in training")


def _fit_target(train: Examples) -> Classes | Labels | Numbers | Nothing:
    values = train.target
    if values is None:
        return Nothing()
    if values.dtype.kind == "f":
        return Numbers() if values.ndim <= 2 else Nothing()
    if values.ndim == 2 and np.isin(values, (0, 1)).all():
        return Labels(train.style["classes"])
    return Classes(train.style["classes"]) if values.ndim == 1 else Nothing()


def _check_array(split: str, name: str, array) -> np.ndarray:
    """Returns the array, with 64-bit dtypes, uint32 and bool as float32 or int32. Raises InputError
    for other dtypes, integers beyond 32 bits, NaN and infinity."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind not in "fiub" or array.ndim < 1:
        raise InputError(
            f"Arrays: {name} of {split} must be an array of numbers with the examples along the "
            f"first axis, not {array.dtype} in shape {array.shape}."
        )
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype in (np.int64, np.uint32, np.uint64) or array.dtype == bool:
        if array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
            raise InputError(f"Arrays: {name} of {split} has integers beyond 32 bits.")
        array = array.astype(np.int32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise InputError(
            f"Arrays: {name} of {split} has NaN or infinity in row {row}: remove the row."
        )
    return array
