"""Max-pooling, whose gradient XLA:CPU is slow at: 16 pictures of 112x112x64 take it 230 ms for 2x2
windows and 320 for 3x3 ones with a stride of 2; `_own_gradient` takes 23 and 58 (two cores, jax
0.10.1)."""

import jax
import jax.numpy as jnp
from jax import lax

from dlflax.models.convolution import NO_PADS, Pads, windows
from dlflax.models.platform import is_portable, on_cpu


def max_pool(x, k: int = 2, stride: int = 2, pads: Pads = NO_PADS, cpu: bool | None = None):
    """The largest in each k x k window: x float (n, h, w, c) -> (n, rows, columns, c). pads: of
    -inf, before and behind rows and columns. cpu: whether it is computed in the way that suits
    XLA:CPU, by default if it runs there. The gradient goes to the first of equal ones."""
    cpu = on_cpu() if cpu is None else cpu
    if is_portable():  # not every format has windows of any size
        return largest(windows(x, k, stride, pads, -jnp.inf))[0]
    return (_own_gradient if cpu else _lax)(x, k, stride, pads)


def _lax(x, k, stride, pads):
    window, strides = (1, k, k, 1), (1, stride, stride, 1)
    # without what no window reaches: of a product of 3x3 pixels jaxlib 0.10.1 would write beyond it
    unused = [(side + sum(p) - k) % stride for side, p in zip(x.shape[1:3], pads, strict=True)]
    pads = [(a, b - u) for (a, b), u in zip(pads, unused, strict=True)]
    rows, columns = (side + min(b, 0) for side, (_, b) in zip(x.shape[1:3], pads, strict=True))
    x, pads = x[:, :rows, :columns], [(a, max(b, 0)) for a, b in pads]
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, ((0, 0), *pads, (0, 0)))


_own_gradient = jax.custom_vjp(_lax, nondiff_argnums=(1, 2, 3))


def _forward(x, k, stride, pads):
    """The largest of k * k slices, and which of them it is."""
    y, winner = largest(windows(x, k, stride, pads, -jnp.inf))
    return y, (winner, x[:0])


def _backward(k, stride, pads, residuals, dy):
    """Pixels whose distance from a window's begin leaves the same remainder after a division by the
    stride have the same few places in the windows that they are in: each group is a sum of as many
    gradients, moved by whole windows, and the groups are then put between each other."""
    winner, like = residuals
    sides, most = like.shape[1:3], (k - 1) // stride
    lengths = [-(-(side + sum(pad)) // stride) for side, pad in zip(sides, pads, strict=True)]
    # padded once, and then only cut: XLA is slow at a sum of arrays that are each padded
    edges = [(most, length - n) for length, n in zip(lengths, dy.shape[1:3], strict=True)]
    edges = ((0, 0), *edges, (0, 0))
    winner, dy = jnp.pad(winner, edges, constant_values=-1), jnp.pad(dy, edges)

    def moved(array, i, j):
        """By so many whole windows."""
        return array[:, most - i :][:, : lengths[0], most - j :][:, :, : lengths[1]]

    def group(row, column):
        taps = [(i, j) for i in range(row, k, stride) for j in range(column, k, stride)]
        total = jnp.zeros((), dy.dtype)
        for i, j in taps:
            of, back = (moved(each, i // stride, j // stride) for each in (winner, dy))
            total += jnp.where(of == i * k + j, back, jnp.zeros((), dy.dtype))
        return jnp.broadcast_to(total, (dy.shape[0], *lengths, dy.shape[3]))

    rows = [jnp.stack([group(i, j) for j in range(stride)], 3) for i in range(stride)]
    n, c = dy.shape[0], dy.shape[-1]
    whole = jnp.stack(rows, 2).reshape(n, lengths[0] * stride, lengths[1] * stride, c)
    (top, _), (left, _) = pads
    return (whole[:, top : top + sides[0], left : left + sides[1]],)


_own_gradient.defvjp(_forward, _backward)


def largest(slices):
    """(the largest of the arrays, which it was: int8, the first of equal ones)."""
    y, winner = slices[0], jnp.zeros(slices[0].shape, jnp.int8)
    for index, each in enumerate(slices[1:], 1):
        winner = jnp.where(each > y, jnp.int8(index), winner)
        y = jnp.maximum(y, each)
    return y, winner
