"""VGG against Keras' own, from the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax.models import VGG
from dlflax.models.vgg import CONVOLUTIONS, from_torch


def names(depth):
    for stage, count in enumerate(CONVOLUTIONS[depth], 1):
        for k in range(1, count + 1):
            yield stage, k


def test_parameters_as_published():
    variables = jax.eval_shape(
        VGG(num_outputs=1000).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 138_357_544


def test_vgg16_is_that_of_keras_applications():
    keras = pytest.importorskip("keras")
    x = np.random.default_rng(0).normal(size=(2, 48, 32, 3)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        theirs = keras.applications.VGG16(weights=None, input_shape=(48, 32, 3), classes=7,
                                          classifier_activation=None)  # fmt: skip
        rng = np.random.default_rng(1)
        for layer in theirs.layers:  # biases too, which begin at 0
            layer.set_weights(
                [w if w.ndim > 1 else np.float32(0.1 * rng.normal(size=w.shape))
                 for w in layer.get_weights()]
            )  # fmt: skip
        expected = np.asarray(theirs(x))
        params = {}
        dense = {"fc1": "dense1", "fc2": "dense2", "predictions": "logits"}
        ours = {f"block{s}_conv{k}": f"stage{s}_conv{k}" for s, k in names("16")} | dense
        for layer in theirs.layers:
            if layer.name in ours:
                kernel, bias = layer.get_weights()
                params[ours[layer.name]] = {"kernel": kernel, "bias": bias}
    found = VGG(num_outputs=7).apply({"params": params}, x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("form", ["torchvision", "timm"])
def test_from_torch_puts_the_pixels_in_our_order(form):
    """The first dense layer sees (c, h, w) there and (h, w, c) here."""
    rng = np.random.default_rng(0)
    state, place, c = {}, 0, 3
    for stage, k in names("11"):
        width = (64, 128, 256, 512, 512)[stage - 1]
        state[f"features.{place}.weight"] = np.zeros((width, c, 3, 3), np.float32)
        state[f"features.{place}.bias"] = np.zeros(width, np.float32)
        place, c = place + (3 if k == CONVOLUTIONS["11"][stage - 1] else 2), width
    dense = rng.normal(size=(5, 512, 7, 7)).astype(np.float32)
    last = {"torchvision": ("classifier.0", "classifier.3", "classifier.6"),
            "timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc")}[form]  # fmt: skip
    state[f"{last[0]}.weight"] = dense if form == "timm" else dense.reshape(5, -1)
    state[f"{last[1]}.weight"] = np.eye(5, dtype=np.float32)[:, :, None, None]
    state[f"{last[2]}.weight"] = np.eye(5, dtype=np.float32)
    if form == "torchvision":
        state[f"{last[1]}.weight"] = np.eye(5, dtype=np.float32)
    state |= {f"{name}.bias": np.zeros(5, np.float32) for name in last}
    params = from_torch(state, "11")["params"]
    picture = rng.normal(size=(512, 7, 7)).astype(np.float32)
    expected = dense.reshape(5, -1) @ picture.reshape(-1)
    np.testing.assert_allclose(
        picture.transpose(1, 2, 0).reshape(-1) @ params["dense1"]["kernel"], expected, rtol=1e-3
    )
    np.testing.assert_array_equal(params["dense2"]["kernel"], np.eye(5))
