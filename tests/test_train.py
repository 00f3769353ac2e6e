"""The engine: one trace, same bits however it is cut up, exact counting."""

import dataclasses
import functools

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from dlflax import train
from dlflax.errors import InputError, RunError
from dlflax.models import CNN, MLP
from dlflax.testing import assert_equal
from dlflax.train import Hparams, Recipe, augment, losses
from dlflax.train.check import check_recipe
from dlflax.train.step import total_loss
from dlflax.train.tasks import Classification, Regression

TRACES = []


class Counting(nn.Module):
    """An MLP that notes each trace in training, with batch statistics."""

    width: int = 16

    @nn.compact
    def __call__(self, x, *, train=False, dropout=0.0):
        if train:
            TRACES.append(self.width)
        x = MLP((self.width,))(x, train=train, dropout=dropout)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's handwritten digits: 8x8, 1,200 to train and 597 to validate."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = (images.reshape(-1, 8, 8, 1) * 15.9375).astype(np.uint8)
    labels = labels.astype(np.int32)
    return (
        {"inputs": inputs[:1200], "targets": labels[:1200]},
        {"inputs": inputs[1200:], "targets": labels[1200:]},
    )


init = jax.jit(train.init, static_argnums=0)
step = jax.jit(train.step, static_argnums=0)


def test_every_number_changes_without_a_trace(digits):
    TRACES.clear()
    losses = set()
    numbers = [
        Hparams(learning_rate=1e-2),
        Hparams(learning_rate=3e-3),
        Hparams(dropout=0.5),
        Hparams(l2=1e-2),
        Hparams(label_smoothing=0.2),
        Hparams(clip_norm=1e-3),
        Hparams(clip_norm=1),
        Hparams(warmup_fraction=0.5),
        Hparams(ema_decay=0.5),
        Hparams(rotate_degrees=20, translate_pixels=1, zoom_fraction=0.1),
    ]
    for hparams in numbers:
        # an equal Recipe made anew is the same program
        recipe = Recipe(
            model=Counting(), augment=(augment.Affine(),), ema=True, schedule=train.Cosine()
        )
        fit = train.fit(recipe, hparams, *digits, epochs=1)
        losses.add(fit.history[0]["val_loss"])
    assert len(losses) == len(numbers)  # every number took effect
    assert len(TRACES) == 1
    train.fit(Recipe(model=Counting(width=8)), Hparams(), *digits, epochs=1)
    assert len(TRACES) == 2


def test_an_epoch_in_parts_is_the_same_to_the_bit(digits):
    recipe, hparams = Recipe(model=CNN((4,), dense=(8,)), ema=True), Hparams(dropout=0.2)
    whole = train.fit(recipe, hparams, *digits, epochs=2, seed=3)
    parts = train.fit(recipe, hparams, *digits, epochs=2, seed=3, on_steps=lambda *_: None)
    assert_equal(whole.state, parts.state)
    assert whole.history[-1]["train_loss"] == parts.history[-1]["train_loss"]


def test_resuming_is_the_same_to_the_bit(digits):
    recipe = Recipe(model=Counting(), schedule=train.Cosine(), optimizer=train.SGD(nesterov=True))
    arguments = dict(epochs=4, seed=1, plateau_patience=1, patience=3)
    saved = []

    def on_epoch(fit):
        saved.append((jax.tree.map(jnp.copy, fit.state), list(fit.history)))

    hparams = Hparams(learning_rate=0.3, dropout=0.3, warmup_fraction=0.1)
    through = train.fit(recipe, hparams, *digits, **arguments, on_epoch=on_epoch)
    state, history = saved[1]
    resumed = train.fit(
        recipe, hparams, *digits, **arguments, resume=train.Checkpoint(state, history)
    )
    assert_equal(through.state, resumed.state)
    assert [r["val_loss"] for r in through.history] == [r["val_loss"] for r in resumed.history]


def test_evaluation_counts_every_example_once(digits):
    recipe = Recipe(model=CNN((4,), dense=(8,)))
    _, val = digits  # 597 = 2 * 256 + 85
    state = init(recipe, Hparams(), val["inputs"][:1], jax.random.key(0))
    sums, _ = train.evaluate_sums(recipe, state, Hparams(), val)
    row, outputs = train.evaluate(recipe, state, Hparams(), val)
    logits = np.asarray(
        recipe.model.apply({"params": state.params}, np.float32(val["inputs"]) / np.float32(255))
    )
    np.testing.assert_allclose(outputs, logits, atol=1e-5)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    assert row["loss"] == pytest.approx(-log_p[np.arange(597), val["targets"]].mean(), rel=1e-5)
    assert row["accuracy"] == np.mean(logits.argmax(1) == val["targets"])
    assert int(sums["count"]) == 597 == int(sums["macro_f1/support"].sum())


def test_padding_does_not_change_a_step(digits):
    recipe, hparams = Recipe(model=MLP((8,)), optimizer=train.SGD()), Hparams(learning_rate=0.1)
    inputs, targets = digits[0]["inputs"][:8], digits[0]["targets"][:8]
    state = init(recipe, hparams, inputs[:1], jax.random.key(0))
    short = {"inputs": inputs[:5], "targets": targets[:5], "mask": np.ones(5, np.float32)}
    padded = {"inputs": inputs, "targets": targets, "mask": np.float32([1] * 5 + [0] * 3)}
    (a, sums_a), (b, sums_b) = (step(recipe, state, hparams, x) for x in (short, padded))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        (a.params, sums_a),
        (b.params, sums_b),
    )


def test_an_epoch_trains_on_every_example(digits):
    seen = []
    train.fit(
        Recipe(model=MLP((4,)), batch_size=7), Hparams(), *digits, epochs=1,
        on_steps=lambda epoch, step, sums: seen.append(float(sums["count"])),
    )  # fmt: skip
    assert seen[-1] == 1200


def test_divergence_stops_with_step_rate_and_advice(digits):
    recipe = Recipe(model=MLP((16,)), optimizer=train.SGD())
    with pytest.raises(RunError, match=r"NaN or infinite at step \d+ \(learning rate 1e\+20\)"):
        train.fit(recipe, Hparams(learning_rate=1e20), *digits, epochs=2)


def test_patience_stops_and_keeps_the_best(digits):
    recipe = Recipe(model=MLP((16,)), optimizer=train.SGD())
    states = []
    fit = train.fit(
        recipe, Hparams(learning_rate=2.0, momentum=0.0), *digits, epochs=50, patience=2,
        on_epoch=lambda fit: states.append(jax.tree.map(jnp.copy, fit.state)),
    )  # fmt: skip
    best = train.best_epoch(fit.history, recipe.task)
    assert len(fit.history) == best + 3 < 50
    assert_equal(fit.best, states[best])


def test_without_validation_the_last_epoch_is_the_best(digits):
    train_set, val = digits
    val = {**val, "targets": (val["targets"] + 1) % 10}  # wrong: the more trained, the worse
    recipe, hparams = Recipe(model=Counting(), ema=True), Hparams(dropout=0.2)
    seen = []
    alone = train.fit(
        recipe, hparams, train_set, None, epochs=4, patience=1, plateau_patience=1,
        on_epoch=lambda fit: seen.append((jax.tree.map(jnp.copy, fit.state), list(fit.history))),
    )  # fmt: skip
    with_val = train.fit(recipe, hparams, train_set, val, epochs=4)
    assert train.best_epoch(with_val.history, recipe.task) < 3
    assert_equal(alone.state, with_val.state)
    assert_equal(alone.best, alone.state)
    for row, other in zip(alone.history, with_val.history, strict=True):
        assert list(row) == [name for name in other if not name.startswith("val_")]
        assert row["train_loss"] == other["train_loss"]
    assert [train.best_epoch(history, recipe.task) for _, history in seen] == [0, 1, 2, 3]

    state, history = seen[1]
    resumed = train.fit(
        recipe, hparams, train_set, epochs=4, resume=train.Checkpoint(state, history)
    )
    assert_equal(resumed.best, alone.best)
    # best is a copy: going on from state leaves it alone
    train.fit(recipe, hparams, train_set, epochs=5, resume=alone.checkpoint())
    assert_equal(alone.best, with_val.state)
    with pytest.raises(RunError, match="NaN or infinite at step"):
        train.fit(recipe, Hparams(learning_rate=1e30), train_set, epochs=4)


def test_plateau_factor_matches_keras():
    keras = golden.saved("plateau")
    rows = [{"val_loss": loss} for loss in keras["losses"]]
    for epoch, rate in enumerate(keras["rates"]):
        assert train.plateau_factor(rows[: epoch + 1], Classification(), patience=2) == rate


@pytest.mark.slow
def test_bfloat16_computes_low_and_keeps_parameters_float32(digits):
    for model in (CNN((4,), dense=(32,)), Counting()):
        fit = train.fit(
            Recipe(model=model, compute_dtype="bfloat16"),
            Hparams(learning_rate=1e-2, dropout=0.1), *digits, epochs=3,
        )  # fmt: skip
        leaves = jax.tree.leaves((fit.state.params, fit.state.collections))
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)
        assert fit.history[-1]["val_accuracy"] > 0.8


def test_moving_average_by_hand(digits):
    recipe, hparams = Recipe(model=MLP((4,)), ema=True), Hparams(ema_decay=0.5)
    state = init(recipe, hparams, digits[0]["inputs"][:1], jax.random.key(0))
    expected = np.asarray(state.params["logits"]["kernel"])
    for i in range(5):
        batch = {name: leaf[i * 8 : i * 8 + 8] for name, leaf in digits[0].items()}
        state, _ = step(recipe, state, hparams, {**batch, "mask": np.ones(8, np.float32)})
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["logits"]["kernel"])
    np.testing.assert_allclose(state.ema["logits"]["kernel"], expected, rtol=1e-5)
    averaged = train.evaluate(recipe, state, Hparams(), digits[1])[1]
    last = train.evaluate(Recipe(model=MLP((4,))), state, Hparams(), digits[1])[1]
    assert not np.allclose(averaged, last)


@pytest.mark.parametrize(
    "task",
    [Classification(loss=losses.BinaryCrossEntropy()), Regression(), Regression(losses.Huber())],
)
def test_other_losses_train(digits, task):
    """Is it a five or more? One output."""
    train_set, val = ({**d, "targets": (d["targets"] >= 5).astype(np.int32)} for d in digits)
    recipe = Recipe(model=MLP((32,), num_outputs=1), task=task)
    fit = train.fit(recipe, Hparams(learning_rate=1e-2), train_set, val, epochs=4)
    assert fit.history[-1]["val_loss"] < 0.6 * fit.history[0]["train_loss"]
    assert ("val_accuracy" in fit.history[-1]) == isinstance(task, Classification)


def test_affine_augmentation_matches_scipy():
    images = np.random.default_rng(0).random((3, 10, 8, 2), np.float32)
    key = jax.random.key(0)
    np.testing.assert_allclose(
        augment.Affine.transform(key, images, 0.0, 0.0, 0.0), images, atol=1e-5
    )
    out = augment.Affine.transform(key, images, 2.0, 30.0, 0.2)
    # the documented draws, made again
    shift_key, angle_key, zoom_key = jax.random.split(key, 3)
    shift = 2.0 * jax.random.uniform(shift_key, (3, 2), minval=-1.0)
    angle = np.deg2rad(30.0 * jax.random.uniform(angle_key, (3,), minval=-1.0))
    scale = 1 + 0.2 * jax.random.uniform(zoom_key, (3,), minval=-1.0)
    centre = np.array([4.5, 3.5])
    for i in range(3):
        turn = np.array(
            [[np.cos(angle[i]), -np.sin(angle[i])], [np.sin(angle[i]), np.cos(angle[i])]]
        )
        matrix = turn / scale[i]
        offset = centre - matrix @ centre - np.asarray(shift[i])
        for c in range(2):
            expected = scipy.ndimage.affine_transform(
                images[i, :, :, c], matrix, offset, order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(out[i, :, :, c], expected, atol=1e-4)


def test_stopped_in_mid_epoch_and_continued_to_the_same_bits(digits):
    """The sums of the epoch that was begun go on too."""
    recipe, hparams = Recipe(model=Counting(), batch_size=64), Hparams(dropout=0.2)
    whole = train.fit(recipe, hparams, *digits, epochs=2)
    calls = iter([False, True])  # asked before the epoch, and after its first step
    part = train.fit(recipe, hparams, *digits, epochs=2, should_stop=lambda: next(calls))
    assert int(part.state.step) == 1 and part.history == [] and part.partial["count"] == 64
    rest = train.fit(recipe, hparams, *digits, epochs=2, resume=part.checkpoint())
    assert_equal(whole.state, rest.state)
    for a, b in zip(whole.history, rest.history, strict=True):
        assert (a["train_loss"], a["val_loss"]) == (b["train_loss"], b["val_loss"])


def test_batch_statistics_are_averaged_with_the_weights(digits):
    """By hand; and evaluation takes both averages, or neither."""
    recipe, hparams = Recipe(model=Counting(), ema=True), Hparams(ema_decay=0.5)
    state = init(recipe, hparams, digits[0]["inputs"][:1], jax.random.key(0))
    expected = np.asarray(state.collections["batch_stats"]["BatchNorm_0"]["mean"])
    for i in range(4):
        batch = {name: leaf[i * 8 : i * 8 + 8] for name, leaf in digits[0].items()}
        state, _ = step(recipe, state, hparams, {**batch, "mask": np.ones(8, np.float32)})
        decay = min(0.5, (1 + i) / (10 + i))
        newest = np.asarray(state.collections["batch_stats"]["BatchNorm_0"]["mean"])
        expected = decay * expected + (1 - decay) * newest
    averages = state.ema_collections["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(averages, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(averages, newest)
    _, outputs = train.evaluate(recipe, state, hparams, digits[1])
    inputs = digits[1]["inputs"] / np.float32(255)
    by_hand = recipe.model.apply({"params": state.ema, **state.ema_collections}, inputs)
    np.testing.assert_allclose(outputs, by_hand, atol=1e-5)


def test_a_mixed_target_has_the_weight_of_its_own_class(digits):
    """MixUp's partner counts by the partner's class weight."""
    recipe, hparams = Recipe(model=MLP((8,))), Hparams()
    batch = {name: jnp.asarray(leaf[:4]) for name, leaf in digits[0].items()}
    batch["inputs"] = train.floats(batch["inputs"])
    partner, share = np.int32([1, 0, 3, 2]), np.float32([0.75] * 4)
    weight = np.float32([1.0, 2.0, 3.0, 4.0])
    batch |= {"mask": np.ones(4, np.float32), "weight": weight, "partner": partner, "share": share}
    state = init(recipe, hparams, digits[0]["inputs"][:1], jax.random.key(0))
    given = recipe, state.params, state.collections, hparams, batch, jax.random.key(1)
    value, (outputs, *_) = total_loss(*given)
    first, second = (
        losses.cross_entropy(outputs, targets)
        for targets in (batch["targets"], batch["targets"][partner])
    )
    expected = share * weight * first + (1 - share) * weight[partner] * second
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("micro", [1, 4])
def test_micro_batches_have_the_gradient_of_the_batch(digits, micro):
    """Padding, class weights, partners in other micro-batches, L2 and the model's own losses."""
    n, rng = 16, np.random.default_rng(0)
    batch = {name: jnp.asarray(leaf[:n]) for name, leaf in digits[0].items()}
    batch |= {
        "inputs": train.floats(batch["inputs"]), "mask": np.float32(np.arange(n) < 13),
        "weight": np.float32(1 + rng.random(n)), "partner": np.int32(rng.permutation(n)),
        "share": np.float32(rng.random(n)),
    }  # fmt: skip
    batch = jax.tree.map(jnp.asarray, batch)
    recipe, hparams = Recipe(model=MLP((8,)), batch_size=n), Hparams(l2=0.01)
    state = init(recipe, hparams, batch["inputs"][:1], jax.random.key(0))
    whole = train.gradient(recipe, state, hparams, batch, jax.random.key(1))
    recipe = dataclasses.replace(recipe, micro_batch=micro)
    parts = train.gradient(recipe, state, hparams, batch, jax.random.key(1))
    for expected, value in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    jaxpr = str(jax.make_jaxpr(functools.partial(train.step, recipe))(state, hparams, batch))
    assert f"f32[{micro},64]" in jaxpr and f"f32[{n},8]" not in jaxpr  # no layer of the batch


def test_batchnorm_normalizes_by_each_micro_batch(digits):
    recipe = Recipe(model=Counting(), batch_size=8, micro_batch=4)
    batch = {name: jnp.asarray(leaf[:8]) for name, leaf in digits[0].items()}
    batch |= {"inputs": train.floats(batch["inputs"]), "mask": np.ones(8, np.float32)}
    state = init(recipe, Hparams(), batch["inputs"][:1], jax.random.key(0))
    result = train.gradient(recipe, state, Hparams(), batch, jax.random.key(1))
    collections = state.collections
    for first in (0, 1):
        _, collections = recipe.model.apply(
            {"params": state.params, **collections}, batch["inputs"][first::2], train=True,
            rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"],
        )  # fmt: skip
    for expected, value in zip(*map(jax.tree.leaves, (collections, result.collections)),
                               strict=True):  # fmt: skip
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_micro_batch_divides_the_batch():
    for micro in (3, 8, 16):
        with pytest.raises(InputError, match=f"--micro-batch {micro} must .*--batch-size 8"):
            check_recipe(Recipe(MLP(), batch_size=8, micro_batch=micro))
    check_recipe(Recipe(MLP(), batch_size=8, micro_batch=4))
