"""One class of several for each example."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax.errors import InputError
from dlflax.models import explain
from dlflax.report import figures
from dlflax.train import baselines, calibration, importance, losses, metrics
from dlflax.train.batch import floats
from dlflax.train.tasks import task
from dlflax.train.tasks.task import Asked, Description, Task, Tested


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One class of several for each example: targets int (n,), outputs logits (n, classes)."""

    logits: ClassVar = True
    metrics: ClassVar = (
        metrics.Accuracy(), metrics.MacroF1(),
        metrics.MacroMean("macro_precision", score="precision"),
        metrics.MacroMean("macro_recall", score="recall"),
        metrics.ROCAUC(), metrics.AveragePrecision(),
    )  # fmt: skip

    loss: losses.Loss = losses.CrossEntropy()
    monitor: str = "loss"
    """Metric whose validation value decides the best epoch: loss, accuracy, macro_f1,
    macro_precision, macro_recall, roc_auc or average_precision."""

    def check_arrays(self, arrays, outputs) -> None:
        targets = task.targets_of(arrays, "classification")
        if targets.dtype.kind not in "iu" or targets.ndim != 1:
            raise InputError(
                f"--task classification needs class numbers, int (n,), as targets; these are "
                f"{task.described(targets)}: use another --task."
            )
        if len(shape := outputs().shape[1:]) > 1:
            raise InputError(
                f"--model: its outputs have shape {shape} for an example, but classification needs "
                "(classes,)."
            )
        classes = max(2, *shape, 0)  # one output is that of the second of two
        if not np.all((targets >= 0) & (targets < classes)):
            raise InputError(
                f"targets must be class numbers from 0 to {classes - 1}; these go from "
                f"{targets.min()} to {targets.max()}: count classes from 0, or give the model an "
                "output for each."
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
        return metrics.mean_of_softmax(outputs, weights)

    def example_weights(self, targets, classes: int) -> np.ndarray:
        """float32 (n,): scikit-learn's "balanced", n / (classes * examples of the own class)."""
        counts = np.bincount(targets, minlength=classes)
        return np.float32(len(targets) / (classes * np.maximum(counts, 1)))[targets]

    def calibrate(self, outputs, batch, hparams) -> dict[str, Any]:
        """Returns the temperature that calibrates the probabilities."""
        if len(outputs) < calibration.FEWEST:
            return {}
        return {"temperature": calibration.temperature(self.loss, hparams, outputs, batch)[0]}

    def baselines(self, model, splits):
        return baselines.of_classes(splits, self.model_fields(splits)["num_outputs"])

    def describe(self, tested: Tested) -> Description:
        """Returns the scores of each class, and the calibration error before and after `calibrate`;
        draws the confusion matrix, the most confident mistakes, and Grad-CAM of photographs."""
        splits, outputs = tested.splits, tested.outputs
        class_names, targets = splits.class_names, splits.test["targets"]
        table = metrics.per_class_of(outputs, targets)
        temperature = _temperature(tested.calibration)
        probabilities = class_probabilities(outputs / temperature)
        before = metrics.calibration(targets, class_probabilities(outputs))
        believed = metrics.calibration(targets, probabilities)
        scores: dict[str, Any] = {"calibration_error": believed["error"]}
        calibrated = {
            "temperature": temperature, "error_before": before["error"], "error": believed["error"]
        }  # fmt: skip
        scores["per_class"] = {
            name: {key: column[i].item() for key, column in table.items()}
            for i, name in enumerate(class_names)
        }
        predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
        wrong = np.flatnonzero(predicted != targets)
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]

        def matrix():
            most = len(class_names), figures.MAX_CLASSES
            counts, chosen = metrics.worst_confusion(predicted, targets, *most)
            title = f"{np.mean(predicted == targets):.2%} of {len(targets):,} right"
            if len(chosen) < len(class_names):
                title += f"; the {len(chosen)} most confused of {len(class_names):,} classes"
            return figures.confusion_matrix(counts, [class_names[i] for i in chosen], title)

        drawn = {"confusion_matrix": matrix, "reliability": lambda: figures.reliability(believed)}
        tables: dict[str, Any] = {}
        if len(class_names) > figures.MAX_CLASSES:  # what the picture leaves out
            tables["confusion"] = _confused(predicted, targets, class_names)
        if task.has_images(splits):
            drawn["wrong_predictions"] = lambda: figures.wrong_predictions(
                splits.test["inputs"], targets, predicted, confidence, class_names
            )
            drawn["grad_cam"] = lambda: _grad_cam(tested, wrong, predicted, confidence)
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
            p = class_probabilities(outputs / temperature)[np.arange(len(rows)), targets[rows]]
            return float(-np.log(np.maximum(p, 1e-9)).mean())

        description = Description(scores, {"calibration": calibrated}, tables, drawn)
        importance.add_to(description, tested, log_loss, "log loss")
        description.findings.extend(metrics.undone(outputs))
        return description

    def predictions(self, outputs, batch, target, calibration):
        """The probability of each class."""
        return {"probabilities": _probabilities(outputs / _temperature(calibration))}

    def answers(self, asked: Asked):
        probabilities, answers = np.asarray(asked.predictions["probabilities"]), []
        names = task.names_of_outputs(asked, probabilities.shape[1])
        for each, p in zip(asked.inputs, probabilities, strict=True):
            name, best = names[p.argmax()], float(p.max())
            every = {n: float(q) for n, q in zip(names, p, strict=True)}
            values = {asked.noun: each, "class": name, "probability": best, "probabilities": every}
            answers.append((f"{each}: {name} ({best:.1%})", values))
        return answers


def _temperature(calibrated) -> float:
    """1 where none was fitted. InputError for one that no run writes."""
    found = calibrated.get("temperature", 1.0)
    if not 0 < found < 1e6:
        raise InputError(f"calibration.json is damaged: a temperature of {found:g} is none.")
    return found


def _confused(predicted, targets, class_names):
    """Rows of the pairs of classes that were confused, the most frequent first."""
    wrong = predicted != targets
    pairs, counts = np.unique(
        np.stack([targets[wrong], predicted[wrong]], 1), axis=0, return_counts=True
    )
    return [
        {"true": class_names[t], "predicted": class_names[p], "count": int(counts[i])}
        for i in np.argsort(-counts, kind="stable") for t, p in (pairs[i],)
    ]  # fmt: skip


def class_probabilities(logits) -> np.ndarray:
    """float32 (n, classes) from logits (n, classes), or (n,) or (n, 1) of the second of two."""
    return np.asarray(_probabilities(np.asarray(logits)))


def _probabilities(logits):
    """The same, of NumPy or traced ones."""
    logits = logits.reshape(logits.shape[0], -1)
    if logits.shape[1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], 1)
    return jax.nn.softmax(logits)


def _grad_cam(tested, wrong, predicted, confidence):
    inputs, targets = tested.splits.test["inputs"], tested.splits.test["targets"]
    if min(inputs.shape[1:3]) < 32 or inputs.shape[3] != 3:
        return None  # too small to see where
    right = np.flatnonzero(predicted == targets)
    # from all over the test examples, which may be in the order of their classes
    right = right[len(right) * np.arange(4) // 4] if len(right) > 4 else right
    shown = np.concatenate([wrong[:4], right])
    images = inputs[shown]
    maps = explain.grad_cam(tested.recipe.model, tested.variables, floats(images))
    if maps is None:
        return None
    return figures.heatmaps(
        images, maps, targets[shown], predicted[shown], confidence[shown],
        tested.splits.class_names,
    )  # fmt: skip
