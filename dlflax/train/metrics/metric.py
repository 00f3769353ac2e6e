"""The contract of a metric: a named measure of a model's outputs, one number.

`Additive` metrics are computed inside the compiled step, as sums that add up over batches, devices
and hosts; `Collecting` ones on the host, from the outputs of all examples. A task lists its own
(`Task.metrics`), and any of them can decide the best epoch and be what a sweep optimizes. The loss
is a metric of every task.
"""

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Metric(abc.ABC):
    """A named measure. Subclass `Additive` or `Collecting`, as a frozen dataclass."""

    name: str
    """Its key in results and histories, such as accuracy: `val_accuracy` on validation data."""
    direction: Literal["min", "max"] = "max"
    """The better direction of its value."""


class Additive(Metric):
    """A metric that follows from sums over the examples. Every epoch has it, of training too."""

    @abc.abstractmethod
    def update(self, outputs: jax.Array, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns sums over those examples of a batch whose mask is 1: float32 arrays of any shape,
        by names of its own. outputs: float32 (n, ...); batch: as `train.batch.Batch`. Traced."""

    @abc.abstractmethod
    def compute(self, sums: Mapping[str, np.ndarray]) -> float:
        """Returns the value that follows from the sums of all batches, float64 NumPy arrays, and
        their `count`, the number of examples, 1 or more."""


class Collecting(Metric):
    """A metric of all examples at once, such as a rank statistic. Test data have it, and every
    epoch's validation data where it decides something."""

    @abc.abstractmethod
    def compute(self, outputs: np.ndarray, batch: Mapping[str, np.ndarray]) -> float:
        """Returns the value on all N examples; NaN where it is undefined, as of targets that are
        all the same. outputs: float32 (N, ...); batch: NumPy arrays without padding, by the keys of
        `Batch`, inputs as they are stored."""


@dataclasses.dataclass(frozen=True)
class MeanLoss(Metric):
    """The mean of the task's loss, which the step sums itself."""

    name: str = "loss"
    direction: Literal["min", "max"] = "min"


def batch_sums(metrics: Iterable[Metric], outputs, losses, batch) -> dict[str, jax.Array]:
    """Returns the sums of one batch, float32: `loss` and `count`, and METRIC/NAME of every additive
    metric. losses: float32 (n,)."""
    mask = batch["mask"]
    # padding may be anything, NaN included: select, do not multiply
    sums = {"loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)), "count": mask.sum()}
    for metric in metrics:
        if isinstance(metric, Additive):
            for part, value in metric.update(outputs, batch).items():
                sums[f"{metric.name}/{part}"] = value
    return sums


def additive_scores(metrics: Iterable[Metric], sums: Mapping[str, Any]) -> dict[str, float]:
    """Returns the mean loss and the value of every additive metric, from the sums of `batch_sums`
    over any number of batches."""
    count = max(float(sums["count"]), 1.0)
    scores = {"loss": float(sums["loss"]) / count}
    for metric in metrics:
        if isinstance(metric, Additive):
            parts = {
                name.removeprefix(f"{metric.name}/"): np.asarray(value, np.float64)
                for name, value in sums.items() if name.startswith(f"{metric.name}/")
            }  # fmt: skip
            scores[metric.name] = float(metric.compute({**parts, "count": np.float64(count)}))
    return scores


def collecting_scores(metrics: Iterable[Metric], outputs, batch) -> dict[str, float]:
    """Returns the value of every collecting metric, NaN of outputs that are not finite."""
    collecting = [metric for metric in metrics if isinstance(metric, Collecting)]
    finite = not collecting or bool(np.isfinite(outputs).all())
    return {m.name: float(m.compute(outputs, batch)) if finite else np.nan for m in collecting}
