"""Calibration: temperature and thresholds, fitted on validation outputs after training."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MIN_EXAMPLES = 30  # validation examples below which nothing is fitted
MIN_POSITIVE = 5  # positive examples below which a label has the default threshold
GRID = 65  # temperatures of a grid search
MAX_TEMPERATURE = 20.0  # the search starts at its inverse; beyond it nothing is calibrated
# standard deviation of the prior of log(temperature), around 0: of few examples without an error
# the likeliest temperature is 0, which the first error on others makes very wrong
PRIOR = 0.5


def temperature(loss, hparams, logits, batch) -> tuple[float, float]:
    """Returns the likeliest temperature under a log-normal prior, to about 0.1 %, and its mean loss
    (Guo et al. 2017). loss: (logits, batch, hparams) -> (n,), in nats."""
    logits = jnp.asarray(logits)
    center, radius = 0.0, math.log(MAX_TEMPERATURE)
    for _ in range(2):  # the whole range, then around its optimum
        logs = np.linspace(center - radius, center + radius, GRID)
        scales = np.exp(-logs).astype(np.float32)
        losses = np.asarray(_mean_losses(loss, hparams, logits, batch, scales))
        best = np.nanargmin(losses + (logs / PRIOR) ** 2 / (2 * len(logits)))
        center, radius = float(logs[best]), 2 * radius / (GRID - 1)
    return math.exp(center), float(losses[best])


@functools.partial(jax.jit, static_argnums=0)
def _mean_losses(loss, hparams, logits, batch, scales):
    return lax.map(lambda scale: loss(logits * scale, batch, hparams).mean(), scales)


def thresholds(targets, logits) -> list[float]:
    """Returns for each label the logit threshold of the highest F1; 0 for rare labels. targets: int
    (n, labels); logits: (n, labels)."""
    from sklearn.metrics import precision_recall_curve

    logit_thresholds = []
    for truth, scores in zip(np.asarray(targets).T, np.float64(logits).T, strict=True):
        best = 0.0
        if MIN_POSITIVE <= truth.sum() < len(truth):
            precision, recall, candidates = precision_recall_curve(truth, scores)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            lowest_positive = candidates[np.argmax(f1[:-1])]
            negative = scores[scores < lowest_positive]
            # halfway between the lowest positive and the highest negative prediction
            best = float(
                (lowest_positive + negative.max()) / 2 if len(negative) else lowest_positive
            )
        logit_thresholds.append(best)
    return logit_thresholds
