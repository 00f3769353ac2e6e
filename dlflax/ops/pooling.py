"""Max-pooling with a custom gradient, as XLA:CPU's is slow.

16 images of 112x112x64 take XLA:CPU 230 ms for 2x2 windows and 320 ms for 3x3 windows at a stride
of 2; `_custom_gradient` takes 23 and 58 (two cores, jax 0.10.1).
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from dlflax.ops.convolution import NO_PADS, Pads, windows
from dlflax.ops.platform import is_portable, on_cpu


def max_pool(x, k: int = 2, stride: int = 2, pads: Pads = NO_PADS, cpu: bool | None = None):
    """Computes the maximum of each k x k window: x float (n, h, w, c) -> (n, rows, columns, c).
    pads: of -inf; cpu: True on XLA:CPU, by default inferred. The first of equal values gets the
    gradient."""
    cpu = on_cpu() if cpu is None else cpu
    if is_portable():  # some formats limit the window size
        return max_and_argmax(windows(x, k, stride, pads, -jnp.inf))[0]
    return (_custom_gradient if cpu else _lax)(x, k, stride, pads)


def _lax(x, k, stride, pads):
    window, strides = (1, k, k, 1), (1, stride, stride, 1)
    # drops pixels outside of all windows: jaxlib 0.10.1 would write out of bounds for 3x3 pixels
    unused = [(side + sum(p) - k) % stride for side, p in zip(x.shape[1:3], pads, strict=True)]
    pads = [(a, b - u) for (a, b), u in zip(pads, unused, strict=True)]
    rows, columns = (side + min(b, 0) for side, (_, b) in zip(x.shape[1:3], pads, strict=True))
    x, pads = x[:, :rows, :columns], [(a, max(b, 0)) for a, b in pads]
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, ((0, 0), *pads, (0, 0)))


_custom_gradient = jax.custom_vjp(_lax, nondiff_argnums=(1, 2, 3))


def _forward(x, k, stride, pads):
    """Computes the maximum of k * k slices, and saves the argmax."""
    y, argmax = max_and_argmax(windows(x, k, stride, pads, -jnp.inf))
    return y, (argmax, x[:0])


def _backward(k, stride, pads, residuals, dy):
    """Computes the gradient for each phase of the stride, and interleaves the phases. Pixels of a
    phase have the same positions in their windows: their gradient is a sum of shifted dy where the
    argmax is the position."""
    argmax, empty = residuals
    sides, reach = empty.shape[1:3], (k - 1) // stride
    lengths = [-(-(side + sum(pad)) // stride) for side, pad in zip(sides, pads, strict=True)]
    # pads once, then slices: XLA is slow at a sum of separately padded arrays
    edges = [(reach, length - n) for length, n in zip(lengths, dy.shape[1:3], strict=True)]
    edges = ((0, 0), *edges, (0, 0))
    argmax, dy = jnp.pad(argmax, edges, constant_values=-1), jnp.pad(dy, edges)
    zero = jnp.zeros((), dy.dtype)

    def shift(array, i, j):
        return array[:, reach - i :][:, : lengths[0], reach - j :][:, :, : lengths[1]]

    def phase(row, column):
        total = zero
        for i, j in itertools.product(range(row, k, stride), range(column, k, stride)):
            index, gradient = (shift(array, i // stride, j // stride) for array in (argmax, dy))
            total += jnp.where(index == i * k + j, gradient, zero)
        return jnp.broadcast_to(total, (dy.shape[0], *lengths, dy.shape[3]))

    rows = [jnp.stack([phase(i, j) for j in range(stride)], 3) for i in range(stride)]
    n, c = dy.shape[0], dy.shape[-1]
    dx = jnp.stack(rows, 2).reshape(n, lengths[0] * stride, lengths[1] * stride, c)
    (top, _), (left, _) = pads
    return (dx[:, top : top + sides[0], left : left + sides[1]],)


_custom_gradient.defvjp(_forward, _backward)


def max_and_argmax(slices):
    """Returns (elementwise maximum of the arrays, index of the first array with it, int8)."""
    y, argmax = slices[0], jnp.zeros(slices[0].shape, jnp.int8)
    for i, x in enumerate(slices[1:], 1):
        argmax = jnp.where(x > y, jnp.int8(i), argmax)
        y = jnp.maximum(y, x)
    return y, argmax
