"""Any number of labels for each example."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax.errors import InputError
from dlflax.train import baselines, losses, metrics
from dlflax.train.tasks.task import (
    Asked,
    Description,
    Tested,
    check_outputs,
    described,
    names_of_outputs,
    targets_of,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """Any number of labels for each example: targets 0 or 1, (n, labels), outputs logits of the
    same shape. A label is predicted where its probability is above a half."""

    SCORES: ClassVar = {"macro_f1": "max", "accuracy": "max", "exact_match": "max", "loss": "min"}

    loss: losses.Loss = losses.BinaryCrossEntropy()
    monitor: str = "loss"
    """Validation score that decides the best epoch: loss, macro_f1, accuracy or exact_match."""

    def check(self, splits, outputs) -> None:
        targets = targets_of(splits, "multilabel")
        if targets.ndim != 2 or not np.isin(targets, (0, 1)).all():
            raise InputError(
                "--task multilabel needs 0 or 1 for each label, (n, labels), as targets; these are "
                f"{described(targets)}: use another --task."
            )
        check_outputs(outputs, targets.shape[1:], f"{targets.shape[1]} labels")

    def model_fields(self, splits) -> dict[str, Any]:
        return {"num_outputs": targets_of(splits, "multilabel").shape[-1]}

    def targets(self, batch):
        return batch["targets"]

    def sums(self, outputs, targets, mask):
        predicted, targets = (outputs > 0).astype(jnp.float32), targets.astype(jnp.float32)
        weight = mask[:, None]
        right = (predicted == targets) * weight
        return {
            "hits": (predicted * targets * weight).sum(0),
            "support": (targets * weight).sum(0),
            "predicted": (predicted * weight).sum(0),
            "right": right.mean(1).sum(),
            "exact": (right.min(1) * mask).sum(),
        }

    def summary(self, sums) -> dict[str, float]:
        count = max(float(sums["count"]), 1.0)
        table = metrics.per_class(sums["hits"], sums["support"], sums["predicted"])
        return {
            "loss": float(sums["loss"]) / count,
            "macro_f1": float(table["f1"].mean()),
            "accuracy": float(sums["right"]) / count,
            "exact_match": float(sums["exact"]) / count,
        }

    def mean_logits(self, logits, weights):
        return metrics.mean_of_sigmoid(logits, weights)

    def baselines(self, model, splits):
        return baselines.of_labels(splits)

    def describe(self, tested: Tested) -> Description:
        """Precision, recall, F1 and the area under the ROC curve of each label."""
        targets, names = tested.splits.test["targets"], tested.splits.class_names
        counts = (tested.sums[name] for name in ("hits", "support", "predicted"))
        table = metrics.per_class(*counts)
        rows = {}
        for i, name in enumerate(names):
            rows[name] = {key: column[i].item() for key, column in table.items()}
            rows[name]["roc_auc"] = metrics.roc_auc(targets[:, i], tested.outputs[:, i])
        return Description(
            {"per_class": rows},
            tables={"labels": [{"label": name, **row} for name, row in rows.items()]},
        )

    def answer(self, asked: Asked):
        probabilities, answers = np.asarray(jax.nn.sigmoid(asked.outputs)), []
        names = names_of_outputs(asked, probabilities.shape[1])
        for each, p in zip(asked.inputs, probabilities, strict=True):
            labels = [name for name, q in zip(names, p, strict=True) if q > 0.5]
            every = {n: float(q) for n, q in zip(names, p, strict=True)}
            values = {asked.kind: each, "labels": labels, "probabilities": every}
            answers.append((f"{each}: {', '.join(labels) or 'no label'}", values))
        return answers
