"""Layers: dropout with a traced rate, pooling over steps, convolutions that are fast on a CPU."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from dlflax.errors import InputError
from dlflax.models.convolution import (
    NO_PADS,
    algorithm_scope,
    convolution,
    im2col,
    kernel_gradient,
    windows,
)  # fmt: skip
from dlflax.models.norm import fused_sums
from dlflax.models.platform import is_portable, on_cpu
from dlflax.models.pooling import max_and_argmax, max_pool
from dlflax.shapes import AnyArray

Activation = Literal[
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "identity", "leaky_relu",
    "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "tanh",
]  # fmt: skip
Formulation = Literal["auto", "matmul", "lax"]
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
    """Returns x, float (n, h, w, c), and exposes it and its gradient to `explain.grad_cam`, if
    `apply` has the collections "intermediates" and "perturbations"."""
    if module.is_initializing():  # else `init` would return the perturbation
        return x
    module.sow("intermediates", "feature_map", x)
    return module.perturb("feature_map", x)


def is_for_cpu(formulation: Formulation) -> bool:
    """True if convolutions use the algorithms for XLA:CPU."""
    return on_cpu() if formulation == "auto" else formulation == "matmul" and not is_portable()


class Conv(nn.Module):
    """Stride-1 convolution, optional 2x2 max-pool, optional bias.

    x: (n, h, w, c) float -> (n, h, w, features), or (n, h // 2, w // 2, features) with `pool`,
    which drops a trailing odd row or column, as Keras does; with padding "valid" h and w are less
    by kernel_size - 1. Parameters: kernel (k, k, c, features), bias (features,).
    Pooling before the bias and the activation equals pooling after them for every nondecreasing
    activation (ReLU, sigmoid, tanh, ...), and costs a quarter.

    formulation "lax" is `lax.conv_general_dilated` and `reduce_window`, for GPU and TPU; "matmul"
    is the fastest on XLA:CPU, by width; "auto" selects by platform.
    """

    features: int
    kernel_size: int = 3
    pool: bool = False
    formulation: Formulation = "auto"
    use_bias: bool = True
    padding: Padding = "same"

    @nn.compact
    def __call__(self, x):
        k, c = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, c, self.features))
        y = _conv(x, kernel, self.pool, is_for_cpu(self.formulation), self.padding)
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
    y = convolution(x, kernel, 1, _same_pads(k) if padding == "same" else NO_PADS, cpu=cpu)
    return max_pool(y, cpu=cpu) if pool else y


def depthwise_lax(x, kernel, stride: int = 1):
    """Depthwise convolution of x (n, h, w, c) with the kernel (k, k, 1, c), padded as by
    `same_windows`."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_slices(x, kernel, stride: int = 1):
    """`depthwise_lax` as a sum of k*k shifted slices, which XLA:CPU fuses into one loop, nine times
    as fast. The custom gradient visits one image at a time, whose slices stay in the cache."""
    k = kernel.shape[0]
    _, pads = same_windows(x.shape[1:3], k, stride)
    taps = kernel.reshape(k * k, 1, 1, 1, -1)
    return sum(part * tap for part, tap in zip(windows(x, k, stride, pads), taps, strict=True))


def same_windows(sides, k, stride):
    """Returns ([1 + the last offset of a window], [(padding before, after)]) of the sides.
    TensorFlow's "SAME" padding: an even side has one more pixel at its end at a stride of 2."""
    lasts = [(-(-side // stride) - 1) * stride for side in sides]
    pads = [max(last + k - side, 0) for last, side in zip(lasts, sides, strict=True)]
    return [last + 1 for last in lasts], [(pad // 2, pad - pad // 2) for pad in pads]


def _depthwise_forward(x, kernel, stride):
    return depthwise_slices(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride, residuals, dy):
    x, kernel = residuals
    k, (h, w) = kernel.shape[0], x.shape[1:3]
    (rows, columns), pads = same_windows((h, w), k, stride)
    taps = [(i, j) for i in range(k) for j in range(k)]
    # dy, dilated by the stride and padded: its convolution with the rotated kernel is dx
    dilation = [
        (k - 1 - before, side + before - length, stride - 1)
        for side, length, (before, _) in zip((h, w), (rows, columns), pads, strict=True)
    ]

    def add_image(dkernel, image):
        x, dy = image
        products = [part[0] * dy for part in windows(x[None], k, stride, pads)]
        rows = [fused_sums(products[i : i + k], axis=1) for i in range(0, k * k, k)]
        dtaps = [tap.sum(0) for row in rows for tap in row]
        dy = lax.pad(dy, jnp.zeros((), dy.dtype), (*dilation, (0, 0, 0)))
        dx = sum(
            dy[i : i + h, j : j + w] * kernel[k - 1 - i, k - 1 - j].reshape(1, 1, -1)
            for i, j in taps
        )
        return dkernel + jnp.stack(dtaps).reshape(kernel.shape), dx

    dkernel, dx = lax.scan(add_image, jnp.zeros(kernel.shape, jnp.float32), (x, dy))
    return dx, dkernel.astype(kernel.dtype)


depthwise_slices.defvjp(_depthwise_forward, _depthwise_backward)


# Convolutions as matrix products. XLA:CPU is slow at the gradients of convolutions and of
# reduce_window, and fast at products of chunks of a batch that stay in the cache.

CHUNK = 32  # images; measured best on CPUs with 1 to 2 MB of L2 cache per core


def _split_chunks(x):
    """Splits (n, ...) -> (chunks, n / chunks, ...), of at most CHUNK images if n is divisible."""
    n = x.shape[0]
    size = next(size for size in range(min(n, CHUNK), 0, -1) if n % size == 0)
    size = n if size < CHUNK // 4 else size  # a prime n, say: smaller chunks cost more
    return x.reshape(n // size, size, *x.shape[1:])


def _merge_chunks(x):
    return x.reshape(-1, *x.shape[2:])


def _same_pads(k):
    """Returns the "SAME" padding of a k x k kernel at a stride of 1."""
    return (((k - 1) // 2, k // 2),) * 2


def conv_matmul(x, kernel):
    """SAME convolution of x (n, h, w, c) with the kernel (k, k, c, f). Each chunk of the batch is a
    product of patches."""
    k, _, c, f = kernel.shape

    # checkpoint: recomputing patches, k*k times the input, is cheaper than saving them
    @jax.checkpoint
    def multiply(x):
        return im2col(x, k, 1, _same_pads(k)) @ kernel.reshape(k * k * c, f)

    return _merge_chunks(lax.map(multiply, _split_chunks(x)))


def _shift_kernels(kernel):
    """Shifts the kernel to the 4 positions in a 2x2 pooling window: (k, k, c, f) -> ((k + 1)^2 c,
    4 f)."""
    k, _, c, f = kernel.shape
    shifted = [
        jnp.pad(kernel, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0))) for a in (0, 1) for b in (0, 1)
    ]
    return jnp.stack(shifted, axis=3).reshape((k + 1) ** 2 * c, 4 * f)


@jax.custom_vjp
def conv_pool_matmul(x, kernel):
    """`conv_matmul(x, kernel)` and a 2x2 max-pool as one matrix product: (k+1)x(k+1) patches at
    stride 2 by the four shifted kernels, then the maximum. The custom gradient saves only the
    argmax. For a first layer XLA drops the unused input gradient."""
    return _conv_pool_forward(x, kernel)[0]


def _conv_pool_forward(x, kernel):
    k, f = kernel.shape[0], kernel.shape[-1]
    kernels = _shift_kernels(kernel)

    def multiply(x):
        z = im2col(x, k + 1, 2, _same_pads(k)) @ kernels
        return max_and_argmax([z[..., i * f : (i + 1) * f] for i in range(4)])

    y, argmax = lax.map(multiply, _split_chunks(x))
    return _merge_chunks(y), (x, kernel, argmax)


def _conv_pool_backward(residuals, dy):
    x, kernel, argmax = residuals
    k = kernel.shape[0]
    kernels = _shift_kernels(kernel)
    patches = functools.partial(im2col, k=k + 1, stride=2, pads=_same_pads(k))
    xs, dys = _split_chunks(x), dy.reshape(argmax.shape)

    def unpool(argmax, dy):
        zero = jnp.zeros((), dy.dtype)
        return jnp.concatenate([jnp.where(argmax == i, dy, zero) for i in range(4)], -1)

    def add_kernel_gradient(total, chunk):
        x, argmax, dy = chunk
        return total + kernel_gradient(patches(x), unpool(argmax, dy)), None

    zeros = jnp.zeros(kernels.shape, jnp.float32)
    dkernels, _ = lax.scan(add_kernel_gradient, zeros, (xs, argmax, dys))
    (dkernel,) = jax.linear_transpose(_shift_kernels, kernel)(dkernels.astype(kernel.dtype))

    def input_gradient(chunk):
        argmax, dy = chunk
        abstract = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        return jax.linear_transpose(patches, abstract)(unpool(argmax, dy) @ kernels.T)[0]

    return _merge_chunks(lax.map(input_gradient, (argmax, dys))), dkernel


conv_pool_matmul.defvjp(_conv_pool_forward, _conv_pool_backward)
