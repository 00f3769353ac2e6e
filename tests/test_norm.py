"""Batch normalization against Flax's own, whose results and gradients it has to have."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax.ops import norm
from dlflax.ops.norm import BatchNorm

SHAPES = ((8, 5), (4, 7, 7, 3), (2, 37, 37, 2), (3, 56, 64, 1), (5, 33, 4), (1, 1, 1, 6))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_flax(shape, platform, monkeypatch):
    monkeypatch.setattr(norm.jax, "default_backend", lambda: platform)
    rng = np.random.default_rng(0)
    x, dy = (np.float32(rng.normal(loc, 2, shape)) for loc in (3, 0))
    ones = np.ones(shape[-1:], np.float32)
    variables = {
        "params": {name: np.float32(rng.normal(size=shape[-1:])) for name in ("bias", "scale")},
        "batch_stats": {"mean": ones, "var": ones},
    }

    def both(module):
        def call(params, x):
            return module.apply(
                {**variables, "params": params}, x, use_running_average=False,
                mutable=["batch_stats"],
            )  # fmt: skip

        def values(params, x, dy):
            y, backward, statistics = jax.vjp(call, params, x, has_aux=True)
            return y, backward(dy), statistics

        return jax.jit(values)(variables["params"], x, dy)

    found = both(BatchNorm(momentum=0.9, epsilon=1e-3))
    expected = both(nn.BatchNorm(momentum=0.9, epsilon=1e-3))
    tolerance = 1e-2 if x[..., 0].size == 1 else 2e-5  # of one value the variance is rounding
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=tolerance * np.abs(b).max()),
        found, expected,
    )  # fmt: skip


def test_running_average_and_init_equal_flax():
    x = np.float32(np.random.default_rng(0).normal(size=(4, 3, 3, 2)))
    ours, theirs = BatchNorm(), nn.BatchNorm()
    variables = ours.init(jax.random.key(0), x, use_running_average=False)
    expected = theirs.init(jax.random.key(0), x, use_running_average=False)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    y = ours.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(y, theirs.apply(variables, x, use_running_average=True), rtol=1e-6)


def test_bfloat16_is_summed_in_float32():
    x = jnp.bfloat16(np.random.default_rng(0).normal(5, 1, (16, 32, 32, 4)))
    variables = BatchNorm().init(jax.random.key(0), x, use_running_average=False)
    cast = jax.tree.map(jnp.bfloat16, variables["params"])
    y, new = BatchNorm(momentum=0.0).apply(
        {**variables, "params": cast}, x, use_running_average=False, mutable=["batch_stats"]
    )
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(new["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], exact.var((0, 1, 2)), rtol=1e-4)


def test_vmap_over_trials_is_each_alone():
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(3, 4, 6, 6, 2)))
    scale, bias = (np.float32(rng.normal(size=(3, 2))) for _ in range(2))

    @jax.jit
    def one(x, scale, bias):
        y, backward = jax.vjp(lambda *a: norm._batch_norm_cpu(*a, 1e-5)[0], x, scale, bias)
        return y, backward(jnp.sin(y))

    together = jax.jit(jax.vmap(one))(x, scale, bias)
    for i in range(3):
        alone = one(x[i], scale[i], bias[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5),
            together, alone,
        )  # fmt: skip
