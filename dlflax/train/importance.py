"""Which columns of a table a model goes by."""

from collections.abc import Callable

import numpy as np

from dlflax.data.table import width

REPEATS = 5


def permutation(
    columns, inputs, predict: Callable, score: Callable[[np.ndarray], float]
) -> list[dict]:
    """How much worse the score gets when a column's values are shuffled among the rows (Breiman
    2001), mean and deviation of REPEATS; the most important first.

    columns: `info["columns"]` of `data.Table`; inputs float32 (n, d); predict: inputs -> outputs;
    score: of outputs, the lower the better.
    """
    begin, rng, start, rows = score(predict(inputs)), np.random.default_rng(0), 0, []
    for column in columns:
        part = slice(start, start + width(column))
        start = part.stop
        worse = []
        for _ in range(REPEATS):
            changed = inputs.copy()
            changed[:, part] = inputs[rng.permutation(len(inputs)), part]
            worse.append(score(predict(changed)) - begin)
        rows.append({"column": column["name"], "importance": float(np.mean(worse)),
                     "std": float(np.std(worse))})  # fmt: skip
    return sorted(rows, key=lambda row: -row["importance"])
