"""Which columns of a table a model goes by."""

from collections.abc import Callable, Mapping

import numpy as np

REPEATS = 5


def permutation(
    groups: Mapping[str, slice], inputs, predict: Callable,
    score: Callable[[np.ndarray], float],
) -> list[dict]:  # fmt: skip
    """How much worse the score gets when a column's values are shuffled among the rows (Breiman
    2001), mean and deviation of REPEATS; the most important first.

    groups: `Encoder.groups`; inputs float32 (n, d); predict: inputs -> outputs;
    score: of outputs, the lower the better.
    """
    begin, rng, rows = score(predict(inputs)), np.random.default_rng(0), []
    for column, part in groups.items():
        worse = []
        for _ in range(REPEATS):
            changed = inputs.copy()
            changed[:, part] = inputs[rng.permutation(len(inputs)), part]
            worse.append(score(predict(changed)) - begin)
        rows.append({"column": column, "importance": float(np.mean(worse)),
                     "std": float(np.std(worse))})  # fmt: skip
    return sorted(rows, key=lambda row: -row["importance"])
