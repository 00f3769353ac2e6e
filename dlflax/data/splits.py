"""Splits: the train, validation and test examples, chosen by raw targets and groups."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from dlflax.data.encoder import Examples
from dlflax.data.order import check_fraction, draw, hold_out, hold_out_by_hash
from dlflax.errors import InputError


class Split(abc.ABC):
    """A way to split a Dataset: a function of its arguments alone, or no run could resume."""

    groups: np.ndarray | None = None
    """The group of each example, str (n,): all examples of a group are in one split."""

    @abc.abstractmethod
    def rows(
        self, examples: Examples, share: float, seed: int, log: Callable[[str], None]
    ) -> dict[str, Int[np.ndarray, " _"]]:
        """Returns the indices of "train", "val" and "test". "val" is about `share` of the others,
        drawn by `seed`; "test" is the same for every seed. Raises InputError for a split without
        examples."""


class Unordered(Split):
    """A split of examples whose order does not matter."""

    @abc.abstractmethod
    def test(self, examples: Examples) -> Bool[np.ndarray, " n"]:
        """Returns True for test examples."""

    def validation(
        self, examples: Examples, rows: Int[np.ndarray, " m"], share: float, seed: int, log: Any
    ) -> Bool[np.ndarray, " m"]:
        """Returns True for the rows that are held out; none for share 0."""
        groups = None if self.groups is None else self.groups[rows]
        return hold_out(examples.target[rows], share, seed, 0, groups=groups)

    def rows(self, examples, share, seed, log):
        in_test = self.test(examples)
        rows, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
        in_validation = self.validation(examples, rows, share, seed, log)
        return {"train": rows[~in_validation], "val": rows[in_validation], "test": test}


@dataclasses.dataclass(frozen=True, eq=False)
class Share(Unordered):
    """A test split drawn by a seed of its own: a share of each class, or of the groups."""

    share: float
    seed: int
    groups: np.ndarray | None = None

    def test(self, examples):
        return hold_out(examples.target, self.share, self.seed, 3, left=2, groups=self.groups)


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Unordered):
    """A test split, and maybe a validation split, that the data set itself defines."""

    in_test: np.ndarray
    """bool (n,)."""
    in_validation: np.ndarray | None = None
    """bool (n,); None without a validation split."""
    by_class: bool = True
    """True if a drawn validation split is stratified."""
    groups: np.ndarray | None = None

    def test(self, examples):
        return self.in_test

    def validation(self, examples, rows, share, seed, log):
        if self.in_validation is not None and share:
            log("the given validation split is held out: no share (--val-split) is drawn.")
            return self.in_validation[rows]
        if self.in_validation is not None:
            log("the given validation examples are trained on too (--val-split 0).")
            return np.zeros(len(rows), bool)
        if self.by_class:
            return super().validation(examples, rows, share, seed, log)
        return draw(len(rows), share, seed)


@dataclasses.dataclass(frozen=True, eq=False)
class ByContent(Share):
    """A `Share` drawn by hashes of contents or groups: new examples move no others."""

    contents: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, str))
    """A digest of each example, str (n,)."""
    in_validation: np.ndarray | None = None
    """bool (n,), where the data have a validation split, of which nothing is drawn for testing."""

    def test(self, examples):
        given = self.in_validation
        free, left = (np.ones(len(self.contents), bool), 2) if given is None else (~given, 1)
        groups = None if self.groups is None else self.groups[free]
        in_test = np.zeros(len(free), bool)
        in_test[free] = hold_out_by_hash(
            examples.target[free], self.contents[free], self.share, self.seed, left, groups
        )
        return in_test

    def validation(self, examples, rows, share, seed, log):
        given = Given(np.zeros(0, bool), self.in_validation, groups=self.groups)
        return given.validation(examples, rows, share, seed, log)


@dataclasses.dataclass(frozen=True, eq=False)
class ByTime(Split):
    """A split by time: validation comes after training, and test after validation. An example
    whose targets cross a border is in no split."""

    first: np.ndarray
    """int (n,): the step at which the targets of each example begin."""
    horizon: int
    """Steps of the targets."""
    window: int
    """Steps of the inputs, before the targets."""
    steps: int
    """Steps of the series."""
    share: float
    """Share of the steps, at the end, that is the test split."""

    def rows(self, examples, share, seed, log):
        test = self.steps - round(self.share * self.steps)
        # at least one validation example
        val = test - (max(round(share * test), self.horizon) if share else 0)
        borders = {"train": (0, val), "val": (val, test), "test": (test, self.steps)}
        splits = {}
        for name, (start, stop) in borders.items():
            inside = (self.first >= start) & (self.first + self.horizon <= stop)
            splits[name] = np.flatnonzero(inside)
            if not len(splits[name]) and (name != "val" or share):
                flags = "--window and --horizon, together" if name == "train" else "--horizon"
                raise InputError(
                    f"its {name} split has {stop - start:,} steps, too few for --window "
                    f"{self.window} and --horizon {self.horizon}: give {flags} at most "
                    f"{stop - start}."
                )
        return splits


def split_rows(
    examples: Examples, split: Split, share: float, seed: int, log: Callable[[str], None]
) -> dict[str, Int[np.ndarray, " _"]]:
    """Returns `Split.rows`, without an empty "val". Raises InputError for a class without a
    training example."""
    check_fraction(share)
    splits = split.rows(examples, share, seed, log)
    _check_classes(examples, splits["train"], split.groups is not None)
    return {name: rows for name, rows in splits.items() if name != "val" or len(rows)}


def _check_classes(examples, train, grouped: bool) -> None:
    target, names = examples.target, examples.classes
    if target is None or not names or target.dtype.kind not in "iu":
        return
    if not len(train) or target.min() < 0 or target.ndim == 2 and not grouped:
        return  # no task accepts the first two; a label may be rare
    values = target[train]
    counts = values.sum(0) if values.ndim == 2 else np.bincount(values, minlength=len(names))
    if len(empty := np.flatnonzero(counts == 0)):
        raise InputError(
            f"the class {names[empty[0]]!r} has no example to train on: "
            + ("all of its examples are of groups that are held out; use another --split-seed or "
               "--seed, or remove --group." if grouped else "each class needs one.")
        )  # fmt: skip
