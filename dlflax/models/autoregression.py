"""Autoregression: forecasts from a window of the past, and the seasonal-naive forecast."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dlflax.shapes import AnyArray

MIN_VARIANCE = 1e-4  # of a window, in the unit of the inputs


class Autoregression(nn.Module):
    """A linear autoregression, and a network for its residual.

    Call: inputs float32 (n, t, columns), the last of which is not read -> float32 (n, num_outputs).
    """

    window: int
    """Last steps of the inputs that are read."""
    num_outputs: int
    is_scaled: bool = False
    """True: each window is standardized by its mean and standard deviation."""
    network: Any = None
    """A Linen module; None for none."""

    @nn.compact
    def __call__(
        self, inputs: Float[AnyArray, "n t c"], train: bool = False
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        x, mean, scale = standardize(inputs[:, -self.window :, :-1], self.is_scaled)
        outputs = nn.Dense(self.num_outputs, name="linear")(x.reshape(x.shape[0], -1))
        if self.network is not None:
            outputs += self.network(x)
        return outputs * scale + mean


def standardize(windows: Any, is_scaled: bool, xp: Any = jnp) -> tuple[Any, Any, Any]:
    """Returns windows (n, t, c) whose first column is standardized, its mean and scale (n, 1).

    The windows, 0 and 1 unless is_scaled. xp: numpy or jax.numpy."""
    series = windows[:, :, 0]
    mean, scale = 0 * series[:, :1], 0 * series[:, :1] + 1
    if is_scaled:
        mean = series.mean(1, keepdims=True)
        scale = xp.sqrt(((series - mean) ** 2).mean(1, keepdims=True) + MIN_VARIANCE)
    series = (series - mean) / scale
    return xp.concatenate([series[:, :, None], windows[:, :, 1:]], 2), mean, scale


class SeasonalNaive(nn.Module):
    """The last season again. Call: inputs (n, t, columns) -> (n, num_outputs) of the first one."""

    period: int
    num_outputs: int

    @nn.compact
    def __call__(
        self, inputs: Float[AnyArray, "n t c"], train: bool = False
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        return inputs[:, -self.period :, 0][:, np.arange(self.num_outputs) % self.period]
