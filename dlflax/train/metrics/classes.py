"""Metrics of one class of several, as scikit-learn's, without its import, which takes a second."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped

from dlflax.shapes import AnyArray
from dlflax.train.metrics.metric import Additive, Collecting

Logits = Float[AnyArray, " n"] | Float[AnyArray, "n classes"]
MAX_SCORES = 10**7  # examples x classes of which curves are computed, the examples drawn


@dataclasses.dataclass(frozen=True)
class Accuracy(Additive):
    """The share of examples whose class is predicted. targets int (n,), outputs as `predictions`
    takes them."""

    name: str = "accuracy"

    def update(self, outputs, batch):
        right = predictions(outputs) == batch["targets"]
        return {"right": jnp.sum(jnp.where(batch["mask"] > 0, right, False), dtype=jnp.float32)}

    def compute(self, sums):
        return sums["right"] / sums["count"]


@dataclasses.dataclass(frozen=True)
class MacroF1(Additive):
    """The mean F1 of the classes that occur in truth or prediction (scikit-learn's macro average).
    targets int (n,), outputs as `predictions` takes them."""

    name: str = "macro_f1"

    def update(self, outputs, batch):
        classes = max(2, outputs.shape[-1] if outputs.ndim > 1 else 1)
        counts = class_counts(predictions(outputs), batch["targets"], batch["mask"], classes)
        return dict(zip(("hits", "support", "predicted"), counts, strict=True))

    def compute(self, sums):
        return macro(per_class(sums["hits"], sums["support"], sums["predicted"]), "f1")


@dataclasses.dataclass(frozen=True)
class MacroMean(Collecting):
    """The mean precision or recall of the classes, as `MacroF1`."""

    score: Literal["precision", "recall"] = "precision"

    def compute(self, outputs, batch):
        return macro(per_class_from_logits(outputs, batch["targets"]), self.score)


@dataclasses.dataclass(frozen=True)
class ROCAUC(Collecting):
    """Area under the ROC curve (scikit-learn's). Two classes are ranked by the difference of their
    logits; of more, each is ranked against the rest by its probability, and the mean taken.
    targets int (n,)."""

    name: str = "roc_auc"

    def compute(self, outputs, batch):
        pairs = one_vs_rest(outputs, batch["targets"])
        return mean_or_nan([roc_auc(truth, score) for truth, score in pairs])


@dataclasses.dataclass(frozen=True)
class AveragePrecision(Collecting):
    """Mean precision over the recalls (scikit-learn's): of two classes that of the second, of more
    the mean over each against the rest. targets int (n,)."""

    name: str = "average_precision"

    def compute(self, outputs, batch):
        pairs = one_vs_rest(outputs, batch["targets"])
        return mean_or_nan([average_precision(t[:, None], score[:, None])[0] for t, score in pairs])


def one_vs_rest(
    outputs: Logits, targets: Int[np.ndarray, " n"]
) -> list[tuple[Bool[np.ndarray, " m"], Float[np.ndarray, " m"]]]:
    """Returns (truth, score) for the second of two classes, or for each of more. The
    score is higher for the class. outputs: logits as `predictions` takes them; where they are more
    than MAX_SCORES numbers, of a part of the examples."""
    part = _examples(outputs)
    outputs, targets = outputs[part], targets[part]
    logits = np.float64(outputs).reshape(len(outputs), -1)
    if logits.shape[1] <= 2:
        # the logits, not the probabilities, of which many are 1 to the last bit
        return [(targets == 1, logits[:, -1] - logits[:, 0] * (logits.shape[1] > 1))]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return [(targets == k, p[:, k]) for k in range(p.shape[1])]


def _examples(outputs) -> Int[np.ndarray, " m"]:
    """Indices of the examples whose outputs are at most MAX_SCORES numbers."""
    n = len(outputs)
    few = max(2, MAX_SCORES * n // max(np.size(outputs), 1))
    return np.arange(n) if few >= n else np.sort(np.random.default_rng(0).permutation(n)[:few])


def subset_findings(outputs: Logits) -> list[str]:
    """Returns a sentence on the part of the examples that `one_vs_rest` is of."""
    few, n = len(_examples(outputs)), len(outputs)
    return [f"roc_auc and average_precision are of {few:,} of {n:,} test examples."] * (few < n)


def per_class_from_logits(
    outputs: Logits, targets: Int[np.ndarray, " n"]
) -> dict[str, Real[np.ndarray | np.generic, "*k"]]:
    """Returns `per_class` of logits outputs, as `predictions` takes them."""
    classes = max(2, outputs.shape[-1] if np.ndim(outputs) > 1 else 1)
    predicted = np.asarray(predictions(jnp.asarray(outputs)))
    known = targets[targets >= 0]  # others are of classes that the model does not have
    counts = (targets[predicted == targets], known, predicted)
    return per_class(*(np.bincount(each, minlength=classes) for each in counts))


def predictions(outputs: Logits) -> Int[AnyArray, " n"]:
    """Classes from logits, int32; of one logit 0 or 1."""
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return (outputs.reshape(outputs.shape[0]) > 0).astype(jnp.int32)
    return outputs.argmax(-1).astype(jnp.int32)


def class_counts(
    predicted: Int[AnyArray, " n *d"],
    targets: Int[AnyArray, " n *d"],
    mask: Float[AnyArray, " n"],
    classes: int,
) -> tuple[Float[AnyArray, " {classes}"], ...]:
    """(hits, support, predicted), as `per_class` takes them. mask: 0 for examples that do not
    count."""
    weight = jnp.broadcast_to(mask.reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)[..., None]
    truth, guess = (jax.nn.one_hot(each, classes) * weight for each in (targets, predicted))
    axes = tuple(range(targets.ndim))
    return (truth * guess).sum(axes), truth.sum(axes), guess.sum(axes)


def confusion(
    predicted: Int[AnyArray, " n"], targets: Int[AnyArray, " n"], classes: int
) -> Int[np.ndarray, "{classes} {classes}"]:
    """Counts of examples, rows true, columns predicted."""
    flat = np.bincount(np.asarray(targets) * classes + np.asarray(predicted), minlength=classes**2)
    return flat.reshape(classes, classes)


def worst_confusion(
    predicted: Int[np.ndarray, " n"], targets: Int[np.ndarray, " n"], classes: int, most: int
) -> tuple[Int[np.ndarray, "k k"], Int[np.ndarray, " k"]]:
    """Returns `confusion` of the `most` classes that have most errors, and which these are, in
    their order: all of them where there are no more. Takes the memory of these alone."""
    wrong = targets != predicted
    errors = sum(np.bincount(y[wrong], minlength=classes) for y in (targets, predicted))
    chosen = np.sort(np.argsort(-errors, kind="stable")[:most])
    number = np.full(classes, -1)
    number[chosen] = np.arange(len(chosen))
    truth, guess = number[targets], number[predicted]
    both = (truth >= 0) & (guess >= 0)
    return confusion(guess[both], truth[both], len(chosen)), chosen


def per_class(
    hits: Real[AnyArray, "*k"], support: Real[AnyArray, "*k"], predicted: Real[AnyArray, "*k"]
) -> dict[str, Real[np.ndarray | np.generic, "*k"]]:
    """Precision, recall, F1, support and predictions of each class from counts:
    examples of the class that were predicted so, all examples of it, all predictions of it. A class
    that is never predicted, or never occurs, scores 0, as scikit-learn's `zero_division=0`."""
    hits, support, predicted = (np.asarray(each, np.float64) for each in (hits, support, predicted))
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
        "support": support.astype(int),
        "predicted": predicted.astype(int),
    }


def macro(table: dict[str, np.ndarray], score: str) -> float:
    """The mean of a column of `per_class` over the classes that occur, in truth or prediction, as
    scikit-learn's macro average; 0 without any."""
    occurs = (table["support"] > 0) | (table["predicted"] > 0)
    return float(table[score][occurs].mean()) if occurs.any() else 0.0


def average_softmax(
    logits: Float[AnyArray, " models *n"], weights: Float[AnyArray, " models"]
) -> Float[AnyArray, "*n"]:
    """The logits of the mean probabilities of several models, of (n, classes) each. The weights add
    up to 1. One logit, (models, n) or (models, n, 1), as `average_sigmoid`."""
    if logits.ndim == 2 or logits.shape[-1] == 1:
        return average_sigmoid(logits, weights)
    log_p = jax.nn.log_softmax(logits) + _log_weights(logits, weights)
    return jax.nn.logsumexp(log_p, axis=0)


def average_sigmoid(
    logits: Float[AnyArray, " models *n"], weights: Float[AnyArray, " models"]
) -> Float[AnyArray, "*n"]:
    """The logits of the mean probabilities of several models. The weights add up to 1."""
    log_weights = _log_weights(logits, weights)
    of_one, of_zero = (
        jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits) + log_weights, axis=0)
        for sign in (1, -1)
    )
    return of_one - of_zero


def _log_weights(logits, weights):
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.log(weights).reshape(-1, *[1] * (logits.ndim - 1))


def calibration(
    targets: Int[AnyArray, " n"], probabilities: Float[AnyArray, "n classes"], bins: int = 15
) -> dict[str, Real[np.ndarray, " {bins}"] | float]:
    """Returns the calibration of the predicted classes' probabilities, in `bins` equal intervals of
    the highest probability.

    Its keys: `count`, `confidence` (mean probability) and `accuracy`, 0 where a bin
    is empty; and `error`, the expected calibration error: the mean difference of the two, by count
    (Guo et al. 2017, section 2).
    """
    confidence = np.asarray(probabilities, np.float64).max(1)
    right = np.asarray(probabilities).argmax(1) == targets
    at = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as Guo
    count = np.bincount(at, minlength=bins)
    of = {"confidence": confidence, "accuracy": right.astype(np.float64)}
    table = {
        name: np.bincount(at, each, minlength=bins) / np.maximum(count, 1)
        for name, each in of.items()
    }
    gap = np.abs(table["confidence"] - table["accuracy"])
    return {"count": count, **table, "error": float((gap * count).sum() / max(count.sum(), 1))}


def roc_auc(targets: Shaped[AnyArray, " n"], scores: Float[AnyArray, " n"]) -> float | None:
    """Returns the area under the ROC curve: the share of pairs, one example of each class, whose
    scores are in the right order, ties half. Targets are 0 or 1; scores higher for class 1. None
    unless both classes occur."""
    truth = np.asarray(targets, bool)
    positive, negative = truth.sum(), (~truth).sum()
    if not positive or not negative:
        return None
    _, at, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[at]  # from 1, the mean of those that are equal
    return float((ranks[truth].sum() / positive - (positive + 1) / 2) / negative)


def average_precision(
    targets: Shaped[AnyArray, "n labels"], scores: Float[AnyArray, "n labels"]
) -> list[float | None]:
    """Returns for each label the mean precision over the recalls; targets are 0 or 1.
    None for a label that does not occur."""
    pairs = zip(np.asarray(targets, bool).T, np.asarray(scores).T, strict=True)
    return [_average_precision(truth, score) if truth.any() else None for truth, score in pairs]


def _average_precision(truth, scores) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each different score
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def mean_or_nan(values: list[float | None]) -> float:
    """Returns the mean, NaN where one is None."""
    return float("nan") if None in values else float(np.mean(values))


def mean_without_none(values: list[float | None]) -> float:
    """The mean of those that are not None; 0 without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0
