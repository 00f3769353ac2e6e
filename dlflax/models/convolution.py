"""Convolutions in the formulation that is fastest for their shape: measured, not guessed.

`python -m benchmarks.convolutions` times them all, inside `lax.fori_loop`, as training is: there
XLA:CPU (jax 0.10.1, two cores with AVX-512) computes the gradient of its own convolution on one
core and without its fast kernels, 60 to 100 times as slowly as outside of a loop. So on a CPU it is
never left to it. On GPU and TPU `lax.conv_general_dilated` is right throughout.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from dlflax.models.flops import inner_jaxprs
from dlflax.models.platform import on_cpu

How = Literal["lax", "product", "own gradient"]
Pads = Sequence[tuple[int, int]]  # of rows and of columns, before and behind
NO_PADS: Pads = ((0, 0), (0, 0))

SCOPE = "convolution: "
PIECE_BYTES = 2**23  # of x and dy at a time: 4 to 12 MB measured best, all at once half as fast


def convolution(x, kernel, stride: int = 1, pads: Pads = NO_PADS, how: How | None = None,
                cpu: bool | None = None):  # fmt: skip
    """x (n, h, w, c), kernel (k, k, c, f), `pads` zeros before and behind rows and columns ->
    (n, rows, columns, f). how: the formulation, by default the fastest for a CPU or elsewhere;
    cpu: which of both, by default where it runs."""
    cpu = on_cpu() if cpu is None else cpu
    how = how or fastest(min(x.shape[1:3]), cpu)
    function = {"lax": _lax, "product": _product, "own gradient": _own_gradient}[how]
    with formulated(how):
        return function(x, kernel, stride, pads)


def formulated(how: str):
    """A context manager: what is traced inside shows in profiles, and to `formulations`, as a
    convolution that is computed so."""
    return jax.named_scope(SCOPE + how)


def formulations(function, *args) -> list[tuple[str, str]]:
    """(module path, formulation) of the convolutions in `function(*args)`, in order. args: arrays
    or ShapeDtypeStructs."""
    found: dict[str, str] = {}

    def look(jaxpr, outside):
        for equation in jaxpr.eqns:
            path = f"{outside}/{equation.source_info.name_stack}"
            module, scope, how = path.partition(f"/{SCOPE}")
            if scope:
                found[module.strip("/")] = how.partition("/")[0]
                continue
            for inner in inner_jaxprs(equation.params):
                look(inner, path)

    look(jax.make_jaxpr(function)(*args).jaxpr, "")
    return list(found.items())


def fastest(side: int, cpu: bool) -> How:
    """The formulation for pictures of `side` pixels, on a CPU or elsewhere."""
    if not cpu:
        return "lax"
    return "product" if side <= 4 else "own gradient"


def symmetric(kernel_size: int) -> Pads:
    """(k - 1) // 2 on every side."""
    side = (kernel_size - 1) // 2
    return (side, side), (side, side)


def _lax(x, kernel, stride, pads, dilation: int = 1):
    """XLA's own. Negative pads crop x; dilation: of the kernel."""
    if min(map(min, pads)) < 0:  # given these, XLA:CPU reads beyond x (openxla/xla issue 48713)
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
    """k * k arrays (n, rows, columns, c): what each place of a k x k window sees of x (n, h, w, c),
    padded with `fill`."""
    rows, columns = (
        (side + sum(pad) - k) // stride * stride + 1
        for side, pad in zip(x.shape[1:3], pads, strict=True)
    )
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    return [
        x[:, i : i + rows : stride, j : j + columns : stride] for i in range(k) for j in range(k)
    ]


def im2col(x, k: int, stride: int, pads: Pads):
    """`windows` beside each other: (n, h, w, c) -> (n, rows, columns, k * k * c)."""
    slices = windows(x, k, stride, pads)
    return jnp.concatenate(slices, -1) if k > 1 else slices[0]


def _product(x, kernel, stride, pads):
    k, _, c, f = kernel.shape
    return im2col(x, k, stride, pads) @ kernel.reshape(k * k * c, f)


def kernel_gradient(patches, dy):
    """(n, h, w, p), (n, h, w, f) -> (p, f), float32: the sum of their products over all pixels.

    XLA:CPU transposes the left factor in memory, so the narrower one stands there. And it has no
    product of bfloat16 into float32 for every shape, so both become float32, in which their
    products are exact.
    """
    patches, dy = (each.astype(jnp.float32) for each in (patches, dy))
    if dy.shape[-1] < patches.shape[-1]:
        return jnp.einsum("nhwf,nhwp->fp", dy, patches).T
    return jnp.einsum("nhwp,nhwf->pf", patches, dy)


def _input_gradient(dy, kernel, shape, stride, pads):
    """The gradient of x (n, h, w, c), its `shape`: for each phase of the stride a convolution of dy
    by the taps that reach its pixels, as XLA's of a dilated dy multiplies zeros."""
    n, h, w, c = shape
    spare = max(0, stride - kernel.shape[0])  # every phase needs a tap
    kernel = jnp.pad(kernel, ((0, spare), (0, spare), (0, 0), (0, 0)))
    sides = [-(-side // stride) for side in (h, w)]

    def phase(*place):
        taps, padding = [], []
        for i, side, out, (before, _) in zip(place, sides, dy.shape[1:3], pads, strict=True):
            first, tap = divmod(i + before, stride)  # pixel i is dy's pixel `first` by this tap
            reach = len(range(tap, kernel.shape[0], stride)) - 1
            taps.append(slice(tap, None, stride))
            padding.append((reach - first, side + first - out))
        turned = kernel[tuple(taps)][::-1, ::-1].transpose(0, 1, 3, 2)
        return _lax(dy, turned, 1, padding)

    dx = jnp.stack([phase(i, j) for i in range(stride) for j in range(stride)])
    dx = dx.reshape(stride, stride, n, *sides, c).transpose(2, 3, 0, 4, 1, 5)
    return dx.reshape(n, sides[0] * stride, sides[1] * stride, c)[:, :h, :w]


def _pieces(x, dy, piece_bytes):
    """x and dy, (n, ...) each, as (pieces, n / pieces, ...): of so many bytes, with zeros behind
    them."""
    n = len(x)
    most = min(n, max(2, piece_bytes // (4 * (x[0].size + dy[0].size))))
    pieces = -(-n // most)
    size = -(-n // pieces)
    spare = pieces * size - n
    return tuple(
        jnp.pad(array, ((0, spare), (0, 0), (0, 0), (0, 0))).reshape(pieces, size, *array.shape[1:])
        for array in (x, dy)
    )


def _kernel_gradient(x, dy, k, stride, pads):
    """The gradient of the kernel (k, k, c, f), float32: forward convolutions of x by dy, in the
    order NHWC, which alone XLA:CPU computes by its fast kernels inside a loop; or a product of
    patches where these are few and large."""
    by_patches = k == 3 and stride == 2 and min(dy.shape[1:3]) >= 14
    padding = [
        (before, k - before + (out - 1) * stride - side)
        for side, out, (before, _) in zip(x.shape[1:3], dy.shape[1:3], pads, strict=True)
    ]

    def add(total, piece):
        x, dy = (array.astype(jnp.float32) for array in piece)
        if by_patches:
            gradient = kernel_gradient(im2col(x, k, stride, pads), dy)
            return total + gradient.reshape(k, k, *total.shape[::3]).transpose(2, 0, 1, 3), None
        x, dy = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
        return total + _lax(x, dy, 1, padding, stride), None

    start = jnp.zeros((x.shape[-1], k, k, dy.shape[-1]), jnp.float32)
    pieces = _pieces(x, dy, PIECE_BYTES // 4 if by_patches else PIECE_BYTES)
    return lax.scan(add, start, pieces)[0].transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _own_gradient(x, kernel, stride, pads):
    """Both gradients as what XLA:CPU is fast at: forward convolutions, or products of patches for
    1x1 and where the shape says so."""
    return (_product if kernel.shape[0] == 1 else _lax)(x, kernel, stride, pads)


def _forward(x, kernel, stride, pads):
    return _own_gradient(x, kernel, stride, pads), (x, kernel)


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


_own_gradient.defvjp(_forward, _backward)
