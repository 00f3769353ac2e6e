"""Leaks of a table: columns and rows by which a test says more than new data will.

At most MOST_COLUMNS columns and MOST_ROWS rows, evenly spaced, are looked at; in a table of at
most MOST_CELLS cells all rows are compared with each other.
"""

from collections.abc import Mapping

import numpy as np

MOST_COLUMNS, MOST_ROWS, MOST_CELLS = 200, 50_000, 5 * 10**6
MOST_CLASSES = 3  # that are named
FEWEST = 20  # rows below which order and agreement are chance
FEWEST_DECIDED = 50  # rows from which one column may be said to decide the target
IN_ORDER = 0.99  # rank correlation with the row number
DECIDES = 0.99  # share of the majority class's errors that a column alone must avoid
SAME_NUMBER = 0.999  # correlation with the target, of values or of ranks


def row_counters(columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns the columns, float64 (n,), that hold the number of the row, from 0 or 1 on, each with
    the sentence that it is dropped. None where no other column would remain."""
    counters = [
        name for name, values in columns.items()
        if values.dtype.kind == "f" and len(values) >= FEWEST and values[0] in (0, 1)
        and np.array_equal(values, values[0] + np.arange(len(values)))
    ]  # fmt: skip
    if len(counters) == len(columns):
        return {}
    said = "{} counts the rows of the file: dropped, as a new row has no such number."
    return {name: said.format(name) for name in counters}


def rows_to_look_at(rows: int, columns: int) -> np.ndarray:
    """Returns the rows, int (m,), that `find_leaks` is to be given of a table."""
    most = rows if rows * columns <= MOST_CELLS else min(rows, MOST_ROWS)
    return np.linspace(0, rows - 1, most).astype(int)


def find_leaks(
    columns: Mapping[str, np.ndarray],
    target: np.ndarray,
    held: np.ndarray,
    groups: np.ndarray | None,
    classes: tuple[str, ...],
) -> list[str]:
    """Returns a sentence for each leak, with the flag against it.

    columns: float64 (n,), NaN where missing, or int (n,) of levels, rows in the order of the file;
    target: class numbers int (n,), or float64 (n,) without classes; held: bool (n,), the test rows;
    groups: (n,) of --group.
    """
    n, names = len(target), list(columns)
    rows = np.linspace(0, n - 1, min(n, MOST_ROWS)).astype(int)
    said, y = [], target[rows]
    if classes:
        by_order = np.count_nonzero(np.diff(y)) <= max(len(classes) - 1, 0.02 * len(y))
    else:
        by_order = _correlation(_ranks(y), rows) > IN_ORDER
    for name in names[:MOST_COLUMNS]:
        values = columns[name][rows]
        if by_order and _is_in_order(values):
            said.append(
                f"{name} is in the order of the rows, and the file is sorted by its "
                f"{'classes' if classes else 'target'}: it tells the target of a row by its place "
                f"in the file; drop it by --ignore {name}, unless it is known of new rows too."
            )
        elif len(names) > 1 and _decides(values, y, len(classes)):
            said.append(
                f"{name} alone decides the target of these rows: if it is made from the target, or "
                f"known only after it, drop it by --ignore {name}."
            )
    if len(names) > MOST_COLUMNS or n > MOST_ROWS:
        said.append(
            f"leaks were looked for in {min(len(names), MOST_COLUMNS):,} of {len(names):,} columns "
            f"and {len(rows):,} of {n:,} rows."
        )
    if classes and groups is not None:
        said += _classes_of_groups(target, held, groups, classes)
    return said + _copies(columns, target, held, rows)


def _classes_of_groups(target, held, groups, classes):
    """Sentences on classes of which nothing is to train, or to test, on."""
    rows, tested = (np.bincount(y, minlength=len(classes)) for y in (target, target[held]))
    lacking = np.flatnonzero((rows > 0) & ((tested == 0) | (tested == rows)))
    for number in lacking[:MOST_CLASSES].tolist():
        names = np.unique(groups[target == number])
        yield (
            f"the class {classes[number]} is in {len(names):,} group{'s' * (len(names) > 1)} "
            f"({', '.join(map(str, names[:3]))}): 0 of its {rows[number]:,} rows are to "
            f"{'train' if tested[number] else 'test'} on; give --group another column, or none."
        )
    if len(lacking) > MOST_CLASSES:
        yield f"--group: so it is with {len(lacking) - MOST_CLASSES:,} more classes."


def _copies(columns, target, held, rows):
    """A sentence on test rows that equal training rows, if more do than few levels explain."""
    if (cells := len(columns) * len(target)) > MOST_CELLS:
        return [f"copies of rows were not looked for: the table has {cells:,} cells."]
    keys = _numbers_of_rows(columns.values())
    copied = held & np.isin(keys, keys[~held])
    chance = np.count_nonzero(~held)  # training rows that equal a row, were columns independent
    for values in list(columns.values())[:MOST_COLUMNS]:
        chance *= np.square(np.unique(values[rows], return_counts=True)[1] / len(rows)).sum()
    if copied.sum() <= 2 * min(1, chance) * held.sum():
        return []
    exact = _numbers_of_rows([keys, target])
    other = np.count_nonzero(copied & ~np.isin(exact, exact[~held]))
    return [
        f"{copied.sum():,} of {held.sum():,} test rows have the inputs of a training row, "
        f"{other:,} of them with another target: remove the copies from the file, or name a column "
        "that they share by --group."
    ]


def _numbers_of_rows(columns):
    """The same number for equal rows, NaN equal to NaN."""
    numbers = 0
    for values in columns:
        levels = np.unique(values, return_inverse=True)[1]
        numbers = np.unique(numbers * len(levels) + levels, return_inverse=True)[1]
    return numbers


def _is_in_order(values) -> bool:
    """True if numbers are nearly all different, and rise or fall from row to row."""
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < FEWEST or len(np.unique(values[known])) < 0.95 * len(values):
        return False
    return _correlation(_ranks(values[known]), known) > IN_ORDER


def _decides(values, y, classes: int) -> bool:
    """True if a column alone predicts the target: a copy of it, or another way to write it."""
    known, is_number = ~np.isnan(values), values.dtype.kind == "f"
    if len(y) < FEWEST_DECIDED or known.mean() < 0.9:
        return False
    values, y = values[known], y[known]
    levels, at = np.unique(values, return_inverse=True)
    few = len(levels) <= len(y) / 10
    if not classes and is_number:
        pairs = (values, y), (_ranks(values), _ranks(y))
        return max(_correlation(*pair) for pair in pairs) > SAME_NUMBER
    if not classes:
        means = np.bincount(at, y) / np.bincount(at)
        return few and _correlation(means[at], y) > SAME_NUMBER
    if few:
        counts = np.bincount(at * classes + y, minlength=len(levels) * classes)
        wrong = len(y) - counts.reshape(-1, classes).max(1).sum()
    elif is_number:  # changes of the class along the values, of which equal ones are in no order
        mixed = np.random.default_rng(0).permutation(len(y))
        along = y[mixed][np.argsort(values[mixed], kind="stable")]
        wrong = (np.count_nonzero(np.diff(along)) - len(np.unique(y)) + 1) / 2
    else:
        return False
    errors = len(y) - np.bincount(y).max()  # of the majority class
    return bool(errors >= 10 and wrong <= (1 - DECIDES) * errors)


def _ranks(values):
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[at]


def _correlation(a, b) -> float:
    """The absolute correlation, 0 of constants."""
    a, b = a - a.mean(), b - b.mean()
    return float(abs(a @ b) / max(np.sqrt((a @ a) * (b @ b)), 1e-300))
