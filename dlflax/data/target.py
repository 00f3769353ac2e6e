"""Targets: the values to predict, and their encoding for a loss."""

import abc
import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

from dlflax.errors import InputError
from dlflax.files import escape_controls

UNKNOWN = -1  # the number of a class without training examples
BOOLEANS = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def is_integer(text: str) -> bool:
    """True for the text of an integer: 1, 1.0, 1."""
    return bool(re.fullmatch(r"[-+]?\d+(\.0*)?", text))


def level_key(text: str) -> str:
    """Returns a key that is equal for texts of one class. They may differ in capitals and Unicode's
    form; integers in a fraction of zeros, leading zeros or a plus."""
    if not is_integer(text):
        return unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"^(-?)\+?0*(?=\d)", r"\1", text.partition(".")[0])


def match_levels(texts: Sequence[str], levels: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Returns the index of each text's level, int32 (n,), UNKNOWN for a text without a level. A
    level matches by the same text, else by the same key, if no other level has that key."""
    exact = {level: i for i, level in enumerate(levels)}
    by_key: dict[str, int] = {}
    for level, i in exact.items():
        key = level_key(level)
        by_key[key] = UNKNOWN if key in by_key else i
    if len(levels) == 2 and all(sum(key in words for key in by_key) == 1 for words in BOOLEANS):
        for words in BOOLEANS:  # "true" matches the level "yes"
            (i,) = (i for key, i in by_key.items() if key in words)
            by_key |= dict.fromkeys([word for word in words if len(word) > 1 or word.isdigit()], i)
    return np.array([
        exact[text] if text in exact else by_key.get(level_key(text), UNKNOWN) for text in texts
    ], np.int32)  # fmt: skip


class Target(abc.ABC):
    """The target of a model, fitted on the training examples and saved with the encoder."""

    names: tuple[str, ...]
    """Names of the classes, labels or numbers, in the order of the model's outputs."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes or labels; () for any other target."""
        return ()

    @property
    def spread(self) -> tuple[float, ...]:
        """Standard deviations of numbers in their unit, for display; () if there are none."""
        return ()

    @abc.abstractmethod
    def encode(self, values: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
        """Encodes raw target values for a loss."""


@dataclasses.dataclass(frozen=True)
class _Named(Target):
    names: tuple[str, ...]

    @property
    def classes(self):
        return self.names

    def encode(self, values: Real[np.ndarray, " n *labels"]) -> Int[np.ndarray, " n *labels"]:
        return values.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Classes(_Named):
    """One of several classes for each example. Raw and encoded: class numbers, int (n,)."""

    def numbers(self, names: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Returns the class number of each name, UNKNOWN for any other name."""
        return match_levels(list(map(escape_controls, names)), self.names)


@dataclasses.dataclass(frozen=True)
class Labels(_Named):
    """Any number of labels for each example. Raw and encoded: 0 or 1, int (n, labels)."""


@dataclasses.dataclass(frozen=True)
class Numbers(Target):
    """One number or several for each example. Raw: float64 (n,) or (n, numbers), in their unit;
    encoded: float32, standardized by the training values."""

    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    """Mean of the training values; one, or one for each number."""
    scale: tuple[float, ...] = (1.0,)
    """Standard deviation of the training values; one, or one for each number."""

    @property
    def spread(self):
        is_fitted = (self.mean, self.scale) != (Numbers.mean, Numbers.scale)
        return self.scale if is_fitted else ()

    @classmethod
    def fit(cls, values: Real[np.ndarray, " n *numbers"], names: Sequence[str] = ()) -> "Numbers":
        """Fits mean and scale to training values. Raises InputError for a constant number."""
        columns = np.float64(values).reshape(len(values), -1)
        rounding = 4 * np.spacing(np.abs(columns).max(0))
        for i in np.flatnonzero(np.ptp(columns, 0) <= rounding):
            name = f" {names[i]}" if len(names) else ""
            raise InputError(
                f"the target{name} is the same in all training rows: there is nothing to learn."
            )
        return cls(tuple(names), *(tuple(x.tolist()) for x in (columns.mean(0), columns.std(0))))

    def encode(self, values: Real[np.ndarray, " n *d"]) -> Float[np.ndarray, " n *d"]:
        values = np.asarray(values, np.float64)
        mean, scale = self._mean_and_scale(values.ndim)
        return ((values - mean) / scale).astype(np.float32)

    def decode(self, values: Any) -> Any:
        """Returns encoded values (n, ...) in their unit, float64, or float32 if traced."""
        mean, scale = self._mean_and_scale(values.ndim)
        return values * scale + mean

    def _mean_and_scale(self, ndim: int):
        """Returns mean and scale with ndim dimensions, the numbers along the last."""
        if ndim <= 1:
            return np.float64(self.mean[0]), np.float64(self.scale[0])
        shape = (*[1] * (ndim - 1), -1)
        return (np.array(x, np.float64).reshape(shape) for x in (self.mean, self.scale))


@dataclasses.dataclass(frozen=True)
class Steps(Target):
    """The next values of a series. Raw: float64 (n, horizon), minus the last input value, NaN where
    nothing was observed; encoded: float32, divided by `scale`."""

    names: tuple[str, ...]
    scale: float
    period: int
    """Steps per season."""
    is_positive: bool = False
    """True if no value of the training steps is negative: nor is a forecast."""

    @property
    def spread(self):
        return (self.scale,)

    def encode(self, values: Float[np.ndarray, "n horizon"]) -> Float[np.ndarray, "n horizon"]:
        return np.float32(np.asarray(values, np.float64) / self.scale)


@dataclasses.dataclass(frozen=True)
class Nothing(Target):
    """No target: the model predicts its inputs, or the task uses the arrays unchanged."""

    names: tuple[str, ...] = ()

    def encode(self, values):
        return values
