"""The cost of a model as a second objective, and both objectives as one for a Gaussian process:
random weights, so that trials cover the front between good and cheap (Knowles 2006, ParEGO)."""

import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np

from dlflax import train
from dlflax.train.recipe import init_on_devices
from dlflax.tune.suggest.gaussian_process import warp

EXAMPLES = 64  # that a model is timed with
REPEATS = 7
SHARE = 0.05  # of the sum, beside the larger of the two: no trial that both make worse is chosen
BATCH = 4  # trials that have one pair of weights: each pair takes a fit of its own


def cost(kind: str, recipe: train.Recipe, hparams: train.Hparams, inputs) -> float:
    """Returns the cost of a model: its parameters, flops of an example, or milliseconds of an
    example. The time is the median of REPEATS batches of EXAMPLES; inputs: examples (n, ...)."""
    abstract = train.abstract(recipe, hparams, inputs[:1])
    if kind == "parameters":
        return float(sum(leaf.size for leaf in jax.tree.leaves(abstract.params)))
    if kind == "flops":
        return float(train.forward_flops(recipe, abstract, hparams, inputs[:1]))
    state = init_on_devices(recipe, hparams, inputs[:1], 0, None)
    numbers, part = train.as_float32(hparams.evaluation()), inputs[:EXAMPLES]
    seconds = []
    for _ in range(REPEATS + 1):
        clock = time.perf_counter()
        jax.block_until_ready(train.predict(recipe, state, numbers, part))
        seconds.append(time.perf_counter() - clock)
    return 1000 * statistics.median(seconds[1:]) / len(part)  # the first compiles


def scalarize(values: Sequence[float], costs: Sequence[float], seed: int, index: int) -> np.ndarray:
    """Returns one number a trial from its value and the logarithm of its cost, float64 (n,); the
    lowest is the best. The weights are those of trial `index`."""
    weight = np.random.default_rng([seed, index // BATCH, 2]).random()
    both = np.stack([
        weight * _rescale(warp(np.asarray(values, np.float64))),
        (1 - weight) * _rescale(np.log(costs)),
    ])  # fmt: skip
    return both.max(0) + SHARE * both.sum(0)


def _rescale(values):
    """Returns the values from 0 to 1."""
    return (values - values.min()) / (np.ptp(values) or 1.0)
