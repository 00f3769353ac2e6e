"""The kind of a target column, classes or numbers, inferred from its cells."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc

from dlflax.data.numbers import MISSING, NumberFormat, column_numbers
from dlflax.data.raw_table import RawTable, as_texts
from dlflax.data.target import is_whole, level_key
from dlflax.errors import InputError
from dlflax.files import pluralize

MOST_DROPPED = 0.1  # share of examples that may be dropped without a word of the user
MOST_CLASSES = 20  # whole numbers with more values than that are numbers


def numbers_or_classes(
    table: RawTable, name: str, kind: str, log: Callable[[str], None], form: NumberFormat | None,
    fewest: int = 1,
) -> np.ndarray | None:  # fmt: skip
    """Returns float64 (n,), NaN where a row has none, if the column `name` is one of numbers, None
    if its cells are classes. form: the format of its numbers, None where they are none; kind:
    "classes" or "number" as the user says, or "auto": numbers that have fractions or many different
    values, or of which too many are there less than `fewest` times; `log` gets what is inferred.
    Raises InputError for a cell that is no number where there should be one, and for classes
    without end."""
    column = table.columns[name]
    values, wrong = column_numbers(column, form or NumberFormat(missing=MISSING))
    if kind == "auto":
        numbers = values[~np.isnan(values)]
        whole = bool(np.all(numbers == np.round(numbers)))
        counts = np.unique(numbers, return_counts=True)[1]
        different_numbers, rare = len(counts), counts[counts < fewest].sum()
        large = different_numbers > MOST_CLASSES or not whole or rare > MOST_DROPPED * len(numbers)
        kind = "number" if form is not None and large else "classes"
        other = "classes" if kind == "number" else "number"
        if form is not None:
            log(f"{name}: {different_numbers:,} different numbers, inferred: "
                f"{'a number' if kind == 'number' else 'classes'} (--target-kind {other} for "
                "the other).")  # fmt: skip
    if kind == "number":
        if wrong.any():
            row = int(wrong.argmax())
            cell = as_texts(column)[row].as_py()
            raise InputError(
                f"--target-kind number: {table.row_name(row)} has {cell!r} as "
                f"{name}, which is no number."
            )
        return values
    different = len(set(pc.unique(as_texts(column)).to_pylist()) - {""})
    if different > 1000:
        raise InputError(
            f"the target {name} has {different:,} classes: name another column by --target, or "
            "use --target-kind number."
        )
    return None


def class_texts(column: Any) -> np.ndarray:
    """Returns the names of classes, object (n,) of str, "" where a row has none: 1 and 1.0 are one
    class."""
    codes = as_texts(column).dictionary_encode()
    names = codes.dictionary.to_pylist()
    numbers: dict[str, str] = {}
    for name in sorted(names, key=len):
        numbers.setdefault(level_key(name), name)
    same = [numbers[level_key(name)] if is_whole(name) else name for name in names]
    return np.array(same, object)[codes.indices.to_numpy()]


def in_order(value: str):
    """Returns a key that sorts class names that are numbers as numbers, before other texts."""
    number, wrong = NumberFormat(missing=()).parse([value])
    return (1, 0.0, value) if wrong[0] else (0, float(number[0]), value)


def classes_of(
    cells: np.ndarray, fewest: int, what: str, log: Callable[[str], None]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns (names of the classes, int32 (kept,) of them, bool (n,): which of the cells are
    kept). A class with fewer than `fewest` examples, `what` they are, is dropped, and `log` gets
    which. Raises InputError where these are more than MOST_DROPPED, or fewer than two classes are
    left."""
    counts = Counter(cells.tolist())
    few = sorted((name for name, count in counts.items() if count < fewest), key=in_order)
    names = tuple(sorted(set(counts) - set(few), key=in_order))
    number = {name: i for i, name in enumerate(names)}
    codes = np.array([number.get(cell, -1) for cell in cells.tolist()], np.int32)
    keep = codes >= 0
    if len(names) < 2:
        raise InputError(
            f"there are fewer than two classes of {fewest} {what} or more: nothing to tell apart."
        )
    if (~keep).sum() > MOST_DROPPED * len(cells):
        raise InputError(
            f"{(~keep).sum():,} of {len(cells):,} {what} are of a class with fewer than {fewest} "
            f"{what} ({', '.join(few[:3])}): write numbers in one way, merge rare classes, or "
            "remove them."
        )
    if few:
        log(f"{pluralize((~keep).sum(), what, 'are')} of a class with fewer than {fewest} {what} ("
            f"{', '.join(few[:5])}): dropped.")  # fmt: skip
    return names, codes[keep], keep
