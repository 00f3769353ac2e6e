"""The importance of a table's columns for a model."""

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from dlflax.report import figures

REPEATS = 5
MAX_COLUMNS = 200  # that are shuffled
MAX_ROWS, MIN_ROWS = 10_000, 200  # among which, evenly spaced
MAX_NUMBERS = 2 * 10**9  # of inputs that are predicted in all


def budget(groups: Mapping[str, slice], inputs) -> tuple[int, int]:
    """Returns how many columns are shuffled among how many rows of inputs (n, d)."""
    columns, size = min(len(groups), MAX_COLUMNS), REPEATS * math.prod(inputs.shape[1:])
    fit = MAX_NUMBERS // (columns * size)
    rows = min(len(inputs), MAX_ROWS, max(MIN_ROWS, fit))
    return min(columns, max(1, MAX_NUMBERS // (rows * size))), rows


def subset_findings(groups: Mapping[str, slice], inputs) -> list[str]:
    """Returns a sentence on what `budget` leaves subset_findings, if that is anything."""
    columns, rows = budget(groups, inputs)
    if (columns, rows) == (len(groups), len(inputs)):
        return []
    most = ", those that correlate most with the outputs" * (columns < len(groups))
    return [
        f"importance.csv is of {columns:,} of {len(groups):,} columns{most}, shuffled among "
        f"{rows:,} of {len(inputs):,} test rows."
    ]


def add_to(description, tested, score: Callable, name: str) -> None:
    """Adds the importance of a table's columns, where the data are one, to the `Description` of
    what was tested. score: as for `permutation`; name: that of the score."""
    groups, inputs = tested.splits.encoder.groups(), tested.splits.test["inputs"]
    if groups:
        shuffle = functools.cache(lambda: permutation(groups, inputs, tested.predict, score))
        description.tables["importance"] = shuffle
        description.figures["importance"] = lambda: figures.importance(shuffle(), name)
        description.findings.extend(subset_findings(groups, inputs))


def permutation(
    groups: Mapping[str, slice], inputs, predict: Callable,
    score: Callable[[np.ndarray, np.ndarray], float],
) -> list[dict]:  # fmt: skip
    """Returns the permutation importance of columns (Breiman 2001), the highest first: how much
    worse the score gets when a column's values are shuffled among the rows. Mean and deviation of
    REPEATS, for as many columns and rows as `budget` has.

    groups: `Encoder.groups`; inputs float32 (n, d); predict: inputs -> outputs;
    score: of outputs and the rows that they are of, int (m,), the lower the better.
    """
    columns, few = budget(groups, inputs)
    at, rng, rows = np.linspace(0, len(inputs) - 1, few).astype(int), np.random.default_rng(0), []
    inputs = inputs[at]
    outputs = predict(inputs)
    begin, names = score(outputs, at), list(groups)
    if columns < len(names):
        names = _by_correlation(groups, inputs, outputs, columns)
    for column in names:
        part, worse = groups[column], []
        for _ in range(REPEATS):
            changed = inputs.copy()
            changed[:, part] = inputs[rng.permutation(len(inputs)), part]
            worse.append(score(predict(changed), at) - begin)
        rows.append({"column": column, "importance": float(np.mean(worse)),
                     "std": float(np.std(worse))})  # fmt: skip
    return sorted(rows, key=lambda row: -row["importance"])


def _by_correlation(groups, inputs, outputs, count: int) -> list[str]:
    """The columns of which a number correlates most with an output, in their order."""
    outputs = outputs.reshape(len(outputs), -1)
    spread = np.outer(inputs.std(0), outputs.std(0))
    products = np.abs(inputs.T @ (outputs - outputs.mean(0))) / len(inputs)
    by_number = np.where(spread > 0, products / np.where(spread > 0, spread, 1), 0).max(1)
    highest = np.array([by_number[part].max(initial=0) for part in groups.values()])
    chosen = np.sort(np.argsort(-highest, kind="stable")[:count])
    return [list(groups)[i] for i in chosen]
