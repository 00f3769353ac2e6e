"""Milliseconds of each algorithm of a convolution.

python -m benchmarks.convolutions
python -m benchmarks.convolutions --gradients

prints for the shapes of ResNets on 224 and 64 pixels, batch 32, the best times forward and forward
with both gradients: the basis of `dlflax.ops.convolution.fastest_algorithm`. With --gradients,
each gradient alone, alternating: as products of patches, by chunks of 8 MiB, as
`dlflax.ops.convolution` computes it, and for the input also as a convolution of a dilated dy.

Timed inside `lax.fori_loop`, as training runs: outside of it, XLA:CPU computes the gradient of its
own convolution up to a hundred times as fast.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlflax.ops import convolution as ops_convolution
from dlflax.ops.convolution import convolution, im2col, kernel_gradient, symmetric_pads

SHAPES = (  # side, inputs, outputs, kernel size, stride
    (56, 64, 64, 3, 1), (28, 128, 128, 3, 1), (14, 256, 256, 3, 1), (7, 512, 512, 3, 1),
    (56, 64, 128, 3, 2), (28, 128, 256, 3, 2), (14, 256, 512, 3, 2), (56, 256, 64, 1, 1),
    (56, 64, 256, 1, 1), (14, 1024, 256, 1, 1), (56, 256, 512, 1, 2), (224, 3, 64, 7, 2),
    (224, 3, 32, 3, 2), (224, 3, 64, 3, 1), (32, 3, 64, 7, 2), (32, 16, 16, 3, 1),
    (28, 32, 32, 5, 1), (16, 32, 32, 3, 1), (16, 64, 64, 3, 1), (16, 64, 128, 3, 2),
    (8, 64, 64, 3, 1), (8, 128, 128, 3, 1), (4, 256, 256, 3, 1), (2, 512, 512, 3, 1),
    (4, 256, 512, 3, 2),
)  # fmt: skip
CHUNK_BYTES = 2**23  # of patches


def milliseconds(functions, *arguments, seconds):
    """Returns the best time of each function, alternating until the mean has run these seconds."""
    programs = [loop(function) for function in functions]
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


def loop(function):
    """Returns a program that repeats the function, where each call depends on the one before."""

    def body(_, arguments):
        mean = sum(jnp.mean(leaf) for leaf in jax.tree.leaves(function(*arguments)))
        return jax.tree.map(lambda leaf: leaf + 1e-9 * mean, arguments)

    return jax.jit(lambda arguments, times: lax.fori_loop(0, times, body, arguments))


def both_gradients(x, kernel, algorithm, stride):
    forward = functools.partial(forward_by, algorithm=algorithm, stride=stride)
    y, backward = jax.vjp(forward, x, kernel)
    return backward(y)


def forward_by(x, kernel, algorithm, stride):
    return convolution(x, kernel, stride, pads(kernel), algorithm)


def pads(kernel):
    return symmetric_pads(kernel.shape[0])


def scan_chunks(function, x, dy, k):
    """Scans function(sum, (x, dy)) over chunks of a batch."""
    n, c, (rows, columns) = len(x), x.shape[-1], dy.shape[1:3]
    most = max(1, min(n, CHUNK_BYTES // (rows * columns * k * k * c * x.dtype.itemsize)))
    size = next(size for size in range(most, 0, -1) if n % size == 0)
    chunks = [array.reshape(n // size, size, *array.shape[1:]) for array in (x, dy)]
    return lax.scan(function, jnp.zeros((k * k * c, dy.shape[-1])), chunks)


def kernel_by_patches(x, kernel, dy, stride):
    k = kernel.shape[0]

    def add(total, chunk):
        patches = im2col(chunk[0], k, stride, pads(kernel))
        return total + kernel_gradient(patches, chunk[1]), None

    return scan_chunks(add, x, dy, k)[0].reshape(kernel.shape)


def input_by_patches(x, kernel, dy, stride):
    k, _, c, f = kernel.shape

    def gradient(total, chunk):
        _, transposed = jax.vjp(lambda x: im2col(x, k, stride, pads(kernel)), chunk[0])
        return total, transposed(chunk[1] @ kernel.reshape(k * k * c, f).T)[0]

    return scan_chunks(gradient, x, dy, k)[1].reshape(x.shape)


def input_by_dilation(x, kernel, dy, stride):
    """Convolves dy, dilated by the stride."""
    k = kernel.shape[0]
    padding = [
        (k - 1 - before, side + before - 1 - (out - 1) * stride)
        for side, out, (before, _) in zip(x.shape[1:3], dy.shape[1:3], pads(kernel), strict=True)
    ]
    return lax.conv_general_dilated(
        dy, kernel[::-1, ::-1].transpose(0, 1, 3, 2), (1, 1), padding,
        lhs_dilation=(stride, stride), dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def kernel_by_dlflax(x, kernel, dy, stride):
    return ops_convolution._backward(stride, pads(kernel), (x, kernel), dy)[1]


def input_by_dlflax(x, kernel, dy, stride):
    return ops_convolution._backward(stride, pads(kernel), (x, kernel), dy)[0]


def gradients(x, kernel, stride, seconds):
    """Returns the row of a shape: each gradient's milliseconds by every algorithm."""
    dy = jax.jit(functools.partial(forward_by, algorithm="lax", stride=stride))(x, kernel)
    row = []
    for name, functions in {
        "kernel: patches {} now {}": (kernel_by_patches, kernel_by_dlflax),
        "input: patches {} dilated {} now {}":
            (input_by_patches, input_by_dilation, input_by_dlflax),
    }.items():  # fmt: skip
        functions = [functools.partial(function, stride=stride) for function in functions]
        times = milliseconds(functions, x, kernel, dy, seconds=seconds)
        row.append(name.format(*(f"{time:6.1f}" for time in times)))
        row.append(f"({times[0] / times[-1]:.2f} times)")
    return row


def algorithms(x, kernel, stride, seconds):
    """Returns the row of a shape: milliseconds forward and with both gradients of every
    algorithm."""
    row = []
    for algorithm in ("lax", "product", "custom gradient"):
        times = [
            milliseconds(
                [functools.partial(function, algorithm=algorithm, stride=stride)],
                x, kernel, seconds=seconds,
            )[0]
            for function in (forward_by, both_gradients)
        ]  # fmt: skip
        row.append(f"{algorithm} {times[0]:4.0f} / {times[1]:4.0f}  ")
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gradients", action="store_true", help="each gradient alone, alternating")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    rng = np.random.default_rng(0)
    for side, c, f, k, stride in SHAPES:
        if k == 1 and options.gradients:
            continue  # always products
        x = jnp.float32(rng.normal(size=(options.batch_size, side, side, c)))
        kernel = jnp.float32(rng.normal(size=(k, k, c, f)) / k)
        shape = f"{side}x{side} {c}->{f} {k}x{k}" + f", stride {stride}" * (stride > 1)
        row = (gradients if options.gradients else algorithms)(x, kernel, stride, options.seconds)
        print(f"{shape:28}", *row, flush=True)


if __name__ == "__main__":
    main()
