"""Metrics as sums and counts, so that batches, devices and hosts add up exactly."""

import jax.numpy as jnp
import numpy as np


def predictions(outputs):
    """Classes from logits: (n, classes) -> int32 (n,); one logit, (n,) or (n, 1): 0 or 1."""
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return (outputs.reshape(outputs.shape[0]) > 0).astype(jnp.int32)
    return outputs.argmax(-1).astype(jnp.int32)


def confusion(outputs, targets, mask):
    """int32 (classes, classes), rows true, columns predicted; examples with mask 0 do not count."""
    k = max(2, outputs.shape[-1] if outputs.ndim > 1 else 1)
    counts = jnp.zeros((k, k), jnp.int32)
    return counts.at[targets, predictions(outputs)].add(mask.astype(jnp.int32))


def per_class(matrix) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support of each class from a confusion matrix (k, k). A class that
    is never predicted, or never occurs, scores 0, as scikit-learn's `zero_division=0`."""
    matrix = np.asarray(matrix, np.float64)
    hit, support, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    return {
        "precision": hit / np.maximum(predicted, 1),
        "recall": hit / np.maximum(support, 1),
        "f1": 2 * hit / np.maximum(support + predicted, 1),
        "support": support.astype(int),
    }


def roc_auc(targets, scores) -> float | None:
    """Area under the ROC curve: the share of pairs, one example of each class, whose scores are in
    the right order, ties half. targets int (n,), 0 or 1; scores float (n,), higher for class 1.
    None unless both classes occur."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(targets)) < 2:
        return None
    return float(roc_auc_score(targets, scores))


def summary(sums) -> dict[str, float]:
    """Means from sums: loss, mean absolute error of a regression and, where there are classes,
    accuracy and macro F1 (the plain mean of the classes' F1)."""
    count = max(float(sums["count"]), 1.0)
    row = {"loss": float(sums["loss"]) / count}
    if "absolute_error" in sums:
        row["mae"] = float(sums["absolute_error"]) / count
    if "correct" in sums:
        row["accuracy"] = float(sums["correct"]) / count
    if "confusion" in sums:
        row["macro_f1"] = float(per_class(sums["confusion"])["f1"].mean())
    return row
