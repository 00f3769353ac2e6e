"""The cost of a model, the second of two objectives, and how two become one for a Gaussian process.

Knowles (2006, ParEGO): the next trial is the best for a weighted sum of both, and the weights are
drawn anew, so that trials come to lie all along the front between good and cheap.
"""

import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np

from dlflax import train
from dlflax.tune.gaussian_process import warped

EXAMPLES = 64  # that a model is timed with
REPEATS = 7
SHARE = 0.05  # of the sum, beside the larger of the two: no trial that both make worse is chosen
BATCH = 4  # trials that have one pair of weights: each pair takes a fit of its own


def cost(kind: str, recipe: train.Recipe, hparams: train.Hparams, inputs) -> float:
    """Returns the cost of the recipe's model: its parameters, the flops of a forward pass on one
    example, or its milliseconds, measured in a batch of EXAMPLES (median of REPEATS). inputs:
    examples (n, ...)."""
    abstract = train.abstract(recipe, hparams, inputs[:1])
    if kind == "parameters":
        return float(sum(leaf.size for leaf in jax.tree.leaves(abstract.params)))
    if kind == "flops":
        return float(train.forward_flops(recipe, abstract, hparams, inputs[:1]))
    state = train.init(recipe, hparams, inputs[:1], jax.random.key(0))
    numbers, part = train.as_float32(hparams.evaluation()), inputs[:EXAMPLES]
    seconds = []
    for _ in range(REPEATS + 1):
        clock = time.perf_counter()
        jax.block_until_ready(train.predict(recipe, state, numbers, part))
        seconds.append(time.perf_counter() - clock)
    return 1000 * statistics.median(seconds[1:]) / len(part)  # the first compiles


def costs(kind: str, recipes, hparams: train.Hparams, inputs) -> dict[train.Recipe, float]:
    """Returns recipe -> its `cost`; nothing for the kind ""."""
    return {recipe: cost(kind, recipe, hparams, inputs) for recipe in recipes if kind}


def scalarize(values: Sequence[float], costs: Sequence[float], seed: int, index: int) -> np.ndarray:
    """Returns one number a trial from its value and its cost, on a logarithmic scale: float64 (n,).
    The lowest are the best. The weights are those of trial `index`."""
    weight = np.random.default_rng([seed, index // BATCH, 2]).random()
    both = np.stack([
        weight * _from_0_to_1(warped(np.asarray(values, np.float64))),
        (1 - weight) * _from_0_to_1(np.log(costs)),
    ])  # fmt: skip
    return both.max(0) + SHARE * both.sum(0)


def _from_0_to_1(values):
    return (values - values.min()) / (np.ptp(values) or 1.0)
