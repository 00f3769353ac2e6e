"""Any number of labels for each example."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax.errors import InputError
from dlflax.train import baselines, calibration, losses, metrics
from dlflax.train.tasks.task import (
    Asked,
    Description,
    Tested,
    check_outputs,
    described,
    names_of_outputs,
    predictions_of,
    targets_of,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """Any number of labels for each example: targets 0 or 1, (n, labels), outputs logits of the
    same shape. While training, a label is predicted where its probability is above a half; then
    above a threshold of its own, which gives the highest F1 on the validation data."""

    SCORES: ClassVar = {
        "macro_f1": "max", "micro_f1": "max", "mean_average_precision": "max", "accuracy": "max",
        "exact_match": "max", "loss": "min",
    }  # fmt: skip

    loss: losses.Loss = losses.BinaryCrossEntropy()
    monitor: str = "loss"
    """Validation score that decides the best epoch: loss, macro_f1, micro_f1, accuracy or
    exact_match."""

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
        return _counts((outputs > 0).astype(jnp.float32), targets.astype(jnp.float32), mask)

    def summary(self, sums) -> dict[str, float]:
        return {"loss": float(sums["loss"]) / max(float(sums["count"]), 1.0), **_scores(sums)}

    def mean_logits(self, logits, weights):
        return metrics.mean_of_sigmoid(logits, weights)

    def calibrate(self, targets, outputs, hparams) -> dict[str, Any]:
        """The thresholds, as logits."""
        enough = len(targets) >= calibration.FEWEST
        return {"thresholds": calibration.thresholds(targets, outputs)} if enough else {}

    def baselines(self, model, splits):
        return baselines.of_labels(splits)

    def describe(self, tested: Tested) -> Description:
        """Precision, recall, F1, average precision and the area under the ROC curve of each label,
        by the thresholds."""
        targets, names = tested.splits.test["targets"], tested.splits.class_names
        cuts = _thresholds(tested.calibration, len(names))
        predicted = np.float32(tested.outputs > cuts)
        sums = _counts(predicted, np.float32(targets), np.ones(len(targets), np.float32))
        table = metrics.per_class(*(sums[name] for name in ("hits", "support", "predicted")))
        average = metrics.average_precision(targets, tested.outputs)
        rows = {}
        for i, name in enumerate(names):
            rows[name] = {key: column[i].item() for key, column in table.items()}
            rows[name]["average_precision"] = average[i]
            rows[name]["roc_auc"] = metrics.roc_auc(targets[:, i], tested.outputs[:, i])
            rows[name]["threshold"] = float(jax.nn.sigmoid(cuts[i]))
        scores = _scores({**sums, "count": len(targets)})
        scores["mean_average_precision"] = metrics.mean_known(average)
        labels = [{"label": name, **row} for name, row in rows.items()]
        tables = {"labels": labels}
        if tested.splits.test_names is not None:
            probabilities = np.asarray(jax.nn.sigmoid(tested.outputs)).round(4).tolist()
            tables["probabilities"] = [
                {tested.splits.unit: str(each), **dict(zip(names, values, strict=True))}
                for each, values in zip(tested.splits.test_names, probabilities, strict=True)
            ]
        return Description({**scores, "per_class": rows}, tables=tables)

    def predictions(self, outputs, batch, data, calibration):
        """The probability of each label, and whether it is above the label's threshold."""
        cuts = np.float32(_thresholds(calibration, outputs.shape[-1]))
        return {"probabilities": jax.nn.sigmoid(outputs), "labels": outputs > cuts[None]}

    def answer(self, asked: Asked):
        probabilities, have = map(np.asarray, predictions_of(self, asked).values())
        names, answers = names_of_outputs(asked, probabilities.shape[1]), []
        for each, p, predicted in zip(asked.inputs, probabilities, have, strict=True):
            labels = [name for name, yes in zip(names, predicted, strict=True) if yes]
            every = {n: float(q) for n, q in zip(names, p, strict=True)}
            values = {asked.kind: each, "labels": labels, "probabilities": every}
            answers.append((f"{each}: {', '.join(labels) or 'no label'}", values))
        return answers


def _thresholds(calibrated, labels: int) -> np.ndarray:
    """float (labels,): logits above which a label is predicted."""
    found = calibrated.get("thresholds", [0.0] * labels)
    if len(found) != labels:
        raise InputError(
            f"calibration.json is damaged: it has {len(found)} thresholds for {labels} labels."
        )
    return np.array(found)


def _counts(predicted, targets, mask) -> dict[str, Any]:
    """What `_scores` needs: predicted, targets float (n, labels), 0 or 1; mask (n,)."""
    weight = mask[:, None]
    right = (predicted == targets) * weight
    return {
        "hits": (predicted * targets * weight).sum(0),
        "support": (targets * weight).sum(0),
        "predicted": (predicted * weight).sum(0),
        "right": right.mean(1).sum(),
        "exact": (right.min(1) * mask).sum(),
    }


def _scores(sums) -> dict[str, float]:
    count = max(float(sums["count"]), 1.0)
    counts = [np.asarray(sums[name], np.float64) for name in ("hits", "support", "predicted")]
    of_all = metrics.per_class(*(each.sum() for each in counts))
    return {
        "macro_f1": float(metrics.per_class(*counts)["f1"].mean()),
        "micro_f1": float(of_all["f1"]),
        "accuracy": float(sums["right"]) / count,
        "exact_match": float(sums["exact"]) / count,
    }
