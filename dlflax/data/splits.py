"""Splits: which examples are trained on, validated with and tested on, by raw targets and groups.

A Dataset says how it is to be split; nothing of it has been encoded by then.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from dlflax.data.encoder import Examples
from dlflax.data.order import by_content, check_fraction, draw_part, held_out
from dlflax.errors import InputError


class Split(abc.ABC):
    """A way to split a Dataset: a function of its arguments alone, or no run could resume."""

    @abc.abstractmethod
    def rows(
        self, examples: Examples, share: float, seed: int, log: Callable[[str], None]
    ) -> dict[str, Int[np.ndarray, " _"]]:
        """Returns the places of "train", "val" and "test": about `share` of what is
        not tested on, drawn by `seed`, is "val". Which examples are "test" is the same for every
        seed. Raises InputError for a part without examples."""

    def groups_of(self) -> Shaped[np.ndarray, " n"] | None:
        """Returns the group of each example, a text, which is in one part as a whole."""
        return None


class Drawn(Split):
    """A split whose examples may be in any order."""

    @abc.abstractmethod
    def test(self, examples: Examples) -> Bool[np.ndarray, " n"]:
        """Returns the examples that are tested on."""

    @abc.abstractmethod
    def validation(
        self, examples: Examples, rows: Int[np.ndarray, " m"], share: float, seed: int, log: Any
    ) -> Bool[np.ndarray, " m"]:
        """Returns those of rows that are held out; none for share 0."""

    def rows(self, examples, share, seed, log):
        in_test = self.test(examples)
        rows = np.flatnonzero(~in_test)
        held = self.validation(examples, rows, share, seed, log)
        return {"train": rows[~held], "val": rows[held], "test": np.flatnonzero(in_test)}


@dataclasses.dataclass(frozen=True, eq=False)
class Share(Drawn):
    """A share is tested on, drawn by a seed of its own: of classes that share of each, or whole
    groups."""

    share: float
    seed: int
    groups: np.ndarray | None = None

    def test(self, examples):
        groups = self.groups
        return held_out(examples.target, self.share, self.seed, 3, left=2, groups=groups)

    def validation(self, examples, rows, share, seed, log):
        groups = None if self.groups is None else self.groups[rows]
        return held_out(examples.target[rows], share, seed, 0, groups=groups)

    def groups_of(self):
        return self.groups


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Drawn):
    """The data have a test part of their own, and maybe one for validation."""

    in_test: np.ndarray
    """bool (n,)."""
    in_validation: np.ndarray | None = None
    """bool (n,), where there is such a part."""
    by_class: bool = True
    """True if a share that is drawn for validation is one of each class."""
    groups: np.ndarray | None = None

    def test(self, examples):
        return self.in_test

    def validation(self, examples, rows, share, seed, log):
        if self.in_validation is not None and share:
            log("the validation folder is held out: no share (--validation) is drawn.")
            return self.in_validation[rows]
        if self.in_validation is not None:
            log("the validation folder's pictures are trained on too (--validation 0).")
            return np.zeros(len(rows), bool)
        if self.by_class:
            groups = None if self.groups is None else self.groups[rows]
            return held_out(examples.target[rows], share, seed, 0, groups=groups)
        return draw_part(len(rows), share, seed)

    def groups_of(self):
        return self.groups


@dataclasses.dataclass(frozen=True, eq=False)
class ByContent(Share):
    """A `Share`, but each example's own content, or its group's name, decides: it stays where it
    is when others come or go."""

    contents: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, str))
    """A digest of each, str (n,)."""
    in_validation: np.ndarray | None = None
    """bool (n,), where the data have a validation part, which is never tested on."""

    def test(self, examples):
        free = np.ones(len(self.contents), bool)
        left = 2
        if self.in_validation is not None:
            free, left = ~self.in_validation, 1
        groups = None if self.groups is None else self.groups[free]
        chosen = np.zeros(len(free), bool)
        chosen[free] = by_content(
            examples.target[free], self.contents[free], self.share, self.seed, left, groups
        )
        return chosen

    def validation(self, examples, rows, share, seed, log):
        given = Given(np.zeros(0, bool), self.in_validation, groups=self.groups)
        return given.validation(examples, rows, share, seed, log)


@dataclasses.dataclass(frozen=True, eq=False)
class ByTime(Split):
    """A split by time: the end is tested on, the part before it validated with. A
    forecast is judged by the future. An example whose targets reach over a border is in no part."""

    first: np.ndarray
    """int (n,): the step at which the targets of each example begin."""
    horizon: int
    """Steps of the targets."""
    window: int
    """Steps before them that an example has."""
    steps: int
    """Steps of the whole series."""
    share: float
    """Share of the steps, at the end, that is tested on."""

    def rows(self, examples, share, seed, log):
        test = self.steps - round(self.share * self.steps)
        val = test - round(share * test)
        borders = {"train": (0, val), "val": (val, test), "test": (test, self.steps)}
        parts = {}
        for name, (start, stop) in borders.items():
            inside = (self.first >= start) & (self.first + self.horizon <= stop)
            parts[name] = np.flatnonzero(inside)
            if not len(parts[name]) and (name != "val" or share):
                flags = "--window and --horizon, together" if name == "train" else "--horizon,"
                raise InputError(
                    f"its {name} part has {stop - start:,} steps, too few for --window "
                    f"{self.window} and --horizon {self.horizon}: give {flags} at most "
                    f"{stop - start}."
                )
        return parts


def split_rows(
    examples: Examples, split: Split, share: float, seed: int, log: Callable[[str], None]
) -> dict[str, Int[np.ndarray, " _"]]:
    """Returns `Split.rows`, without "val" where nothing is held out. Raises InputError for a class
    without an example to train on."""
    check_fraction(share)
    parts = split.rows(examples, share, seed, log)
    _check_classes(examples, parts["train"], split)
    return {name: rows for name, rows in parts.items() if name != "val" or len(rows)}


def _check_classes(examples, train, split) -> None:
    """Raises InputError for a class without an example to train on."""
    target, names = examples.target, examples.classes
    grouped = split.groups_of() is not None
    if target is None or not names or target.dtype.kind not in "iu":
        return
    if not len(train) or target.min() < 0 or target.ndim == 2 and not grouped:
        return  # that no task takes; a label may be one that is rarely there
    values = target[train]
    counts = values.sum(0) if values.ndim == 2 else np.bincount(values, minlength=len(names))
    if len(empty := np.flatnonzero(counts == 0)):
        raise InputError(
            f"the class {names[empty[0]]!r} has no example to train on: "
            + ("all of its examples are of groups that are held out; use another --split-seed or "
               "--seed, or remove --group." if grouped else "each class needs one.")
        )  # fmt: skip
