"""Convolutions by the algorithm that was measured to be the fastest for their shape.

`python -m benchmarks.convolutions` times all algorithms inside `lax.fori_loop`, as training runs.
There XLA:CPU (jax 0.10.1, two cores with AVX-512) computes the gradient of its own convolution on
one core and without its fast kernels, 60 to 100 times as slowly as outside of a loop, so a CPU
never uses that gradient. On GPU and TPU `lax.conv_general_dilated` is used.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from dlflax.ops.flops import inner_jaxprs
from dlflax.ops.platform import on_cpu

Algorithm = Literal["lax", "product", "custom gradient"]
Pads = Sequence[tuple[int, int]]  # of rows and of columns: (before, after)
NO_PADS: Pads = ((0, 0), (0, 0))

SCOPE = "convolution: "
CHUNK_BYTES = 2**23  # of x and dy: 4 to 12 MB measured best, a whole batch half as fast


def convolution(x, kernel, stride: int = 1, pads: Pads = NO_PADS,
                algorithm: Algorithm | None = None, cpu: bool | None = None):  # fmt: skip
    """Convolves x (n, h, w, c), zero-padded, with the kernel (k, k, c, f) -> (n, rows, columns, f).
    algorithm: by default the fastest one; cpu: True on XLA:CPU, by default inferred."""
    cpu = on_cpu() if cpu is None else cpu
    algorithm = algorithm or fastest_algorithm(min(x.shape[1:3]), cpu)
    function = {"lax": _lax, "product": _product, "custom gradient": _custom_gradient}[algorithm]
    with algorithm_scope(algorithm):
        return function(x, kernel, stride, pads)


def algorithm_scope(algorithm: str):
    """Returns a context that names traced operations as a convolution by this algorithm, for
    profiles and `list_algorithms`."""
    return jax.named_scope(SCOPE + algorithm)


def list_algorithms(function, *args) -> list[tuple[str, str]]:
    """Lists (module path, algorithm) of the convolutions in `function(*args)`, in order. args:
    arrays or ShapeDtypeStructs."""
    algorithms: dict[str, str] = {}

    def visit(jaxpr, prefix):
        for equation in jaxpr.eqns:
            path = f"{prefix}/{equation.source_info.name_stack}"
            module, scope, rest = path.partition(f"/{SCOPE}")
            if scope:
                algorithms[module.strip("/")] = rest.partition("/")[0]
                continue
            for inner in inner_jaxprs(equation.params):
                visit(inner, path)

    visit(jax.make_jaxpr(function)(*args).jaxpr, "")
    return list(algorithms.items())


def fastest_algorithm(side: int, cpu: bool) -> Algorithm:
    """Returns the fastest algorithm for images of `side` pixels."""
    if not cpu:
        return "lax"
    return "product" if side <= 4 else "custom gradient"


def symmetric_pads(kernel_size: int) -> Pads:
    """Returns a padding of (k - 1) // 2 on every side."""
    side = (kernel_size - 1) // 2
    return (side, side), (side, side)


def _lax(x, kernel, stride, pads, dilation: int = 1):
    """XLA's convolution. Negative pads crop x; dilation is the kernel's."""
    if min(map(min, pads)) < 0:  # XLA:CPU would read beyond x (openxla/xla issue 48713)
        x = jnp.pad(x, ((0, 0), *((max(a, 0), max(b, 0)) for a, b in pads), (0, 0)))
        rows, columns = (
            slice(max(-a, 0), side - max(-b, 0))
            for side, (a, b) in zip(x.shape[1:3], pads, strict=True)
        )
        x, pads = x[:, rows, columns], NO_PADS
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def windows(x, k: int, stride: int, pads: Pads, fill: float = 0.0):
    """Slices x (n, h, w, c), padded with `fill`, by the k * k positions in a window: strided slices
    (n, rows, columns, c)."""
    rows, columns = (
        (side + sum(pad) - k) // stride * stride + 1
        for side, pad in zip(x.shape[1:3], pads, strict=True)
    )
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    return [
        x[:, i : i + rows : stride, j : j + columns : stride] for i in range(k) for j in range(k)
    ]


def im2col(x, k: int, stride: int, pads: Pads):
    """Concatenates `windows`: (n, h, w, c) -> patches (n, rows, columns, k * k * c)."""
    slices = windows(x, k, stride, pads)
    return jnp.concatenate(slices, -1) if k > 1 else slices[0]


def _product(x, kernel, stride, pads):
    k, _, c, f = kernel.shape
    return im2col(x, k, stride, pads) @ kernel.reshape(k * k * c, f)


def kernel_gradient(patches, dy):
    """Sums products over all pixels: (n, h, w, p), (n, h, w, f) -> (p, f), float32."""
    # float32, as XLA:CPU lacks some products of bfloat16 with a float32 result
    patches, dy = patches.astype(jnp.float32), dy.astype(jnp.float32)
    if dy.shape[-1] < patches.shape[-1]:  # XLA:CPU transposes the left factor in memory
        return jnp.einsum("nhwf,nhwp->fp", dy, patches).T
    return jnp.einsum("nhwp,nhwf->pf", patches, dy)


def _input_gradient(dy, kernel, shape, stride, pads):
    """Computes the gradient of x by a convolution of dy for each phase of the stride. A convolution
    of a dilated dy would multiply zeros."""
    n, h, w, c = shape
    spare = max(0, stride - kernel.shape[0])  # every phase needs a tap
    kernel = jnp.pad(kernel, ((0, spare), (0, spare), (0, 0), (0, 0)))
    sides = [-(-side // stride) for side in (h, w)]

    def phase(*offsets):
        taps, padding = [], []
        for i, side, out, (before, _) in zip(offsets, sides, dy.shape[1:3], pads, strict=True):
            first, tap = divmod(i + before, stride)  # this tap maps pixel i to dy's pixel `first`
            reach = len(range(tap, kernel.shape[0], stride)) - 1
            taps.append(slice(tap, None, stride))
            padding.append((reach - first, side + first - out))
        rotated = kernel[tuple(taps)][::-1, ::-1].transpose(0, 1, 3, 2)
        return _lax(dy, rotated, 1, padding)

    dx = jnp.stack([phase(i, j) for i in range(stride) for j in range(stride)])
    dx = dx.reshape(stride, stride, n, *sides, c).transpose(2, 3, 0, 4, 1, 5)
    return dx.reshape(n, sides[0] * stride, sides[1] * stride, c)[:, :h, :w]


def _chunks(x, dy, chunk_bytes):
    """Splits x and dy, (n, ...) each, into zero-padded chunks of at most chunk_bytes: (count,
    n / count, ...)."""
    n = len(x)
    size = min(n, max(2, chunk_bytes // (4 * (x[0].size + dy[0].size))))
    count = -(-n // size)
    size = -(-n // count)
    spare = count * size - n
    return tuple(
        jnp.pad(array, ((0, spare), (0, 0), (0, 0), (0, 0))).reshape(count, size, *array.shape[1:])
        for array in (x, dy)
    )


def _kernel_gradient(x, dy, k, stride, pads):
    """Computes the gradient of the kernel in float32 by convolutions of x with dy in NHWC. XLA:CPU
    has no fast kernels for other orders in a loop. Few, large patches are multiplied instead."""
    by_patches = k == 3 and stride == 2 and min(dy.shape[1:3]) >= 14
    padding = [
        (before, k - before + (out - 1) * stride - side)
        for side, out, (before, _) in zip(x.shape[1:3], dy.shape[1:3], pads, strict=True)
    ]

    def add(total, chunk):
        x, dy = (array.astype(jnp.float32) for array in chunk)
        if by_patches:
            gradient = kernel_gradient(im2col(x, k, stride, pads), dy)
            return total + gradient.reshape(k, k, *total.shape[::3]).transpose(2, 0, 1, 3), None
        x, dy = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
        return total + _lax(x, dy, 1, padding, stride), None

    zeros = jnp.zeros((x.shape[-1], k, k, dy.shape[-1]), jnp.float32)
    chunks = _chunks(x, dy, CHUNK_BYTES // 4 if by_patches else CHUNK_BYTES)
    return lax.scan(add, zeros, chunks)[0].transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _custom_gradient(x, kernel, stride, pads):
    """Convolution whose gradients are forward convolutions, or products of patches for 1x1 kernels
    and some other shapes: both are fast on XLA:CPU."""
    return (_product if kernel.shape[0] == 1 else _lax)(x, kernel, stride, pads)


def _forward(x, kernel, stride, pads):
    return _custom_gradient(x, kernel, stride, pads), (x, kernel)


def _backward(stride, pads, residuals, dy):
    x, kernel = residuals
    k, _, c, f = kernel.shape
    if k == 1 or min(dy.shape[1:3]) <= 7:
        patches, transposed = jax.vjp(lambda x: im2col(x, k, stride, pads), x)
        (dx,) = transposed(dy @ kernel.reshape(k * k * c, f).T)
    else:
        dx = _input_gradient(dy, kernel, x.shape, stride, pads)
    if k == 1:
        dkernel = kernel_gradient(patches, dy).reshape(kernel.shape)
    else:
        dkernel = _kernel_gradient(x, dy, k, stride, pads)
    return dx, dkernel.astype(kernel.dtype)


_custom_gradient.defvjp(_forward, _backward)
