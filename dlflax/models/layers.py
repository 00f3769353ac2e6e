"""Layers: dropout with a traced rate, pooling over steps, convolutions that are fast on a CPU."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dlflax.errors import InputError
from dlflax.ops.convolution import NO_PADS, algorithm_scope, convolution
from dlflax.ops.convolution_matmul import conv_matmul, conv_pool_matmul, same_pads
from dlflax.ops.platform import is_portable, on_cpu
from dlflax.ops.pooling import max_pool
from dlflax.shapes import AnyArray

Activation = Literal[
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "identity", "leaky_relu",
    "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "tanh",
]  # fmt: skip
Implementation = Literal["auto", "matmul", "lax"]
Padding = Literal["same", "valid"]
ImagesOrFeatures = Float[AnyArray, "n h w c"] | Float[AnyArray, "n d"]


def activation(name: str):
    """Returns the elementwise function `jax.nn.NAME`. InputError for an unknown name."""
    if name not in Activation.__args__:
        raise InputError(
            f"unknown activation {name!r}: choose one of {', '.join(Activation.__args__)}."
        )
    return getattr(jax.nn, name)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al., JMLR 2014) whose rate may be traced.

    `nn.Dropout` branches on `rate == 0.0` in Python, so its rate cannot be. Rate 0 is exactly the
    identity, rate 1 returns zeros. x: any shape, float.
    """

    @nn.compact
    def __call__(self, x, rate, train: bool):
        if not train:
            return x
        keep = 1.0 - jnp.asarray(rate, jnp.float32)
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(mask, x / jnp.maximum(keep, 1e-6).astype(x.dtype), jnp.zeros((), x.dtype))


class Embed(nn.Module):
    """Token embedding. tokens int (n, t), 0 for padding -> (float (n, t, features), mask bool
    (n, t), False for padding)."""

    vocabulary: int
    features: int

    @nn.compact
    def __call__(self, tokens):
        shape = (self.vocabulary, self.features)
        table = self.param("embedding", nn.initializers.normal(0.1), shape)
        return jnp.take(table, tokens, axis=0), tokens > 0


def pool(x, mask, pooling: Literal["mean", "max"]):
    """Pools x (n, t, c) over the steps where the mask, bool (n, t) or None, is True -> (n, c)."""
    if mask is None:
        return x.mean(1) if pooling == "mean" else x.max(1)
    mask = mask[:, :, None]
    if pooling == "max":
        return jnp.where(mask, x, jnp.finfo(x.dtype).min).max(1)
    return jnp.where(mask, x, 0).sum(1) / jnp.maximum(mask.sum(1), 1).astype(x.dtype)


def feature_map(module, x):
    """Returns x, float (n, h, w, c), and exposes it and its gradient to `grad_cam.grad_cam`, if
    `apply` has the collections "intermediates" and "perturbations"."""
    if module.is_initializing():  # else `init` would return the perturbation
        return x
    module.sow("intermediates", "feature_map", x)
    return module.perturb("feature_map", x)


def is_for_cpu(implementation: Implementation) -> bool:
    """True if convolutions use the algorithms for XLA:CPU."""
    if implementation == "auto":
        return on_cpu()
    return implementation == "matmul" and not is_portable()


class Conv(nn.Module):
    """Stride-1 convolution, optional 2x2 max-pool, optional bias.

    x: (n, h, w, c) float -> (n, h, w, features), or (n, h // 2, w // 2, features) with `pool`,
    which drops a trailing odd row or column, as Keras does; with padding "valid" h and w are less
    by kernel_size - 1. Parameters: kernel (k, k, c, features), bias (features,).
    Pooling before the bias and the activation equals pooling after them for every nondecreasing
    activation (ReLU, sigmoid, tanh, ...), and costs a quarter.

    implementation "lax" is `lax.conv_general_dilated` and `reduce_window`, for GPU and TPU;
    "matmul" is the fastest on XLA:CPU, by width; "auto" selects by platform.
    """

    features: int
    kernel_size: int = 3
    pool: bool = False
    implementation: Implementation = "auto"
    use_bias: bool = True
    padding: Padding = "same"

    @nn.compact
    def __call__(self, x):
        k, c = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, c, self.features))
        y = _conv(x, kernel, self.pool, is_for_cpu(self.implementation), self.padding)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias.reshape(1, 1, 1, -1)


def _conv(x, kernel, pool, cpu, padding):
    """Computes the convolution of `Conv` and its max-pool."""
    k, _, c, _ = kernel.shape
    if cpu and c < 16 and padding == "same":
        with algorithm_scope("product with max-pool" if pool else "product of chunks"):
            return (conv_pool_matmul if pool else conv_matmul)(x, kernel)
    y = convolution(x, kernel, 1, same_pads(k) if padding == "same" else NO_PADS, cpu=cpu)
    return max_pool(y, cpu=cpu) if pool else y
