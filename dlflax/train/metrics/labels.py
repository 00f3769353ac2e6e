"""Metrics of multi-label classification."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from dlflax.train.metrics.classes import average_precision, per_class
from dlflax.train.metrics.metric import Additive, Collecting


@dataclasses.dataclass(frozen=True)
class LabelMetric(Additive):
    """Base of label metrics: a label is predicted if its logit is above 0. targets: 0 or 1,
    (n, labels); outputs: logits (n, labels)."""

    def labels(self, outputs, batch):
        """Returns (predicted, targets, mask (n, 1)), float32 0 or 1, all 0 for padding."""
        mask = (batch["mask"] > 0)[:, None]
        predicted = jnp.where(mask, outputs > 0, False).astype(jnp.float32)
        return predicted, jnp.where(mask, batch["targets"], 0).astype(jnp.float32), mask


@dataclasses.dataclass(frozen=True)
class LabelF1(LabelMetric):
    """F1 of labels: macro, averaged over the labels, or micro, of all labels pooled."""

    average: Literal["macro", "micro"] = "macro"

    def update(self, outputs, batch):
        predicted, targets, _ = self.labels(outputs, batch)
        counts = {"hits": predicted * targets, "support": targets, "predicted": predicted}
        axis = 0 if self.average == "macro" else None
        return {name: count.sum(axis) for name, count in counts.items()}

    def compute(self, sums):
        return per_class(sums["hits"], sums["support"], sums["predicted"])["f1"].mean()


@dataclasses.dataclass(frozen=True)
class LabelAccuracy(LabelMetric):
    """Share of correct labels; exact: of examples whose labels are all correct."""

    exact: bool = False

    def update(self, outputs, batch):
        predicted, targets, mask = self.labels(outputs, batch)
        right = ((predicted == targets) & mask).astype(jnp.float32)
        return {"right": (right.min(1) if self.exact else right.mean(1)).sum()}

    def compute(self, sums):
        return sums["right"] / sums["count"]


@dataclasses.dataclass(frozen=True)
class MeanAveragePrecision(Collecting):
    """Mean `average_precision` over the labels that occur."""

    name: str = "mean_average_precision"

    def compute(self, outputs, batch):
        values = average_precision(batch["targets"], outputs)
        values = [value for value in values if value is not None]
        return float(np.mean(values)) if values else 0.0
