"""`dlflax.ops.dense.Dense` beside Linen's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax.ops.dense import Dense


def differentiated(model, variables, x, weights):
    """(outputs, gradient by variables and by x) of a weighted sum of the outputs."""

    def total(variables, x):
        y = model.apply(variables, x)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    gradients, y = jax.grad(total, (0, 1), has_aux=True)(variables, x)
    return y, gradients


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 3, 4, 8), (0, 8)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_it_is_linens(shape, use_bias):
    x = jax.random.normal(jax.random.key(0), shape)
    weights = jax.random.normal(jax.random.key(1), (*shape[:-1], 6))
    ours, theirs = Dense(6, use_bias), nn.Dense(6, use_bias)
    variables = ours.init(jax.random.key(2), x)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(2), x))
    found, right = (differentiated(each, variables, x, weights) for each in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, right)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_on_a_cpu_rounds_what_is_multiplied_and_nothing_else(dtype):
    rounded = lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)  # noqa: E731
    x = jax.random.normal(jax.random.key(0), (2, 50, 40)).astype(dtype)
    weights = jax.random.normal(jax.random.key(1), (2, 50, 30))
    kernel = jax.random.normal(jax.random.key(2), (40, 30)).astype(jnp.bfloat16)
    variables = {"params": {"kernel": kernel, "bias": jnp.zeros(30, jnp.bfloat16)}}
    y, (of_variables, of_x) = differentiated(Dense(30), variables, x, weights)
    assert y.dtype == jnp.float32 and of_x.dtype == dtype
    assert of_variables["params"]["kernel"].dtype == jnp.bfloat16

    exact = np.float64(rounded(x)) @ np.float64(rounded(kernel))
    np.testing.assert_allclose(y, exact, atol=1e-4)  # the sums are float32
    right = np.float64(rounded(weights)) @ np.float64(rounded(kernel)).T
    np.testing.assert_allclose(np.float32(of_x), right, rtol=2e-2, atol=2e-2)
    right = np.einsum("bti,bto->io", np.float64(x), np.float64(weights))
    of_kernel = np.float32(of_variables["params"]["kernel"])
    np.testing.assert_allclose(of_kernel, right, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_lanes_in_bfloat16_are_as_alone():
    x = jax.random.normal(jax.random.key(0), (7, 8))
    weights = jax.random.normal(jax.random.key(1), (7, 6))
    kernels = jax.random.normal(jax.random.key(2), (3, 8, 6)).astype(jnp.bfloat16)

    def one(kernel):
        return differentiated(Dense(6, False), {"params": {"kernel": kernel}}, x, weights)

    together = jax.vmap(one)(kernels)
    for i, kernel in enumerate(kernels):
        jax.tree.map(
            lambda lane, alone, i=i: np.testing.assert_allclose(
                np.float32(lane[i]), np.float32(alone), rtol=1e-2, atol=1e-5
            ),
            together,
            one(kernel),
        )
