"""The kind of a target column, classes or numbers, inferred from its cells."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc

from dlflax.data.table.number_formats import MISSING, NumberFormat, column_numbers, require_numbers
from dlflax.data.table.raw_table import RawTable, as_texts
from dlflax.data.target import is_integer, level_key
from dlflax.errors import InputError
from dlflax.files import pluralize

MAX_DROPPED = 0.1  # share of examples that may be dropped, else the target is refused
MAX_CLASSES = 20  # integers with more different values are numbers


def infer_numbers(
    table: RawTable, name: str, kind: str, log: Callable[[str], None], form: NumberFormat | None,
    fewest: int = 1,
) -> np.ndarray | None:  # fmt: skip
    """Returns a column of numbers, float64 (n,), NaN where missing; None for classes.

    kind: "classes", "number" or "auto", which infers numbers from fractions, many different values,
    or too many values that occur less than `fewest` times; form: the column's format, None if it
    has texts. Logs the inference. Raises InputError for --target-type number and a cell without
    one, and for too many classes."""
    number_form = form or NumberFormat(missing=MISSING)
    if kind == "auto":
        values, wrong = column_numbers(table.columns[name], number_form)
        numbers, counts = np.unique(values[~np.isnan(values)], return_counts=True)
        is_continuous = (
            len(numbers) > MAX_CLASSES
            or (numbers != np.round(numbers)).any()
            or counts[counts < fewest].sum() > MAX_DROPPED * counts.sum()
        )
        kind, inferred, other = "classes", "classes", "number"
        if form is not None and is_continuous:
            kind, inferred, other = "number", "a number", "classes"
        if form is not None:
            log(f"{name}: {len(numbers):,} different numbers, inferred: {inferred} "
                f"(--target-type {other} for the other).")  # fmt: skip
        if kind == "number" and not wrong.any():
            return values
    if kind == "number":
        return require_numbers(table, name, number_form, "--target-type number: ")
    count = len(set(pc.unique(as_texts(table.columns[name])).to_pylist()) - {""})
    if count > 1000:
        raise InputError(
            f"the target {name} has {count:,} classes: name another column by --target, or use "
            "--target-type number."
        )
    return None


def normalize_classes(column: Any) -> np.ndarray:
    """Returns class names, object (n,) of str, "" where missing: 1 and 1.0 are one class."""
    codes = as_texts(column).dictionary_encode()
    names = codes.dictionary.to_pylist()
    shortest: dict[str, str] = {}
    for name in sorted(names, key=len):
        shortest.setdefault(level_key(name), name)
    names = [shortest[level_key(name)] if is_integer(name) else name for name in names]
    return np.array(names, object)[codes.indices.to_numpy()]


def class_key(name: str):
    """Returns a sort key of class names: numbers by their value, before other texts."""
    number, wrong = NumberFormat(missing=()).parse([name])
    return (1, 0.0, name) if wrong[0] else (0, float(number[0]), name)


def encode_classes(
    cells: np.ndarray, fewest: int, noun: str, log: Callable[[str], None]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns (names of the classes, int32 (kept,) class numbers, bool (n,) True for kept cells).

    Classes with fewer than `fewest` examples, which messages call `noun`, are dropped. Raises
    InputError if these are more than MAX_DROPPED of all examples, or fewer than two classes
    remain."""
    counts = Counter(cells.tolist())
    names = tuple(sorted((n for n, count in counts.items() if count >= fewest), key=class_key))
    rare = sorted(set(counts) - set(names), key=class_key)
    numbers = {name: i for i, name in enumerate(names)}
    codes = np.array([numbers.get(cell, -1) for cell in cells.tolist()], np.int32)
    keep = codes >= 0
    if len(names) < 2:
        raise InputError(
            f"there are fewer than two classes of {fewest} {noun} or more: nothing to tell apart."
        )
    dropped = (~keep).sum()
    if dropped > MAX_DROPPED * len(cells):
        raise InputError(
            f"{dropped:,} of {len(cells):,} {noun} are of a class with fewer than {fewest} {noun} ("
            f"{', '.join(rare[:3])}): write numbers in one way, merge rare classes, or remove them."
        )
    if rare:
        log(f"{pluralize(dropped, noun, 'are')} of a class with fewer than {fewest} {noun} ("
            f"{', '.join(rare[:5])}): dropped.")  # fmt: skip
    return names, codes[keep], keep
