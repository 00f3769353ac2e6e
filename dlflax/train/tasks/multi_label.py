"""Any number of labels for each example."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax.errors import InputError
from dlflax.train import baselines, calibration, losses, metrics
from dlflax.train.tasks import task
from dlflax.train.tasks.task import Asked, Description, Task, Tested


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels for each example: targets 0 or 1, (n, labels), outputs logits of the
    same shape. While training, a label is predicted where its probability is above a half; then
    above a threshold of its own, which gives the highest F1 on the validation data."""

    logits: ClassVar = True
    metrics: ClassVar = (
        metrics.LabelF1("macro_f1"), metrics.LabelF1("micro_f1", average="micro"),
        metrics.MeanAveragePrecision(), metrics.LabelAccuracy("accuracy"),
        metrics.LabelAccuracy("exact_match", exact=True),
    )  # fmt: skip

    loss: losses.Loss = losses.BinaryCrossEntropy()
    monitor: str = "loss"
    """Metric whose validation value decides the best epoch: loss, macro_f1, micro_f1,
    mean_average_precision, accuracy or exact_match."""

    def check_arrays(self, arrays, outputs) -> None:
        targets = task.targets_of(arrays, "multilabel")
        if targets.ndim != 2 or not np.isin(targets, (0, 1)).all():
            raise InputError(
                "--task multilabel needs 0 or 1 for each label, (n, labels), as targets; these are "
                f"{task.described(targets)}: use another --task."
            )
        task.check_outputs(outputs, targets.shape[1:], f"{targets.shape[1]} labels")

    def model_fields(self, splits) -> dict[str, Any]:
        return {"num_outputs": task.targets_of(splits.train, "multilabel").shape[-1]}

    def mean(self, outputs, weights):
        return metrics.average_sigmoid(outputs, weights)

    def calibrate(self, outputs, batch, hparams) -> dict[str, Any]:
        """Returns the thresholds, as logits."""
        enough = len(outputs) >= calibration.MIN_EXAMPLES
        return {"thresholds": calibration.thresholds(batch["targets"], outputs)} if enough else {}

    def baselines(self, model, splits):
        return baselines.of_labels(splits)

    def describe(self, tested: Tested) -> Description:
        """Returns the metrics by the thresholds, and precision, recall, F1, average precision and
        the area under the ROC curve of each label."""
        targets, names = tested.splits.test["targets"], tested.splits.class_names
        cuts = _thresholds(tested.calibration, len(names))
        batch = {"targets": targets, "mask": np.ones(len(targets), np.float32)}
        above = jnp.asarray(np.where(tested.outputs > cuts, 1.0, -1.0))
        sums = metrics.batch_sums(self.metrics, above, np.zeros(len(targets), np.float32), batch)
        scores: dict[str, Any] = metrics.additive_scores(self.metrics, sums)
        del scores["loss"]  # that of the logits counts
        predicted = tested.outputs > cuts
        counts = (predicted & (targets > 0), targets, predicted)
        table = metrics.per_class(*(each.sum(0) for each in counts))
        average = metrics.average_precision(targets, tested.outputs)
        rows = {}
        for i, name in enumerate(names):
            rows[name] = {key: column[i].item() for key, column in table.items()}
            rows[name]["average_precision"] = average[i]
            rows[name]["roc_auc"] = metrics.roc_auc(targets[:, i], tested.outputs[:, i])
            rows[name]["threshold"] = float(jax.nn.sigmoid(cuts[i]))
        labels = [{"label": name, **row} for name, row in rows.items()]
        tables = {"labels": labels}
        if tested.splits.examples:
            probabilities = np.asarray(jax.nn.sigmoid(tested.outputs)).tolist()
            tables["probabilities"] = [
                {tested.splits.encoder.form.noun: each, **dict(zip(names, values, strict=True))}
                for each, values in zip(tested.splits.names(), probabilities, strict=True)
            ]
        return Description({**scores, "per_class": rows}, tables=tables)

    def predictions(self, outputs, batch, target, calibration):
        """The probability of each label, and whether it is above the label's threshold."""
        cuts = np.float32(_thresholds(calibration, outputs.shape[-1]))
        return {"probabilities": jax.nn.sigmoid(outputs), "labels": outputs > cuts[None]}

    def answers(self, asked: Asked):
        probabilities, have = map(np.asarray, asked.predictions.values())
        names, answers = task.names_of_outputs(asked, probabilities.shape[1]), []
        for each, p, predicted in zip(asked.inputs, probabilities, have, strict=True):
            labels = [name for name, yes in zip(names, predicted, strict=True) if yes]
            every = {n: float(q) for n, q in zip(names, p, strict=True)}
            values = {asked.noun: each, "labels": labels, "probabilities": every}
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
