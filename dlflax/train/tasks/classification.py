"""Classification: one class per example."""

import collections
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax.baselines import reference_models
from dlflax.errors import InputError
from dlflax.models import calibration, grad_cam
from dlflax.report import figures
from dlflax.train import importance, losses, metrics
from dlflax.train.batch import floats
from dlflax.train.tasks import task
from dlflax.train.tasks.task import Asked, Description, Task, Tested


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One class per example: targets int (n,), outputs logits (n, classes)."""

    logits: ClassVar = True

    loss: losses.Loss = losses.CrossEntropy()
    monitor: str = "loss"
    """Metric whose validation value selects the best epoch: loss, calibrated_loss, accuracy,
    macro_f1, macro_precision, macro_recall, roc_auc or average_precision."""

    @property
    def metrics(self):
        calibrated = (metrics.CalibratedLoss(),) * (self.monitor == "calibrated_loss")
        return (
            metrics.Accuracy(), metrics.MacroF1(),
            metrics.MacroMean("macro_precision", score="precision"),
            metrics.MacroMean("macro_recall", score="recall"),
            metrics.ROCAUC(), metrics.AveragePrecision(), *calibrated,
        )  # fmt: skip

    def check_arrays(self, arrays, outputs) -> None:
        targets = task.require_targets(arrays, "classification")
        if targets.dtype.kind not in "iu" or targets.ndim != 1:
            task.reject_targets(targets, "classification", "class numbers, int (n,)")
        if len(shape := outputs().shape[1:]) > 1:
            raise InputError(
                f"--model: its outputs have shape {shape} for an example, but classification needs "
                "(classes,)."
            )
        classes = max(2, *shape, 0)  # a single output is the logit of the second of two classes
        if not np.all((targets >= 0) & (targets < classes)):
            raise InputError(
                f"targets must be class numbers from 0 to {classes - 1}; these range from "
                f"{targets.min()} to {targets.max()}: count classes from 0, or give the model one "
                "output per class."
            )

    def check(self, splits, outputs) -> None:
        if (classes := len(splits.class_names)) < 2:
            raise InputError("--task classification needs two classes or more.")
        others = ((), (1,)) if classes == 2 else ()
        task.check_outputs(outputs, (classes,), f"{classes} classes", *others)

    def model_fields(self, splits) -> dict[str, Any]:
        classes = len(splits.class_names)
        binary = isinstance(self.loss, losses.BinaryCrossEntropy)
        return {"num_outputs": 1 if binary and classes == 2 else classes}

    def mean(self, outputs, weights):
        return metrics.average_softmax(outputs, weights)

    def example_weights(self, targets, classes: int) -> np.ndarray:
        """Returns scikit-learn's "balanced" weights, n / (classes * examples of the class)."""
        counts = np.bincount(targets, minlength=classes)
        return np.float32(len(targets) / (classes * np.maximum(counts, 1)))[targets]

    def calibrate(self, outputs, batch, hparams) -> dict[str, Any]:
        """Returns the temperature that calibrates the probabilities."""
        if len(outputs) < calibration.MIN_EXAMPLES:
            return {}
        return {"temperature": calibration.temperature(self.loss, hparams, outputs, batch)[0]}

    def baselines(self, model, splits):
        return reference_models.classification(splits, self.model_fields(splits)["num_outputs"])

    def describe(self, tested: Tested) -> Description:
        """Returns scores per class, the calibration error before and after `calibrate`, confusion
        matrix, most confident errors, and Grad-CAM of photographs."""
        splits, outputs = tested.splits, tested.outputs
        class_names, targets = splits.class_names, splits.test["targets"]
        table = metrics.per_class_from_logits(outputs, targets)
        temperature = _temperature(tested.calibration)
        probabilities = np.asarray(class_probabilities(outputs / temperature))
        before = metrics.calibration(targets, class_probabilities(outputs))
        after = metrics.calibration(targets, probabilities)
        errors = {"error_before": before["error"], "error": after["error"]}
        rows = {name: {key: column[i].item() for key, column in table.items()}
                for i, name in enumerate(class_names)}  # fmt: skip
        scores = {"calibration_error": after["error"], "per_class": rows}
        predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
        wrong = np.flatnonzero(predicted != targets)
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]

        def matrix():
            counts, worst = metrics.worst_confusion(
                predicted, targets, len(class_names), figures.MAX_CLASSES
            )
            title = f"{np.mean(predicted == targets):.2%} of {len(targets):,} right"
            if len(worst) < len(class_names):
                title += f"; the {len(worst)} most confused of {len(class_names):,} classes"
            return figures.confusion_matrix(counts, [class_names[i] for i in worst], title)

        plots = {"confusion_matrix": matrix, "reliability": lambda: figures.reliability(after)}
        tables: dict[str, Any] = {}
        if len(class_names) > figures.MAX_CLASSES:  # the figure drops the others
            tables["confusion"] = _confusion_pairs(predicted, targets, class_names)
        if task.has_images(splits):
            plots["wrong_predictions"] = lambda: figures.wrong_predictions(
                splits.test["inputs"], targets, predicted, confidence, class_names
            )
            plots["grad_cam"] = lambda: _grad_cam(tested, wrong, predicted, confidence)
        if splits.examples:
            names = splits.names()
            tables["wrong_predictions"] = [
                {
                    splits.encoder.form.noun: names[i],
                    "true": class_names[targets[i]],
                    "predicted": class_names[predicted[i]],
                    "probability": float(confidence[i]),
                }
                for i in wrong
            ]

        def log_loss(outputs, rows):
            p = np.asarray(class_probabilities(outputs / temperature))
            p = p[np.arange(len(rows)), targets[rows]]
            return float(-np.log(np.maximum(p, 1e-9)).mean())

        results = {"calibration": {"temperature": temperature, **errors}}
        description = Description(scores, results, tables, plots)
        importance.add_to(description, tested, log_loss, "log loss")
        description.findings.extend(metrics.subset_findings(outputs))
        return description

    def predictions(self, outputs, batch, target, calibration):
        """Returns the probability of each class."""
        return {"probabilities": class_probabilities(outputs / _temperature(calibration))}

    def answers(self, asked: Asked):
        probabilities, answers = np.asarray(asked.predictions["probabilities"]), []
        names = task.output_names(asked, probabilities.shape[1])
        for source, p in zip(asked.inputs, probabilities, strict=True):
            name, best = names[p.argmax()], float(p.max())
            by_class = {n: float(q) for n, q in zip(names, p, strict=True)}
            values = {
                asked.noun: source, "class": name, "probability": best, "probabilities": by_class
            }  # fmt: skip
            answers.append((f"{source}: {name} ({best:.1%})", values))
        return answers


def _temperature(calibration) -> float:
    """Returns the temperature, 1 without calibration. Raises InputError if it is out of range."""
    value = calibration.get("temperature", 1.0)
    if not 0 < value < 1e6:
        raise InputError(
            f"calibration.json is damaged: the temperature {value:g} must be above 0 and below 1e6."
        )
    return value


def _confusion_pairs(predicted, targets, class_names):
    """Returns a row per pair of confused classes, the most frequent first."""
    wrong = predicted != targets
    pairs = collections.Counter(
        zip(targets[wrong].tolist(), predicted[wrong].tolist(), strict=True)
    )
    return [
        {"true": class_names[t], "predicted": class_names[p], "count": count}
        for (t, p), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    ]


def class_probabilities(logits) -> jax.Array:
    """Returns float32 (n, classes) of logits (n, classes), or of (n,) or (n, 1) of the second of
    two classes. NumPy or traced."""
    logits = logits.reshape(logits.shape[0], -1)
    if logits.shape[1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], 1)
    return jax.nn.softmax(logits)


def _grad_cam(tested, wrong, predicted, confidence):
    inputs, targets = tested.splits.test["inputs"], tested.splits.test["targets"]
    if min(inputs.shape[1:3]) < 32 or inputs.shape[3] != 3:
        return None  # too small for heatmaps
    right = np.flatnonzero(predicted == targets)
    # spread over the test split, which may be sorted by class
    right = right[len(right) * np.arange(4) // 4] if len(right) > 4 else right
    rows = np.concatenate([wrong[:4], right])
    images = inputs[rows]
    maps = grad_cam.grad_cam(tested.recipe.model, tested.variables, floats(images))
    if maps is None:
        return None
    columns = (column[rows] for column in (targets, predicted, confidence))
    return figures.heatmaps(images, maps, *columns, tested.splits.class_names)
