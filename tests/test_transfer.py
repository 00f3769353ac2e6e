"""Freezing, transfer modes, features kept on disk, data on disk; on a small backbone of our own."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import experiments
from dlflax import data, run, train, transfer
from dlflax.data import stream
from dlflax.data.arrays import ArrayEncoder, Arrays
from dlflax.data.dataset import DiskArray
from dlflax.errors import InputError
from dlflax.inference.predict import Predictor
from dlflax.models import CNN
from dlflax.models.layers import Dropout
from dlflax.run.prepare import balance
from dlflax.train import Hparams, Recipe, augment
from dlflax.train.ensemble import Chosen
from dlflax.train.recipe import init_on_devices
from dlflax.train.step import total_loss
from dlflax.transfer import Transfer, features, weights
from dlflax.tune import ensemble_selection, sweep
from dlflax.tune.sweep_config import Sweep

RNG = np.random.default_rng(0)


class Backbone(nn.Module):
    """Two blocks with BatchNorm, as the shipped ones are built."""

    num_outputs: int = 2
    LAST_BLOCKS = "^(block2|logits)"

    @nn.compact
    def features(self, x, train: bool = False):
        for name in ("block1", "block2"):
            x = nn.Conv(8, (3, 3), name=name)(x)
            x = nn.BatchNorm(name=f"{name}_norm")(x, use_running_average=not train)
            x = nn.relu(x)
        return x.mean((1, 2))

    @nn.compact
    def __call__(self, x, *, train=False, dropout=0.0):
        x = self.features(x, train) if x.ndim == 4 else x
        return nn.Dense(self.num_outputs, name="logits")(Dropout()(x, dropout, train))


def pictures(n, seed=0):
    """Bright on the left or on the right: uint8 (n, 8, 8, 3), int32 (n,)."""
    rng = np.random.default_rng(seed)
    targets = np.int32(np.arange(n) % 2)
    images = rng.integers(0, 120, (n, 8, 8, 3))
    images[targets == 1, :, :4, 0] += 60
    return {"inputs": np.uint8(images), "targets": targets}


@pytest.fixture
def pretrained(monkeypatch, tmp_path):
    """`weights.read` gives these variables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    variables = jax.jit(Backbone().init)(jax.random.key(7), jnp.zeros((1, 8, 8, 3)))
    variables = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape),
                             variables)  # fmt: skip
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    monkeypatch.setattr(weights, "read", lambda *_: (variables, "abc", "weights of a test"))
    return variables


SPLITS = data.Splits(pictures(40), pictures(20, 1), pictures(20, 2), ("no", "yes"), "picture")
RECIPE = Recipe(model=Backbone(), batch_size=8)
PRESETS = {"default": run.Config(RECIPE)}  # of the experiment test_transfer


def prepared(recipe=RECIPE, splits=SPLITS, hparams=None, said=None, **fields):
    log = print if said is None else said.append
    return transfer.prepare(Transfer(**fields), recipe, hparams or Hparams(), splits, 0, log)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("ema", [False, True])
def test_frozen_is_unchanged_to_the_bit(pretrained, ema):
    """Parameters, batch statistics and the moving average of what is not trained."""
    start = prepared(replace(RECIPE, ema=ema), finetune="last-blocks", freeze_epochs=0)
    fit = train.fit(
        start.recipe, Hparams(l2=0.01), SPLITS.train, epochs=2, pretrained=start.pretrained
    )
    state = fit.state
    for name in ("block1", "block1_norm"):
        same(state.params[name], pretrained["params"][name])
        if ema:
            same(state.ema[name], pretrained["params"][name])
    same(state.collections["batch_stats"]["block1_norm"], pretrained["batch_stats"]["block1_norm"])
    for before, after in (
        (pretrained["params"]["block2"]["kernel"], state.params["block2"]["kernel"]),
        (pretrained["batch_stats"]["block2_norm"], state.collections["batch_stats"]["block2_norm"]),
    ):
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert np.abs(old - new).min() > 0
    # the optimizer keeps nothing for what it does not train
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    trained = [leaf.size for n, p in state.params.items() if n[:6] != "block1"
               for leaf in jax.tree.leaves(p)]  # fmt: skip
    assert sum(sizes) == 2 * sum(trained) + 1


@pytest.mark.slow
def test_backbone_rate_is_a_fraction_of_the_learning_rate(pretrained):
    """One step of plain SGD moves the backbone a tenth as far as with a fraction of 1."""
    recipe = replace(RECIPE, optimizer=train.SGD())
    start = prepared(recipe, finetune="full", freeze_epochs=0)
    moved = {}
    for rate in (1.0, 0.1):
        state = init_on_devices(
            start.recipe, Hparams(), SPLITS.train["inputs"][:1], 0, start.pretrained
        )
        batch = {**{k: v[:8] for k, v in SPLITS.train.items()}, "mask": np.ones(8, np.float32)}
        step = jax.jit(train.step, static_argnums=0)
        new, _ = step(start.recipe, state, Hparams(backbone_lr_scale=rate), batch)
        moved[rate] = jax.tree.map(lambda a, b: a - b, new.params, state.params)
    same(moved[1.0]["logits"], moved[0.1]["logits"])
    found, full = (moved[rate]["block1"]["kernel"] for rate in (0.1, 1.0))
    np.testing.assert_allclose(found, 0.1 * full, atol=3e-8)
    assert np.abs(full).max() > 1e-5


def test_head_on_features_is_logistic_regression(pretrained):
    """Trained to the end, the head finds what scikit-learn finds on features of its own making."""
    start = prepared(finetune="head")
    assert start.splits.train["inputs"].shape == (40, 8)
    by_hand = Backbone().apply(
        pretrained, SPLITS.train["inputs"] / np.float32(255), method="features"
    )
    np.testing.assert_allclose(start.splits.train["inputs"], by_hand, atol=1e-5)
    l2 = 0.01
    # its optimum, in both conventions: mean cross-entropy + l2 * sum of squares over both columns
    theirs = LogisticRegression(C=1 / (len(by_hand) * l2), tol=1e-8, max_iter=5000)
    theirs.fit(by_hand, SPLITS.train["targets"])
    recipe = replace(start.recipe, batch_size=40)
    fit = train.fit(recipe, Hparams(learning_rate=0.05, l2=l2), start.splits.train, epochs=600)
    kernel, bias = fit.state.params["logits"]["kernel"], fit.state.params["logits"]["bias"]
    np.testing.assert_allclose(kernel[:, 1] - kernel[:, 0], theirs.coef_[0], rtol=0.01, atol=0.01)
    np.testing.assert_allclose(bias[1] - bias[0], theirs.intercept_[0], rtol=0.02)
    # and the whole network says of pictures what the head says of features
    whole = start.merge_backbone(fit.state)
    outputs = train.evaluate(RECIPE, whole, Hparams(), SPLITS.test)[1]
    np.testing.assert_allclose(
        outputs, train.evaluate(recipe, fit.state, Hparams(), start.splits.test)[1], atol=1e-5
    )


def test_features_are_computed_once(pretrained, tmp_path):
    def features():
        return transfer.Features(Backbone(), without_head(pretrained), "abc", cache_dir=tmp_path)

    images = pictures(70)["inputs"]
    first = features()
    expected = first(images)
    assert first.computed == 70 and expected.dtype == np.float32
    again = features()
    same(again(images[::-1])[::-1], expected)
    assert again.computed == 0
    more = features()
    more(np.concatenate([images, pictures(3, 9)["inputs"]]))
    assert more.computed == 3
    # other weights are another cache; a damaged file costs computing again
    other = transfer.Features(Backbone(), without_head(pretrained), "def", cache_dir=tmp_path)
    other(images[:5])
    assert other.computed == 5
    for path in first.folder.glob("*.features"):
        path.write_bytes(path.read_bytes()[:-100])
    damaged = features()
    same(damaged(images), expected)
    assert damaged.computed == 70


def without_head(variables):
    params = {k: v for k, v in variables["params"].items() if k != "logits"}
    return {**variables, "params": params}


def test_views_are_augmented_rows_of_training_alone(pretrained):
    recipe = replace(RECIPE, augment=(augment.Flip(), augment.Brightness()))
    start = prepared(recipe, finetune="head", num_views=2, hparams=Hparams(flip_probability=1.0))
    rows = start.splits.train["inputs"]
    assert len(rows) == 120 and len(start.splits.val["inputs"]) == 20
    same(start.splits.train["targets"], np.tile(SPLITS.train["targets"], 3))
    mirrored = SPLITS.train["inputs"][:, :, ::-1] / np.float32(255)
    by_hand = Backbone().apply(pretrained, mirrored, method="features")
    np.testing.assert_allclose(rows[40:80], by_hand, atol=1e-5)
    assert start.recipe.augment == ()


def test_the_head_comes_first(pretrained):
    said = []
    hparams = Hparams(learning_rate=0.03)
    start = prepared(finetune="full", freeze_epochs=30, hparams=hparams, said=said)
    assert "the last layer alone reached a val accuracy of" in said[-1]
    state = init_on_devices(
        start.recipe, Hparams(), SPLITS.train["inputs"][:1], 0, start.pretrained
    )
    same(state.params["block1"], pretrained["params"]["block1"])
    scores, _ = train.evaluate(RECIPE, state, Hparams(), SPLITS.val)
    assert scores["accuracy"] == pytest.approx(float(said[-1].rsplit(" ", 1)[1]), abs=1e-4)
    assert start.recipe.trainable == "."


@pytest.mark.parametrize(
    "fields, recipe, sentence",
    [
        (dict(freeze_epochs=-1), RECIPE, "--freeze-epochs -1 must be 0 or more"),
        (dict(num_views=1), RECIPE, "--num-views needs --augment"),
        (dict(num_views=1, finetune="full"), RECIPE, "--num-views is for --finetune head"),
        (
            dict(),
            replace(RECIPE, augment=(augment.MixUp(),)),
            "--augment mixup, cutmix and mix cannot",
        ),
        (dict(), replace(RECIPE, model=CNN()), "there are none for a CNN; use --weights none"),
    ],
)
def test_what_does_not_go_together(fields, recipe, sentence):
    with pytest.raises(InputError, match=sentence):
        transfer.check(Transfer(**fields), recipe, Hparams())


@pytest.mark.parametrize(
    "trainable, sentence", [("^nothing", "matches no parameter"), ("(", "not a regular expression")]
)
def test_trainable_is_checked(trainable, sentence):
    with pytest.raises(InputError, match=sentence):
        train.abstract(replace(RECIPE, trainable=trainable), Hparams(), SPLITS.train["inputs"][:1])


def test_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_sample_weight

    targets = np.int32([0, 0, 0, 0, 1, 2, 2])
    inputs = RNG.normal(size=(7, 4)).astype(np.float32)
    splits = data.Splits(
        {"inputs": inputs, "targets": targets}, None, {},
        ArrayEncoder(data.Classes(("a", "b", "c")), (4,), "float32"),
    )  # fmt: skip
    recipe = Recipe(model=Backbone(3))
    weight = balance(transfer.Start(recipe, splits)).splits.train["weight"]
    np.testing.assert_allclose(weight, compute_sample_weight("balanced", targets), rtol=1e-6)
    # and they multiply the loss of an example
    state = init_on_devices(recipe, Hparams(), inputs[:1], 0, None)
    batch = {"inputs": inputs, "targets": targets, "mask": np.ones(7, np.float32)}
    of = [total_loss(recipe, state.params, {}, Hparams(), each, jax.random.key(1))
          for each in (batch, {**batch, "weight": weight})]  # fmt: skip
    each = of[0][1][1]
    np.testing.assert_allclose(of[1][0], np.mean(weight * each), rtol=1e-6)


def test_data_on_disk_train_to_the_same_bits(tmp_path, monkeypatch):
    """In pieces of three steps, the last one shorter, with a padded last batch."""
    monkeypatch.setattr(stream, "CHUNK_BYTES", 3 * 8 * (8 * 8 * 3 + 4 + 4))
    part = {**SPLITS.train, "weight": np.float32(1 + np.arange(40) % 3)}
    part = {name: array[:37] for name, array in part.items()}
    np.save(tmp_path / "images.npy", SPLITS.train["inputs"])
    disk = np.load(tmp_path / "images.npy", mmap_mode="r")
    streamed = {**part, "inputs": DiskArray(disk, np.arange(37))}
    val = {**SPLITS.val, "inputs": DiskArray(SPLITS.val["inputs"], np.arange(20))}
    recipe = replace(RECIPE, augment=(augment.Flip(),))
    seen = []
    fits = [
        train.fit(recipe, Hparams(dropout=0.3), a, b, epochs=2, on_steps=on_steps)
        for a, b, on_steps in (
            (part, SPLITS.val, None), (streamed, val, lambda epoch, done, sums: seen.append(done))
        )
    ]  # fmt: skip
    same(fits[0].state.params, fits[1].state.params)
    # the first call is one step, however many a piece has, so that a slow one is shown and stopped
    assert seen[0] == 1 and seen.count(5) == 2
    for a, b in zip(fits[0].history, fits[1].history, strict=True):
        for name in ("train_loss", "val_accuracy"):
            assert a[name] == b[name]
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-6)


def test_streamed_training_stops_inside_a_piece_and_goes_on_to_the_same_bits():
    streamed = {**SPLITS.train, "inputs": DiskArray(SPLITS.train["inputs"], np.arange(40))}
    whole = train.fit(RECIPE, Hparams(dropout=0.3), streamed, epochs=2)
    asked = iter([False, True])
    stopped = train.fit(
        RECIPE, Hparams(dropout=0.3), streamed, epochs=2, should_stop=lambda: next(asked)
    )
    assert stopped.partial and int(stopped.state.step) == 1
    rest = train.fit(RECIPE, Hparams(dropout=0.3), streamed, epochs=2, resume=stopped.checkpoint())
    same(whole.state.params, rest.state.params)


def test_every_augmentation_has_its_numbers():
    names = augment.strength_names(augment.AUGMENTATIONS.values(), Hparams())
    assert all(hasattr(Hparams(), name) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["head", "last-blocks"])
def test_an_ensemble_of_fine_tuned_models(pretrained, tmp_path, monkeypatch, finetune):
    """Heads share the frozen backbone, which is computed once; others have all in the State."""
    monkeypatch.chdir(tmp_path)
    config = Sweep(
        recipe=RECIPE, data=Arrays(pictures(80), pictures(40, 2), ("no", "yes"), "halves"),
        transfer=Transfer(finetune=finetune), sampler="qmc", trials=6,
        space={"learning_rate": ("2e-2", "5e-2", "log")}, population_size=3, epochs=5,
        val_split=0.25, run_dir=tmp_path / "sweep",
    )  # fmt: skip
    chosen = Chosen([0.75, 0.25, 0, 0, 0, 0], 2.0, 0.1, 0.2)
    monkeypatch.setattr(ensemble_selection, "choose", lambda *_: chosen)
    found = sweep.run_sweep("random_search", "halves", config, lambda line: None)["ensemble"]
    assert len(found["models"]) == 2
    folder = tmp_path / "sweep" / "ensemble"
    predictor = Predictor(folder, experiments, "test_transfer", lambda line: None)
    inputs = pictures(6, 3)["inputs"]
    state, model = predictor.state(), predictor.config.recipe.model
    backbones = sum("block1" in tree for tree in state.params.values())
    assert backbones == (1 if finetune == "head" else len(found["models"]))
    shared = {**state.params["members_0"], **pretrained["params"]}
    del shared["logits"]
    each = []
    for i in range(len(model.members)):
        name = f"members_{i}"
        others = {k: v[name] for k, v in state.collections.items() if name in v}
        variables = {"params": state.params[name], **others}
        if finetune == "head":
            variables = {**pretrained, "params": {**shared, "logits": state.params[name]["logits"]}}
        each.append(jax.nn.softmax(Backbone().apply(variables, inputs / np.float32(255))))
    expected = jnp.tensordot(jnp.float32(model.weights), jnp.stack(each), 1)
    together = jax.nn.softmax(predictor.outputs(inputs) * model.temperature)
    np.testing.assert_allclose(together, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bag_folds", [0, 3])
def test_a_self_contained_head_needs_no_weights(pretrained, tmp_path, monkeypatch, bag_folds):
    """Its folder goes on where the weights are gone, and says so when it is damaged."""
    monkeypatch.chdir(tmp_path)

    def predictor(folder):
        return Predictor(tmp_path / folder, experiments, "test_transfer", lambda line: None)

    config = run.Config(
        RECIPE, data=Arrays(pictures(80), pictures(40, 2), ("no", "yes"), "halves"),
        transfer=Transfer(save_backbone=True), epochs=2, run_dir=tmp_path / "run",
        bag_folds=bag_folds,
    )  # fmt: skip
    results = run.run("halves", config, lambda line: None)
    test = pictures(40, 2)
    right = predictor("run").outputs(test["inputs"]).argmax(1) == test["targets"]
    assert np.mean(right) == pytest.approx(results["test"]["accuracy"])
    if bag_folds:
        (member,) = results["members"]
        assert member["models"] == 3 and results["data"]["train"] == 80
    inputs = pictures(6, 3)["inputs"]
    wanted = predictor("run").outputs(inputs)
    (tmp_path / "run").rename(tmp_path / "elsewhere")

    def gone(*_):
        raise InputError("the weights are not here.")

    monkeypatch.setattr(weights, "read", gone)
    moved = predictor("elsewhere")
    np.testing.assert_array_equal(moved.outputs(inputs), wanted)
    path = tmp_path / "elsewhere" / "backbone.safetensors"
    whole = path.read_bytes()
    for wrong in (whole[:-4], whole[:-4] + b"abcd", b"", whole[:10]):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match="backbone.safetensors is damaged"):
            predictor("elsewhere").outputs(inputs)
    path.unlink()
    with pytest.raises(InputError, match="the weights are not here"):
        predictor("elsewhere").outputs(inputs)


def test_texts_are_batched_by_the_length_that_a_model_is_cut_to():
    """Padding, 0, is no token."""
    lengths = [3, 30, 4, 32, 3]
    tokens = np.int32([[1] * n + [0] * (32 - n) for n in lengths])
    batches = list(features._batches([(str(i), i) for i in range(5)], tokens))
    assert [list(batch.values()) for batch in batches] == [[0, 2, 4], [1, 3]]
