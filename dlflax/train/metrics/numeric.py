"""Metrics of regression and forecasts."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from dlflax.train.losses import mean_absolute_error
from dlflax.train.metrics.metric import Additive, Collecting


@dataclasses.dataclass(frozen=True)
class MeanError(Additive):
    """Root mean squared or mean absolute error, averaged over k targets. targets: float (n,) or
    (n, k); outputs: (n, k)."""

    direction: Literal["min", "max"] = "min"
    power: int = 2
    """2: root mean squared; 1: mean absolute."""
    scale: tuple[float, ...] = ()
    """Scale of each target, by which the data source divided it; () is 1."""

    def update(self, outputs, batch):
        outputs = outputs.reshape(outputs.shape[0], -1)
        error = outputs - batch["targets"].reshape(outputs.shape)
        error = jnp.where(batch["mask"][:, None] > 0, error, 0.0)
        return {"error": (error**2 if self.power == 2 else jnp.abs(error)).sum(0)}

    def compute(self, sums):
        mean = sums["error"] / sums["count"]
        return (np.array(self.scale or 1.0) * (np.sqrt(mean) if self.power == 2 else mean)).mean()


@dataclasses.dataclass(frozen=True)
class R2(Collecting):
    """Coefficient of determination (scikit-learn's), averaged over k targets. targets: float (n,)
    or (n, k); outputs: (n, k)."""

    name: str = "r2"

    def compute(self, outputs, batch):
        if len(outputs) < 2:
            return float("nan")
        outputs = np.float64(outputs).reshape(len(outputs), -1)
        targets = np.float64(batch["targets"]).reshape(outputs.shape)
        residual = ((targets - outputs) ** 2).sum(0)
        total = ((targets - targets.mean(0, keepdims=True)) ** 2).sum(0)
        share = residual / np.where(total > 0, total, 1)
        return float(np.where(total > 0, 1 - share, residual == 0).mean())


@dataclasses.dataclass(frozen=True)
class ForecastMAE(Additive):
    """Mean absolute error of each forecast, averaged over the examples. targets: float
    (n, horizon), NaN if missing; outputs: (n, horizon)."""

    name: str = "mae"
    direction: Literal["min", "max"] = "min"
    scale: float = 1.0

    def update(self, outputs, batch):
        error = mean_absolute_error(outputs, batch["targets"])
        return {"error": jnp.sum(jnp.where(batch["mask"] > 0, error, 0.0))}

    def compute(self, sums):
        return self.scale * sums["error"] / sums["count"]


@dataclasses.dataclass(frozen=True)
class ForecastRMSE(Collecting):
    """Root mean squared error over all steps without a missing target, as `ForecastMAE`."""

    name: str = "rmse"
    direction: Literal["min", "max"] = "min"
    scale: float = 1.0

    def compute(self, outputs, batch):
        squares = np.square(np.float64(self.scale * (outputs - batch["targets"])))
        squares = squares[~np.isnan(squares)]
        return float(np.sqrt(squares.mean())) if squares.size else float("nan")
