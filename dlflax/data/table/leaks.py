"""Leaks of a table: columns and rows that make the test score better than that on new data.

At most MAX_COLUMNS columns and MAX_ROWS rows, evenly spaced, are checked; in a table of at most
MAX_CELLS cells all rows are compared with each other.
"""

from collections.abc import Mapping

import numpy as np

MAX_COLUMNS, MAX_ROWS, MAX_CELLS = 200, 50_000, 5 * 10**6
MAX_CLASSES = 3  # that are named
MIN_ROWS = 20  # below which order is chance
MIN_ROWS_DECIDED = 50  # below which one column may decide the target by chance
MIN_ORDER = 0.99  # rank correlation with the row number
MIN_AVOIDED = 0.99  # share of the majority class's errors that a column alone avoids
MIN_CORRELATION = 0.999  # with the target, of values or of ranks


def find_row_counters(columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns a sentence for each column of row numbers; {} if no other column would remain."""
    counters = {
        name: f"{name} counts the rows of the file: dropped, as a new row has no such number."
        for name, values in columns.items()
        if values.dtype.kind == "f" and len(values) >= MIN_ROWS and values[0] in (0, 1)
        and np.array_equal(values, values[0] + np.arange(len(values)))
    }  # fmt: skip
    return {} if len(counters) == len(columns) else counters


def sample_rows(rows: int, columns: int) -> np.ndarray:
    """Returns the indices, int (m,), of the rows of a table for `find_leaks`."""
    count = rows if rows * columns <= MAX_CELLS else min(rows, MAX_ROWS)
    return np.linspace(0, rows - 1, count).astype(int)


def find_leaks(
    columns: Mapping[str, np.ndarray], target: np.ndarray, in_test: np.ndarray,
    groups: np.ndarray | None, classes: tuple[str, ...],
) -> list[str]:  # fmt: skip
    """Returns a sentence for each leak, with the flag that removes it.

    columns: float64 (n,), NaN where missing, or int (n,) of levels, rows in the order of the file;
    target: class numbers int (n,), or float64 (n,) without classes; in_test: bool (n,); groups:
    (n,) of --group.
    """
    n, names = len(target), list(columns)
    rows = np.linspace(0, n - 1, min(n, MAX_ROWS)).astype(int)
    findings, y = [], target[rows]
    if classes:
        is_sorted = np.count_nonzero(np.diff(y)) <= max(len(classes) - 1, 0.02 * len(y))
    else:
        is_sorted = _correlation(_ranks(y), rows) > MIN_ORDER
    for name in names[:MAX_COLUMNS]:
        values = columns[name][rows]
        if is_sorted and _is_monotone(values):
            findings.append(
                f"{name} is in the order of the rows, and the file is sorted by its "
                f"{'classes' if classes else 'target'}: {name} reveals the target of a row by its "
                f"position in the file; drop it by --drop-columns {name}, unless new rows have it."
            )
        elif len(names) > 1 and _decides(values, y, len(classes)):
            findings.append(
                f"{name} alone decides the target of these rows: if it is made from the target, or "
                f"known only after it, drop it by --drop-columns {name}."
            )
    if len(names) > MAX_COLUMNS or n > MAX_ROWS:
        findings.append(
            f"leaks were looked for in {min(len(names), MAX_COLUMNS):,} of {len(names):,} columns "
            f"and {len(rows):,} of {n:,} rows."
        )
    if classes and groups is not None:
        findings += _describe_unsplit_classes(target, in_test, groups, classes)
    return findings + _find_copies(columns, target, in_test, rows)


def _describe_unsplit_classes(target, in_test, groups, classes):
    """Yields sentences on classes without training or without test rows."""
    rows, tested = (np.bincount(y, minlength=len(classes)) for y in (target, target[in_test]))
    lacking = np.flatnonzero((rows > 0) & ((tested == 0) | (tested == rows)))
    for number in lacking[:MAX_CLASSES].tolist():
        names = np.unique(groups[target == number])
        yield (
            f"the class {classes[number]} is in {len(names):,} group{'s' * (len(names) > 1)} "
            f"({', '.join(map(str, names[:3]))}): 0 of its {rows[number]:,} rows are to "
            f"{'train' if tested[number] else 'test'} on; give --group another column, or none."
        )
    if len(lacking) > MAX_CLASSES:
        yield f"--group: the same is true of {len(lacking) - MAX_CLASSES:,} more classes."


def _find_copies(columns, target, in_test, rows):
    """Returns a sentence on test rows that equal training rows, if more do than chance explains."""
    if (cells := len(columns) * len(target)) > MAX_CELLS:
        return [f"copies of rows were not looked for: the table has {cells:,} cells."]
    keys = _row_ids(columns.values())
    copied = in_test & np.isin(keys, keys[~in_test])
    chance = np.count_nonzero(~in_test)  # training rows that equal a row, were columns independent
    for values in list(columns.values())[:MAX_COLUMNS]:
        chance *= np.square(np.unique(values[rows], return_counts=True)[1] / len(rows)).sum()
    if copied.sum() <= 2 * min(1, chance) * in_test.sum():
        return []
    exact = _row_ids([keys, target])
    other = np.count_nonzero(copied & ~np.isin(exact, exact[~in_test]))
    return [
        f"{copied.sum():,} of {in_test.sum():,} test rows have the inputs of a training row, "
        f"{other:,} of them with another target: remove the copies from the file, or name a column "
        "that they share by --group."
    ]


def _row_ids(columns):
    """Returns int (n,), equal for equal rows; NaN equals NaN."""
    ids = 0
    for values in columns:
        levels = np.unique(values, return_inverse=True)[1]
        ids = np.unique(ids * len(levels) + levels, return_inverse=True)[1]
    return ids


def _is_monotone(values) -> bool:
    """True if numbers are nearly all different, and rise or fall from row to row."""
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < MIN_ROWS or len(np.unique(values[known])) < 0.95 * len(values):
        return False
    return _correlation(_ranks(values[known]), known) > MIN_ORDER


def _decides(values, y, classes: int) -> bool:
    """True if a column alone predicts the target, such as its copy or a function of it."""
    known, is_number = ~np.isnan(values), values.dtype.kind == "f"
    if len(y) < MIN_ROWS_DECIDED or known.mean() < 0.9:
        return False
    values, y = values[known], y[known]
    levels, level = np.unique(values, return_inverse=True)
    few = len(levels) <= len(y) / 10
    if not classes and is_number:
        pairs = (values, y), (_ranks(values), _ranks(y))
        return max(_correlation(*pair) for pair in pairs) > MIN_CORRELATION
    if not classes:
        means = np.bincount(level, y) / np.bincount(level)
        return few and _correlation(means[level], y) > MIN_CORRELATION
    if few:
        counts = np.bincount(level * classes + y, minlength=len(levels) * classes)
        wrong = len(y) - counts.reshape(-1, classes).max(1).sum()
    elif is_number:  # changes of the class along the values; equal values are shuffled
        shuffled = np.random.default_rng(0).permutation(len(y))
        by_value = y[shuffled][np.argsort(values[shuffled], kind="stable")]
        wrong = (np.count_nonzero(np.diff(by_value)) - len(np.unique(y)) + 1) / 2
    else:
        return False
    errors = len(y) - np.bincount(y).max()  # of the majority class
    return bool(errors >= 10 and wrong <= (1 - MIN_AVOIDED) * errors)


def _ranks(values):
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[level]


def _correlation(a, b) -> float:
    """Returns the absolute correlation; 0 for a constant."""
    a, b = a - a.mean(), b - b.mean()
    return float(abs(a @ b) / max(np.sqrt((a @ a) * (b @ b)), 1e-300))
