"""Targets: what is predicted, and how its values become numbers of a model."""

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

UNKNOWN = -1  # the number of a class that training did not have
BOOLEANS = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def is_whole(text: str) -> bool:
    """True for the text of a whole number: 1, 1.0, 1."""
    return bool(re.fullmatch(r"[-+]?\d+(\.0*)?", text))


def level_key(text: str) -> str:
    """Returns what texts of one class have in common. They may differ in capitals and in Unicode's
    form; a whole number in its fraction, in zeros before it or a plus."""
    if not is_whole(text):
        return unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"^(-?)\+?0*(?=\d)", r"\1", text.partition(".")[0])


def match_levels(texts: Sequence[str], levels: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Returns the index of each text's level, int32 (n,), UNKNOWN for a text that has none. The
    same text wins, then the only level with the same key."""
    exact = {level: i for i, level in enumerate(levels)}
    alike: dict[str, int] = {}
    for level, i in exact.items():
        key = level_key(level)
        alike[key] = UNKNOWN if key in alike else i
    if len(levels) == 2 and all(sum(key in words for key in alike) == 1 for words in BOOLEANS):
        for words in BOOLEANS:  # true where training rows have yes
            (i,) = (i for key, i in alike.items() if key in words)
            alike |= dict.fromkeys([word for word in words if len(word) > 1 or word.isdigit()], i)
    return np.array([
        exact[text] if text in exact else alike.get(level_key(text), UNKNOWN) for text in texts
    ], np.int32)  # fmt: skip


class Target(abc.ABC):
    """The target of a model. Fitted on the training examples, saved with the encoder."""

    names: tuple[str, ...]
    """Names of the classes, labels or numbers, in the order of the model's outputs."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of classes or labels; () of any other target."""
        return ()

    @property
    def spread(self) -> tuple[float, ...]:
        """The standard deviations of numbers in their unit, by which they are shown; () of any
        other target, and where they are not known."""
        return ()

    @abc.abstractmethod
    def encode(self, values: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
        """Returns what a loss compares outputs with, of raw target values."""


@dataclasses.dataclass(frozen=True)
class Classes(Target):
    """One class of several for each example. Raw and encoded: class numbers, int (n,)."""

    names: tuple[str, ...]

    @property
    def classes(self):
        return self.names

    def encode(self, values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return values.astype(np.int32)

    def numbers(self, names: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Returns the class number of each name, UNKNOWN for a name that is none."""
        return match_levels(list(map(escape_controls, names)), self.names)


@dataclasses.dataclass(frozen=True)
class Labels(Target):
    """Any number of labels for each example. Raw and encoded: 0 or 1, int (n, labels)."""

    names: tuple[str, ...]

    @property
    def classes(self):
        return self.names

    def encode(self, values: Real[np.ndarray, "n labels"]) -> Int[np.ndarray, "n labels"]:
        return values.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Numbers(Target):
    """One number or several for each example. Raw: float64 (n,) or (n, numbers), in their unit;
    encoded: float32, in deviations from the training mean."""

    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    """Mean of the training values; one, or one for each number."""
    scale: tuple[float, ...] = (1.0,)
    """Their standard deviation, likewise."""

    @property
    def spread(self):
        """`scale`, where it was fitted."""
        default = (self.mean, self.scale) == (Numbers.mean, Numbers.scale)
        return () if default else self.scale

    @classmethod
    def fit(cls, values: Real[np.ndarray, " n *numbers"], names: Sequence[str] = ()) -> "Numbers":
        """Returns the target of these training values. Raises InputError for a number that is the
        same in all of them, but for rounding."""
        columns = np.float64(values).reshape(len(values), -1)
        rounding = 4 * np.spacing(np.abs(columns).max(0))
        for i in np.flatnonzero(np.ptp(columns, 0) <= rounding):
            name = f" {names[i]}" if len(names) else ""
            raise InputError(
                f"the target{name} is the same in all training rows: there is nothing to learn."
            )
        fitted = columns.mean(0), columns.std(0)
        return cls(tuple(names), *(tuple(x.tolist()) for x in fitted))

    def encode(self, values: Real[np.ndarray, " n *d"]) -> Float[np.ndarray, " n *d"]:
        values = np.asarray(values, np.float64)
        mean, scale = (self._along(x, values) for x in (self.mean, self.scale))
        return ((values - mean) / scale).astype(np.float32)

    def in_unit(self, values: Any) -> Any:
        """Returns encoded values (n, ...) in their unit: float64 of NumPy arrays, float32 of traced
        ones."""
        mean, scale = (self._along(x, values) for x in (self.mean, self.scale))
        return values * scale + mean

    @staticmethod
    def _along(numbers, values):
        """The numbers in as many dimensions as values has, along its last axis."""
        numbers = np.array(numbers, np.float64)
        return numbers.reshape((1,) * (values.ndim - 1) + (-1,)) if values.ndim > 1 else numbers[0]


@dataclasses.dataclass(frozen=True)
class Steps(Target):
    """The next values of a series. Raw: float64 (n, horizon), less the last value that the model
    sees, NaN where nothing was observed; encoded: float32, divided by `scale`."""

    names: tuple[str, ...]
    scale: float
    period: int
    """Steps a season."""

    @property
    def spread(self):
        """`scale`."""
        return (self.scale,)

    def encode(self, values: Float[np.ndarray, "n horizon"]) -> Float[np.ndarray, "n horizon"]:
        return np.float32(np.asarray(values, np.float64) / self.scale)


@dataclasses.dataclass(frozen=True)
class Nothing(Target):
    """No target: the model predicts its inputs, or the task takes the arrays as they are."""

    names: tuple[str, ...] = ()

    def encode(self, values):
        return values
