"""Layers and models against independent implementations."""

import contextlib
import functools
import itertools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax.errors import InputError
from dlflax.models import CNN, MLP, RNN, Autoencoder, SmallResNet, Transformer
from dlflax.models.layers import Activation, Conv, Dropout, activation
from dlflax.models.rnn import Recurrent
from dlflax.models.transformer import Attention, image_patches, rotary, series_patches
from dlflax.ops.depthwise import depthwise_lax, depthwise_slices  # fmt: skip
from dlflax.ops.platform import portable
from dlflax.testing import Harness, ModelSuite
from dlflax.train.tasks import Classification, Reconstruction

PICTURES = jax.random.uniform(jax.random.key(0), (4, 12, 12, 1))
SERIES = jax.random.normal(jax.random.key(0), (4, 10, 2))
TEXTS = jnp.int32([[5, 2, 9, 0, 0, 0], [1, 0, 0, 0, 0, 0], [3, 3, 8, 7, 2, 6], [4, 9, 1, 2, 0, 0]])
MODELS = {
    "mlp": (MLP((8,)), PICTURES),
    "cnn": (CNN((4, 6), 2, dense=(8, 8), dropout_after="all", implementation="lax"), PICTURES),
    "cnn without padding": (CNN((4,), padding="valid", dense=(8,)), PICTURES),
    "resnet": (SmallResNet((4, 6), depth=1, implementation="lax"), PICTURES),
    "lstm of rows": (RNN("lstm", (8,)), PICTURES),
    "gru of texts": (RNN("gru", (8,), bidirectional=True, pooling="max", vocabulary=10), TEXTS),
    "simple of series": (RNN("simple", (8, 6), pooling="mean"), SERIES),
    "vit": (Transformer(1, 8, 2, 8, patch_size=4), PICTURES),
    "transformer of texts": (
        Transformer(1, 8, 2, 8, "rotary", "cls", vocabulary=10), TEXTS
    ),
    "autoencoder": (Autoencoder((16,), 3, shape=(12, 12, 1)), PICTURES),
    "variational": (Autoencoder((16,), 3, variational=True, shape=(12, 12, 1)), PICTURES),
}  # fmt: skip
TASKS = Classification(), Reconstruction()
COUNTS = [
    (MLP(), (28, 28, 1), 101_770),
    (CNN(), (28, 28, 1), 402_442),
    (RNN(), (28, 28, 1), 81_674),
    (Transformer(), (28, 28, 1), 105_226),
    (Autoencoder(), (28, 28, 1), 2_690_864),
    (SmallResNet(), (32, 32, 3), 175_258),
]


@pytest.fixture(params=MODELS, scope="module")
def job(request):
    model, inputs = MODELS[request.param]
    return model, TASKS[isinstance(model, Autoencoder)], inputs


class TestModels(ModelSuite):
    def test_training_and_evaluation_differ_where_they_should(self, harness):
        outputs = harness.apply(harness.state.params, harness.inputs)
        trained = harness.apply(harness.state.params, harness.inputs, True)
        rebuilds = isinstance(harness.model, Autoencoder)
        assert outputs.shape == (harness.inputs.shape if rebuilds else (4, 10))
        # batch statistics, a drawn code
        random = isinstance(harness.model, SmallResNet) or rebuilds and harness.model.variational
        assert np.allclose(outputs, trained, atol=1e-6) != random

    @pytest.mark.parametrize("platform", ["CPU", pytest.param("any", marks=pytest.mark.slow)])
    def test_it_computes_in_bfloat16(self, harness, platform):
        outputs = harness.apply(harness.state.params, harness.inputs)
        half = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
        inputs = harness.inputs if harness.inputs.dtype == jnp.int32 else half(harness.inputs)
        Harness.apply.clear_cache()  # which does not know of platforms
        with portable() if platform == "any" else contextlib.nullcontext():
            rounded = harness.apply(half(harness.state.params), inputs)
        in_float32 = platform == "CPU" and isinstance(harness.model, Transformer)  # see `Dense`
        assert rounded.dtype == (jnp.float32 if in_float32 else jnp.bfloat16)
        np.testing.assert_allclose(rounded.astype(jnp.float32), outputs, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("model, shape, count", COUNTS)
def test_parameter_counts_are_as_documented(model, shape, count):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert f"{count:,}" in type(model).__doc__


@pytest.mark.parametrize(
    "model",
    [
        RNN("lstm", (8,), pooling="last", vocabulary=10),
        RNN("gru", (8, 8), bidirectional=True, pooling="mean", vocabulary=10),
        Transformer(1, 8, 2, 8, "learned", "cls", vocabulary=10),
        Transformer(1, 8, 2, 8, "rotary", "max", vocabulary=10),
    ],
)
def test_padding_never_changes_a_result(model):
    variables, apply = jax.jit(model.init)(jax.random.key(0), TEXTS), jax.jit(model.apply)
    short = variables
    if "positions" in variables["params"]:
        steps = 4 + (model.pooling == "cls")
        learned = variables["params"]["positions"]
        variables = {"params": {**variables["params"], "positions": learned}}
        short = {"params": {**variables["params"], "positions": learned[:, :steps]}}
    kept = TEXTS[jnp.array([0, 1, 3])]
    np.testing.assert_allclose(apply(variables, kept), apply(short, kept[:, :4]), atol=1e-5)


@pytest.mark.parametrize("cell", golden.CELLS)
def test_recurrent_layers_match_keras(cell):
    """Outputs and last state, with a mask, from the same weights."""
    keras = golden.saved(cell)
    params = {name: keras[name] for name in ("kernel", "recurrent_kernel", "bias")}
    if cell == "gru":
        params |= dict(zip(("bias", "recurrent_bias"), keras["bias"], strict=True))
    apply = jax.jit(Recurrent(6, cell).apply)
    ours, last = apply({"params": params}, keras["x"], golden.MASK)
    np.testing.assert_allclose(ours, keras["outputs"], atol=1e-5)
    np.testing.assert_allclose(last, keras["last"], atol=1e-5)


def test_attention_matches_keras():
    keras = golden.saved("attention")
    params = {
        "query": {"kernel": keras["q"].reshape(8, 8), "bias": keras["q_bias"].reshape(8)},
        "key": {"kernel": keras["k"].reshape(8, 8)},
        "value": {"kernel": keras["v"].reshape(8, 8), "bias": keras["v_bias"].reshape(8)},
        "out": {"kernel": keras["out"].reshape(8, 8), "bias": keras["out_bias"]},
    }
    ours = jax.jit(Attention(2).apply)({"params": params}, keras["x"], golden.MASK)
    np.testing.assert_allclose(ours, keras["outputs"], atol=1e-5)


def test_rotary_positions_turn_pairs_and_only_distance_counts():
    x = jax.random.normal(jax.random.key(0), (1, 5, 1, 4))
    turned = np.asarray(rotary(x))
    pair = np.asarray(x)[0, :, 0, 0] + 1j * np.asarray(x)[0, :, 0, 2]
    expected = pair * np.exp(1j * np.arange(5))
    np.testing.assert_allclose(turned[0, :, 0, 0] + 1j * turned[0, :, 0, 2], expected, atol=1e-5)
    q = rotary(jnp.ones((1, 5, 1, 4)))[0, :, 0]
    scores = np.asarray(q @ q.T)
    np.testing.assert_allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-5)


def test_patches_and_pieces():
    x = np.arange(2 * 5 * 4 * 3).reshape(2, 5, 4, 3)
    cut = image_patches(jnp.asarray(x), 2)
    assert cut.shape == (2, 4, 12)
    np.testing.assert_array_equal(cut[1, 3], x[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(
        series_patches(jnp.asarray(x[:, :, 0]), 2)[0, 0], x[0, 1:3, 0].reshape(-1)
    )


def test_variational_divergence_by_hand():
    model, inputs = MODELS["variational"]
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    _, sown = model.apply(variables, inputs, mutable=["losses"])
    params = variables["params"]
    hidden = jax.nn.gelu(inputs.reshape(4, -1) @ params["down_0"]["kernel"])
    mean, log_variance = np.split(np.asarray(hidden @ params["bottleneck"]["kernel"]), 2, -1)
    kl = (-np.log(np.exp(log_variance / 2)) + (np.exp(log_variance) + mean**2) / 2 - 0.5).sum(-1)
    np.testing.assert_allclose(sown["losses"]["kl"][0], kl / 144, rtol=1e-4)
    np.testing.assert_allclose(model.apply(variables, inputs, method="encode"), mean, atol=1e-5)


@pytest.mark.parametrize(
    "pool, n, size, channels, kernel",
    [
        (True, 32, 14, 1, 3),  # one piece
        (True, 64, 7, 4, 3),  # two chunks, odd size: pooling drops the last row
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

    def value(implementation):
        module = Conv(6, kernel, pool, implementation)

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


@pytest.mark.parametrize("size, kernel_size, stride", [(7, 3, 1), (8, 3, 2), (9, 5, 2), (4, 5, 1)])
def test_depthwise_sums_are_lax_convolution(size, kernel_size, stride):
    """Values and both gradients; even and odd sides, smaller than the kernel too."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, size, size + 1, 4)).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, 1, 4)).astype(np.float32)

    def value(convolution):
        return lambda x, kernel: jnp.sin(convolution(x, kernel, stride)).sum()

    found, expected = (
        jax.jit(jax.value_and_grad(value(f), (0, 1)))(x, kernel)
        for f in (depthwise_slices, depthwise_lax)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, expected)


def test_convolution_matches_keras():
    """The stage conv, ReLU, max-pool, in Keras' order, from the same weights."""
    keras = golden.saved("convolution")
    variables = {"params": {"kernel": keras["kernel"], "bias": keras["bias"]}}
    for implementation, padding in itertools.product(("lax", "matmul"), ("same", "valid")):
        conv = Conv(8, 3, True, implementation, padding=padding)
        out = jax.jit(conv.apply)(variables, keras["x"])
        np.testing.assert_allclose(jax.nn.relu(out), keras[padding], atol=1e-5)


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
    with pytest.raises(InputError, match="unknown activation 'rellu': choose one of celu, "):
        activation("rellu")


@pytest.mark.parametrize(
    "model",
    [
        CNN(features=(8,) * 5), CNN(features=(0,)), CNN(dense=(-1,)), CNN(convs_per_stage=0),
        MLP((0,)), SmallResNet(features=(8,) * 6), SmallResNet(depth=0), RNN(features=()),
        RNN(embedding_dim=0),
        Transformer(hidden_dim=0), Transformer(num_heads=5), Transformer(patch_size=29),
        Autoencoder(latent_dim=0),
        Transformer(hidden_dim=4, num_heads=4, positions="rotary"),
    ],
)  # fmt: skip
def test_impossible_models_are_refused(model):
    with pytest.raises(InputError, match="--model.* must (all )?be"):
        model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
