"""Multi-label classification: any number of labels per example."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax.baselines import reference_models
from dlflax.errors import InputError
from dlflax.models import calibration
from dlflax.train import losses, metrics
from dlflax.train.tasks import task
from dlflax.train.tasks.task import Asked, Description, Task, Tested


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels per example: targets 0 or 1, (n, labels), outputs logits (n, labels).
    During training, a label is predicted if its probability is above 0.5; after it, above the
    label's threshold of the highest F1 on the validation split."""

    logits: ClassVar = True
    metrics: ClassVar = (
        metrics.LabelF1("macro_f1"), metrics.LabelF1("micro_f1", average="micro"),
        metrics.MeanAveragePrecision(), metrics.LabelAccuracy("accuracy"),
        metrics.LabelAccuracy("exact_match", exact=True),
    )  # fmt: skip

    loss: losses.Loss = losses.BinaryCrossEntropy()
    monitor: str = "loss"
    """Metric whose validation value selects the best epoch: loss, macro_f1, micro_f1,
    mean_average_precision, accuracy or exact_match."""

    def check_arrays(self, arrays, outputs) -> None:
        targets = task.require_targets(arrays, "multilabel")
        if targets.ndim != 2 or not np.isin(targets, (0, 1)).all():
            task.reject_targets(targets, "multilabel", "0 or 1 for each label, (n, labels)")
        task.check_outputs(outputs, targets.shape[1:], f"{targets.shape[1]} labels")

    def model_fields(self, splits) -> dict[str, Any]:
        return {"num_outputs": task.require_targets(splits.train, "multilabel").shape[-1]}

    def mean(self, outputs, weights):
        return metrics.average_sigmoid(outputs, weights)

    def calibrate(self, outputs, batch, hparams) -> dict[str, Any]:
        """Returns the thresholds, as logits."""
        enough = len(outputs) >= calibration.MIN_EXAMPLES
        return {"thresholds": calibration.thresholds(batch["targets"], outputs)} if enough else {}

    def baselines(self, model, splits):
        return reference_models.multi_label(splits)

    def describe(self, tested: Tested) -> Description:
        """Returns the metrics at the thresholds, and precision, recall, F1, average precision and
        ROC AUC of each label."""
        targets, names = tested.splits.test["targets"], tested.splits.class_names
        thresholds = _thresholds(tested.calibration, len(names))
        predicted = tested.outputs > thresholds
        batch = {"targets": targets, "mask": np.ones(len(targets), np.float32)}
        signs = jnp.asarray(np.where(predicted, 1.0, -1.0))
        sums = metrics.batch_sums(self.metrics, signs, np.zeros(len(targets), np.float32), batch)
        scores: dict[str, Any] = metrics.additive_scores(self.metrics, sums)
        del scores["loss"]  # the loss of the logits is reported
        hits = predicted & (targets > 0)
        table = metrics.per_class(hits.sum(0), targets.sum(0), predicted.sum(0))
        average = metrics.average_precision(targets, tested.outputs)
        rows = {}
        for i, name in enumerate(names):
            rows[name] = {key: column[i].item() for key, column in table.items()}
            rows[name]["average_precision"] = average[i]
            rows[name]["roc_auc"] = metrics.roc_auc(targets[:, i], tested.outputs[:, i])
            rows[name]["threshold"] = float(jax.nn.sigmoid(thresholds[i]))
        tables = {"labels": [{"label": name, **row} for name, row in rows.items()]}
        if tested.splits.examples:
            noun = tested.splits.encoder.form.noun
            probabilities = np.asarray(jax.nn.sigmoid(tested.outputs)).tolist()
            tables["probabilities"] = [
                {noun: example, **dict(zip(names, values, strict=True))}
                for example, values in zip(tested.splits.names(), probabilities, strict=True)
            ]
        return Description({**scores, "per_class": rows}, tables=tables)

    def predictions(self, outputs, batch, target, calibration):
        """Returns the probability of each label, and True if it is above the label's threshold."""
        thresholds = np.float32(_thresholds(calibration, outputs.shape[-1]))
        return {"probabilities": jax.nn.sigmoid(outputs), "labels": outputs > thresholds[None]}

    def answers(self, asked: Asked):
        probabilities, predicted = map(np.asarray, asked.predictions.values())
        names, answers = task.output_names(asked, probabilities.shape[1]), []
        for source, p, mask in zip(asked.inputs, probabilities, predicted, strict=True):
            by_label = {n: float(q) for n, q in zip(names, p, strict=True)}
            labels = list(itertools.compress(names, mask))
            values = {asked.noun: source, "labels": labels, "probabilities": by_label}
            answers.append((f"{source}: {', '.join(labels) or 'no label'}", values))
        return answers


def _thresholds(calibration, labels: int) -> np.ndarray:
    """Returns the logit threshold of each label, 0 without calibration."""
    thresholds = calibration.get("thresholds", [0.0] * labels)
    if len(thresholds) != labels:
        raise InputError(
            f"calibration.json is damaged: it has {len(thresholds)} thresholds for {labels} labels."
        )
    return np.array(thresholds)
