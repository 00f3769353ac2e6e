"""Layers that Linen lacks or does slowly on a CPU: dropout with a traced rate, 3x3 convolution and
pooling as matrix products."""

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
    convolution,
    formulated,
    im2col,
    kernel_gradient,
    windows,
)  # fmt: skip
from dlflax.models.norm import sums
from dlflax.models.platform import is_portable, on_cpu
from dlflax.models.pooling import largest, max_pool
from dlflax.shapes import AnyArray

Activation = Literal[
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "identity", "leaky_relu",
    "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "tanh",
]  # fmt: skip
Formulation = Literal["auto", "matmul", "lax"]
Padding = Literal["same", "valid"]
PicturesOrFeatures = Float[AnyArray, "n h w c"] | Float[AnyArray, "n d"]


def activation(name: str):
    """The elementwise function of that name in `jax.nn`. InputError for an unknown name."""
    if name not in Activation.__args__:
        raise InputError(
            f"unknown activation {name!r}: choose one of {', '.join(Activation.__args__)}."
        )
    return getattr(jax.nn, name)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al., JMLR 2014) whose rate may be a traced number.

    `nn.Dropout` branches on `rate == 0.0` in Python and so cannot be traced. Rate 0 is exactly the
    identity here, rate 1 gives zeros. x: any shape, float.
    """

    @nn.compact
    def __call__(self, x, rate, train: bool):
        if not train:
            return x
        keep = 1.0 - jnp.asarray(rate, jnp.float32)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x / jnp.maximum(keep, 1e-6).astype(x.dtype), jnp.zeros((), x.dtype))


class Embed(nn.Module):
    """Token embedding. tokens int (n, t), 0 is padding -> (float (n, t, features), mask bool
    (n, t), False for padding)."""

    vocabulary: int
    features: int

    @nn.compact
    def __call__(self, tokens):
        shape = (self.vocabulary, self.features)
        table = self.param("embedding", nn.initializers.normal(0.1), shape)
        return jnp.take(table, tokens, axis=0), tokens > 0


def pool(x, mask, how: Literal["mean", "max"]):
    """Over the steps that count. x (n, t, c), mask bool (n, t) or None -> (n, c)."""
    if mask is None:
        return x.mean(1) if how == "mean" else x.max(1)
    mask = mask[:, :, None]
    if how == "max":
        return jnp.where(mask, x, jnp.finfo(x.dtype).min).max(1)
    return jnp.where(mask, x, 0).sum(1) / jnp.maximum(mask.sum(1), 1).astype(x.dtype)


def feature_map(module, x):
    """x, float (n, h, w, c), as it is: `explain.grad_cam` finds it, and the gradient there, under
    this name. Does nothing unless `apply` is given those collections."""
    if module.is_initializing():  # the perturbation is not one of the model's variables
        return x
    module.sow("intermediates", "feature_map", x)
    return module.perturb("feature_map", x)


def for_cpu(formulation: Formulation) -> bool:
    """True if convolutions are to be computed in the way that suits XLA:CPU."""
    return on_cpu() if formulation == "auto" else formulation == "matmul" and not is_portable()


class Conv(nn.Module):
    """Stride-1 convolution, optionally followed by a 2x2 max-pool (a trailing odd row or column is
    dropped, as Keras' "valid" pooling does), then the bias, if any.

    x: (n, h, w, c) float -> (n, h, w, features), or (n, h // 2, w // 2, features) with `pool`;
    with padding "valid" h and w are less by kernel_size - 1.
    Parameters: kernel (k, k, c, features), bias (features,): the same for every formulation.
    Pooling before the bias and the activation equals pooling after them for every nondecreasing
    activation (ReLU, sigmoid, tanh, ...) and touches a quarter of the numbers.

    formulation "lax" is `lax.conv_general_dilated` and `reduce_window`, right on GPU and TPU;
    "matmul" is what is fastest on XLA:CPU, by width; "auto" takes the one that suits the platform.
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
        y = _conv(x, kernel, self.pool, for_cpu(self.formulation), self.padding)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias.reshape(1, 1, 1, -1)


def _conv(x, kernel, pool, cpu, padding):
    """The convolution of `Conv` and its max-pool."""
    k, _, c, _ = kernel.shape
    if cpu and c < 16 and padding == "same":
        with formulated("product with max-pool" if pool else "product in pieces"):
            return (conv_pool_matmul if pool else conv_matmul)(x, kernel)
    y = convolution(x, kernel, 1, _same_pads(k) if padding == "same" else NO_PADS, cpu=cpu)
    return max_pool(y, cpu=cpu) if pool else y


def depthwise_lax(x, kernel, stride: int = 1):
    """Depthwise SAME convolution as TensorFlow pads it: with a stride of 2 and an even side one
    more at the bottom and right. x (n, h, w, c), kernel (k, k, 1, c)."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_slices(x, kernel, stride: int = 1):
    """`depthwise_lax` as a sum of k*k shifted slices, which XLA:CPU makes one loop of: nine times
    as fast as its grouped convolution over all of EfficientNet. The hand-written gradient goes
    picture by picture, so that its slices stay in the cache."""
    k = kernel.shape[0]
    _, pads = same_windows(x.shape[1:3], k, stride)
    taps = kernel.reshape(k * k, 1, 1, 1, -1)
    return sum(seen * tap for seen, tap in zip(windows(x, k, stride, pads), taps, strict=True))


def same_windows(sides, k, stride):
    """(from the first to behind the last place of a window, padding before and behind), for each of
    the sides, padded as TensorFlow does for "SAME"."""
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
    # dy with stride - 1 zeros between, so padded that the kernel, turned by half, gives dx
    spread = [
        (k - 1 - before, side + before - length, stride - 1)
        for side, length, (before, _) in zip((h, w), (rows, columns), pads, strict=True)
    ]

    def picture(dkernel, each):
        x, dy = each
        products = [seen[0] * dy for seen in windows(x[None], k, stride, pads)]
        of_taps = [
            each.sum(0) for i in range(0, k * k, k) for each in sums(products[i : i + k], axis=1)
        ]
        dy = lax.pad(dy, jnp.zeros((), dy.dtype), (*spread, (0, 0, 0)))
        dx = sum(
            dy[i : i + h, j : j + w] * kernel[k - 1 - i, k - 1 - j].reshape(1, 1, -1)
            for i, j in taps
        )
        return dkernel + jnp.stack(of_taps).reshape(kernel.shape), dx

    dkernel, dx = lax.scan(picture, jnp.zeros(kernel.shape, jnp.float32), (x, dy))
    return dx, dkernel.astype(kernel.dtype)


depthwise_slices.defvjp(_depthwise_forward, _depthwise_backward)


# The matmul formulation. XLA:CPU is slow at the gradients of convolutions and of reduce_window, and
# fast at matrix products on pieces of a batch that stay in the cache.

PIECE = 32  # images; measured best on CPUs with 1 to 2 MB of L2 cache a core


def _pieces(x):
    """(n, ...) -> (pieces, n / pieces, ...), each of at most PIECE images where n divides so."""
    n = x.shape[0]
    size = next(size for size in range(min(n, PIECE), 0, -1) if n % size == 0)
    size = n if size < PIECE // 4 else size  # n is a prime, say: too small pieces cost more
    return x.reshape(n // size, size, *x.shape[1:])


def _merged(x):
    return x.reshape(-1, *x.shape[2:])


def _same_pads(k):
    """Of a k x k kernel with a stride of 1."""
    return (((k - 1) // 2, k // 2),) * 2


def conv_matmul(x, kernel):
    """SAME convolution as one product of k*k shifted slices with the kernel, a piece at a time. x
    (n, h, w, c), kernel (k, k, c, f) -> (n, h, w, f)."""
    k, _, c, f = kernel.shape

    # checkpoint: the patches are k*k times the input and cheaper to build again than to keep
    @jax.checkpoint
    def piece(x):
        return im2col(x, k, 1, _same_pads(k)) @ kernel.reshape(k * k * c, f)

    return _merged(lax.map(piece, _pieces(x)))


def _four_kernels(kernel):
    """(k, k, c, f) -> ((k + 1)^2 c, 4 f): the kernel at the four places of a 2x2 pooling window."""
    k, _, c, f = kernel.shape
    shifted = [
        jnp.pad(kernel, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0))) for a in (0, 1) for b in (0, 1)
    ]
    return jnp.stack(shifted, axis=3).reshape((k + 1) ** 2 * c, 4 * f)


@jax.custom_vjp
def conv_pool_matmul(x, kernel):
    """`conv_matmul(x, kernel)` and a 2x2 max-pool as ONE product: (k+1)x(k+1) patches at stride 2
    times a matrix of the four shifted kernels, then the largest of four.

    The hand-written gradient keeps only which of the four won. For a first layer XLA drops the
    unused input gradient.
    """
    return _conv_pool_forward(x, kernel)[0]


def _conv_pool_forward(x, kernel):
    k, f = kernel.shape[0], kernel.shape[-1]
    four = _four_kernels(kernel)

    def piece(x):
        z = im2col(x, k + 1, 2, _same_pads(k)) @ four
        return largest([z[..., i * f : (i + 1) * f] for i in range(4)])

    y, winner = lax.map(piece, _pieces(x))
    return _merged(y), (x, kernel, winner)


def _conv_pool_backward(residuals, dy):
    x, kernel, winner = residuals
    k = kernel.shape[0]
    four = _four_kernels(kernel)
    patches = functools.partial(im2col, k=k + 1, stride=2, pads=_same_pads(k))
    xs, dys = _pieces(x), dy.reshape(winner.shape)

    def unpool(winner, dy):
        zero = jnp.zeros((), dy.dtype)
        return jnp.concatenate([jnp.where(winner == i, dy, zero) for i in range(4)], -1)

    def add_kernel_gradient(total, piece):
        x, winner, dy = piece
        return total + kernel_gradient(patches(x), unpool(winner, dy)), None

    dfour, _ = lax.scan(add_kernel_gradient, jnp.zeros(four.shape, jnp.float32), (xs, winner, dys))
    (dkernel,) = jax.linear_transpose(_four_kernels, kernel)(dfour.astype(kernel.dtype))

    def input_gradient(piece):
        winner, dy = piece
        one = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        return jax.linear_transpose(patches, one)(unpool(winner, dy) @ four.T)[0]

    return _merged(lax.map(input_gradient, (winner, dys))), dkernel


conv_pool_matmul.defvjp(_conv_pool_forward, _conv_pool_backward)
