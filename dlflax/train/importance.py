"""The importance of a table's columns for a model."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from dlflax.report import figures

REPEATS = 5
MAX_COLUMNS = 200  # to permute
MAX_ROWS, MIN_ROWS = 10_000, 200  # to permute, evenly spaced
MAX_NUMBERS = 2 * 10**9  # input values of all predictions
PER_TREE_NUMBER = 0.1  # of an input value: a model of many trees takes longer


def budget(groups: Mapping[str, slice], inputs, trees: int = 0) -> tuple[int, int]:
    """Returns (columns to permute, rows to permute them in) for inputs (n, d) of a model with so
    many numbers in its trees."""
    columns = min(len(groups), MAX_COLUMNS)
    size = REPEATS * (math.prod(inputs.shape[1:]) + int(PER_TREE_NUMBER * trees))
    affordable = MAX_NUMBERS // (columns * size)
    rows = min(len(inputs), MAX_ROWS, max(MIN_ROWS, affordable))
    return min(columns, max(1, MAX_NUMBERS // (rows * size))), rows


def subset_findings(groups: Mapping[str, slice], inputs, trees: int = 0) -> list[str]:
    """Returns a finding if `budget` permits only a subset of the columns or rows."""
    columns, rows = budget(groups, inputs, trees)
    if (columns, rows) == (len(groups), len(inputs)):
        return []
    most = ", those most correlated with the outputs" * (columns < len(groups))
    return [
        f"importance.csv has {columns:,} of {len(groups):,} columns{most}, permuted in "
        f"{rows:,} of {len(inputs):,} test rows."
    ]


def add_to(description, tested, score: Callable, name: str) -> None:
    """Adds the importance of a table's columns, if the data are a table, to a `Description`.
    tested: as for `Task.describe`; score: as for `permutation`; name: of the score."""
    groups, inputs = tested.splits.encoder.groups(), tested.splits.test["inputs"]
    if groups:
        trees = sum(np.size(leaf) for leaf in jax.tree.leaves(tested.variables.get("trees")))
        compute_rows = functools.cache(
            lambda: permutation(groups, inputs, tested.predict, score, trees)
        )
        description.tables["importance"] = compute_rows
        description.figures["importance"] = lambda: figures.importance(compute_rows(), name)
        description.findings.extend(subset_findings(groups, inputs, trees))


def permutation(
    groups: Mapping[str, slice], inputs, predict: Callable,
    score: Callable[[np.ndarray, np.ndarray], float], trees: int = 0,
) -> list[dict]:  # fmt: skip
    """Returns the permutation importance of columns (Breiman 2001), the highest first. It is the
    increase of the score after permuting a column: mean and standard deviation over REPEATS, within
    `budget`. groups: `Encoder.groups`; inputs: float32 (n, d); predict: inputs -> outputs; score:
    (outputs, their rows int (m,)) -> number, lower is better."""
    columns, count = budget(groups, inputs, trees)
    rows = np.linspace(0, len(inputs) - 1, count).astype(int)
    inputs = inputs[rows]
    outputs = predict(inputs)
    baseline, names = score(outputs, rows), list(groups)
    if columns < len(names):
        names = _columns_by_correlation(groups, inputs, outputs, columns)
    rng, table = np.random.default_rng(0), []
    for column in names:
        part, increases = groups[column], []
        for _ in range(REPEATS):
            permuted = inputs.copy()
            permuted[:, part] = inputs[rng.permutation(len(inputs)), part]
            increases.append(score(predict(permuted), rows) - baseline)
        table.append({"column": column, "importance": float(np.mean(increases)),
                      "std": float(np.std(increases))})  # fmt: skip
    return sorted(table, key=lambda row: -row["importance"])


def _columns_by_correlation(groups, inputs, outputs, count: int) -> list[str]:
    """Returns the `count` columns with the highest correlation between a feature and an output, in
    their order."""
    outputs = outputs.reshape(len(outputs), -1)
    deviations = np.outer(inputs.std(0), outputs.std(0))
    covariances = np.abs(inputs.T @ (outputs - outputs.mean(0))) / len(inputs)
    correlations = np.where(
        deviations > 0, covariances / np.where(deviations > 0, deviations, 1), 0
    ).max(1)
    highest = np.array([correlations[part].max(initial=0) for part in groups.values()])
    return [list(groups)[i] for i in np.sort(np.argsort(-highest, kind="stable")[:count])]
