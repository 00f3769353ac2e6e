"""Which trials to go on with: a pure function of the learning curves so far.

Trials wait, frozen, at rungs, after 1, 2, 4, ... parts of the epochs, and are thawed while they are
among the best half of all that came so far (successive halving without rounds: Li et al. 2020,
ASHA). Lanes that nothing waits for begin a trial: three in four somewhere else in the space, the
others where a model of the learning curves hopes for most (Swersky, Snoek and Adams 2014): a curve
is taken for a polynomial in the logarithm of the epoch, of which the coefficients are Gaussian
processes over the hyperparameters, each trial with a deviation of its own.

That the model alone decides what goes on, by its probability or expectation of a better end, was
tried and was worse than the ranks, as were more beginnings by the model (docs/performance.md).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from dlflax.tune.encoding import Encoding
from dlflax.tune.gaussian_process import (
    FITTED,
    LOCATION,
    descended,
    float64,
    matern,
    minus_log_density,
    padded,
)
from dlflax.tune.search import halving_rungs

ETA = 2  # the best 1 in so many go on from a rung
SPREAD = 0.75  # of the new trials that are somewhere else in the space
CANDIDATES = 128  # new trials that are thought of
STEPS = 60  # of L-BFGS
GLOBAL = np.array([4.0, 1.0, 1.0])  # variances of the coefficients that all trials share
SCALES = (0.0, 0.0, -1.5), (-3.0, -3.0, -4.0)  # logarithms of those over the space, of a trial
NOISE = -5.0
LEAST, MOST = -3.0, -0.5  # logarithms to the base 10 of the random amount, in deviations


class Curve(NamedTuple):
    """What is known of a trial."""

    params: Mapping[str, Any]
    values: Sequence[float]
    """After each epoch, lower is better; +inf or NaN once it diverged."""
    over: bool
    """It is finished or diverged."""


def decide(
    encoding: Encoding,
    curves: Sequence[Curve],
    epochs: int,
    lanes: int,
    seed: int,
    slice_epochs: int = 1,
) -> list[int | dict[str, Any]]:
    """For each of so many lanes the place of the trial to go on with, or the parameters of one to
    begin. epochs: those of a whole trial; slice_epochs: those that a lane is trained for before it
    is decided again. Fewer than `lanes` where a finite space ends."""
    rng = np.random.default_rng(seed)
    going = _thawed(curves, epochs, slice_epochs)[:lanes]
    if len(going) == lanes:
        return going
    fresh = _candidates(encoding, curves, rng)
    count = min(lanes - len(going), len(fresh))
    hoped = int(np.sum(rng.random(count) >= SPREAD))
    new = []
    if hoped and any(curve.values for curve in curves):
        new = _by_model(encoding, curves, epochs, fresh, hoped, rng)
    new += [i for i in range(len(fresh)) if i not in new][: count - len(new)]  # all over the space
    picks = going + [fresh[i] for i in new]
    waiting = [i for i, curve in enumerate(curves) if not curve.over and i not in going]
    waiting.sort(key=lambda i: (_value(curves[i], epochs), i))
    return picks + waiting[: lanes - len(picks)]  # where nothing is left to begin


def _thawed(curves, epochs, slice_epochs) -> list[int]:
    """The trials to go on with, the most important first: those between two rungs, then those that
    wait at a rung and are among the best 1 in ETA of all that reached it."""
    at_rung: dict[int, list[int]] = {rung: [] for rung in reversed(halving_rungs(epochs, ETA))}
    found = []
    for i, curve in enumerate(curves):
        done = len(curve.values)
        rung = next((r for r in at_rung if r <= done), 0)
        if not curve.over:
            (at_rung[rung] if rung and done < rung + slice_epochs else found).append(i)
    found.sort(key=lambda i: (-len(curves[i].values), i))
    for rung, waiting in at_rung.items():
        there = [i for i, curve in enumerate(curves) if len(curve.values) >= rung]
        there.sort(key=lambda i: (_value(curves[i], rung), i))
        found += [i for i in there[: len(there) // ETA] if i in waiting]
    return found


def _by_model(encoding, curves, epochs, fresh, count, rng) -> list[int]:
    """The places of those new trials that will most probably be better than the best."""
    from scipy.special import log_ndtr  # not JAX's: it would be compiled for every length

    going = [i for i, curve in enumerate(curves) if not curve.over]
    points = encoding.encode([*(curves[i].params for i in going), *fresh])
    with float64():
        best, rows, raw = _fitted(encoding, curves, epochs, rng)
        of = np.array([*going, *range(len(curves), len(curves) + len(fresh))], np.float64)
        mean, deviation = _after_the_last(raw, *rows, padded(points), padded(of))
    mean, deviation = (np.asarray(each)[: len(points)] for each in (mean, deviation))
    # not the best so far: curves that still fall would all be better
    best = min([best, *mean[: len(going)]])
    mean, deviation, picks = mean[len(going) :], deviation[len(going) :], []
    for _ in range(count):
        wanted = best - 10 ** rng.uniform(LEAST, MOST)
        chance = log_ndtr((wanted - mean) / deviation)
        chance[picks] = -np.inf
        picks.append(int(np.argmax(chance)))
    return picks


def _candidates(encoding, curves, rng) -> list[dict[str, Any]]:
    """Configurations all over the space and near the best trials, none of which was tried."""
    from scipy.stats import qmc

    spread = qmc.Sobol(len(encoding.distributions), rng=rng).random(CANDIDATES)
    found = encoding.spread(spread)
    for curve in sorted(curves, key=lambda curve: _value(curve, len(curve.values)))[:4]:
        point, near = encoding.encode([curve.params]), encoding.neighbours(curve.params)
        for radius in (0.1, 0.03) if encoding.continuous.any() else ():
            steps = radius * rng.standard_normal((CANDIDATES // 10, encoding.width))
            moved = np.clip(point + steps * encoding.continuous[None], 0, 1)
            near += [encoding.decode(each) for each in moved]
        found += near
    tried, fresh = {encoding.key(curve.params) for curve in curves}, []
    for params in found:
        if encoding.key(params) not in tried:
            tried.add(encoding.key(params))
            fresh.append(params)
    if not fresh and (left := encoding.untried(tried)):
        fresh.append(left)
    return fresh


def _value(curve, epoch: int) -> float:
    """The best so far after an epoch."""
    values = [value if math.isfinite(value) else math.inf for value in curve.values[:epoch]]
    return min(values, default=math.inf)


def _fitted(encoding, curves, epochs, rng):
    """(the best value; rows: points, times, trials, values, which count; the model's numbers): of
    values with a mean of 0 and a deviation of 1."""
    table = []
    for i, curve in enumerate(curves):
        done = len(curve.values)
        # 1, 2, 4, ... tell as much as all of them
        shown = {epoch for epoch in range(1, done + 1) if epoch & (epoch - 1) == 0} | {done}
        table += [(i, epoch, _value(curve, epoch)) for epoch in sorted(shown - {0})]
    trial, epoch, value = (np.array(column) for column in zip(*table, strict=True))
    finite = np.isfinite(value)
    # so bad that they tell of failure only
    worst = np.quantile(value[finite], 0.98) if finite.any() else 1.0
    value = np.minimum(np.where(finite, value, np.inf), worst)
    if value.min() > 0:  # a loss falls by a power of the epochs
        value = np.log(value)
    value = (value - value.mean()) / (value.std() or 1.0)
    points = encoding.encode([curve.params for curve in curves])[trial]
    times = np.log(epoch) / math.log(max(epochs, 2))
    chosen = _telling(trial, value, rng)
    one = np.ones(len(value))
    columns = points, times, trial.astype(np.float64), value, one
    raw = _fit(encoding, *(padded(column[chosen]) for column in columns))
    return value.min(), [padded(column) for column in columns], raw


def _telling(trial, value, rng):
    """The places of at most FITTED rows: those of the best trials, and some of the others."""
    if len(value) <= FITTED:
        return np.arange(len(value))
    best = np.full(trial.max() + 1, np.inf)
    np.minimum.at(best, trial, value)
    first = np.flatnonzero(np.isin(trial, np.argsort(best, kind="stable")[: FITTED // 8]))
    others = rng.permutation(np.setdiff1d(np.arange(len(value)), first))
    return np.sort(np.concatenate([first, others])[:FITTED])


def _fit(encoding, x, times, trial, y, counts):
    """The most probable numbers: logarithms of the length scales, of six variances of coefficients,
    of the noise's variance."""
    scales = np.where(encoding.one_hot, 0.0, LOCATION + 0.5 * math.log(len(encoding.distributions)))
    prior = np.array([*scales, *SCALES[0], *SCALES[1], NOISE])
    width = len(scales)
    bounds = [(math.log(5e-3), math.log(1e3))] * width
    bounds += [(-6, 3)] * 3 + [(-8, 1)] * 3 + [(-9, 0)]
    begin = np.stack([prior, prior + 0.7 * np.where(np.arange(len(prior)) < width, 1, -1)])
    found, losses = descended(
        lambda raw: _losses(raw, x, times, trial, y, counts, prior), begin, bounds, STEPS
    )
    return found[np.argmin(losses)]


def _covariance(raw, a, b):
    """Of the values at (points (n, d), times (n,), trials (n,)) and at others: (n, m)."""
    (x, t, i), (z, s, j) = a, b
    width = x.shape[1]
    over, own = jnp.exp(raw[width : width + 3]), jnp.exp(raw[width + 3 : width + 6])
    left, right = (jnp.stack([jnp.ones_like(u), u, u * u], 1) for u in (t, s))
    near, same = matern(x, z, jnp.exp(raw[:width])), i[:, None] == j[None]

    def of(variances):
        return (left * variances[None]) @ right.T

    return of(over) * near + of(own) * same + of(jnp.asarray(GLOBAL))


def _noisy(raw, rows, counts):
    kernel = _covariance(raw, rows, rows) * counts[:, None] * counts[None]
    return kernel + jnp.diag(jnp.where(counts > 0, jnp.exp(raw[-1]), 1))


def _loss(raw, x, times, trial, y, counts, prior):
    """Minus the logarithm of the posterior, up to a constant."""
    loss = minus_log_density(_noisy(raw, (x, times, trial), counts), y * counts)
    return loss + jnp.sum((raw - prior) ** 2) / 2


_losses = jax.jit(jax.vmap(jax.value_and_grad(_loss), (0, None, None, None, None, None, None)))


@jax.jit
def _after_the_last(raw, x, times, trial, y, counts, points, of):
    """(mean, deviation), (n,) each, of the values after the last epoch at points (n, d) of trials
    (n,)."""
    rows, asked = (x, times, trial), (points, jnp.ones(len(points)), of)
    factor = jnp.linalg.cholesky(_noisy(raw, rows, counts))
    half = solve_triangular(factor, (_covariance(raw, asked, rows) * counts[None]).T, lower=True)
    mean = half.T @ solve_triangular(factor, y * counts, lower=True)
    own = jnp.exp(raw[points.shape[1] : -1]).sum() + GLOBAL.sum()  # all times are 1
    return mean, jnp.sqrt(jnp.maximum(own - jnp.sum(half**2, 0), 1e-10))
