"""Fits exponential smoothing and the theta method to series.

All kinds of smoothing, from several starts and for several series, are members of one program: the
Levenberg-Marquardt method, vmapped. The corrected Akaike criterion chooses a kind.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlflax.models.smoothing import (
    Smoothing,
    add_offsets,
    decompose,
    deseasonalize,
    first_state,
    smooth,
    theta_forecast,
)

# trend, damped, season
KINDS = np.array([(t, d, s) for s in (0, 1, 2) for t, d in ((0, 0), (1, 0), (1, 1))])
STARTS = np.array([(0.0, -2.0, -2.0, 2.0), (-2.0, -1.0, -3.0, 2.0), (2.0, -4.0, -4.0, 2.0)])
ITERATIONS = 25
LONGEST_SEASON = 24  # steps, up to which the season before the first step is fitted, too
TINY = 1e-9
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than the fits


class Fits(NamedTuple):
    """The smoothing that is chosen for each series."""

    numbers: Smoothing
    """Fields float64 (series,)."""
    offsets: np.ndarray
    """float64 (series, 2 + period): added to the first level, slope and season."""
    losses: np.ndarray
    """float64 (series, kinds): the sum of squares of each kind, as in `_residuals`."""


def fit(series: np.ndarray, period: int) -> Fits:
    """Fits every kind of smoothing to each of the series, float64 (series, t), NaN before its first
    value, and chooses one."""
    kinds = KINDS if period > 1 else KINDS[KINDS[:, 2] == 0]
    kinds, starts = np.repeat(kinds, len(STARTS), 0), np.tile(STARTS, (len(kinds), 1))
    unit = np.nanstd(series, 1, keepdims=True)
    unit = np.where(unit > 0, unit, 1.0)
    extra = period + 1 if 1 < period <= LONGEST_SEASON else 2 if period == 1 else 0
    starts = np.pad(starts, ((0, 0), (0, extra)))
    with jax.enable_x64(True):
        fits = _fit_all(series / unit, starts, kinds, period)
    numbers, offsets, losses = jax.tree.map(np.asarray, fits)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    losses[(np.nanmin(series, 1) <= 0)[:, None] & (kinds[:, 2] == 2)] = np.inf
    count = (~np.isnan(series)).sum(1)[:, None]
    trend, damped, season = kinds.T
    free = 3 + 2 * trend + damped + (season > 0) * period
    penalty = 2 * free + 2 * free * (free + 1) / np.maximum(count - free - 1, 1)
    criterion = np.where(free < count - 1, count * np.log(losses + TINY) + penalty, np.inf)
    chosen = np.arange(len(series)), criterion.argmin(1)
    losses = (losses * unit**2).reshape(len(series), -1, len(STARTS)).min(2)
    return Fits(Smoothing(*(x[chosen] for x in numbers)), offsets[chosen] * unit, losses)


@functools.partial(jax.jit, static_argnums=3, compiler_options=QUICK)
def _fit_all(series, starts, kinds, period):
    """Returns (Smoothing, offsets, losses), (series, members, ...)."""

    def fit_member(series, start, kind):
        state = first_state(_numbers(start, kind), series, period)
        u, loss = least_squares(lambda u: _residuals(series, u, kind, state), start)
        return _numbers(u, kind), _offsets(u, kind, period), loss

    members = jax.vmap(fit_member, (None, 0, 0))
    return jax.vmap(members, (0, None, None))(series, starts, kinds)


def _numbers(u, kind) -> Smoothing:
    """Returns the numbers in the usual region of parameters (Hyndman et al. 2008) for any u."""
    trend, damped, season = kind
    alpha = 1e-4 + 0.9998 * jax.nn.sigmoid(u[0])
    return Smoothing(
        alpha, trend * alpha * jax.nn.sigmoid(u[1]),
        (season > 0) * (1 - alpha) * jax.nn.sigmoid(u[2]),
        jnp.where(damped == 1, 0.8 + 0.18 * jax.nn.sigmoid(u[3]), 1.0), trend, season,
    )  # fmt: skip


def _offsets(u, kind, period):
    free = u[4:]
    if not len(free):
        return jnp.zeros(2 + period, u.dtype)
    season = (kind[2] > 0) * jnp.concatenate([free[2:], -free[2:].sum()[None]])
    return jnp.concatenate([free[:1], kind[0] * free[1:2], season])


def _residuals(series, u, kind, state):
    """Returns the residuals (t,) whose squares the likelihood sums: errors of one step.

    With a multiplicative season they are relative, times the geometric mean of the forecasts."""
    numbers, offsets = _numbers(u, kind), _offsets(u, kind, len(state.season))
    forecasts = smooth(numbers, add_offsets(state, offsets), series)[1]
    is_value = ~jnp.isnan(series)
    errors = jnp.where(is_value, series - forecasts, 0.0)
    size = jnp.where(is_value, jnp.maximum(jnp.abs(forecasts), TINY), 1.0)
    mean = jnp.exp(jnp.log(size).sum() / is_value.sum())
    return jnp.where(kind[2] == 2, errors / size * mean, errors)


def least_squares(residuals: Any, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (u, sum of squares) of a local minimum of residuals(u)**2 (Levenberg 1944, Marquardt
    1963). u: (d,)."""

    def step(carry, _):
        u, damping = carry
        r, tangents = jax.linearize(residuals, u)
        jacobian = jax.vmap(tangents)(jnp.eye(len(u), dtype=u.dtype))
        product = jacobian @ jacobian.T
        diagonal = jnp.diag(product) + TINY * jnp.trace(product) + 1e-12
        new = u - jnp.linalg.solve(product + damping * jnp.diag(diagonal), jacobian @ r)
        is_better = (residuals(new) ** 2).sum() < (r**2).sum()
        damping = jnp.clip(jnp.where(is_better, damping * 0.2, damping * 5), 1e-9, 1e9)
        return (jnp.where(is_better, new, u), damping), None

    (u, _), _ = lax.scan(step, (start, jnp.full((), 0.1, start.dtype)), length=ITERATIONS)
    return u, (residuals(u) ** 2).sum()


def fit_theta(series: np.ndarray, period: int) -> np.ndarray:
    """Returns the numbers of `models.smoothing.Theta` for each of the series, float64 (series, 4).
    series: as for `fit`. A season of positive values is multiplicative."""
    unit = np.nanstd(series, 1, keepdims=True)
    unit = np.where(unit > 0, unit, 1.0)
    is_product = np.nanmin(series, 1) > 0
    with jax.enable_x64(True):
        numbers, losses = _fit_thetas(series / unit, is_product, np.array([0.0, 2.0, -2.0]), period)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    alpha, theta, offset = np.asarray(numbers)[np.arange(len(series)), losses.argmin(1)].T
    return np.stack([alpha, theta, offset * unit[:, 0], is_product], 1)


@functools.partial(jax.jit, static_argnums=3, compiler_options=QUICK)
def _fit_thetas(series, is_product, starts, period):
    """Returns (alpha, theta and offset (series, members, 3), losses)."""

    def numbers(u):
        alpha = 0.1 + 0.89 * jax.nn.sigmoid(u[0])
        return jnp.stack([alpha, 1 + jnp.exp(jnp.clip(u[1], -9, 9)), u[2]])

    def fit_member(series, is_product, start):
        values = deseasonalize(series, decompose(series, period, is_product), is_product)

        def residuals(u):
            forecasts = theta_forecast(values, *numbers(u), 1)[1]
            return jnp.where(jnp.isnan(values), 0.0, values - forecasts)

        u, loss = least_squares(residuals, jnp.array([start, 0.0, 0.0]))
        return numbers(u), loss

    members = jax.vmap(fit_member, (None, None, 0))
    return jax.vmap(members, (0, 0, None))(series, is_product, starts)
