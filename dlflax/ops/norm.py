"""Batch normalization with a custom gradient, three to five times as fast as Flax's on a CPU.

XLA:CPU (jax 0.10.1) computes the sums of `flax.linen.BatchNorm` as slow window reductions.
"""

import contextlib
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dlflax.ops.platform import on_cpu


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy 2015) over all axes but the last.

    Parameters, the collection "batch_stats" and results are those of `flax.linen.BatchNorm`. Call:
    x (n, ..., c) float -> the same shape and dtype; statistics are float32. `use_running_average`
    normalizes by the running statistics, without an update.
    """

    momentum: float = 0.99
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, use_running_average: bool):
        c = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, c, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, c, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, c)
        bias = self.param("bias", nn.initializers.zeros, c)
        if use_running_average:
            return _normalize(x, mean.value, lax.rsqrt(var.value + self.epsilon) * scale, bias)
        normalize = _batch_norm_cpu if on_cpu() else _batch_norm
        y, *statistics = normalize(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            for running, new in zip((mean, var), lax.stop_gradient(statistics), strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return y


def freeze_norms(trainable: str):
    """Returns a context in which frozen BatchNorms normalize by their running statistics, without
    an update. A BatchNorm (this one or Flax's) is frozen if its parameters do not match the regular
    expression `trainable`; "" freezes none."""
    if not trainable:
        return contextlib.nullcontext()

    def intercept(next_call, args, kwargs, context):
        module = context.module
        if isinstance(module, (nn.BatchNorm, BatchNorm)) and context.method_name == "__call__":
            path = "/".join((*module.path, "scale"))
            if not re.search(trainable, path):
                kwargs = {**kwargs, "use_running_average": True}
        return next_call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _broadcast(vector, x):
    """Reshapes (c,) to the rank of x (n, ..., c)."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _normalize(x, mean, factor, bias):
    y = (x - _broadcast(mean, x)) * _broadcast(factor, x) + _broadcast(bias, x)
    return y.astype(x.dtype)


def _batch_norm(x, scale, bias, epsilon):
    """Returns (y, mean (c,), variance (c,)), with XLA's own gradient."""
    axes, x32 = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
    return _from_sums(x, x32.sum(axes), jnp.square(x32).sum(axes), scale, bias, epsilon)


def _from_sums(x, total, squares, scale, bias, epsilon):
    n = x.size // x.shape[-1]
    mean = total / n
    var = jnp.maximum(squares / n - jnp.square(mean), 0.0)
    return _normalize(x, mean, lax.rsqrt(var + epsilon) * scale, bias), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm_cpu(x, scale, bias, epsilon):
    """`_batch_norm` with fast sums on XLA:CPU. Mean and variance have no gradient."""
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    y, mean, var = _from_sums(x, *_sums(x, x), scale, bias, epsilon)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(epsilon, residuals, cotangents):
    x, scale, bias, mean, var = residuals
    dy, n, inverse = cotangents[0], x.size // x.shape[-1], lax.rsqrt(var + epsilon)
    centred = x - _broadcast(mean, x)
    dbias, products = _sums(dy, centred)
    dscale = products * inverse
    factor = _broadcast(scale * inverse**2 * dscale / n, x)
    dx = (dy - _broadcast(dbias / n, x)) * _broadcast(scale * inverse, x) - centred * factor
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_batch_norm_cpu.defvjp(_forward, _backward)


def _sums(a, b):
    """Sums a and a * b, (n, ..., c) each, over all axes but the last -> float32 (c,) each."""
    n, c = a.shape[0], a.shape[-1]
    # at most 32 rows: for more, XLA:CPU uses `reduce_window`, which runs on one core
    rows = next(rows for rows in range(32, 0, -1) if a.size // (n * c) % rows == 0)
    a, b = (x.astype(jnp.float32).reshape(n, -1, rows, c) for x in (a, b))
    return [total.sum((0, 1)) for total in fused_sums([a, a * b], 2)]


def fused_sums(arrays, axis: int):
    """Sums arrays of one shape along the axis, in float32 and in one pass over memory."""
    arrays = [array.astype(jnp.float32) for array in arrays]
    zeros = [jnp.zeros((), jnp.float32)] * len(arrays)
    return lax.reduce(arrays, zeros, lambda a, b: list(map(jnp.add, a, b)), (axis,))
