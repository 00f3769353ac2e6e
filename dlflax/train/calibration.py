"""Numbers that are fitted on the validation outputs when training is done: what to believe, and
where to cut. They change no weights, and are saved with the run.

scikit-learn and SciPy are imported where they are used.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

FEWEST = 30  # validation examples below which nothing is fitted
FEWEST_POSITIVE = 5  # of a label, below which it keeps its threshold
HOTTEST = 20.0  # a temperature beyond it, or below its inverse, is no calibration


def temperature(loss, hparams, logits, targets) -> tuple[float, float]:
    """(the temperature by which the logits have the lowest mean loss when divided, that loss): Guo
    et al. 2017. loss: (logits, targets, hparams) -> (n,)."""
    from scipy.optimize import minimize_scalar

    mean = jax.jit(lambda scale: loss(logits * scale, targets, hparams).mean())
    found = minimize_scalar(
        lambda log_t: float(mean(jnp.float32(math.exp(-log_t)))),
        bounds=(-math.log(HOTTEST), math.log(HOTTEST)), method="bounded",
    )  # fmt: skip
    return float(math.exp(found.x)), float(found.fun)


def thresholds(targets, logits) -> list[float]:
    """For each label the logit above which predicting it gives the highest F1: targets int
    (n, labels), logits (n, labels). 0, a probability of a half, for one that is rare."""
    from sklearn.metrics import precision_recall_curve

    found = []
    for truth, scores in zip(np.asarray(targets).T, np.float64(logits).T, strict=True):
        best = 0.0
        if FEWEST_POSITIVE <= truth.sum() < len(truth):
            precision, recall, cuts = precision_recall_curve(truth, scores)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            at = int(np.argmax(f1[:-1]))
            # in the middle between the last that is predicted and the first that is not
            below = scores[scores < cuts[at]]
            best = float((cuts[at] + below.max()) / 2) if len(below) else float(cuts[at])
        found.append(best)
    return found
