"""Numbers that are fitted on the validation outputs when training is done: what to believe, and
where to cut. They change no weights, and are saved with the run.

scikit-learn is imported where it is used.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MIN_EXAMPLES = 30  # validation examples below which nothing is fitted
MIN_POSITIVE = 5  # of a label, below which it keeps its threshold
POINTS = 65  # temperatures that are tried at a time
HOTTEST = 20.0  # a temperature beyond it, or below its inverse, is no calibration


def temperature(loss, hparams, logits, batch) -> tuple[float, float]:
    """Returns the temperature by which the logits, divided, have the lowest mean loss, to about
    0.1 %, and that loss (Guo et al. 2017). loss: (logits, batch, hparams) -> (n,)."""
    logits = jnp.asarray(logits)

    @jax.jit
    def losses(scales):
        return lax.map(lambda scale: loss(logits * scale, batch, hparams).mean(), scales)

    middle, reach = 0.0, math.log(HOTTEST)
    for _ in range(2):  # all of the range, then around the best of it
        logs = np.linspace(middle - reach, middle + reach, POINTS)
        found = np.asarray(losses(np.exp(-logs).astype(np.float32)))
        middle, reach = float(logs[np.nanargmin(found)]), 2 * reach / (POINTS - 1)
    return math.exp(middle), float(np.nanmin(found))


def thresholds(targets, logits) -> list[float]:
    """For each label the logit above which predicting it gives the highest F1: targets int
    (n, labels), logits (n, labels). 0, a probability of a half, for one that is rare."""
    from sklearn.metrics import precision_recall_curve

    found = []
    for truth, scores in zip(np.asarray(targets).T, np.float64(logits).T, strict=True):
        best = 0.0
        if MIN_POSITIVE <= truth.sum() < len(truth):
            precision, recall, cuts = precision_recall_curve(truth, scores)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            at = int(np.argmax(f1[:-1]))
            # in the middle between the last that is predicted and the first that is not
            below = scores[scores < cuts[at]]
            best = float((cuts[at] + below.max()) / 2) if len(below) else float(cuts[at])
        found.append(best)
    return found
