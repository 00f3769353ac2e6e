"""Losses, metrics and optimizers against Keras (golden.py), scikit-learn and NumPy."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from dlflax import train
from dlflax.errors import InputError
from dlflax.models import CNN
from dlflax.train import Hparams, losses, metrics, optim
from dlflax.train.check import check_hparams
from dlflax.train.step import total_loss


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_matches_keras(smoothing):
    keras = golden.saved("losses")
    found = losses.cross_entropy(keras["logits"], keras["classes"], smoothing)
    np.testing.assert_allclose(found, keras[f"cross_entropy_{smoothing}"], rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_matches_keras(smoothing):
    keras = golden.saved("losses")
    found = losses.binary_cross_entropy(keras["logits"][:, :3], keras["labels"], smoothing)
    np.testing.assert_allclose(found, keras[f"binary_{smoothing}"], rtol=1e-5)


def test_mean_squared_error_by_hand(rng):
    a, b = rng.normal(size=(2, 7, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(
        losses.mean_squared_error(a, b), ((a - b) ** 2).mean((1, 2)), rtol=1e-6
    )


def test_metrics_match_scikit_learn(rng):
    targets = rng.integers(0, 5, 300).astype(np.int32)  # class 5 never occurs
    outputs = rng.normal(size=(300, 6)).astype(np.float32)
    outputs[:, 4] = -9  # class 4 is never predicted
    mask = (np.arange(300) < 280).astype(np.float32)
    counts = metrics.class_counts(metrics.predictions(jnp.asarray(outputs)), targets, mask, 6)
    true, predicted = targets[:280], outputs[:280].argmax(-1)
    labels = range(6)
    matrix = metrics.confusion(predicted, true, 6)
    np.testing.assert_array_equal(
        matrix, sklearn.metrics.confusion_matrix(true, predicted, labels=labels)
    )
    expected = sklearn.metrics.precision_recall_fscore_support(
        true, predicted, labels=labels, zero_division=0
    )
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(metrics.per_class(*counts)[name], column)


def in_order(params):
    return [params[a][b] for a in ("conv1", "dense1", "logits") for b in ("kernel", "bias")]


def small_cnn(optimizer="sgd"):
    """Keras' CNN here: its recipe, numbers, and state with its weights."""
    model = CNN(features=(4,), dense=(16,))
    recipe = train.Recipe(model=model, optimizer=optim.OPTIMIZERS[optimizer], batch_size=8)
    hparams = Hparams(learning_rate=1e-3, l2=golden.L2, momentum=0.9)
    inputs, _ = golden.batches()
    state = jax.jit(train.init, static_argnums=0)(recipe, hparams, inputs[0], jax.random.key(0))
    weights = (weight for key, weight in golden.saved("gradient").items() if "weights" in key)
    params = jax.tree.map(np.zeros_like, state.params)
    for layer in ("conv1", "dense1", "logits"):
        params[layer] = {"kernel": next(weights), "bias": next(weights)}
    return recipe, hparams, state.replace(params=params)


def batch(i):
    inputs, targets = (each[i] for each in golden.batches())
    return {"inputs": inputs, "targets": targets, "mask": np.ones(8, np.float32)}


def test_logits_loss_and_gradient_match_keras():
    """Of a CNN with L2, from the same weights."""
    recipe, hparams, state = small_cnn()
    keras = golden.saved("gradient")

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def our_loss(params):
        return total_loss(recipe, params, {}, hparams, batch(0), jax.random.key(0))

    (loss, (logits, _, _)), gradient = our_loss(state.params)
    np.testing.assert_allclose(loss, keras["reported"], rtol=1e-5)
    np.testing.assert_allclose(loss, keras["loss"], rtol=1e-5)
    np.testing.assert_allclose(logits, keras["logits"], atol=1e-5)
    for i, ours in enumerate(in_order(gradient)):
        np.testing.assert_allclose(ours, keras[f"gradient{i}"], atol=1e-5)


@pytest.mark.parametrize("name", golden.OPTIMIZERS)
def test_ten_steps_match_keras(name):
    """From the same weights to the same weights."""
    recipe, hparams, state = small_cnn(name)
    keras = golden.saved("ten_steps")
    step = jax.jit(train.step, static_argnums=0)
    for i in range(10):
        state, _ = step(recipe, state, hparams, batch(i))
    # Adam divides by the gradient: where that is about epsilon (weights of dead units) it magnifies
    # any difference, hence the quantile; ten steps move a weight by up to 1e-2
    most, worst = (1e-5, 1e-5) if "adam" not in name else (3e-5, 5e-4)
    for i, ours in enumerate(in_order(state.params)):
        difference = np.abs(ours - keras[f"{name}{i}"])
        assert np.quantile(difference, 0.99) < most
        assert difference.max() < worst


def test_schedules():
    hparams = Hparams(learning_rate=0.5, warmup_fraction=0.1, total_steps=100.0)
    at = {
        s: [float(optim.SCHEDULES[s](i, hparams)) for i in (0, 4, 9, 10, 55, 100)]
        for s in ("constant", "cosine", "linear")
    }
    np.testing.assert_allclose(at["constant"], [0.05, 0.25, 0.5, 0.5, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(at["cosine"], [0.05, 0.25, 0.5, 0.5, 0.25, 0.0], atol=1e-6)
    np.testing.assert_allclose(at["linear"], [0.05, 0.25, 0.5, 0.5, 0.25, 0.0], atol=1e-6)


def test_clipping_and_decay():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    gradient = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.zeros(2)}  # norm 6

    def update(name, gradient=gradient, **numbers):
        hparams = Hparams(momentum=0.0, **numbers)
        optimizer = optim.gradient_transformation(optim.OPTIMIZERS[name], 1.0, hparams)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    np.testing.assert_allclose(update("sgd")["kernel"], -3.0)
    np.testing.assert_allclose(update("sgd", clip_norm=1.0)["kernel"], -0.5, rtol=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    decayed = update("adamw", zeros, weight_decay=0.1)
    np.testing.assert_allclose(decayed["kernel"], -0.1, rtol=1e-6)  # shrinks, and kernels only
    np.testing.assert_array_equal(decayed["bias"], 0)


@pytest.mark.parametrize(
    "name, value, right",
    [
        ("learning_rate", -1.0, "above 0 and finite"),
        ("learning_rate", 0.0, "above 0 and finite"),
        ("learning_rate", float("nan"), "above 0 and finite"),
        ("dropout", 1.0, "0 or more and below 1"),
        ("l2", float("inf"), "0 or more and finite"),
        ("momentum", 1.5, "0 or more and below 1"),
    ],
)
def test_absurd_hyperparameters_are_refused(name, value, right):
    check_hparams(Hparams())
    flag = f"--hparams.{name.replace('_', '-')}"
    with pytest.raises(InputError, match=f"{flag} .* must be {right}"):
        check_hparams(Hparams(**{name: value}))
