"""Losses per example, and Keras' L2 penalty.

The functions take logits, before the last activation, and return float32 (n,). A task's loss is a
frozen dataclass or a function, (outputs, batch, hparams) -> (n,): one from the end of this file, or
your own. batch: as `train.batch.Batch`, with "targets" and "mask"; hparams may be traced.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int, PyTree, ScalarLike, Shaped

from dlflax.shapes import AnyArray
from dlflax.train.hparams import number

Loss = Callable  # (outputs, batch, hparams) -> (n,)


def cross_entropy(
    logits: Float[AnyArray, "n classes"],
    targets: Int[AnyArray, " n"],
    label_smoothing: ScalarLike = 0.0,
) -> Float[AnyArray, " n"]:
    """Softmax cross-entropy, in nats. label_smoothing: s in [0, 1), may be traced, moves targets to
    (1 - s) one-hot + s / classes (Szegedy et al. 2016, section 7)."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    true = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
    return -(1.0 - label_smoothing) * true - label_smoothing * log_p.mean(-1)


def binary_cross_entropy(
    logits: Float[AnyArray, " n *k"],
    targets: Shaped[AnyArray, " n *t"],
    label_smoothing: ScalarLike = 0.0,
) -> Float[AnyArray, " n"]:
    """Sigmoid cross-entropy, averaged over outputs. Targets: 0 or 1, one per logit. Label smoothing
    s moves targets to t (1 - s) + s / 2, as in Keras."""
    logits = logits.astype(jnp.float32).reshape(logits.shape[0], -1)
    targets = targets.astype(jnp.float32).reshape(logits.shape)
    targets = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def mean_squared_error(
    outputs: Float[AnyArray, " n *k"], targets: Shaped[AnyArray, " n *t"]
) -> Float[AnyArray, " n"]:
    """Squared error, averaged over an example's outputs without those whose target is NaN."""
    return _observed_mean(jnp.square, outputs, targets)


def mean_absolute_error(
    outputs: Float[AnyArray, " n *k"], targets: Shaped[AnyArray, " n *t"]
) -> Float[AnyArray, " n"]:
    """Absolute error, averaged over an example's outputs without those whose target is NaN."""
    return _observed_mean(jnp.abs, outputs, targets)


def huber(
    outputs: Float[AnyArray, " n *k"], targets: Shaped[AnyArray, " n *t"], delta: float = 1.0
) -> Float[AnyArray, " n"]:
    """Huber loss (1964): squared error / 2 up to `delta`, linear above; averaged over an example's
    outputs without those whose target is NaN."""
    return _observed_mean(lambda error: optax.huber_loss(error, delta=delta), outputs, targets)


def _observed_mean(penalty, outputs, targets):
    """Returns the mean penalty of an example's errors whose target is not NaN."""
    outputs = outputs.astype(jnp.float32).reshape(outputs.shape[0], -1)
    targets = targets.astype(jnp.float32).reshape(outputs.shape)
    observed = ~jnp.isnan(targets)
    # selected before the difference: a gradient through NaN would be NaN
    penalties = penalty(jnp.where(observed, outputs, 0.0) - jnp.where(observed, targets, 0.0))
    return penalties.sum(-1) / jnp.maximum(observed.sum(-1), 1)


def l2(params: PyTree[Float[AnyArray, "..."]]) -> Float[AnyArray, ""]:
    """Sum of squares of all kernels (leaves of two or more dimensions), float32, to be multiplied
    by `Hparams.l2`: as `keras.regularizers.L2` on every kernel."""
    kernels = (leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    return sum(jnp.sum(jnp.square(kernel.astype(jnp.float32))) for kernel in kernels)


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """`cross_entropy` with `Hparams.label_smoothing`."""

    def __call__(self, outputs, batch, hparams):
        return cross_entropy(outputs, batch["targets"], hparams.label_smoothing)


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy:
    """`binary_cross_entropy` with `Hparams.label_smoothing`."""

    def __call__(self, outputs, batch, hparams):
        return binary_cross_entropy(outputs, batch["targets"], hparams.label_smoothing)


@dataclasses.dataclass(frozen=True)
class MeanSquaredError:
    """`mean_squared_error`."""

    def __call__(self, outputs, batch, hparams):
        return mean_squared_error(outputs, batch["targets"])


@dataclasses.dataclass(frozen=True)
class MeanAbsoluteError:
    """`mean_absolute_error`."""

    def __call__(self, outputs, batch, hparams):
        return mean_absolute_error(outputs, batch["targets"])


@dataclasses.dataclass(frozen=True)
class Huber:
    """`huber`."""

    delta: float = number(1.0, above=0)
    """Error above which the loss is linear."""

    def __call__(self, outputs, batch, hparams):
        return huber(outputs, batch["targets"], self.delta)


LOSSES = {
    "cross_entropy": CrossEntropy(), "binary_cross_entropy": BinaryCrossEntropy(),
    "mean_squared_error": MeanSquaredError(), "mean_absolute_error": MeanAbsoluteError(),
    "huber": Huber(),
}  # fmt: skip
"""Losses by their short names on the command line."""
