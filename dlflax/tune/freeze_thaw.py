"""Which trials to go on with: a pure function of the learning curves so far.

Freeze-thaw Bayesian optimization (Swersky, Snoek and Adams 2014), in batches. A learning curve is
taken for a polynomial in the logarithm of the epoch, of which the coefficients are Gaussian
processes over the hyperparameters, each trial with a deviation of its own. So the value after the
last epoch is known the better, the further a curve has come, and the better its neighbours are
known. The trials that go on are those that will most probably be better than the best by some
random amount (as ifBO draws it, Rakotoarison et al. 2024); a few at most are new.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import log_ndtr

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

NEW = 8  # one lane in so many may begin a trial, one at least
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
    encoding: Encoding, curves: Sequence[Curve], epochs: int, lanes: int, seed: int
) -> list[int | dict[str, Any]]:
    """For each of so many lanes the place of the trial to go on with, or the parameters of one to
    begin. epochs: those of a whole trial. Fewer than `lanes` where a finite space ends."""
    rng = np.random.default_rng(seed)
    going = [i for i, curve in enumerate(curves) if not curve.over]
    fresh = _candidates(encoding, curves, rng)
    points = encoding.encode([*(curves[i].params for i in going), *fresh])
    with float64():
        best, rows, raw = _fitted(encoding, curves, epochs, rng)
        of = np.array([*going, *range(len(curves), len(curves) + len(fresh))], np.float64)
        mean, deviation = _after_the_last(raw, *rows, padded(points), padded(of))
    mean, deviation = (np.asarray(each)[: len(points)] for each in (mean, deviation))
    free, picks = np.ones(len(points), bool), []
    for _ in range(min(lanes, len(points))):
        wanted = best - 10 ** rng.uniform(LEAST, MOST)
        chance = np.array(log_ndtr((wanted - mean) / deviation))
        new = sum(place >= len(going) for place in picks)
        if new >= max(1, lanes // NEW) and free[: len(going)].any():
            chance[len(going) :] = -np.inf
        picks.append(int(np.argmax(np.where(free, chance, -np.inf))))
        free[picks[-1]] = False
    return [going[p] if p < len(going) else fresh[p - len(going)] for p in picks]


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
