"""When more trials are not worth it (`--trials auto`)."""

import math
from collections.abc import Callable

import numpy as np
from optuna.trial import FrozenTrial

from dlflax.report.trials import digits
from dlflax.tune import gaussian_process
from dlflax.tune.encoding import Encoding
from dlflax.tune.space import Space

LEAST = 20  # trials before which nothing is known
MOST = 256  # trials of a search that does not stop before


def is_enough(
    space: Space, direction: str, seed: int, tolerance: float, trials: list[FrozenTrial],
    log: Callable[[str], None] = print,
) -> bool:  # fmt: skip
    """True if there is no need for another trial, which is logged."""
    reason = enough(Encoding(space.distributions), direction, seed, tolerance, trials)
    if reason:
        log(reason)
    return bool(reason)


def enough(
    encoding: Encoding, direction: str, seed: int, tolerance: float, trials: list[FrozenTrial]
) -> str | None:
    """Returns the reason why there is no need for another trial; None while there is. It is enough
    when the expected gain of the next trial is below the noise between seeds, which the trials' own
    seeds tell, or else the Gaussian process's fit; or below `tolerance`, a share of the best
    value."""
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
    limit, what = max(
        (noise, "the noise between seeds"), (tolerance * abs(best), f"{tolerance:.2%} of the best")
    )
    if not math.isfinite(gain) or gain >= limit:
        return None
    return (
        f"enough after {len(trials)} trials: the next one is expected to gain {digits(gain)}, less "
        f"than {what}, {digits(limit)}"
    )
