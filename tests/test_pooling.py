"""Max-pooling on a CPU gives XLA's numbers, gradients too, ties included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax.ops.convolution import convolution, symmetric_pads
from dlflax.ops.pooling import max_pool


@pytest.mark.parametrize(
    ("sides", "k", "stride", "pads"),
    [
        ((8, 8), 2, 2, ((0, 0), (0, 0))),
        ((9, 7), 2, 2, ((0, 0), (0, 0))),
        ((8, 9), 3, 2, ((1, 1), (1, 1))),
        ((7, 6), 3, 2, ((0, 1), (1, 0))),
        ((6, 7), 3, 1, ((1, 1), (0, 2))),
        ((7, 8), 2, 3, ((0, 0), (0, 0))),  # pixels between the windows
        ((11, 6), 5, 2, ((2, 2), (2, 2))),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.1)])
def test_max_pool(sides, k, stride, pads, dtype, tolerance):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, (3, *sides, 5)), dtype)  # full of ties

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.grad, has_aux=True)
    def gradient(x, cpu):
        y = max_pool(x, k, stride, pads, cpu=cpu)
        weights = np.random.default_rng(1).normal(size=y.shape)
        return (y.astype(jnp.float32) * jnp.asarray(weights, jnp.float32)).sum(), y

    (own, values), (xla, expected) = gradient(x, True), gradient(x, False)
    np.testing.assert_array_equal(values, expected)
    assert own.dtype == dtype
    np.testing.assert_allclose(np.float32(own), np.float32(xla), atol=tolerance)


def test_it_is_what_a_loop_finds():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    for cpu in (True, False):
        y = np.asarray(max_pool(jnp.asarray(x), 3, 2, ((1, 1), (1, 1)), cpu=cpu))
        for a in range(y.shape[1]):
            for b in range(y.shape[2]):
                window = padded[:, 2 * a : 2 * a + 3, 2 * b : 2 * b + 3]
                np.testing.assert_array_equal(y[:, a, b], window.max((1, 2)))


@pytest.mark.parametrize("side", [2, 3, 4, 5])
def test_what_follows_a_product_reads_and_writes_what_is_there(side):
    """jaxlib 0.10.1 writes beyond the result of a product of 64 images or more that is pooled with
    a row left over: the process ends, or another array is wrong."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, side, side, 16)).astype(np.float32)
    kernel = generator.normal(size=(3, 3, 16, 32)).astype(np.float32)

    @jax.jit
    def pooled(x, kernel):
        return max_pool(convolution(x, kernel, 1, symmetric_pads(3), cpu=True), cpu=True)

    y = np.asarray(convolution(x, kernel, 1, symmetric_pads(3), "lax"))
    y = y[:, : side // 2 * 2, : side // 2 * 2].reshape(64, side // 2, 2, side // 2, 2, 32)
    np.testing.assert_allclose(pooled(x, kernel), y.max((2, 4)), atol=1e-4)
