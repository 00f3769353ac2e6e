"""Losses, metrics and optimizers against Keras (JAX backend), scikit-learn and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from dlflax import train
from dlflax.errors import InputError
from dlflax.models import CNN
from dlflax.train import Hparams, hparams, losses, metrics, optim
from dlflax.train.step import objective
from dlflax.train.tasks import Classification

keras = pytest.importorskip("keras")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_matches_keras(rng, smoothing):
    logits = rng.normal(size=(16, 10)).astype(np.float32) * 5
    targets = rng.integers(0, 10, 16).astype(np.int32)
    expected = keras.losses.categorical_crossentropy(
        keras.utils.to_categorical(targets, 10), logits, True, label_smoothing=smoothing
    )
    np.testing.assert_allclose(
        losses.cross_entropy(logits, targets, smoothing), expected, rtol=1e-5
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_matches_keras(rng, smoothing):
    logits = rng.normal(size=(16, 3)).astype(np.float32) * 5
    targets = rng.integers(0, 2, (16, 3))
    expected = keras.losses.binary_crossentropy(
        targets, logits, from_logits=True, label_smoothing=smoothing
    )
    got = losses.binary_cross_entropy(logits, targets, smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


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
    sums = dict(zip(("hits", "support", "predicted"), counts, strict=True), loss=28.0, count=280.0)
    row = Classification().summary(sums)
    assert row["loss"] == 0.1
    assert row["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, predicted))
    assert row["macro_f1"] == pytest.approx(expected[2].mean())


def _keras_cnn(variables, l2):
    """The same network in Keras with the same weights."""
    penalty = keras.regularizers.L2(l2)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu", kernel_regularizer=penalty),
            layers.MaxPool2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu", kernel_regularizer=penalty),
            layers.Dense(10, kernel_regularizer=penalty),
        ]
    )
    model.set_weights([np.asarray(w) for w in _in_order(variables)])
    return model


def _in_order(params):
    return [params[a][b] for a in ("conv1", "dense1", "logits") for b in ("kernel", "bias")]


# Keras adds epsilon before the bias correction of v, optax (as Kingma and Ba 2015) after it: over
# ten steps 5e-10 there is 1e-8 here, within a factor of two.
EPSILON = 5e-10
KERAS_OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-3, epsilon=EPSILON),
    "adamw": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.0, epsilon=EPSILON),
    "sgd": lambda: keras.optimizers.SGD(1e-3, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
    "lion": lambda: keras.optimizers.Lion(1e-3, weight_decay=0.0),
}


@pytest.mark.parametrize(
    "name",
    ["adam", *(pytest.param(n, marks=pytest.mark.slow) for n in KERAS_OPTIMIZERS if n != "adam")],
)
def test_ten_steps_match_keras(rng, name):
    """Same weights: same logits, same loss with L2, same gradients; and after 10 steps the same
    weights. A dense-64 CNN on noise, batch 8, with L2 1e-3."""
    l2 = 1e-3
    hparams = Hparams(learning_rate=1e-3, l2=l2, momentum=0.9)
    recipe = train.Recipe(model=CNN(), optimizer=optim.OPTIMIZERS[name], batch_size=8)
    inputs = rng.random((10, 8, 28, 28, 1), np.float32)
    targets = rng.integers(0, 10, (10, 8)).astype(np.int32)
    state = jax.jit(train.init, static_argnums=0)(recipe, hparams, inputs[0], jax.random.key(0))

    def batch(i):
        return {"inputs": inputs[i], "targets": targets[i], "mask": np.ones(8, np.float32)}

    with jax.numpy_rank_promotion("allow"):
        model = _keras_cnn(state.params, l2)
        model.compile(
            KERAS_OPTIMIZERS[name](), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        reported = float(model.evaluate(inputs[0], targets[0], verbose=0))

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def keras_loss(weights):
            logits, _ = model.stateless_call(weights, [], inputs[0])
            each = keras.losses.sparse_categorical_crossentropy(targets[0], logits, True)
            return each.mean() + l2 * sum((w**2).sum() for w in weights if w.ndim > 1), logits

        (expected_loss, expected_logits), expected_gradient = keras_loss(
            [v.value for v in model.trainable_variables]
        )
        for i in range(10):
            model.train_on_batch(inputs[i], targets[i])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def our_loss(params):
        return objective(recipe, params, {}, hparams, batch(0), jax.random.key(0))

    (loss, (logits, _, _)), gradient = our_loss(state.params)
    np.testing.assert_allclose(loss, reported, rtol=1e-5)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    for ours, theirs in zip(_in_order(gradient), expected_gradient, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)

    step = jax.jit(train.step, static_argnums=0)
    for i in range(10):
        state, _ = step(recipe, state, hparams, batch(i))
    # Adam divides by the gradient: where that is about epsilon (weights of dead units) it magnifies
    # any difference, hence the quantile; ten steps move a weight by up to 1e-2
    most, worst = (1e-5, 1e-5) if "adam" not in name else (3e-5, 5e-4)
    for ours, theirs in zip(_in_order(state.params), model.get_weights(), strict=True):
        difference = np.abs(ours - theirs)
        assert np.quantile(difference, 0.99) < most
        assert difference.max() < worst


def test_schedules():
    hparams = Hparams(learning_rate=0.5, warmup=0.1, total_steps=100.0)
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
        optimizer = optim.transformation(optim.OPTIMIZERS[name], 1.0, hparams)
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
    hparams.check(Hparams())
    flag = f"--hparams.{name.replace('_', '-')}"
    with pytest.raises(InputError, match=f"{flag} .* must be {right}"):
        hparams.check(Hparams(**{name: value}))
