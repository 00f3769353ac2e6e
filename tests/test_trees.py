"""Boosted trees of other libraries as a model: its outputs are theirs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from dlflax import train
from dlflax.baselines import boosting
from dlflax.data.arrays import Arrays
from dlflax.data.dataset import make_splits
from dlflax.data.table.source import Table
from dlflax.errors import InputError
from dlflax.inference import export
from dlflax.models.trees import Trees
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.driver import Checkpoint
from dlflax.train.ensemble import NoOptimizer
from dlflax.train.tasks import Classification, MultiLabel, Regression

LIBRARIES = "scikit-learn", "LightGBM", "CatBoost"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Target -> splits of one table: numbers and categories with gaps, times, many levels."""
    rng, n = np.random.default_rng(0), 240
    size, age = rng.normal(size=n), rng.uniform(0, 90, n)
    town, colour = rng.integers(0, 15, n), rng.integers(0, 4, n)
    price = 2 * size + (age > 40) * colour + town % 3 + rng.normal(size=n) / 4
    rows = {
        "size": [f"{x:.3f}" if i % 7 else "" for i, x in enumerate(size)],
        "age": [f"{x:.1f}" for x in age],
        "town": [f"town{x}" if i % 11 else "" for i, x in enumerate(town)],
        "colour": [f"c{x}" for x in colour],
        "day": [f"2024-{x:02}-{1 + i % 28:02}" for i, x in enumerate(1 + town % 12)],
        "price": [f"{x:.3f}" for x in price],
        "dear": np.where(price > np.median(price), "yes", "no"),
        "class": [f"k{x}" for x in np.digitize(price, np.quantile(price, [0.3, 0.6, 0.8]))],
    }
    splits = {}
    targets = "price", "dear", "class"
    for target in targets:
        names = [name for name in rows if name not in targets] + [target]
        path = tmp_path_factory.mktemp("trees") / f"{target}.csv"
        lines = zip(*(rows[name] for name in names), strict=True)
        path.write_text("\n".join(map(",".join, [names, *lines])))
        source = Table(data=path)
        splits[target] = make_splits(source, source.load(lambda _: None), 0.3, 0)
    return splits


def fit(library, splits, task, max_trees=12, seed=0):
    train_split, val = splits.train, splits.val
    return boosting.fit_trees(
        library, splits.encoder, task, train_split["inputs"], train_split["targets"],
        val["inputs"], val["targets"], seed=seed, max_trees=max_trees, threads=1,
    )  # fmt: skip


def task_of(target):
    return Regression() if target == "price" else Classification()


@pytest.fixture
def library_outputs(monkeypatch):
    """Records the library's own predictions for the validation examples: a function (library,
    number of rounds)."""
    fits = []

    def record(owner, name):
        method = getattr(owner, name)

        def recorder(*args, **options):
            x = options.get("X_val")
            if "eval_set" in options:
                x, _ = options["eval_set"]
            elif "valid_sets" in options:
                x = options["valid_sets"][0].data
            fits.append((method(*args, **options), x))
            return fits[-1][0]

        monkeypatch.setattr(owner, name, recorder)

    def outputs(rounds):
        model, x = fits[-1]
        is_classifier = hasattr(model, "predict_proba")
        if hasattr(model, "staged_predict") and hasattr(model, "validation_score_"):
            # scikit-learn predicts with all rounds, not with the best ones
            stages = model.staged_predict_proba if is_classifier else model.staged_predict
            return list(stages(x))[rounds - 1]
        return model.predict_proba(x) if is_classifier else model.predict(x)

    def of(library):
        if library == "scikit-learn":
            record(HistGradientBoostingClassifier, "fit")
            record(HistGradientBoostingRegressor, "fit")
        elif library == "LightGBM":
            record(pytest.importorskip("lightgbm"), "train")
        else:
            catboost = pytest.importorskip("catboost")
            record(catboost.CatBoostClassifier, "fit")
            record(catboost.CatBoostRegressor, "fit")
        return outputs

    return of


@pytest.mark.parametrize("target", ["price", "dear", "class"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_outputs_are_those_of_the_library(library, target, tables, library_outputs):
    predict, splits = library_outputs(library), tables[target]
    model, variables = fit(library, splits, task_of(target))
    assert np.any(variables["trees"]["fill"] > 0), "a column with missing values"
    outputs = jax.jit(model.apply)(variables, splits.val["inputs"])
    per_round = model.num_scores // model.num_values
    expected = predict(model.num_trees // per_round)
    if target == "price":
        np.testing.assert_allclose(outputs[:, 0], expected, atol=1e-6)
        assert np.mean((outputs[:, 0] - splits.val["targets"]) ** 2) < 0.8
        return
    probabilities = softmax(np.float64(outputs), 1)
    expected = expected if expected.ndim == 2 else np.stack([1 - expected, expected], 1)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
