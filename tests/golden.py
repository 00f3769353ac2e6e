"""What Keras says, as small arrays: the quick tests read them and need no Keras.

python tests/golden.py      makes tests/data/golden.npz anew; test_golden.py, slow, compares it
"""

import functools
import os
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "golden.npz"
L2 = 1e-3
# Keras adds epsilon before the bias correction of v, optax (as Kingma and Ba 2015) after it: over
# ten steps 5e-10 there is 1e-8 here, within a factor of two.
EPSILON = 5e-10
OPTIMIZERS = {  # the names here -> Keras' class and its arguments
    "adam": ("Adam", {"epsilon": EPSILON}),
    "adamw": ("AdamW", {"weight_decay": 0.0, "epsilon": EPSILON}),
    "sgd": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "lion": ("Lion", {"weight_decay": 0.0}),
}
CELLS = {"simple": "SimpleRNN", "gru": "GRU", "lstm": "LSTM"}


def losses(keras) -> dict:
    rng, found = np.random.default_rng(0), {}
    logits = np.float32(rng.normal(size=(16, 10)) * 5)
    classes, labels = rng.integers(0, 10, 16), rng.integers(0, 2, (16, 3))
    for smoothing, of_labels in ((0.0, 0.0), (0.1, 0.2)):
        found[f"cross_entropy_{smoothing}"] = keras.losses.categorical_crossentropy(
            keras.utils.to_categorical(classes, 10), logits, True, label_smoothing=smoothing
        )
        found[f"binary_{of_labels}"] = keras.losses.binary_crossentropy(
            labels, logits[:, :3], from_logits=True, label_smoothing=of_labels
        )
    return {**found, "logits": logits, "classes": np.int32(classes), "labels": labels}


def _recurrent(keras, cell) -> dict:
    """Outputs and last state, with a mask."""
    x = np.float32(np.random.default_rng(0).normal(size=(3, 7, 5)))
    layer = getattr(keras.layers, CELLS[cell])(6, return_sequences=True, return_state=True)
    layer.build(x.shape)
    weights = _weights(layer)
    outputs, last, *_ = layer(x, mask=MASK)
    names = ("kernel", "recurrent_kernel", "bias")
    return {"x": x, **dict(zip(names, weights, strict=True)), "outputs": outputs, "last": last}


MASK = np.arange(7)[None] < np.array([[7], [4], [1]])
simple, gru, lstm = (functools.partial(_recurrent, cell=cell) for cell in CELLS)


def _weights(layer) -> list[np.ndarray]:
    """Gives a built layer random weights, biases too."""
    rng = np.random.default_rng(1)
    weights = [np.float32(rng.normal(size=w.shape)) for w in layer.get_weights()]
    layer.set_weights(weights)
    return weights


def attention(keras) -> dict:
    x = np.float32(np.random.default_rng(0).normal(size=(3, 7, 8)))
    layer = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4)
    layer.build(x.shape, x.shape)
    weights = _weights(layer)
    weights[3] *= 0  # the keys' bias, which changes nothing
    layer.set_weights(weights)
    names = ("q", "q_bias", "k", "k_bias", "v", "v_bias", "out", "out_bias")
    expected = layer(x, x, attention_mask=MASK[:, None, :])
    return {"x": x, **dict(zip(names, weights, strict=True)), "outputs": expected}


def convolution(keras) -> dict:
    """A convolution, ReLU, and a max-pool, in Keras' order."""
    found = {"x": np.float32(np.random.default_rng(0).normal(size=(3, 12, 10, 1)))}
    layers = keras.layers
    for padding in ("same", "valid"):
        conv = layers.Conv2D(8, 3, padding=padding, activation="relu")
        stage = keras.Sequential([conv, layers.MaxPool2D()])
        stage.build(found["x"].shape)
        found["kernel"], found["bias"] = _weights(stage)  # the same for both
        found[padding] = stage(found["x"])
    return found


def _cnn(keras):
    """A CNN with a dense layer and L2, its weights of the size that they are initialized with."""
    penalty, layers = keras.regularizers.L2(L2), keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(4, 3, padding="same", activation="relu", kernel_regularizer=penalty),
            layers.MaxPool2D(),
            layers.Flatten(),
            layers.Dense(16, activation="relu", kernel_regularizer=penalty),
            layers.Dense(10, kernel_regularizer=penalty),
        ]
    )
    rng = np.random.default_rng(2)
    weights = [w if w.ndim == 1 else np.float32(rng.normal(size=w.shape) / w[..., 0].size**0.5)
               for w in model.get_weights()]  # fmt: skip
    model.set_weights(weights)
    return model, weights


def batches() -> tuple[np.ndarray, np.ndarray]:
    """Ten of 8 pictures of noise, with their classes."""
    rng = np.random.default_rng(3)
    return np.float32(rng.random((10, 8, 12, 12, 1))), rng.integers(0, 10, (10, 8), np.int32)


def gradient(keras) -> dict:
    """Logits, the loss with L2 (as `evaluate` reports it, too), and its gradients."""
    import jax

    (inputs, targets), (model, weights) = batches(), _cnn(keras)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    reported = model.evaluate(inputs[0], targets[0], verbose=0)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(weights):
        logits, _ = model.stateless_call(weights, [], inputs[0])
        each = keras.losses.sparse_categorical_crossentropy(targets[0], logits, True)
        return each.mean() + L2 * sum((w**2).sum() for w in weights if w.ndim > 1), logits

    (value, logits), slopes = loss([v.value for v in model.trainable_variables])
    return {"reported": reported, "loss": value, "logits": logits,
            **{f"weights{i}": w for i, w in enumerate(weights)},
            **{f"gradient{i}": w for i, w in enumerate(slopes)}}  # fmt: skip


def ten_steps(keras) -> dict:
    """The weights after ten steps of each optimizer."""
    found = {}
    for name, (kind, arguments) in OPTIMIZERS.items():
        model, _ = _cnn(keras)
        optimizer = getattr(keras.optimizers, kind)(1e-3, **arguments)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        for x, y in zip(*batches(), strict=True):
            model.train_on_batch(x, y)
        found |= {f"{name}{i}": w for i, w in enumerate(model.get_weights())}
    return found


def plateau(keras) -> dict:
    losses, rates = [3.0, 2.0, 2.5, 2.0, 1.9, 2.0, 2.0, 2.0, 2.0, 1.0, 1.5], []
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    callback = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2, min_delta=0.0)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        rates.append(float(model.optimizer.learning_rate.value))
    return {"losses": losses, "rates": rates}


ANSWERS = {
    "losses": losses, "simple": simple, "gru": gru, "lstm": lstm, "attention": attention,
    "convolution": convolution, "gradient": gradient, "ten_steps": ten_steps, "plateau": plateau,
}  # fmt: skip


def answer(name: str) -> dict[str, np.ndarray]:
    """What Keras says now."""
    import jax
    import keras

    with jax.numpy_rank_promotion("allow"):
        return {key: np.asarray(value) for key, value in ANSWERS[name](keras).items()}


def saved(name: str) -> dict[str, np.ndarray]:
    """What Keras said when the file was made."""
    with np.load(FILE) as file:
        return {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{name}/")}


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "jax"
    said = {f"{name}/{key}": value for name in ANSWERS for key, value in answer(name).items()}
    np.savez_compressed(FILE, **said)
