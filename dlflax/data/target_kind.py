"""The kind of a target column, classes or numbers, inferred from its cells."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from dlflax.data.numbers import NumberFormat
from dlflax.errors import InputError

MOST_DROPPED = 0.1  # share of examples that may be left out without a word of the user
MOST_CLASSES = 20  # whole numbers with more values than that are taken for numbers


def numbers_or_classes(
    name: str, cells: list[str], kind: str, log: Callable[[str], None], how: NumberFormat
) -> np.ndarray | None:
    """float64 (n,) where the column `name` is one of numbers, None where its cells are classes.
    how: the format of its numbers; kind: "classes" or "number" as the user says, or "auto": numbers
    that have fractions or many different values; `log` gets what they are then taken for.
    InputError for a cell that is no number where there should be one, and for classes without
    end."""
    values, different = how.parse(cells), len(set(cells))
    numeric = not isinstance(values, str)
    if kind == "auto":
        whole = numeric and bool(np.all(values == np.round(values)))
        kind = "number" if numeric and (different > MOST_CLASSES or not whole) else "classes"
        other = "classes" if kind == "number" else "number"
        if numeric:
            log(f"{name}: {different:,} different numbers, taken for "
                f"{'a number' if kind == 'number' else 'classes'} (--target-kind {other} for "
                "the other).")  # fmt: skip
    if kind == "number":
        if not numeric:
            raise InputError(f"--target-kind number: {name} has {values!r}, which is no number.")
        if not np.isfinite(values).all():
            raise InputError(f"the target {name} has an infinite value: give numbers.")
        return values
    if different > 1000:
        raise InputError(
            f"the target {name} has {different:,} classes: name another column by --target, or "
            "use --target-kind number."
        )
    return None


def in_order(value: str):
    """Sorts class names that are numbers as numbers, before other texts."""
    number = NumberFormat().parse([value])
    return (1, 0.0, value) if isinstance(number, str) else (0, float(number[0]), value)


def classes_of(
    cells: np.ndarray, fewest: int, what: str, log: Callable[[str], None]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """(names of the classes, int32 (kept,) of them, bool (n,): which of the cells are kept). A
    class with fewer than `fewest` examples, `what` they are, is left out, and `log` gets which.
    InputError where these are more than MOST_DROPPED, or fewer than two classes are left."""
    counts = Counter(cells.tolist())
    few = sorted((name for name, count in counts.items() if count < fewest), key=in_order)
    names = tuple(sorted(set(counts) - set(few), key=in_order))
    kept = ~np.isin(cells, few)
    if len(names) < 2:
        raise InputError(
            f"there are fewer than two classes of {fewest} {what} or more: nothing to tell apart."
        )
    if (~kept).sum() > MOST_DROPPED * len(cells):
        raise InputError(
            f"{(~kept).sum():,} of {len(cells):,} {what} are of a class with fewer than {fewest} "
            f"{what} ({', '.join(few[:3])}): write numbers in one way, merge rare classes, or "
            "remove them."
        )
    if few:
        log(f"{(~kept).sum():,} {what} are of a class with fewer than {fewest} {what} ("
            f"{', '.join(few[:5])}): left out.")  # fmt: skip
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[cell] for cell in cells[kept]], np.int32), kept
