"""Metrics against scikit-learn's, on padded batches and two devices; what they may decide."""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.special import softmax

from dlflax import parallel, run, train
from dlflax.config.config import check
from dlflax.data import Arrays, make_splits
from dlflax.data.order import batch_order
from dlflax.errors import InputError
from dlflax.models import MLP
from dlflax.train import metrics
from dlflax.train.batch import check_keys
from dlflax.train.check import bind_to_data
from dlflax.train.layout import Layout
from dlflax.train.population import Population
from dlflax.train.recipe import init_on_devices
from dlflax.train.tasks import Classification, Forecast, MultiLabel, Reconstruction, Regression

RNG = np.random.default_rng(0)
N = 131  # of which the last batch is filled up
PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")


def macro(score):
    return lambda t, o: score(t, o.argmax(1), average="macro", zero_division=0)


def auc(t, o):
    if o.shape[1] == 2:
        return sk.roc_auc_score(t, o[:, 1] - o[:, 0])
    return sk.roc_auc_score(t, softmax(np.float64(o), 1), multi_class="ovr")


def precision_of_ranks(t, o):
    if o.shape[1] == 2:
        return sk.average_precision_score(t, o[:, 1] - o[:, 0])
    return sk.average_precision_score(np.eye(o.shape[1])[t], softmax(np.float64(o), 1))


CLASSES = {
    "accuracy": lambda t, o: sk.accuracy_score(t, o.argmax(1)),
    "macro_f1": macro(sk.f1_score),
    "macro_precision": macro(sk.precision_score),
    "macro_recall": macro(sk.recall_score),
    "roc_auc": auc,
    "average_precision": precision_of_ranks,
}
LABELS = {
    "macro_f1": lambda t, o: sk.f1_score(t, o > 0, average="macro"),
    "micro_f1": lambda t, o: sk.f1_score(t, o > 0, average="micro"),
    "mean_average_precision": sk.average_precision_score,
    "accuracy": lambda t, o: np.mean(t == (o > 0)),
    "exact_match": lambda t, o: sk.accuracy_score(t, o > 0),
}
NUMBERS = {
    "rmse": sk.root_mean_squared_error, "mae": sk.mean_absolute_error, "r2": sk.r2_score,
}  # fmt: skip
CASES = {
    "two classes": (Classification(), CLASSES, RNG.integers(0, 2, N), 2),
    "five classes": (Classification(), CLASSES, RNG.integers(0, 5, N), 5),
    "labels": (MultiLabel(), LABELS, RNG.integers(0, 2, (N, 3)), 3),
    "numbers": (Regression(), NUMBERS, np.float32(RNG.normal(size=(N, 2))), 2),
}  # fmt: skip


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_every_metric_is_scikit_learns(case, devices):
    task, expected, targets, columns = CASES[case]
    targets = targets.astype(np.float32 if targets.dtype == np.float32 else np.int32)
    inputs = np.float32(RNG.normal(size=(N, columns)))
    recipe = train.Recipe(MLP((), num_outputs=columns), task)
    assert set(expected) == {metric.name for metric in task.metrics}
    with parallel.use_devices(devices):
        state = init_on_devices(recipe, train.Hparams(), inputs[:1], 0, None)
        data = {"inputs": inputs, "targets": targets}
        scores, outputs = train.evaluate(recipe, state, train.Hparams(), data, 32)
    assert outputs.shape == (N, columns)
    for name, score in expected.items():
        assert scores[name] == pytest.approx(score(targets, np.asarray(outputs)), rel=2e-5), name


def test_forecasts_count_what_is_known():
    truth, outputs = np.float32(RNG.normal(size=(2, N, 4)))
    truth[:, 1:][RNG.random((N, 3)) < 0.2] = np.nan
    task = dataclasses.replace(Forecast(), scale=3.0)
    data = {"inputs": np.zeros((N, 1), np.float32), "targets": truth}
    scores = train.scores(task, train.Hparams(), data, outputs)
    known = ~np.isnan(truth)
    rmse = 3 * sk.root_mean_squared_error(truth[known], outputs[known])
    assert scores["rmse"] == pytest.approx(rmse, rel=1e-5)
    assert scores["mae"] == pytest.approx(3 * np.nanmean(np.nanmean(abs(truth - outputs), 1)))


def test_targets_that_the_task_computes():
    """Of a task with a collecting metric whose targets are the inputs."""
    images = RNG.integers(0, 255, (40, 3, 3, 1)).astype(np.uint8)

    @dataclasses.dataclass(frozen=True)
    class Explained(Reconstruction):
        metrics = (metrics.R2(),)

    outputs = np.float32(RNG.random(images.shape))
    scores = train.scores(Explained(), train.Hparams(), {"inputs": images}, outputs)
    flat = (images / 255).reshape(40, -1), outputs.reshape(40, -1)
    assert scores["r2"] == pytest.approx(sk.r2_score(*flat), rel=1e-5)


def points(n=200, seed=0):
    rng = np.random.default_rng(seed)
    inputs = np.float32(rng.normal(size=(n, 4)))
    return {"inputs": inputs, "targets": np.int32(inputs[:, 0] + rng.normal(size=n) > 0)}


@pytest.mark.parametrize("monitor", ["loss", "roc_auc", "average_precision", "macro_recall"])
def test_a_collecting_metric_decides_the_best_epoch(monitor):
    """Alone and as members, whose every epoch has it; others do not."""
    data, val = points(), points(77, 1)
    recipe = train.Recipe(MLP((4,), num_outputs=2), Classification(monitor=monitor), batch_size=16)
    hparams = train.Hparams(learning_rate=0.05)
    fit = train.fit(recipe, hparams, data, val, epochs=4)
    names = {name for name in fit.history[0] if name.startswith("val_")}
    assert names == {"val_loss", "val_accuracy", "val_macro_f1", f"val_{monitor}"}
    values = [row[f"val_{monitor}"] for row in fit.history]
    best = np.argmin(values) if monitor == "loss" else np.argmax(values)
    assert train.best_epoch(fit.history, recipe.task) == best
    assert train.evaluate(recipe, fit.best, hparams, val)[0][monitor] == pytest.approx(values[best])
    for mode in ("map", "vmap"):
        members = Population(
            recipe, [hparams] * 2, [[0]] * 2, data, val, epochs=4, layout=Layout(mode, 2, 2)
        )
        members.train(4)
        found = [row[f"val_{monitor}"] for row in members.histories[1][0]]
        np.testing.assert_allclose(found, values, rtol=1e-4)
        assert members.scores(monitor).shape == (2, 1)


def test_members_with_examples_of_their_own():
    data, val = points(), points(90, 1)
    recipe = train.Recipe(MLP((4,), num_outputs=2), Classification(monitor="roc_auc"))
    rows = [(np.arange(100, dtype=np.int32), np.arange(40, dtype=np.int32)),
            (np.arange(100, 200, dtype=np.int32), np.arange(40, 90, dtype=np.int32))]  # fmt: skip
    members = Population(
        recipe, [train.Hparams()], [[0, 0]], data, val, epochs=1, layout=Layout("map", 2, 2),
        orders=[batch_order(data, recipe.batch_size, at) for at, _ in rows],
        val_rows=[at for _, at in rows],
    )  # fmt: skip
    members.train(1)
    for history, (own, own_val) in zip(*members.histories, rows, strict=True):
        parts = ({name: leaf[at] for name, leaf in part.items()}
                 for part, at in ((data, own), (val, own_val)))  # fmt: skip
        alone = train.fit(recipe, train.Hparams(), *parts, epochs=1).history
        assert history[0]["val_roc_auc"] == pytest.approx(alone[0]["val_roc_auc"])


def test_an_undefined_metric_cannot_decide():
    data, val = points(), points(50, 1)
    val["targets"][:] = 1
    recipe = train.Recipe(MLP((4,), num_outputs=2), Classification(monitor="roc_auc"))
    with pytest.raises(InputError, match="roc_auc is undefined on the 50 validation examples"):
        train.fit(recipe, train.Hparams(), data, val, epochs=2)
    plain = train.Recipe(MLP((4,), num_outputs=2))
    fit = train.fit(plain, train.Hparams(), data, val, epochs=1)
    assert "roc_auc" not in train.evaluate(plain, fit.best, train.Hparams(), val)[0]
    with pytest.raises(train.driver.RunError, match="NaN or infinite"):
        train.fit(recipe, train.Hparams(learning_rate=1e30), data, points(50, 1), epochs=2)


def test_another_objective_than_the_monitor():
    """Every epoch has both."""
    data, val = points(), points(60, 1)
    recipe = train.Recipe(MLP((4,), num_outputs=2))
    members = Population(
        recipe, [train.Hparams()], [[0]], data, val, epochs=1, layout=Layout("map", 1, 1),
        objective="average_precision",
    )  # fmt: skip
    members.train(1)
    ((row,),) = members.histories[0]
    assert 0 < row["val_average_precision"] < 1 and "val_roc_auc" not in row


@dataclasses.dataclass(frozen=True)
class Two(Classification):
    metrics = (metrics.Accuracy(), metrics.ROCAUC("accuracy"))


class Loose:
    monitor, loss = "loss", staticmethod(lambda outputs, batch, hparams: outputs)


@pytest.mark.parametrize(
    "task, sentence",
    [
        (Classification(monitor="auc"), "--task.monitor auc must be one of accuracy, macro_f1"),
        (Two(), "has a metric named 'accuracy': give each metric a distinct name"),
        (Loose(), "Loose must inherit from dlflax.train.tasks.Task"),
    ],
)
def test_tasks_that_are_refused(task, sentence):
    config = run.Config(train.Recipe(MLP((4,)), task))
    with pytest.raises(InputError, match=re.escape(sentence)):
        check(config)


def test_reserved_keys_of_the_data():
    data = points()
    length = np.arange(200, dtype=np.int32)
    check_keys({**data, "weight": np.ones(200, np.float32), "length": length, "group": length})
    wrong = {**data, "mask": np.ones(200), "share": np.ones(200)}
    with pytest.raises(InputError, match="named mask and share: these keys of a batch are"):
        check_keys(wrong)
    source = Arrays(wrong, wrong)
    with pytest.raises(InputError, match="mask and share"):
        splits = make_splits(source, source.load(print), 0.1, 0)
        bind_to_data(train.Recipe(MLP((4,))), train.Hparams(), splits)
    with pytest.raises(InputError, match=r"array named length of float64 \(200, 2\).*one int per"):
        check_keys({**data, "length": np.ones((200, 2))})


@dataclasses.dataclass(frozen=True)
class ByGroup(Classification):
    """Counts an example by an array of the data that has a name of its own."""

    def loss(self, outputs, batch, hparams):
        return jnp.where(batch["group"] == 0, outputs[:, 0] ** 2, 0.0)


def test_other_arrays_reach_the_loss():
    data = points()
    data["group"] = np.int32(np.arange(200) % 2)
    recipe = train.Recipe(MLP((), num_outputs=2), ByGroup(), batch_size=16)
    fit = train.fit(recipe, train.Hparams(), data, data, epochs=1)
    scores, outputs = train.evaluate(recipe, fit.best, train.Hparams(), data)
    assert scores["loss"] == pytest.approx(np.mean(outputs[:, 0] ** 2 * (data["group"] == 0)))
