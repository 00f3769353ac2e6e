"""Metric, the base class: a named measure of a model's outputs, one number.

`Additive` metrics are computed in the compiled step, as sums over batches, devices and hosts;
`Collecting` metrics on the host, from the outputs of all examples. A task lists its metrics
(`Task.metrics`); each can be the monitor, or a sweep's objective. The loss is a metric of every
task.
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
    """A named measure. Inherit from `Additive` or `Collecting`, as a frozen dataclass."""

    name: str
    """Key in results and histories, such as accuracy: `val_accuracy` on the validation split."""
    direction: Literal["min", "max"] = "max"
    """Better direction of the value."""


class Additive(Metric):
    """A metric computed from sums over examples, at every epoch, also on the train split."""

    @abc.abstractmethod
    def update(self, outputs: jax.Array, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns sums over the examples of a batch whose mask is 1, by name: float32, any shape.
        outputs: float32 (n, ...); batch: as `train.batch.Batch`. Traced."""

    @abc.abstractmethod
    def compute(self, sums: Mapping[str, np.ndarray]) -> float:
        """Returns the value from the sums over all batches, float64 NumPy arrays, and their
        `count`, the number of examples, at least 1."""


class Collecting(Metric):
    """A metric of all examples at once, such as a rank statistic. Computed on the test split, and
    at every epoch's validation if it is the monitor or objective."""

    @abc.abstractmethod
    def compute(self, outputs: np.ndarray, batch: Mapping[str, np.ndarray]) -> float:
        """Returns the value on all N examples, NaN if undefined, as for targets of one class.
        outputs: float32 (N, ...); batch: as `train.batch.Batch`, NumPy arrays without padding,
        inputs as stored."""


@dataclasses.dataclass(frozen=True)
class MeanLoss(Metric):
    """Mean loss of the task, which the step sums."""

    name: str = "loss"
    direction: Literal["min", "max"] = "min"


def batch_sums(metrics: Iterable[Metric], outputs, losses, batch) -> dict[str, jax.Array]:
    """Returns the float32 sums of one batch: `loss`, `count`, and METRIC/NAME of every additive
    metric. losses: float32 (n,)."""
    mask = batch["mask"]
    # select instead of multiply, since padding may be NaN
    sums = {"loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)), "count": mask.sum()}
    for metric in metrics:
        if isinstance(metric, Additive):
            for part, value in metric.update(outputs, batch).items():
                sums[f"{metric.name}/{part}"] = value
    return sums


def additive_scores(metrics: Iterable[Metric], sums: Mapping[str, Any]) -> dict[str, float]:
    """Returns the mean loss and the value of every additive metric, from sums of `batch_sums`."""
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
    """Returns the value of every collecting metric, NaN if an output is not finite."""
    collecting = [metric for metric in metrics if isinstance(metric, Collecting)]
    finite = not collecting or bool(np.isfinite(outputs).all())
    return {m.name: float(m.compute(outputs, batch)) if finite else np.nan for m in collecting}
