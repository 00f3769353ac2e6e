"""What must hold on an accelerator: its numbers beside the CPU's, the same bits twice and after a
resume, one trace a structure.

JAX_PLATFORMS=cuda,cpu python -m pytest -m slow tests/test_device.py
"""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from dlflax import train
from dlflax.models import CNN, MLP, RNN, SmallResNet, Transformer
from dlflax.testing import assert_equal
from dlflax.train import Hparams, Recipe, loop, population
from dlflax.train.layout import layout_for

pytestmark = pytest.mark.slow

MODELS = [
    CNN(features=(8,), dense=(16,)),
    MLP((16,)),
    RNN(),
    SmallResNet(features=(8, 16), depth=1),
    Transformer(patch_size=4, hidden_dim=16, depth=1, mlp_dim=32),
]
ACCELERATOR = jax.default_backend() != "cpu"


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    inputs = (images.reshape(-1, 8, 8, 1) * 15.9375).astype(np.uint8)[:256]
    return {"inputs": inputs, "targets": labels.astype(np.int32)[:256]}


def fitted(model, digits, epochs=1, **options):
    recipe = Recipe(model, batch_size=64)
    return train.fit(recipe, Hparams(), digits, digits, epochs=epochs, **options)


@pytest.mark.skipif(not ACCELERATOR, reason="there is only a CPU")
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_numbers_are_those_of_the_cpu(digits, model):
    with jax.default_matmul_precision("float32"):
        here = fitted(model, digits).history[0]
        with jax.default_device(jax.devices("cpu")[0]):
            there = fitted(model, digits).history[0]
    for name in ("train_loss", "val_loss"):
        np.testing.assert_allclose(here[name], there[name], rtol=2e-3)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_the_same_bits_twice_and_after_a_resume(digits, model):
    once = fitted(model, digits, 2).state
    halves = []

    def keep(fit):
        halves.append(jax.device_get(fit.checkpoint()))

    assert_equal(once, fitted(model, digits, 2, on_epoch=keep).state)
    assert_equal(once, fitted(model, digits, 2, resume=halves[0]).state)


def test_a_number_is_no_trace(digits):
    recipe = Recipe(CNN(features=(8,), dense=(16,)), batch_size=64)
    layout = layout_for(recipe, Hparams(), digits["inputs"][:1], 4)
    before = None
    for rate in (1e-3, 1e-2):
        train.fit(recipe, Hparams(learning_rate=rate), digits, digits, epochs=1)
        numbers = [Hparams(learning_rate=rate * k) for k in (1, 2, 3, 4)]
        seeds = np.arange(4)[:, None]
        lanes = population.Population(
            recipe, numbers, seeds, digits, digits, epochs=1, layout=layout
        )
        lanes.train(1)
        traces = loop.train_steps._cache_size(), population.traces
        assert before in (None, traces)
        before = traces
