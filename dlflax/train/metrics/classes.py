"""Metrics of classification, equal to scikit-learn's, without its import, which takes a second."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped

from dlflax.shapes import AnyArray
from dlflax.train.metrics.metric import Additive, Collecting

Logits = Float[AnyArray, " n"] | Float[AnyArray, "n classes"]
MAX_SCORES = 10**7  # examples x classes of a curve; above it, examples are sampled

NEWTON_STEPS = 8  # of the temperature


@dataclasses.dataclass(frozen=True)
class Accuracy(Additive):
    """Share of examples whose class is predicted. targets: int (n,); outputs: as `predictions`
    takes them."""

    name: str = "accuracy"

    def update(self, outputs, batch):
        right = predictions(outputs) == batch["targets"]
        return {"right": jnp.sum(jnp.where(batch["mask"] > 0, right, False), dtype=jnp.float32)}

    def compute(self, sums):
        return sums["right"] / sums["count"]


@dataclasses.dataclass(frozen=True)
class MacroF1(Additive):
    """Mean F1 of the classes that occur in targets or predictions (scikit-learn's macro average).
    targets: int (n,); outputs: as `predictions` takes them."""

    name: str = "macro_f1"

    def update(self, outputs, batch):
        classes = max(2, outputs.shape[-1] if outputs.ndim > 1 else 1)
        counts = class_counts(predictions(outputs), batch["targets"], batch["mask"], classes)
        return dict(zip(("hits", "support", "predicted"), counts, strict=True))

    def compute(self, sums):
        return macro_average(per_class(sums["hits"], sums["support"], sums["predicted"]), "f1")


@dataclasses.dataclass(frozen=True)
class MacroMean(Collecting):
    """Mean precision or recall of the classes, as `MacroF1`."""

    score: Literal["precision", "recall"] = "precision"

    def compute(self, outputs, batch):
        return macro_average(per_class_from_logits(outputs, batch["targets"]), self.score)


@dataclasses.dataclass(frozen=True)
class ROCAUC(Collecting):
    """Area under the ROC curve (scikit-learn's): for two classes by the difference of their logits,
    for more the mean over one-vs-rest by probability. targets: int (n,)."""

    name: str = "roc_auc"

    def compute(self, outputs, batch):
        values = [roc_auc(*pair) for pair in one_vs_rest(outputs, batch["targets"])]
        return float(np.mean(np.array(values, float)))  # None is NaN


@dataclasses.dataclass(frozen=True)
class AveragePrecision(Collecting):
    """Mean precision over the recalls (scikit-learn's): for two classes that of the second, for
    more the mean over one-vs-rest. targets: int (n,)."""

    name: str = "average_precision"

    def compute(self, outputs, batch):
        pairs = one_vs_rest(outputs, batch["targets"])
        values = [average_precision(t[:, None], score[:, None])[0] for t, score in pairs]
        return float(np.mean(np.array(values, float)))  # None is NaN


def one_vs_rest(
    outputs: Logits, targets: Int[np.ndarray, " n"]
) -> list[tuple[Bool[np.ndarray, " m"], Float[np.ndarray, " m"]]]:
    """Returns (truth, score) of the second of two classes, or of each of more, for a sample of at
    most MAX_SCORES outputs. outputs: logits as `predictions` takes them."""
    rows = _sample(outputs)
    outputs, targets = outputs[rows], targets[rows]
    logits = np.float64(outputs).reshape(len(outputs), -1)
    if logits.shape[1] <= 2:
        # logits, because many probabilities would round to 1
        return [(targets == 1, logits[:, -1] - logits[:, 0] * (logits.shape[1] > 1))]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return [(targets == k, p[:, k]) for k in range(p.shape[1])]


def _sample(outputs) -> Int[np.ndarray, " m"]:
    """Returns the indices of a sample of examples with at most MAX_SCORES outputs."""
    n = len(outputs)
    size = max(2, MAX_SCORES * n // max(np.size(outputs), 1))
    return np.arange(n) if size >= n else np.sort(np.random.default_rng(0).permutation(n)[:size])


def subset_findings(outputs: Logits) -> list[str]:
    """Returns a finding if `one_vs_rest` samples the examples."""
    size, n = len(_sample(outputs)), len(outputs)
    sentence = f"roc_auc and average_precision are of {size:,} of {n:,} test examples."
    return [sentence] if size < n else []


def per_class_from_logits(
    outputs: Logits, targets: Int[np.ndarray, " n"]
) -> dict[str, Real[np.ndarray | np.generic, "*k"]]:
    """Returns `per_class` of outputs: logits as `predictions` takes them."""
    classes = max(2, outputs.shape[-1] if np.ndim(outputs) > 1 else 1)
    predicted = np.asarray(predictions(jnp.asarray(outputs)))
    support = targets[targets >= 0]  # negative: classes that the model lacks
    groups = (targets[predicted == targets], support, predicted)
    return per_class(*(np.bincount(group, minlength=classes) for group in groups))


def predictions(outputs: Logits) -> Int[AnyArray, " n"]:
    """Returns classes, int32, of logits (n, classes), or of (n,) or (n, 1) of the second of two."""
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return (outputs.reshape(outputs.shape[0]) > 0).astype(jnp.int32)
    return outputs.argmax(-1).astype(jnp.int32)


def class_counts(
    predicted: Int[AnyArray, " n *d"], targets: Int[AnyArray, " n *d"],
    mask: Float[AnyArray, " n"], classes: int,
) -> tuple[Float[AnyArray, " {classes}"], ...]:  # fmt: skip
    """Returns (hits, support, predicted), as `per_class` takes them. mask: 0 for padding."""
    weight = jnp.broadcast_to(mask.reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)[..., None]
    truth, guess = (jax.nn.one_hot(y, classes) * weight for y in (targets, predicted))
    axes = tuple(range(targets.ndim))
    return (truth * guess).sum(axes), truth.sum(axes), guess.sum(axes)


def confusion(
    predicted: Int[AnyArray, " n"], targets: Int[AnyArray, " n"], classes: int
) -> Int[np.ndarray, "{classes} {classes}"]:
    """Returns the confusion matrix: counts of examples, rows true, columns predicted."""
    flat = np.bincount(np.asarray(targets) * classes + np.asarray(predicted), minlength=classes**2)
    return flat.reshape(classes, classes)


@dataclasses.dataclass(frozen=True)
class CalibratedLoss(Collecting):
    """Mean cross-entropy at the temperature with the lowest one (Guo et al. 2017): overconfidence,
    which a temperature removes after training, does not count."""

    name: str = "calibrated_loss"
    direction: Literal["min", "max"] = "min"

    def compute(self, outputs, batch):
        logits = np.float64(outputs).reshape(len(outputs), -1)
        if logits.shape[1] == 1:  # of the second of two classes
            logits = np.concatenate([np.zeros_like(logits), logits], 1)
        truth = logits[np.arange(len(logits)), batch["targets"].reshape(-1)]
        scale, loss = 1.0, np.inf
        for _ in range(NEWTON_STEPS):  # the loss is convex in the scale, 1 / temperature
            scaled = scale * (logits - logits.max(1, keepdims=True))
            p = np.exp(scaled)
            sums = p.sum(1, keepdims=True)
            loss = min(loss, np.mean(np.log(sums[:, 0]) + scale * (logits.max(1) - truth)))
            p /= sums
            mean = (p * logits).sum(1)
            slope = np.mean(mean - truth)
            curvature = np.mean((p * logits**2).sum(1) - mean**2)
            step = slope / max(curvature, 1e-12)
            scale = float(np.clip(scale - step, scale / 4, scale * 4))
        return float(loss)


def worst_confusion(
    predicted: Int[np.ndarray, " n"], targets: Int[np.ndarray, " n"], classes: int, most: int
) -> tuple[Int[np.ndarray, "k k"], Int[np.ndarray, " k"]]:
    """Returns (`confusion` of the `most` classes with the most errors, these classes, ascending),
    without the memory of the full matrix."""
    wrong = targets != predicted
    errors = sum(np.bincount(y[wrong], minlength=classes) for y in (targets, predicted))
    worst = np.sort(np.argsort(-errors, kind="stable")[:most])
    index = np.full(classes, -1)
    index[worst] = np.arange(len(worst))
    truth, guess = index[targets], index[predicted]
    both = (truth >= 0) & (guess >= 0)
    return confusion(guess[both], truth[both], len(worst)), worst


def per_class(
    hits: Real[AnyArray, "*k"], support: Real[AnyArray, "*k"], predicted: Real[AnyArray, "*k"]
) -> dict[str, Real[np.ndarray | np.generic, "*k"]]:
    """Returns precision, recall, F1, support and predictions of each class from its counts. hits:
    true positives; support: examples of the class; predicted: predictions of it. An undefined score
    is 0, as with scikit-learn's `zero_division=0`."""
    hits, support, predicted = (np.asarray(n, np.float64) for n in (hits, support, predicted))
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
        "support": support.astype(int),
        "predicted": predicted.astype(int),
    }


def macro_average(table: dict[str, np.ndarray], score: str) -> float:
    """Returns the mean of a column of `per_class` over the classes that occur in targets or
    predictions, as scikit-learn's macro average; 0 without any."""
    occurs = (table["support"] > 0) | (table["predicted"] > 0)
    return float(table[score][occurs].mean()) if occurs.any() else 0.0


def average_softmax(
    logits: Float[AnyArray, " models *n"], weights: Float[AnyArray, " models"]
) -> Float[AnyArray, "*n"]:
    """Returns the logits of the mean softmax probabilities of several models, (n, classes) each.
    The weights sum to 1. For one logit, (models, n) or (models, n, 1), as `average_sigmoid`."""
    if logits.ndim == 2 or logits.shape[-1] == 1:
        return average_sigmoid(logits, weights)
    log_p = jax.nn.log_softmax(logits) + _log_weights(logits, weights)
    return jax.nn.logsumexp(log_p, axis=0)


def average_sigmoid(
    logits: Float[AnyArray, " models *n"], weights: Float[AnyArray, " models"]
) -> Float[AnyArray, "*n"]:
    """Returns the logits of the mean sigmoid probabilities of models. The weights sum to 1."""
    log_weights = _log_weights(logits, weights)
    log_one, log_zero = (
        jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits) + log_weights, axis=0)
        for sign in (1, -1)
    )
    return log_one - log_zero


def _log_weights(logits, weights):
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.log(weights).reshape(-1, *[1] * (logits.ndim - 1))


def calibration(
    targets: Int[AnyArray, " n"], probabilities: Float[AnyArray, "n classes"], bins: int = 15
) -> dict[str, Real[np.ndarray, " {bins}"] | float]:
    """Returns the calibration in `bins` equal intervals of the predicted class's probability. Keys:
    `count`, `confidence` (mean probability) and `accuracy` of each bin, 0 if empty; and `error`,
    the expected calibration error (Guo et al. 2017, section 2)."""
    confidence = np.asarray(probabilities, np.float64).max(1)
    right = np.asarray(probabilities).argmax(1) == targets
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as Guo
    count = np.bincount(index, minlength=bins)
    columns = {"confidence": confidence, "accuracy": right.astype(np.float64)}
    table = {
        name: np.bincount(index, values, minlength=bins) / np.maximum(count, 1)
        for name, values in columns.items()
    }
    gap = np.abs(table["confidence"] - table["accuracy"])
    return {"count": count, **table, "error": float((gap * count).sum() / max(count.sum(), 1))}


def roc_auc(targets: Shaped[AnyArray, " n"], scores: Float[AnyArray, " n"]) -> float | None:
    """Returns the area under the ROC curve, None unless both classes occur. targets: 0 or 1;
    scores: higher for class 1."""
    truth = np.asarray(targets, bool)
    positive, negative = truth.sum(), (~truth).sum()
    if not positive or not negative:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1; ties have their mean rank
    return float((ranks[truth].sum() / positive - (positive + 1) / 2) / negative)


def average_precision(
    targets: Shaped[AnyArray, "n labels"], scores: Float[AnyArray, "n labels"]
) -> list[float | None]:
    """Returns for each label the mean precision over the recalls, None if it does not occur.
    targets: 0 or 1."""
    pairs = zip(np.asarray(targets, bool).T, np.asarray(scores).T, strict=True)
    return [_average_precision(truth, score) if truth.any() else None for truth, score in pairs]


def _average_precision(truth, scores) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each distinct score
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))
