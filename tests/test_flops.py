"""Counted operations against arithmetic by hand and XLA's own count."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dlflax.models import MLP
from dlflax.ops.convolution import convolution, symmetric_pads
from dlflax.ops.flops import flops


def test_matrix_products_and_scans():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert flops(lambda a, b: jnp.tanh(a @ b), a, b) == 2 * 3 * 4 * 5
    square = jnp.ones((4, 4))

    def seven(x):
        return lax.scan(lambda x, _: (x @ square, None), x, None, length=7)[0]

    assert flops(jax.jit(seven), a) == 7 * 2 * 3 * 4 * 4
    assert flops(lambda x: lax.cond(x.sum() > 0, lambda: x @ square, lambda: x), a) == 2 * 3 * 4 * 4


def test_convolution():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    conv = functools.partial(convolution, pads=symmetric_pads(3), algorithm="lax")
    assert flops(conv, x, kernel) == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)


def test_agrees_with_xla():
    model, x = MLP((16,)), jnp.ones((1, 28, 28, 1))
    variables = model.init(jax.random.key(0), x)
    found = flops(model.apply, variables, x)
    xla = jax.jit(model.apply).lower(variables, x).compile().cost_analysis()["flops"]
    assert found == 2 * (784 * 16 + 16 * 10)
    assert found <= xla <= 1.02 * found  # which counts the elementwise ones too
