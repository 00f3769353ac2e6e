"""Exponential smoothing and the theta method: models that filter the past of a series.

`baselines.fit_smoothing` fits their arrays; nothing is trained here. A series is (t,), NaN before
its first value; a season is (period,), its first value that of the step in question.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from dlflax.shapes import AnyArray

FEWEST = 10  # values at least, or two seasons, that the first level and slope are fitted to


class Smoothing(NamedTuple):
    """Numbers of an exponential smoothing (Hyndman et al. 2008, table 2.1), which may be traced."""

    alpha: Any
    beta: Any
    """0 without a trend."""
    gamma: Any
    """0 without a season."""
    phi: Any
    """1 for a trend that is not damped."""
    trend: Any
    """1, or 0 for none."""
    season: Any
    """0 for none, 1 for an additive season, 2 for a multiplicative one."""


class State(NamedTuple):
    """Level, slope and season (period,) after a step."""

    level: Any
    slope: Any
    season: Any


def smooth(numbers: Smoothing, state: State, series: Any) -> tuple[State, Any]:
    """Returns (the state after a series (t,), the forecast of each step from those before it)."""
    is_product = numbers.season == 2

    def step(state, value):
        is_value = ~jnp.isnan(value)
        y, season = jnp.where(is_value, value, 0.0), state.season[0]
        level = state.level + numbers.phi * state.slope
        forecast = jnp.where(is_product, level * season, level + season)
        change = jnp.where(is_product, _divide(y, season), y - season) - level
        new_season = jnp.where(is_product, _divide(y, level), y - level)
        season = jnp.where(is_value, season + numbers.gamma * (new_season - season), season)
        state = State(
            jnp.where(is_value, level + numbers.alpha * change, state.level),
            jnp.where(is_value, numbers.phi * state.slope + numbers.beta * change, state.slope),
            jnp.concatenate([state.season[1:], season[None]]),
        )
        return state, forecast

    return lax.scan(step, state, series)


def extrapolate(numbers: Smoothing, state: State, horizon: int) -> Any:
    """Returns the forecast of the next steps, (horizon,)."""
    steps = jnp.cumsum(numbers.phi ** jnp.arange(1, horizon + 1))
    level = state.level + state.slope * steps
    season = state.season[np.arange(horizon) % len(state.season)]
    return jnp.where(numbers.season == 2, level * season, level + season)


def decompose(series: Any, period: int, is_product: Any) -> Any:
    """Returns the season of a series by classical decomposition: the mean deviation from a centered
    moving average. Without two seasons: 0, or 1 of a product."""
    t = len(series)
    distance = np.abs(np.arange(t)[:, None] - np.arange(t)[None])
    average = np.clip((period + 1) / 2 - distance, 0, 1) / period  # (t, t); half of an even end
    phases = np.arange(t)[:, None] % period == np.arange(period)[None]
    is_value = ~jnp.isnan(series)
    y = jnp.where(is_value, series, 0.0)
    mean, share = (x @ average.astype(y.dtype) for x in (y, is_value.astype(y.dtype)))
    deviation = jnp.where(is_product, _divide(y, mean), y - mean)
    is_whole = (share > 0.999).astype(y.dtype)
    counts = is_whole @ phases.astype(y.dtype)
    season = _divide((deviation * is_whole) @ phases.astype(y.dtype), counts)
    season = jnp.where(is_product, _divide(season, season.mean()), season - season.mean())
    return jnp.where((counts > 0).all(), season, jnp.where(is_product, 1.0, 0.0))


def first_state(numbers: Smoothing, series: Any, period: int) -> State:
    """Returns the state before the first step: the season by `decompose`, level and slope by a line
    through the first values without their season."""
    season, is_product = decompose(series, period, numbers.season == 2), numbers.season == 2
    season = jnp.where(numbers.season == 0, 0.0, season)
    count = jnp.cumsum(~jnp.isnan(series))
    use = ~jnp.isnan(series) & (count <= max(FEWEST, 2 * period))
    values = deseasonalize(series, season, is_product)
    time, y = (jnp.where(use, x, 0.0) for x in (count, values))
    total = jnp.maximum(use.sum(), 1)
    mean, middle = y.sum() / total, time.sum() / total
    slope = jnp.where(use, (time - middle) * (y - mean), 0.0).sum()
    slope = numbers.trend * _divide(slope, jnp.where(use, (time - middle) ** 2, 0.0).sum())
    return State(mean - slope * middle, slope, season)


def add_offsets(state: State, offsets: Any) -> State:
    """Returns the state with offsets (2 + period,) of level, slope and season."""
    return State(state.level + offsets[0], state.slope + offsets[1], state.season + offsets[2:])


def deseasonalize(series: Any, season: Any, is_product: Any) -> Any:
    """Returns the series (t,) without its season."""
    season = season[np.arange(len(series)) % len(season)]
    return jnp.where(is_product, _divide(series, season), series - season)


def theta_forecast(series: Any, alpha: Any, theta: Any, offset: Any, horizon: int) -> Any:
    """Returns (forecasts of the next steps (horizon,), one-step forecasts (t,)) of the dynamic
    optimised theta model (Fiorucci et al. 2016), for a series without a season.

    offset: of the first level from the first value."""

    def step(carry, value):
        count, level, mean, intercept, slope = carry
        power = (1 - alpha) ** count
        line = intercept * power + slope * (1 - power * (1 - alpha)) / alpha
        forecast = jnp.where(count == 0, first, level + (1 - 1 / theta) * line)
        y = jnp.where(jnp.isnan(value), forecast, value)
        count = count + 1
        new_mean = mean + (y - mean) / count
        slope = ((count - 2) * slope + 6 * (y - mean) / count) / (count + 1)
        slope = jnp.where(count == 1, 0.0, slope)
        intercept = new_mean - slope * (count + 1) / 2
        return (count, level + alpha * (y - level), new_mean, intercept, slope), forecast

    def filter_value(carry, value):
        new, forecast = step(carry, value)
        is_value = ~jnp.isnan(value)
        return jax.tree.map(lambda a, b: jnp.where(is_value, a, b), new, carry), forecast

    first = series[jnp.argmax(~jnp.isnan(series))]
    zero = jnp.zeros((), series.dtype)
    state, fitted = lax.scan(filter_value, (zero, first + offset, zero, zero, zero), series)
    nothing = jnp.full(horizon, jnp.nan, series.dtype)
    return lax.scan(step, state, nothing)[1], fitted


class ExponentialSmoothing(nn.Module):
    """Exponential smoothing of the past of each example.

    Call: inputs float32 (n, t, columns) -> float32 (n, horizon). Of the columns of
    `data.series.SeriesEncoder` with a history, the first is the series minus its last value, and
    the last one that value. Outputs are minus the last value, too.
    """

    period: int
    num_outputs: int

    @nn.compact
    def __call__(
        self, inputs: Float[AnyArray, "n t c"], train: bool = False
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        numbers = Smoothing(*_array(self, "numbers", len(Smoothing._fields)))
        offsets, level = _array(self, "offsets", 2 + self.period), inputs[:, -1:, -1]
        level = jnp.where(numbers.season == 2, level, 0.0)

        def forecast(series):
            state = add_offsets(first_state(numbers, series, self.period), offsets)
            return extrapolate(numbers, smooth(numbers, state, series)[0], self.num_outputs)

        return jax.vmap(forecast)(inputs[:, :, 0] + level) - level


class Theta(nn.Module):
    """The dynamic optimised theta model (Fiorucci et al. 2016) of a series without its season, and
    the season again. Call: as `ExponentialSmoothing`."""

    period: int
    num_outputs: int

    @nn.compact
    def __call__(
        self, inputs: Float[AnyArray, "n t c"], train: bool = False
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        alpha, theta, offset, is_product = _array(self, "numbers", 4)
        level = jnp.where(is_product == 1, inputs[:, -1:, -1], 0.0)

        def forecast(series):
            season = decompose(series, self.period, is_product == 1)
            values = deseasonalize(series, season, is_product == 1)
            outputs, _ = theta_forecast(values, alpha, theta, offset, self.num_outputs)
            index = (inputs.shape[1] + np.arange(self.num_outputs)) % self.period
            season = season[index]
            return jnp.where(is_product == 1, outputs * season, outputs + season)

        return jax.vmap(forecast)(inputs[:, :, 0] + level) - level


def _array(module: nn.Module, name: str, size: int) -> Any:
    return jnp.asarray(module.variable("smoothing", name, jnp.ones, size, jnp.float32).value)


def _divide(a: Any, b: Any) -> Any:
    """Returns a / b, and 0 where b is 0: also the gradient is finite there."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))
