"""How long does each formulation of a convolution take?

python -m benchmarks.convolutions
python -m benchmarks.convolutions --gradients

prints for the shapes of ResNets on 224 and 64 pixels, batch 32, milliseconds forward and forward
with both gradients, the best of some calls: the basis of
`dlflax.models.convolution.fastest_algorithm`. With --gradients, each gradient alone, in turns: as
products of patches, 8 MiB of them at a time, and as `dlflax.models.convolution` computes it, for
the input also as one convolution of a dilated dy.

Timed inside `lax.fori_loop`, as training is: outside of one, XLA:CPU computes the gradient of its
own convolution up to a hundred times as fast.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlflax.models import convolution as ours
from dlflax.models.convolution import convolution, im2col, kernel_gradient, symmetric_pads

SHAPES = (  # side, inputs, outputs, kernel size, stride
    (56, 64, 64, 3, 1), (28, 128, 128, 3, 1), (14, 256, 256, 3, 1), (7, 512, 512, 3, 1),
    (56, 64, 128, 3, 2), (28, 128, 256, 3, 2), (14, 256, 512, 3, 2), (56, 256, 64, 1, 1),
    (56, 64, 256, 1, 1), (14, 1024, 256, 1, 1), (56, 256, 512, 1, 2), (224, 3, 64, 7, 2),
    (224, 3, 32, 3, 2), (224, 3, 64, 3, 1), (32, 3, 64, 7, 2), (32, 16, 16, 3, 1),
    (28, 32, 32, 5, 1), (16, 32, 32, 3, 1), (16, 64, 64, 3, 1), (16, 64, 128, 3, 2),
    (8, 64, 64, 3, 1), (8, 128, 128, 3, 1), (4, 256, 256, 3, 1), (2, 512, 512, 3, 1),
    (4, 256, 512, 3, 2),
)  # fmt: skip
PIECE_BYTES = 2**23  # of patches at a time


def milliseconds(functions, *arguments, seconds):
    """The best time of each function, in turns until all have taken so many seconds."""
    programs = [looped(function) for function in functions]
    for program in programs:
        jax.block_until_ready(program(arguments, 1))
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < seconds * len(programs):
        times.append([])
        for program in programs:
            lap = time.perf_counter()
            jax.block_until_ready(program(arguments, 1))
            times[-1].append(1000 * (time.perf_counter() - lap))
    return np.min(times, 0)


def looped(function):
    """function, so often, every result being needed for the next."""

    def body(_, arguments):
        used = sum(jnp.mean(leaf) for leaf in jax.tree.leaves(function(*arguments)))
        return jax.tree.map(lambda leaf: leaf + 1e-9 * used, arguments)

    return jax.jit(lambda arguments, times: lax.fori_loop(0, times, body, arguments))


def both_gradients(x, kernel, how, stride):
    y, backward = jax.vjp(lambda *args: convolution(*args, stride, pads(kernel), how), x, kernel)
    return backward(y)


def pads(kernel):
    return symmetric_pads(kernel.shape[0])


def in_pieces(function, x, dy, k):
    """function(sum, pieces of x and dy) over a batch, scanned."""
    n, c, (rows, columns) = len(x), x.shape[-1], dy.shape[1:3]
    most = max(1, min(n, PIECE_BYTES // (rows * columns * k * k * c * x.dtype.itemsize)))
    size = next(size for size in range(most, 0, -1) if n % size == 0)
    pieces = [array.reshape(n // size, size, *array.shape[1:]) for array in (x, dy)]
    return lax.scan(function, jnp.zeros((k * k * c, dy.shape[-1])), pieces)


def kernel_by_patches(x, kernel, dy, stride):
    k = kernel.shape[0]

    def add(total, piece):
        patches = im2col(piece[0], k, stride, pads(kernel))
        return total + kernel_gradient(patches, piece[1]), None

    return in_pieces(add, x, dy, k)[0].reshape(kernel.shape)


def input_by_patches(x, kernel, dy, stride):
    k, _, c, f = kernel.shape

    def one(total, piece):
        _, transposed = jax.vjp(lambda x: im2col(x, k, stride, pads(kernel)), piece[0])
        return total, transposed(piece[1] @ kernel.reshape(k * k * c, f).T)[0]

    return in_pieces(one, x, dy, k)[1].reshape(x.shape)


def input_by_dilation(x, kernel, dy, stride):
    """One convolution of dy with stride - 1 zeros between its pixels."""
    k = kernel.shape[0]
    padding = [
        (k - 1 - before, side + before - 1 - (out - 1) * stride)
        for side, out, (before, _) in zip(x.shape[1:3], dy.shape[1:3], pads(kernel), strict=True)
    ]
    return lax.conv_general_dilated(
        dy, kernel[::-1, ::-1].transpose(0, 1, 3, 2), (1, 1), padding,
        lhs_dilation=(stride, stride), dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def kernel_as_now(x, kernel, dy, stride):
    return ours._backward(stride, pads(kernel), (x, kernel), dy)[1]


def input_as_now(x, kernel, dy, stride):
    return ours._backward(stride, pads(kernel), (x, kernel), dy)[0]


def gradients(x, kernel, stride, seconds):
    """The row of a shape: each gradient's milliseconds in every formulation."""
    dy = jax.jit(lambda *args: convolution(*args, stride, pads(kernel), "lax"))(x, kernel)
    row = []
    for name, functions in {
        "kernel: patches {} now {}": (kernel_by_patches, kernel_as_now),
        "input: patches {} dilated {} now {}": (input_by_patches, input_by_dilation, input_as_now),
    }.items():
        functions = [functools.partial(each, stride=stride) for each in functions]
        times = milliseconds(functions, x, kernel, dy, seconds=seconds)
        row.append(name.format(*(f"{each:6.1f}" for each in times)))
        row.append(f"({times[0] / times[-1]:.2f} times)")
    return row


def formulations(x, kernel, stride, seconds):
    """The row of a shape: milliseconds forward and with both gradients of every formulation."""
    row = []
    for how in ("lax", "product", "custom gradient"):
        functions = (
            lambda *args, how=how: convolution(*args, stride, pads(kernel), how),
            functools.partial(both_gradients, how=how, stride=stride),
        )
        times = [milliseconds([each], x, kernel, seconds=seconds)[0] for each in functions]
        row.append(f"{how} {times[0]:4.0f} / {times[1]:4.0f}  ")
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gradients", action="store_true", help="each gradient alone, in turns")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each number")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    rng = np.random.default_rng(0)
    for side, c, f, k, stride in SHAPES:
        if k == 1 and options.gradients:
            continue  # products in any case
        x = jnp.float32(rng.normal(size=(options.batch_size, side, side, c)))
        kernel = jnp.float32(rng.normal(size=(k, k, c, f)) / k)
        shape = f"{side}x{side} {c}->{f} {k}x{k}" + f", stride {stride}" * (stride > 1)
        row = (gradients if options.gradients else formulations)(x, kernel, stride, options.seconds)
        print(f"{shape:28}", *row, flush=True)


if __name__ == "__main__":
    main()
