"""VGG and ResNet against Keras, from the same random weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dlflax.errors import InputError
from dlflax.models import VGG, EfficientNetLite0, ResNet, resnet
from dlflax.models.vgg import CONVOLUTIONS, from_torch


def as_picture(x):
    """What the models normalize to x, by the mean and deviation that torchvision documents."""
    mean, std = np.float32([[[[0.485, 0.456, 0.406]]], [[[0.229, 0.224, 0.225]]]])
    return x * std + mean


def names(depth):
    for stage, count in enumerate(CONVOLUTIONS[depth], 1):
        for k in range(1, count + 1):
            yield stage, k


@pytest.mark.parametrize(
    "model, count",
    [
        (VGG("11", num_outputs=1000), 132_863_336),
        (VGG("16", num_outputs=1000), 138_357_544),
        (VGG("19", num_outputs=1000), 143_667_240),
        (ResNet("18", num_outputs=1000), 11_689_512),
        (ResNet("34", num_outputs=1000), 21_797_672),
        (ResNet("50", num_outputs=1000), 25_557_032),
        (ResNet("101", num_outputs=1000), 44_549_160),
    ],
)
def test_parameters_as_torchvision_counts_them(model, count):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


MODELS = [
    EfficientNetLite0(num_outputs=3),
    ResNet("18", num_outputs=3),
    VGG("11", (8, 6), num_outputs=3),
]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_features_in_place_of_pictures(model):
    """The same logits from `features` as from pictures, and `init` makes a last layer for them."""
    x = np.random.default_rng(0).random((2, 33, 35, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    expected, features = jax.jit(
        lambda v, x: (model.apply(v, x), model.apply(v, x, method="features"))
    )(variables, x)
    assert features.ndim == 2
    size = np.abs(expected).max()  # tiny, as running statistics begin at 0 and 1
    assert size > 0
    np.testing.assert_allclose(model.apply(variables, features), expected, atol=1e-4 * size)
    head = jax.jit(model.init)(jax.random.key(1), features)
    assert list(head) == ["params"] and list(head["params"]) == ["logits"]
    head["params"]["logits"] = variables["params"]["logits"]
    np.testing.assert_allclose(model.apply(head, features), expected, atol=1e-4 * size)
    rngs = {"dropout": jax.random.key(2)}
    dropped = model.apply(head, features, train=True, dropout=0.5, rngs=rngs)
    assert np.abs(dropped - expected).max() > 0.01 * size
    with pytest.raises(InputError, match="takes RGB images"):
        model.apply(variables, x[..., :1])


@pytest.mark.parametrize(
    "model, parts",
    [
        (MODELS[0], {f"block15_{part}{norm}" for part in ("expand", "depthwise", "project")
                     for norm in ("", "_norm")} | {"head", "head_norm", "logits"}),
        (MODELS[1], {f"stage4_block{b}_{part}{norm}" for b in (1, 2) for part in ("conv1", "conv2")
                     for norm in ("", "_norm")}
         | {"stage4_block1_shortcut", "stage4_block1_shortcut_norm", "logits"}),
        (MODELS[2], {"stage5_conv1", "stage5_conv2", "dense1", "dense2", "logits"}),
    ],
)  # fmt: skip
def test_last_blocks(model, parts):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    paths = traverse_util.flatten_dict(variables["params"], sep="/")
    chosen = {path.split("/")[0] for path in paths if re.search(model.LAST_BLOCKS, path)}
    assert chosen == parts


@pytest.mark.slow
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
    found = VGG(num_outputs=7).apply({"params": params}, as_picture(x))
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


def keras_resnet(keras, depth):
    """The same network out of Keras' layers, with the padding written out."""
    layers = keras.layers

    def conv(x, features, k, stride, name, relu=True):
        x = layers.ZeroPadding2D((k - 1) // 2)(x)
        x = layers.Conv2D(features, k, stride, use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
        return layers.ReLU()(x) if relu else x

    inputs = x = keras.Input((45, 38, 3))
    x = layers.ZeroPadding2D(1)(conv(x, 64, 7, 2, "stem"))  # after a ReLU 0 is the least
    x = layers.MaxPooling2D(3, 2)(x)
    for stage, blocks in enumerate(resnet.BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            name, stride = f"stage{stage + 1}_block{block + 1}", 2 if stage and not block else 1
            if depth == "50":
                y = conv(x, width, 1, 1, f"{name}_conv1")
                y = conv(y, width, 3, stride, f"{name}_conv2")
                y = conv(y, 4 * width, 1, 1, f"{name}_conv3", relu=False)
            else:
                y = conv(x, width, 3, stride, f"{name}_conv1")
                y = conv(y, width, 3, 1, f"{name}_conv2", relu=False)
            if y.shape != x.shape:
                x = conv(x, y.shape[-1], 1, stride, f"{name}_shortcut", relu=False)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Dense(7, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["50"])
def test_resnet_is_that_of_keras_layers(depth):
    """Inference and training mode, odd sides, and a torch state dict of the same weights."""
    keras = pytest.importorskip("keras")
    x = np.random.default_rng(0).normal(size=(2, 45, 38, 3)).astype(np.float32)
    rng, state = np.random.default_rng(1), {}
    with jax.numpy_rank_promotion("allow"):
        theirs = keras_resnet(keras, depth)
        for layer in theirs.layers:
            weights = layer.get_weights()
            if len(weights) == 4:  # scale, bias, mean, variance
                weights = [np.float32(rng.uniform(0.5, 1.5, w.shape)) for w in weights]
                layer.set_weights(weights)
            if weights:
                torch_names(state, layer.name, weights)
        expected = np.asarray(theirs(x, training=False))
        trained = np.asarray(theirs(x, training=True))
    variables, model = resnet.from_torch(state, depth), ResNet(depth, num_outputs=7)
    x = as_picture(x)
    found = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    @jax.jit
    def train(variables):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])

    found, new = train(variables)
    np.testing.assert_allclose(found, trained, atol=1e-3 * np.abs(trained).max())
    mean = new["batch_stats"]["stem_norm"]["mean"]
    (layer,) = (layer for layer in theirs.layers if layer.name == "stem_norm")
    np.testing.assert_allclose(mean, layer.moving_mean, atol=1e-5)


def torch_names(state, name, weights):
    """What torchvision calls a layer of `keras_resnet`, and its order of axes."""
    if name == "logits":
        state |= {"fc.weight": weights[0].T, "fc.bias": weights[1]}
        return
    place, norm = name.removesuffix("_norm"), name.endswith("_norm")
    if place == "stem":
        prefix = "bn1" if norm else "conv1"
    else:
        stage, block, part = place.replace("stage", "").replace("block", "").split("_")
        prefix = f"layer{stage}.{int(block) - 1}."
        if part == "shortcut":
            prefix += "downsample.1" if norm else "downsample.0"
        else:
            prefix += part.replace("conv", "bn") if norm else part
    if norm:
        names = ("weight", "bias", "running_mean", "running_var")
        state |= {f"{prefix}.{key}": w for key, w in zip(names, weights, strict=True)}
    else:
        state[f"{prefix}.weight"] = weights[0].transpose(3, 2, 0, 1)
