"""Layers and models against independent formulations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax.errors import InputError
from dlflax.models import CNN, MLP
from dlflax.models.layers import Activation, Conv, Dropout, activation

MODELS = {
    "cnn": (CNN(), 402_442),
    "cnn deep": (CNN(features=(4, 8), depth=2, dense=(8, 8), dropout_on="all"), None),
    "mlp": (MLP(), 101_770),
}


@pytest.mark.parametrize("name", MODELS)
def test_model_conformance(name):
    """Every model: shape, float32 logits, parameter count as documented, pure, dropout only in
    training, every parameter receives gradient."""
    model, count = MODELS[name]
    x = jax.random.uniform(jax.random.key(0), (4, 28, 28, 1))
    init = jax.jit(model.init)
    variables = init(jax.random.key(1), x)
    if count:
        assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
    jax.tree.map(np.testing.assert_array_equal, variables, init(jax.random.key(1), x))

    @functools.partial(jax.jit, static_argnames="train")
    def apply(variables, train=False, dropout=0.0):
        rngs = {"dropout": jax.random.key(2)} if train else {}
        return model.apply(variables, x, train=train, dropout=dropout, rngs=rngs)

    logits = apply(variables)
    assert logits.shape == (4, 10) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, apply(variables, train=True, dropout=0.0), atol=1e-6)
    assert not np.allclose(logits, apply(variables, train=True, dropout=0.5))

    gradient = jax.jit(jax.grad(lambda v: jnp.square(apply(v)).sum()))(variables)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "pool, n, size, channels, kernel",
    [
        (True, 32, 14, 1, 3),  # one piece
        (True, 64, 7, 4, 3),  # two pieces, odd size: pooling drops the last row
        (True, 37, 8, 2, 2),  # a prime: all at once; even kernel
        (True, 36, 6, 2, 3),  # pieces of 18
        (False, 64, 7, 4, 3),
        (False, 5, 8, 2, 5),
    ],
)
def test_matmul_convolution_is_lax_convolution(pool, n, size, channels, kernel):
    """Same parameters: same outputs, same gradients of parameters and of the input."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(n, size, size, channels)))
    side = size // 2 if pool else size
    weight = np.float32(rng.normal(size=(n, side, side, 6)))
    shape = (kernel, kernel, channels, 6)
    parameters = {"kernel": rng.normal(size=shape), "bias": rng.normal(size=6)}
    variables = {"params": jax.tree.map(np.float32, parameters)}

    def value(formulation):
        module = Conv(6, kernel, pool, formulation)

        def loss(v, x):
            out = module.apply(v, x)
            return jnp.sum(weight * out), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)

    for a, b in zip(jax.tree.leaves(value("lax")), jax.tree.leaves(value("matmul")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_matmul_convolution_ties_go_to_the_first():
    """On constant pictures all four places tie: the gradient must land where lax puts it."""
    x = jnp.ones((2, 6, 6, 1))
    variables = {"params": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.zeros(2)}}
    gradients = [
        jax.jit(jax.grad(lambda x, f=f: Conv(2, 3, True, f).apply(variables, x).sum()))(x)
        for f in ("lax", "matmul")
    ]
    np.testing.assert_array_equal(*gradients)


def test_convolution_matches_keras():
    """The stage conv, ReLU, max-pool, in Keras' order, from the same weights."""
    keras = pytest.importorskip("keras")
    x = np.random.default_rng(0).normal(size=(3, 28, 28, 1)).astype(np.float32)
    stage = keras.Sequential(
        [keras.layers.Conv2D(32, 3, padding="same", activation="relu"), keras.layers.MaxPool2D()]
    )
    with jax.numpy_rank_promotion("allow"):
        stage.build(x.shape)
        kernel, bias = stage.get_weights()
        bias = bias + np.linspace(-0.1, 0.1, 32, dtype=np.float32)
        stage.set_weights([kernel, bias])
        expected = np.asarray(stage(x))
    variables = {"params": {"kernel": kernel, "bias": bias}}
    for formulation in ("lax", "matmul"):
        out = jax.jit(Conv(32, 3, True, formulation).apply)(variables, x)
        np.testing.assert_allclose(jax.nn.relu(out), expected, atol=1e-5)


def test_dropout_rate_is_traced_and_keeps_the_mean():
    traces = []

    @jax.jit
    def drop(x, rate):
        traces.append(rate)
        return Dropout().apply({}, x, rate, True, rngs={"dropout": jax.random.key(0)})

    x = jnp.ones((1000, 100))
    np.testing.assert_array_equal(drop(x, 0.0), x)
    for rate in (0.1, 0.5):
        y = drop(x, rate)
        assert abs(float(jnp.mean(y == 0)) - rate) < 0.01
        np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(drop(x, 1.0), 0 * x)
    assert len(traces) == 1


def test_activations_are_the_ones_of_jax_nn():
    assert all(callable(activation(name)) for name in Activation.__args__)
    with pytest.raises(InputError, match="unknown activation 'rellu': choose one of relu, "):
        activation("rellu")


@pytest.mark.parametrize(
    "model",
    [CNN(features=(8,) * 5), CNN(features=(0,)), CNN(dense=(-1,)), CNN(depth=0), MLP((0,))],
)
def test_impossible_models_are_refused(model):
    with pytest.raises(InputError, match="--model.features .* 1 or more"):
        model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
