"""Every task keeps its contract, one claim a test; and each runs from data to prediction, its
scores compared with scikit-learn's."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits

import experiments
from dlflax import run, train
from dlflax.config.serialize import to_json
from dlflax.data import Arrays, ImageFolder, Numbers, Series, Table, make_splits
from dlflax.errors import InputError
from dlflax.inference.predict import Predictor
from dlflax.models import CNN, MLP, Autoencoder
from dlflax.report import figures
from dlflax.testing import TaskSuite
from dlflax.train import losses, tasks
from dlflax.train.check import bind_to_data
from dlflax.train.layout import Layout
from dlflax.train.metrics import Additive
from dlflax.train.population import Population
from dlflax.train.recipe import check_arrays
from dlflax.train.tasks import TASKS, Task

RNG = np.random.default_rng(0)


def pixel_loss(logits, batch, hparams):
    truth = jax.nn.one_hot(batch["targets"], logits.shape[-1])
    return -(truth * jax.nn.log_softmax(logits)).sum(-1).mean((1, 2))


@dataclasses.dataclass(frozen=True)
class MeanIoU(Additive):
    """The mean over the classes of the pixels that truth and prediction share."""

    name: str = "mean_iou"

    def update(self, outputs, batch):
        truth, guess = (
            jax.nn.one_hot(each, outputs.shape[-1]) * batch["mask"].reshape(-1, 1, 1, 1)
            for each in (batch["targets"], outputs.argmax(-1))
        )
        both = (truth * guess).sum((0, 1, 2))
        return {"both": both, "either": (truth + guess).sum((0, 1, 2)) - both}

    def compute(self, sums):
        return np.mean(sums["both"] / np.maximum(sums["either"], 1))


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """A class for every pixel: targets int (n, h, w), outputs logits (n, h, w, classes). The proof
    that a task needs no line of the library."""

    metrics = (MeanIoU(),)
    loss: losses.Loss = pixel_loss
    monitor: str = "mean_iou"

    def check(self, splits, outputs):
        if splits.train["targets"].shape[1:] != outputs().shape[1:3]:
            raise InputError("--task segmentation needs a class for every pixel of the outputs.")

    def model_fields(self, splits):
        return {"num_outputs": int(splits.train["targets"].max()) + 1}

    def describe(self, tested):
        return tasks.Description({"pixels": int(tested.splits.test["targets"].size)})

    def answers(self, asked):
        classes = asked.predictions["outputs"].argmax(-1)
        shares = [np.bincount(each.ravel(), minlength=2).tolist() for each in classes]
        return [(f"{name}: {share}", {"pixels": share})
                for name, share in zip(asked.inputs, shares, strict=True)]  # fmt: skip


class PixelNet(nn.Module):
    num_outputs: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        return nn.Conv(self.num_outputs, (3, 3))(x)


def digits():
    images, labels = load_digits(return_X_y=True)
    return np.uint8(images.reshape(-1, 8, 8, 1) * 15.9), labels


def arrays(inputs, targets=None, count=900, test=400, **more):
    parts = slice(count), slice(count, count + test)
    return Arrays(
        *({"inputs": inputs[p]} | ({} if targets is None else {"targets": targets[p]})
          for p in parts), **more,
    )  # fmt: skip


def ink(images):
    """How much of a picture is ink, and where its middle lies: float32 (n, 2)."""
    shares = images[..., 0] / 255.0
    rows = (shares.sum(2) * np.arange(8)).sum(1) / shares.sum((1, 2))
    return np.float32(np.stack([shares.mean((1, 2)), rows / 8], 1))


def cases():
    """Name -> (task, model, data): a small one of each."""
    images, labels = digits()
    several = np.stack([labels % 2, labels > 4, labels == 0], 1).astype(np.int32)
    names = ("odd", "large", "zero")
    pixels = np.int32(images[..., 0] > 120)
    table = load_diabetes()
    rows = (np.float32(table.data / table.data.std(0)), np.float32(table.target / 100))
    return {
        "classification": (TASKS["classification"], MLP((16,)), arrays(images, labels)),
        "one logit": (
            tasks.Classification(losses.BinaryCrossEntropy()), MLP((16,)),
            arrays(images, labels % 2),
        ),
        "multilabel": (
            TASKS["multilabel"], MLP((16,)), arrays(images, several, class_names=names)
        ),
        "regression of pictures": (
            TASKS["regression"], CNN((4,), dense=(16,)), arrays(images, ink(images))
        ),
        "regression of a table": (TASKS["regression"], MLP((16,)), arrays(*rows, 300, 142)),
        "forecast": (
            TASKS["forecast"], MLP((16,)), Series("sunspots", window=22, horizon=5)
        ),
        "reconstruction": (TASKS["reconstruction"], Autoencoder((32,), 8), arrays(images)),
        "segmentation": (Segmentation(), PixelNet(), arrays(images, pixels)),
    }  # fmt: skip


CASES = cases()


@pytest.fixture(params=CASES, scope="module")
def job(request):
    return CASES[request.param]


class TestTasks(TaskSuite):
    """Each of them, by the fixture above."""

    def inputs(self, splits):
        batch = super().inputs(splits)
        return {**batch, "times": np.full(batch["targets"].shape, "")} if "last" in batch else batch


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def result(name, epochs=3, **options):
    """results.json of a short run."""
    task, model, source = CASES[name]
    recipe = train.Recipe(model, task, batch_size=16)
    hparams = train.Hparams(learning_rate=3e-3)
    config = run.Config(recipe, hparams, source, epochs=epochs, run_dir=Path("run"), **options)
    returned = run.run("mine", config)
    written = json.loads(Path("run/results.json").read_text())
    assert written == json.loads(json.dumps(returned)) and "pending" not in written
    return written


def of_test(name):
    """(outputs, targets) of the test data, by the saved run."""
    test = CASES[name][2].load(lambda _: None).test
    return Predictor("run", experiments, "test_tasks").outputs(test["inputs"]), test["targets"]


@pytest.mark.figures
def test_regression_of_a_table(place, capsys):
    scores = result("regression of a table", epochs=30)["test"]
    outputs, targets = of_test("regression of a table")
    outputs = outputs[:, 0]
    assert scores["rmse"] == pytest.approx(
        sklearn.metrics.root_mean_squared_error(targets, outputs), rel=1e-4
    )
    expected = sklearn.metrics.mean_absolute_error(targets, outputs)
    assert scores["mae"] == pytest.approx(expected, rel=1e-4)
    assert scores["r2"] == pytest.approx(sklearn.metrics.r2_score(targets, outputs), abs=1e-4)
    assert scores["r2"] > 0.3  # a linear model has .48
    assert Path("run/predicted.png").exists() and "R2" in capsys.readouterr().out
    np.save("x.npy", CASES["regression of a table"][2].test["inputs"][:2])
    ((words, values), _) = Predictor("run", experiments, "test_tasks").answers(["x.npy"])
    assert words.startswith("x.npy[0]: ")
    assert values["values"] == pytest.approx([float(outputs[0])], rel=1e-5)


@pytest.mark.slow
def test_regression_of_pictures_with_two_numbers(place):
    scores = result("regression of pictures", epochs=10)["test"]
    outputs, targets = of_test("regression of pictures")
    assert scores["rmse"] == pytest.approx(
        sklearn.metrics.root_mean_squared_error(targets, outputs), rel=1e-4
    )
    assert scores["r2"] == pytest.approx(sklearn.metrics.r2_score(targets, outputs), abs=1e-4)
    assert scores["r2"] > 0.3


@pytest.mark.slow
def test_several_labels(place):
    scores = result("multilabel", epochs=10)["test"]
    outputs, targets = of_test("multilabel")
    labels = scores["per_class"].values()
    predicted = outputs > scipy.special.logit([label["threshold"] for label in labels])
    for name, average in (("macro_f1", "macro"), ("micro_f1", "micro")):
        expected = sklearn.metrics.f1_score(targets, predicted, average=average)
        assert scores[name] == pytest.approx(expected, rel=1e-5)
    assert scores["exact_match"] == pytest.approx(
        sklearn.metrics.accuracy_score(targets, predicted), rel=1e-5
    )
    assert scores["accuracy"] == pytest.approx(np.mean(predicted == targets), rel=1e-5)
    average = sklearn.metrics.average_precision_score(targets, outputs)
    assert scores["mean_average_precision"] == pytest.approx(average, rel=1e-5)
    auc = sklearn.metrics.roc_auc_score(targets[:, 1], outputs[:, 1])
    assert scores["per_class"]["large"]["roc_auc"] == pytest.approx(auc, rel=1e-5)
    assert scores["macro_f1"] > 0.8
    np.save("x.npy", digits()[0][:1])
    ((_, values),) = Predictor("run", experiments, "test_tasks").answers(["x.npy"])
    assert set(values["probabilities"]) == {"odd", "large", "zero"}
    assert values["labels"] == [
        n for n, label in scores["per_class"].items()
        if values["probabilities"][n] > label["threshold"]
    ]  # fmt: skip
    Path("run/calibration.json").write_text('{"thresholds": [0.5]}')
    with pytest.raises(InputError, match="1 thresholds for 3 labels"):
        Predictor("run", experiments, "test_tasks").answers(["x.npy"])


@pytest.mark.slow
def test_segmentation(place):
    scores = result("segmentation", epochs=5)["test"]
    outputs, targets = of_test("segmentation")
    predicted = outputs.argmax(-1).ravel()
    expected = sklearn.metrics.jaccard_score(targets.ravel(), predicted, average="macro")
    assert scores["mean_iou"] == pytest.approx(expected, rel=1e-5) and expected > 0.8
    assert scores["pixels"] == 400 * 64


def test_one_logit_for_two_classes(place):
    model = MLP((16,), num_outputs=1)
    task, _, source = CASES["one logit"]
    splits = make_splits(source, source.load(lambda _: None), 0.1, 0)
    recipe = train.Recipe(model, task)
    fit = train.fit(recipe, train.Hparams(learning_rate=1e-2), splits.train, splits.val, epochs=3)
    _, outputs = train.evaluate(recipe, fit.best, train.Hparams(), splits.val)
    right = sklearn.metrics.accuracy_score(splits.val["targets"], outputs[:, 0] > 0)
    best = fit.history[train.best_epoch(fit.history, task)]
    assert best["val_accuracy"] == pytest.approx(right) and right > 0.8


@pytest.mark.figures
def test_an_autoencoder_by_another_name(place):
    """Any model whose outputs have the inputs' shape; without encode there is no probe."""

    images, _ = digits()
    recipe = train.Recipe(SquareNet(), tasks.Reconstruction(), batch_size=16)
    config = run.Config(recipe, data=arrays(images), epochs=2, run_dir=Path("run"))
    results = run.run("mine", config)
    assert "linear_probe_accuracy" not in results["test"]
    assert Path("run/reconstructions.png").exists()


class SquareNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.sigmoid(nn.Dense(64)(h)).reshape(x.shape)


PRESETS = {"default": run.Config(train.Recipe(SquareNet()))}  # of the experiment test_tasks
IMAGES, LABELS = digits()
SHAPES = {
    "classes": (np.zeros((20, 3), np.float32), np.arange(20) % 2),
    "numbers": (np.zeros((20, 3), np.float32), np.zeros(20, np.float32)),
    "labels": (np.zeros((20, 3), np.float32), np.zeros((20, 2), np.int32)),
    "nothing": (np.zeros((20, 3), np.float32), None),
}


@pytest.mark.parametrize(
    ("task", "shape", "sentence"),
    [
        ("classification", "numbers", "needs class numbers, int .* these are float32"),
        ("classification", "labels", "needs class numbers, int"),
        ("classification", "nothing", 'needs "targets" in the data'),
        ("multilabel", "classes", "needs 0 or 1 for each label"),
        ("multilabel", "numbers", "needs 0 or 1 for each label"),
        ("regression", "classes", "needs floats, .* these are int32"),
        ("regression", "nothing", 'needs "targets"'),
        ("forecast", "numbers", "needs a series"),
        ("reconstruction", "classes", "its outputs have shape .* needs .3,."),
    ],
)
def test_data_of_another_task_are_refused_in_a_sentence(task, shape, sentence):
    inputs, targets = SHAPES[shape]
    source = arrays(inputs, targets, 15, 5)
    splits = make_splits(source, source.load(print), 0.2, 0)
    with pytest.raises(InputError, match=sentence) as error:
        bind_to_data(train.Recipe(MLP((4,)), TASKS[task]), train.Hparams(), splits)
    assert "\n" not in str(error.value)


ROWS = np.zeros((8, 3), np.float32)
ZEROS, NAN = np.zeros(8, np.float32), np.full((8, 2), np.nan, np.float32)
BAD_TARGETS = [  # (task, outputs of the model, targets, what the sentence has)
    ("classification", 2, np.tile([-1, 1], 4), "from 0 to 1; these range from -1 to 1"),
    ("classification", 1, np.tile([-1, 1], 4), "from 0 to 1; these range from -1 to 1"),
    ("classification", 4, 1 + np.arange(8) % 4, "from 0 to 3; these range from 1 to 4"),
    ("classification", 2, np.eye(2, dtype=np.int32)[np.arange(8) % 2], "class numbers, int"),
    ("classification", 2, ZEROS, "class numbers, int .* are float32"),
    ("classification", 2, np.zeros(7, np.int32), "there are 8 inputs, but 7 targets"),
    ("classification", 2, np.zeros(9, np.int32), "there are 8 inputs, but 9 targets"),
    ("classification", 2, [0, 1] * 4, "targets must be an array"),
    ("classification", 2, None, 'needs "targets"'),
    ("multilabel", 3, np.zeros((8, 2), np.int32), r"outputs have shape \(3,\) .* 2 labels"),
    ("multilabel", 2, np.zeros(8, np.int32), "0 or 1 for each label"),
    ("multilabel", 2, 2 * np.eye(8, 2, dtype=np.int32), "0 or 1 for each label"),
    ("multilabel", 2, -np.eye(8, 2), "0 or 1 for each label"),
    ("multilabel", 2, NAN, "0 or 1 for each label"),
    ("regression", 1, np.array(["a"] * 8), "needs floats"),
    ("regression", 2, NAN, "NaN or infinite"),
    ("regression", 1, np.full(8, 1e39), "NaN or infinite"),  # as float32
    ("regression", 1, np.zeros((8, 2), np.float32), r"outputs have shape \(1,\) .* 2 numbers"),
    ("regression", 2, ZEROS, r"outputs have shape \(2,\) .* 1 number"),
    ("forecast", 2, ZEROS, "needs a series"),
    ("forecast", 2, NAN, None),
    ("forecast", 2, np.where(np.eye(8, 2), np.inf, 0), "a target is infinite"),
    ("forecast", 2, np.zeros((8, 3), np.float32), r"outputs have shape \(2,\) .* horizon of 3"),
    ("reconstruction", 2, None, r"outputs have shape \(2,\)"),
]


@pytest.mark.parametrize(("task", "outputs", "targets", "sentence"), BAD_TARGETS)
def test_fit_and_a_population_refuse_targets_of_another_kind(task, outputs, targets, sentence):
    recipe = train.Recipe(MLP((4,), num_outputs=outputs), TASKS[task], batch_size=4)
    bad = {"inputs": ROWS} | ({} if targets is None else {"targets": targets})
    if sentence is None:  # a forecast's target may be missing
        return check_arrays(recipe, train.Hparams(), bad)
    layout = Layout("map", 1, 1)
    for begin in (
        lambda: train.fit(recipe, train.Hparams(), bad, epochs=1),
        lambda: Population(
            recipe, [train.Hparams()], [[0]], bad, bad, epochs=1, layout=layout
        ),
    ):  # fmt: skip
        with pytest.raises(InputError, match=sentence) as error:
            begin()
        assert "\n" not in str(error.value)


def test_a_target_that_is_the_same_in_all_rows_is_refused(tmp_path):
    sentence = "the target y is the same in all training rows"
    inputs = np.random.default_rng(0).normal(size=40)
    rounded = [0.3 if i % 2 else 0.1 + 0.2 for i in range(40)]
    for i, target in enumerate(([0.1] * 40, [0] * 40, [1.7e9] * 40, rounded)):
        rows = [f"{x},{y!r}" for x, y in zip(inputs, target, strict=True)]
        (tmp_path / f"{i}.csv").write_text("\n".join(["x,y", *rows]), encoding="utf-8")
        source = Table(data=tmp_path / f"{i}.csv", target="y", target_type="number")
        with pytest.raises(InputError, match=sentence):
            make_splits(source, source.load(lambda _: None), 0.2, 0)
    for i in range(12):
        (tmp_path / "images").mkdir(exist_ok=True)
        image = Image.fromarray(np.full((4, 4), 20 * i, np.uint8))
        image.save(tmp_path / "images" / f"{i}.png")
    rows = [f"{i}.png,{i / 7!r},0.1" for i in range(12)]
    (tmp_path / "l.csv").write_text("\n".join(["file,x,y", *rows]), encoding="utf-8")
    source = ImageFolder(
        data=tmp_path / "images", image_size=8, labels_csv=tmp_path / "l.csv", target=("x", "y"),
        target_type="number",
    )  # fmt: skip
    with pytest.raises(InputError, match=sentence):
        make_splits(source, source.load(lambda _: None), 0.2, 0)
    steps = 1.7e9 + 1e-6 * np.arange(3)  # little, but no rounding
    assert Numbers.fit(steps, ("y",)).scale[0] == pytest.approx(steps.std())


def test_validation_targets_are_checked_before_the_first_step():
    recipe = train.Recipe(MLP((4,), num_outputs=2), batch_size=4)
    good = {"inputs": ROWS, "targets": np.arange(8) % 2}
    for bad in ({**good, "targets": np.full(8, 2)}, {"inputs": ROWS}):
        with pytest.raises(InputError):
            train.fit(recipe, train.Hparams(), good, bad, epochs=1, on_epoch=pytest.fail)
    for bad in ({}, {"inputs": ROWS[:0], "targets": np.zeros(0, int)}, {"targets": ROWS}):
        with pytest.raises(InputError, match='need "inputs"'):
            train.fit(recipe, train.Hparams(), bad, epochs=1)


def test_a_class_number_beyond_the_names_is_refused():
    parts = ({"inputs": np.zeros((9, 2), np.float32), "targets": np.arange(9) % 3},) * 2
    source = Arrays(*parts, class_names=("a", "b"))
    splits = make_splits(source, source.load(print), 0.2, 0)
    sentence = "must be class numbers from 0 to 1; these range from 0 to 2"
    with pytest.raises(InputError, match=sentence):
        bind_to_data(train.Recipe(MLP((4,))), train.Hparams(), splits)


@pytest.mark.figures
def test_results_are_saved_before_anything_is_drawn(place, monkeypatch, capsys):
    """A picture that fails is one warning."""

    def broken(*_):
        raise ValueError("no room\nfor a picture")

    monkeypatch.setattr(figures, "confusion_matrix", broken)
    scores = result("classification")
    out = capsys.readouterr().out
    assert "warning: run/confusion_matrix.png could not be drawn (ValueError: no room)" in out
    assert scores["test"]["accuracy"] > 0.5 and Path("run/curves.png").exists()


def test_a_description_that_fails_leaves_the_scores(place, monkeypatch, capsys):
    def broken(self, tested):
        raise KeyError("scale")

    monkeypatch.setattr(tasks.Classification, "describe", broken)
    scores = result("classification")
    assert scores["test"]["accuracy"] > 0.5 and "per_class" not in scores["test"]
    assert "warning: Classification.describe failed (KeyError: 'scale')" in capsys.readouterr().out


def test_everything_of_a_config_is_saved_by_where_it_lives():
    for task, model, source in CASES.values():
        saved = to_json(run.Config(train.Recipe(model, task), data=source))
        for part in ("model", "task", "optimizer", "schedule"):
            module, _, name = saved["recipe"][part]["class"].partition(":")
            assert module.startswith(("dlflax.", __name__)) and name


def crosswise(outputs, batch, hparams):
    return jnp.mean(outputs)


def of_before(outputs, targets, hparams):
    return jnp.abs(outputs[:, 0] - targets)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (losses.BinaryCrossEntropy(), r"loss BinaryCrossEntropy .* fails on outputs \(2, 10\)"),
        (
            of_before,
            r"loss of_before .* takes \(outputs, batch, hparams\), and the targets are batch",
        ),
        (
            crosswise,
            r"loss crosswise .* must return one number per example, .* returns shape \(\)",
        ),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_in_a_sentence(loss, sentence):
    source = arrays(IMAGES, LABELS)
    splits = make_splits(source, source.load(print), 0.1, 0)
    recipe = train.Recipe(MLP((4,)), tasks.Classification(loss))
    with pytest.raises(InputError, match=sentence):
        bind_to_data(recipe, train.Hparams(), splits)


def test_answers_have_the_digits_of_the_target():
    """Of a salary no cents, of a counter its last digits; JSON values keep all."""
    from dlflax.data import Numbers, Steps
    from dlflax.train.tasks import Forecast, Regression
    from dlflax.train.tasks.task import Asked

    def asked(target, columns=None, batch=None, **predictions):
        arrays = {name: np.array(values) for name, values in predictions.items()}
        return Asked(["a"], "row", batch or {}, columns or {}, arrays, target, None, {}, None)

    salary = asked(Numbers(("jobs",), (9e4,), (5.4e4,)), values=[[145860.3]])
    assert Regression().answers(salary) == [("a: 145,860", {"row": "a", "values": [145860.3]})]
    unknown = asked(Numbers(), values=[[145860.3, 0.00012341]])
    assert Regression().answers(unknown)[0][0] == "a: 145,860 0.0001234"

    series = asked(Steps(("meter",), 3e7, 1), {"times": np.array([["", ""]])},
                   forecast=[[1.2e8 + 0.25, 1.2e8 + 10.5]])  # fmt: skip
    ((words, values),) = Forecast().answers(series)
    assert words.splitlines()[1:] == ["  1  120,000,000.2", "  2  120,000,010.5"]
    assert values["forecast"] == [1.2e8 + 0.25, 1.2e8 + 10.5]
