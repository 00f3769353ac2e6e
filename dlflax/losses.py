"""Losses, one number an example, and Keras' L2 penalty. All take outputs before the last
activation (logits) and return float32 (n,)."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits, targets, label_smoothing=0.0):
    """Softmax cross-entropy. logits (n, classes), targets int (n,) -> (n,), in nats.

    label_smoothing s in [0, 1) trains towards (1 - s) one-hot + s / classes (Szegedy et al. 2016,
    section 7); it may be traced.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    true = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
    return -(1.0 - label_smoothing) * true - label_smoothing * log_p.mean(-1)


def binary_cross_entropy(logits, targets, label_smoothing=0.0):
    """Sigmoid cross-entropy, averaged over outputs. logits (n,) or (n, k), targets 0/1 of the same
    size -> (n,). Label smoothing s moves targets to t (1 - s) + s / 2, as Keras does."""
    logits = logits.astype(jnp.float32).reshape(logits.shape[0], -1)
    targets = targets.astype(jnp.float32).reshape(logits.shape)
    targets = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def mean_squared_error(outputs, targets, label_smoothing=0.0):
    """Squared error averaged over an example's outputs. Same sizes in, (n,) out."""
    del label_smoothing  # has no meaning here
    outputs = outputs.astype(jnp.float32).reshape(outputs.shape[0], -1)
    return jnp.square(outputs - targets.reshape(outputs.shape)).mean(-1)


def mean_absolute_error(outputs, targets):
    """Absolute error averaged over an example's outputs. Same sizes in, (n,) out."""
    outputs = outputs.astype(jnp.float32).reshape(outputs.shape[0], -1)
    return jnp.abs(outputs - targets.reshape(outputs.shape)).mean(-1)


def reconstruction(outputs, inputs, label_smoothing=0.0):
    """`mean_squared_error` from the model's own inputs."""
    return mean_squared_error(outputs, inputs, label_smoothing)


def l2(params):
    """Sum of squares of all kernels (leaves of two or more dimensions), as `keras.regularizers.L2`
    on every kernel. Returns a float32 scalar, to be multiplied by the l2 hyperparameter."""
    return sum(
        jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        for leaf in jax.tree.leaves(params)
        if leaf.ndim > 1
    )
