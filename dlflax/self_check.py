"""Check of the installed compiler: a few small programs are compared with NumPy, once.

jaxlib 0.10.2 silently computes a wrong fused reduction on CPUs (jax issue 39103). A failed check
raises an error with the version to install; a passed one is noted in the cache folder.
"""

import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

from dlflax import cache
from dlflax.errors import RunError


def check() -> None:
    """Raises RunError if a program's result is wrong. Takes 0.3 s, the first time only."""
    this = f"{jax.devices()[0].device_kind}, jaxlib {jaxlib.__version__}"
    path = cache.cache_folder() / "self_check" / cache.digest(this)
    if cache.read(path):
        return
    wrong = [name for name, program in PROGRAMS.items() if not program()]
    if wrong:
        version = "0.10.1" if sys.version_info < (3, 12) else "0.12.0.1"
        extra = {"gpu": "[cuda13]", "tpu": "[tpu]"}.get(jax.default_backend(), "")
        raise RunError(
            f"this installation computes {' and '.join(wrong)} wrong ({this}): pip install "
            f"'jax{extra}=={version}', which computes it right."
        )
    cache.write(path, this)


def _is_close(actual, expected) -> bool:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    # accelerators may round products to 10 bits; the known fault is in the first digit
    return bool(np.abs(actual - expected).max() <= 0.02 * np.abs(expected).max())


def _reduction() -> bool:
    rng = np.random.default_rng(0)
    m, rows = np.float32(rng.normal(size=(3, 3))), np.float32(rng.normal(size=(40_000, 3)))
    actual = jax.jit(jax.vmap(lambda r: jnp.sum((m @ r) ** 2)))(rows)
    expected = ((rows.astype(np.float64) @ m.T.astype(np.float64)) ** 2).sum(1)
    return bool(np.all(np.abs(actual - expected) <= 0.02 * expected + 1e-3))


def _convolution() -> bool:
    rng = np.random.default_rng(1)
    x, kernel = np.float32(rng.normal(size=(2, 6, 6, 3))), np.float32(rng.normal(size=(3, 3, 3, 4)))

    def half_square(x, kernel):
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return 0.5 * jnp.sum(y**2), y

    gradient = jax.jit(jax.grad(half_square, argnums=(0, 1), has_aux=True))
    (dx, dkernel), y = gradient(x, kernel)
    windows = [(i, j) for i in range(3) for j in range(3)]
    expected_y = sum(x[:, i : i + 4, j : j + 4] @ kernel[i, j] for i, j in windows)
    expected_dx, expected_dkernel = np.zeros_like(x), np.zeros_like(kernel)
    for i, j in windows:
        expected_dx[:, i : i + 4, j : j + 4] += expected_y @ kernel[i, j].T
        expected_dkernel[i, j] = np.einsum("nhwc,nhwf->cf", x[:, i : i + 4, j : j + 4], expected_y)
    pairs = ((y, expected_y), (dx, expected_dx), (dkernel, expected_dkernel))
    return all(_is_close(actual, expected) for actual, expected in pairs)


def _softmax() -> bool:
    logits = np.float32(5 * np.random.default_rng(2).normal(size=(64, 500)))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return _is_close(jax.jit(jax.nn.softmax)(logits), powers / powers.sum(1, keepdims=True))


def _scan() -> bool:
    values = np.float32(np.random.default_rng(3).normal(size=(50, 8)))
    expected, state = [], np.zeros(8)
    for value in values:
        state = 0.9 * state + value
        expected.append(state)

    def add(state, value):
        state = 0.9 * state + value
        return state, state

    actual = jax.jit(lambda values: lax.scan(add, jnp.zeros(8), values)[1])(values)
    return _is_close(actual, np.stack(expected))


PROGRAMS = {
    "a fused reduction": _reduction,
    "a convolution and its gradient": _convolution,
    "softmax": _softmax,
    "a scan": _scan,
}
