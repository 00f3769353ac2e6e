"""Convolution, with a max-pool or without, as matrix products on chunks of a batch.

XLA:CPU is slow at the gradients of convolutions and of reduce_window, and fast at products of
chunks that stay in the cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dlflax.ops.convolution import im2col, kernel_gradient
from dlflax.ops.pooling import max_and_argmax

CHUNK = 32  # images; measured best on CPUs with 1 to 2 MB of L2 cache per core


def _split_chunks(x):
    """Splits (n, ...) -> (chunks, n / chunks, ...), of at most CHUNK images if n is divisible."""
    n = x.shape[0]
    size = next(size for size in range(min(n, CHUNK), 0, -1) if n % size == 0)
    size = n if size < CHUNK // 4 else size  # a prime n, say: smaller chunks cost more
    return x.reshape(n // size, size, *x.shape[1:])


def _merge_chunks(x):
    return x.reshape(-1, *x.shape[2:])


def same_pads(k):
    """Returns the "SAME" padding of a k x k kernel at a stride of 1."""
    return (((k - 1) // 2, k // 2),) * 2


def conv_matmul(x, kernel):
    """SAME convolution of x (n, h, w, c) with the kernel (k, k, c, f). Each chunk of the batch is a
    product of patches."""
    k, _, c, f = kernel.shape

    # checkpoint: recomputing patches, k*k times the input, is cheaper than saving them
    @jax.checkpoint
    def multiply(x):
        return im2col(x, k, 1, same_pads(k)) @ kernel.reshape(k * k * c, f)

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
        z = im2col(x, k + 1, 2, same_pads(k)) @ kernels
        return max_and_argmax([z[..., i * f : (i + 1) * f] for i in range(4)])

    y, argmax = lax.map(multiply, _split_chunks(x))
    return _merge_chunks(y), (x, kernel, argmax)


def _conv_pool_backward(residuals, dy):
    x, kernel, argmax = residuals
    k = kernel.shape[0]
    kernels = _shift_kernels(kernel)
    patches = functools.partial(im2col, k=k + 1, stride=2, pads=same_pads(k))
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
