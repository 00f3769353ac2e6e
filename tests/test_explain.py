"""Grad-CAM, and what `tasks.classification` says of photographs, against computations by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax import train
from dlflax.data import Classes, DiskArray, Examples, Splits
from dlflax.data.image.encoder import ImageEncoder
from dlflax.models import (
    CNN,
    MLP,
    RNN,
    VGG,
    EfficientNetLite0,
    ResNet,
    SmallResNet,
    Transformer,
    grad_cam,
)
from dlflax.ops.convolution import convolution, symmetric_pads
from dlflax.ops.flops import flops
from dlflax.ops.pooling import max_pool
from dlflax.report import figures, tables
from dlflax.train import Hparams, metrics, tasks

PHOTOGRAPHS = np.random.default_rng(0).uniform(size=(3, 32, 40, 3)).astype(np.float32)
MODELS = {
    "cnn": CNN((4, 6), dense=(8,), implementation="matmul"),
    "small resnet": SmallResNet((4, 6), depth=1, implementation="lax"),
    "resnet": ResNet("18"),
    "vgg": VGG("11", dense=(8,)),
    "efficientnet": EfficientNetLite0(),
}


def scaled(maps):
    return maps / maps.max((1, 2), keepdims=True)


LARGE = ("efficientnet", "resnet")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in MODELS]
)
def test_every_model_of_photographs(name):
    """A map each, from no more than a forward pass and the gradient of what follows the map; and
    no trace of it in the variables, nor in what is computed without it."""
    model = MODELS[name]
    variables = jax.jit(model.init)(jax.random.key(0), PHOTOGRAPHS[:1])
    assert set(variables) <= {"params", "batch_stats"}
    maps = grad_cam.grad_cam(model, variables, PHOTOGRAPHS)
    assert maps.shape == (3, 32, 40) and maps.dtype == np.float32
    assert maps.min() >= 0
    np.testing.assert_allclose(maps.max((1, 2)), 1, rtol=1e-6)
    turned = grad_cam.grad_cam(model, variables, PHOTOGRAPHS[::-1])
    np.testing.assert_allclose(maps, turned[::-1], atol=1e-3)  # each is of its picture alone
    forward = flops(model.apply, variables, PHOTOGRAPHS)
    spent = flops(lambda *a: grad_cam._grad_cam(model, *a), variables, PHOTOGRAPHS)
    assert forward <= spent < 1.15 * forward


@pytest.mark.parametrize(
    "model",
    [MLP((8,)), RNN("gru", (8,)), Transformer(1, 8, 2, 8, patch_size=8)],
    ids=lambda m: type(m),
)
def test_no_feature_map_no_heat(model):
    variables = jax.jit(model.init)(jax.random.key(0), PHOTOGRAPHS)
    assert grad_cam.grad_cam(model, variables, PHOTOGRAPHS) is None


def test_grad_cam_by_hand():
    """A CNN cut into map and head: two dense layers, whose gradient differs from place to place."""
    model = CNN((5,), dense=(16,), implementation="lax", num_outputs=4)
    variables = jax.jit(model.init)(jax.random.key(3), PHOTOGRAPHS)
    params = jax.tree.map(np.asarray, variables["params"])
    kernel, bias = params["conv1"]["kernel"], params["conv1"]["bias"]
    convolved = convolution(PHOTOGRAPHS, kernel, 1, symmetric_pads(3), "lax")
    maps = np.maximum(max_pool(convolved) + bias.reshape(1, 1, 1, -1), 0)
    assert maps.shape == (3, 16, 20, 5)
    hidden = maps.reshape(3, -1) @ params["dense1"]["kernel"]
    logits = np.maximum(hidden, 0) @ params["logits"]["kernel"]
    np.testing.assert_allclose(model.apply(variables, PHOTOGRAPHS), logits, atol=1e-4)
    expected = []
    for i in range(3):
        back = np.where(hidden[i] > 0, params["logits"]["kernel"][:, logits[i].argmax()], 0)
        gradient = (params["dense1"]["kernel"] @ back).reshape(16, 20, 5)
        expected.append(np.maximum(maps[i] @ gradient.mean((0, 1)), 0))
    expected = jax.image.resize(np.stack(expected), (3, 32, 40), "bilinear")
    found = grad_cam.grad_cam(model, variables, PHOTOGRAPHS)
    np.testing.assert_allclose(found, scaled(np.asarray(expected)), atol=1e-4)


def test_mean_and_one_dense_layer_give_the_class_activation_map():
    """Zhou et al. 2016, which Grad-CAM generalizes: the channels by the predicted class's weights.
    One stage, so that nothing is upsampled."""
    model = SmallResNet((6,), depth=1, implementation="lax", num_outputs=3)
    variables = jax.jit(model.init)(jax.random.key(0), PHOTOGRAPHS)
    outputs, sown = model.apply(variables, PHOTOGRAPHS, mutable=["intermediates"])
    (features,) = sown["intermediates"]["feature_map"]
    logits = variables["params"]["logits"]
    np.testing.assert_allclose(features.mean((1, 2)) @ logits["kernel"], outputs, atol=1e-5)
    weights = np.asarray(logits["kernel"])[:, np.asarray(outputs).argmax(-1)]
    expected = np.maximum(np.einsum("nhwc,cn->nhw", features, weights), 0)
    found = grad_cam.grad_cam(model, variables, PHOTOGRAPHS)
    np.testing.assert_allclose(found, scaled(expected), atol=1e-5)


def corner_detector():
    """A CNN of two channels, red and blue, whose classes are: more red, more blue."""
    model = CNN((2,), dense=(), implementation="lax", num_outputs=2)
    kernel = np.zeros((3, 3, 3, 2), np.float32)
    kernel[1, 1, 0, 0] = kernel[1, 1, 2, 1] = 1
    dense = np.tile(np.eye(2, dtype=np.float32) * 2 - 1, (16 * 20, 1))
    params = {
        "conv1": {"kernel": kernel, "bias": np.zeros(2, np.float32)},
        "logits": {"kernel": dense, "bias": np.zeros(2, np.float32)},
    }
    return model, {"params": params}


def test_the_heat_is_where_the_evidence_is():
    """A big red square in one corner, a smaller blue one in another: the red one decides, and is
    hot, the other speaks against it and is not. Nothing in a black picture speaks for anything."""
    images = np.zeros((3, 32, 40, 3), np.float32)
    images[0, 20:32, 2:12, 0], images[0, 2:8, 30:38, 2] = 1, 1
    images[1] = images[0][::-1, ::-1, ::-1]
    model, variables = corner_detector()
    maps = grad_cam.grad_cam(model, variables, images)
    assert maps[0, 22:30, 4:10].min() == 1 and maps[0, :16].max() == 0 == maps[0, :, 16:].max()
    assert maps[1, 2:10, 30:36].min() == 1 and maps[1, 16:].max() == 0
    assert (maps[2] == 0).all()


def test_the_state_of_a_run_holds_no_feature_map():
    model = SmallResNet((4, 6), depth=1, implementation="lax")
    recipe = train.Recipe(model, optimizer=train.SGD(), batch_size=3)
    hparams = train.as_float32(Hparams())
    state = jax.jit(train.init, static_argnums=0)(
        recipe, hparams, PHOTOGRAPHS[:1], jax.random.key(0)
    )
    batch = {"inputs": PHOTOGRAPHS, "targets": jnp.arange(3), "mask": jnp.ones(3)}
    new, _ = jax.jit(train.step, static_argnums=0)(recipe, state, hparams, batch)
    assert set(state.collections) == set(new.collections) == {"batch_stats"}
    assert jax.tree.structure(state) == jax.tree.structure(new)


def test_roc_auc_is_the_share_of_pairs_in_order():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 60).astype(np.int32)
    scores = np.round(rng.normal(size=60) + targets, 1).astype(np.float32)  # with ties
    pairs = [
        float(p > q) + float(p == q) / 2
        for p in scores[targets == 1] for q in scores[targets == 0]
    ]  # fmt: skip
    assert 0.5 in pairs
    assert metrics.roc_auc(targets, scores) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert metrics.roc_auc(targets, scores) == pytest.approx(roc_auc_score(targets, scores))
    assert metrics.roc_auc(np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])) == 1.0
    assert metrics.roc_auc(np.array([1, 1]), np.array([0.1, 0.2])) is None


class Read(DiskArray):
    """Counts the rows that are read."""

    def __getitem__(self, key):
        self.seen = [*getattr(self, "seen", []), *np.atleast_1d(np.arange(len(self))[key])]
        return super().__getitem__(key)


def judged(model, variables, images, targets, names, files=True):
    """What `Classification` describes of these test images, which lie in a larger array: (scores,
    its drawings, tables, the array, outputs)."""
    recipe = train.Recipe(model)
    state = train.State(0, variables["params"], {}, None, None, None)
    test = {"inputs": images, "targets": targets}
    scores, outputs = train.evaluate(recipe, state, Hparams(), test)
    pool = np.concatenate([255 - images, images])
    rows = Read(pool, len(images) + np.arange(len(images)))
    named = Examples({"inputs": rows}, targets, [f"{i:03}.jpg" for i in range(len(targets))])
    splits = Splits(
        test, None, {"inputs": rows, "targets": targets},
        ImageEncoder(Classes(names), images.shape[1:]), {"test": named} if files else {},
    )  # fmt: skip
    tested = tasks.Tested(recipe, Hparams(), variables, splits, outputs, None)
    described = tasks.Classification().describe(tested)
    return {**scores, **described.scores}, described.figures, described.tables, rows, outputs


def red_or_blue(n, wrong):
    """Photographs of a square that is red, or blue, the more so the later it comes."""
    images, targets = np.zeros((n, 32, 40, 3), np.uint8), np.arange(n, dtype=np.int32) % 2
    for i in range(n):
        images[i, 4:12, 4:12, 2 * targets[i]] = 2 + i
    targets[wrong] = 1 - targets[wrong]
    return images, targets


def test_photographs_of_two_classes():
    model, variables = corner_detector()
    wrong = [3, 10, 11, 40, 57, 58]
    images, targets = red_or_blue(60, wrong)
    scores, pictures, tables, rows, outputs = judged(
        model, variables, images, targets, ("red", "blue")
    )
    names = [metric.name for metric in tasks.Classification().metrics]
    assert list(scores) == ["loss", *names, "calibration_error", "per_class"]
    said = np.where(np.isin(np.arange(60), wrong), 1 - targets, targets)
    of = [(said == c, targets == c) for c in (0, 1)]
    precision, recall = (np.mean([(p & t).sum() / (p, t)[k].sum() for p, t in of]) for k in (0, 1))
    assert scores["macro_precision"] == pytest.approx(precision)
    assert scores["macro_recall"] == pytest.approx(recall)
    assert scores["roc_auc"] == metrics.roc_auc(targets, outputs[:, 1] - outputs[:, 0])
    assert 0.5 < scores["roc_auc"] < 1

    rising = tables["wrong_predictions"]
    assert [row["file"] for row in rising] == [f"{i:03}.jpg" for i in reversed(wrong)]
    top = np.exp(outputs[58]) / np.exp(outputs[58]).sum()
    assert rising[0] == {"file": "058.jpg", "true": "blue", "predicted": "red",
                         "probability": pytest.approx(float(top.max()), rel=1e-6)}  # fmt: skip

    assert list(pictures) == ["confusion_matrix", "reliability", "wrong_predictions", "grad_cam"]
    pictures = {name: draw() for name, draw in pictures.items()}
    right = np.flatnonzero(said == targets)
    shown = [58, 57, 40, 11, *right[[0, 13, 27, 40]]]
    assert rows.seen == [*reversed(wrong), *shown]  # only what is shown is read
    all_axes = pictures["grad_cam"].axes
    maps = grad_cam.grad_cam(model, variables, images[shown] / np.float32(255))
    for axes, i, heat in zip(all_axes, shown, maps, strict=True):
        names = ("red", "blue")[targets[i]], ("red", "blue")[said[i]]
        probability = np.exp(outputs[i].max()) / np.exp(outputs[i]).sum()
        assert axes.get_title() == f"true {names[0]}, predicted {names[1]} ({probability:.2f})"
        picture, under, over = (image.get_array() for image in axes.images)
        np.testing.assert_array_equal(picture, images[i])
        np.testing.assert_array_equal(under, images[i])
        np.testing.assert_allclose(over, heat, atol=1e-6)
        assert heat[8, 8] == 1 and heat[20:].max() == 0


@pytest.mark.parametrize("case", ["all right", "all wrong", "no files", "one class occurs"])
def test_photographs_at_the_edges(case):
    model, variables = corner_detector()
    images, targets = red_or_blue(3, slice(None) if case == "all wrong" else [])
    if case == "one class occurs":
        targets[:] = 0
    scores, pictures, tables, *_ = judged(
        model, variables, images, targets, ("red", "blue"), files=case != "no files"
    )
    assert len(pictures["grad_cam"]().axes) == 3
    assert (pictures["wrong_predictions"]() is None) == (case in ("all right", "no files"))
    assert ("roc_auc" in scores) == (case != "one class occurs")
    rows = {"all right": 0, "all wrong": 3, "one class occurs": 1}
    assert {name: len(each) for name, each in tables.items()} == (
        {} if case == "no files" else {"wrong_predictions": rows[case]}
    )


@pytest.mark.parametrize("shape", [(31, 32, 3), (32, 32, 1), (32, 32, 3)])
def test_only_photographs_with_a_feature_map_are_explained(shape):
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    targets = np.arange(5, dtype=np.int32) % 3
    for model in (CNN((2,), dense=(4,), num_outputs=3), MLP((4,), num_outputs=3)):
        variables = jax.jit(model.init)(jax.random.key(0), images[:1] / np.float32(255))
        scores, pictures, tables, *_ = judged(
            model, variables, images, targets, ("a", "b", "c"), files=False
        )
        explained = shape == (32, 32, 3) and isinstance(model, CNN)
        assert (pictures["grad_cam"]() is not None) == explained and not tables
        names = [metric.name for metric in tasks.Classification().metrics]
        assert list(scores) == ["loss", *names, "calibration_error", "per_class"]


def test_heatmaps_are_drawn(tmp_path):
    from PIL import Image

    images = np.full((3, 40, 20, 3), 128, np.uint8)
    maps = np.zeros((3, 40, 20), np.float32)
    maps[:, :20] = 1
    figure = figures.heatmaps(images, maps, [0, 1, 0], [0, 0, 0], [0.9, 0.8, 1], ("cat", "d" * 40))
    assert [axes.get_title() for axes in figure.axes][:2] == [
        "true cat, predicted cat (0.90)", "true dddddddddddddd…, predicted cat (0.80)"
    ]  # fmt: skip
    figures.save_figure(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        drawn = np.asarray(opened.convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in drawn}
    assert (128, 128, 128) in colours  # the picture as it is, and under the map's two ends
    assert len({colour for colour in colours if np.ptp(np.array(colour, int)) > 15}) >= 2


@pytest.mark.parametrize("classes", [2, 12, 13])
def test_results_fit_a_terminal(capsys, monkeypatch, classes):
    monkeypatch.setenv("COLUMNS", "80")
    row = {"precision": 0.9, "recall": 0.25, "f1": 0.5, "support": 1234}
    split = {"loss": 12.3456, "accuracy": 0.9, "macro_f1": 0.8}
    test = {**split, "macro_precision": 0.7, "macro_recall": 0.6, "roc_auc": 0.95}
    test["per_class"] = {f"class {i}": row for i in range(classes)}
    tables.print_results({"train": split, "val": split, "test": test}, verbose=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["loss", "accuracy", "precision", "recall", "macro", "F1", "ROC", "AUC"]
    assert ["validation", "12.35", "0.9000", "0.8000"] in lines
    assert ["test", *["12.35", "0.9000", "0.7000", "0.6000", "0.8000", "0.9500"]] in lines
    table = [line for line in lines if line[0] == "class"]
    assert len(table) == (classes if classes <= 12 else 0)
    if table:
        assert table[1] == ["class", "1", "0.9000", "0.2500", "0.5000", "1,234"]
        assert ["test", "precision", "recall", "F1", "support"] in lines


@pytest.mark.parametrize("name", [":cat:", "[red]cat", "[/]"])
def test_names_are_printed_as_they_are(capsys, name):
    tables.print_table(None, ("class", "count"), [(name, "1")])
    assert name in capsys.readouterr().out
