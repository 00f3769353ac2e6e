"""Stopping criterion of `--trials auto`: more trials are not worth it."""

import math

import numpy as np
from optuna.trial import FrozenTrial

from dlflax.report.sweep.trials import digits
from dlflax.tune.suggest import gaussian_process
from dlflax.tune.suggest.encoding import Encoding

LEAST = 20  # trials before the first decision
MOST = 256  # trials of a search that does not stop before


def reason_to_stop(
    encoding: Encoding, direction: str, seed: int, min_improvement: float, trials: list[FrozenTrial]
) -> str | None:
    """Returns the reason why another trial is not worth it; None if it is.

    The expected gain of the next trial is then below the noise between seeds, by the trials' own
    seeds or else the Gaussian process's fit; or below `min_improvement`, a share of the best value.
    """
    sign = 1 if direction == "minimize" else -1
    finished = [(t.params, sign * t.value) for t in trials if t.value is not None]
    values = np.array([value for _, value in finished])
    if len(finished) < LEAST or not np.isfinite(values).any():
        return None
    gain, noise = gaussian_process.expected_gain(encoding, finished, seed + len(finished))
    stds = [t.user_attrs["std"] for t in trials if "std" in t.user_attrs]
    if stds:
        seeds = max(len(t.user_attrs.get("values", ())) for t in trials)
        noise = float(np.sqrt(np.mean(np.square(stds)) / seeds))
    best = float(values.min())
    limit, name = max(
        (noise, "the noise between seeds"),
        (min_improvement * abs(best), f"{min_improvement:.2%} of the best"),
    )
    if not math.isfinite(gain) or gain >= limit:
        return None
    return (
        f"enough after {len(trials)} trials: the next one is expected to gain {digits(gain)}, less "
        f"than {name}, {digits(limit)}"
    )
