"""Boosted trees of other libraries as a model: its outputs are theirs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from dlflax import train
from dlflax.baselines import boosting, tree_libraries
from dlflax.data.arrays import Arrays
from dlflax.data.dataset import make_splits
from dlflax.data.table.source import Table
from dlflax.errors import InputError
from dlflax.inference import export
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.driver import Checkpoint
from dlflax.train.ensemble import NoOptimizer
from dlflax.train.tasks import Classification, Regression

LIBRARIES = (
    "scikit-learn",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("LightGBM", "CatBoost")),
)


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
        assert np.mean((outputs[:, 0] - splits.val["targets"]) ** 2) < 0.9
        return
    probabilities = softmax(np.float64(outputs), 1)
    expected = expected if expected.ndim == 2 else np.stack([1 - expected, expected], 1)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def walk(trees, columns, num_trees):
    """Scores float64 (n, values) of columns (n, c), one node of one tree at a time."""
    scores = np.zeros((len(columns), trees["value"].shape[1]))
    for row, score in zip(columns, scores, strict=True):
        for node in range(num_trees):
            while np.isfinite(trees["threshold"][node]):
                right = row[trees["column"][node]] > trees["threshold"][node]
                node = trees["left"][node] + right
            score += trees["value"][node]
    return scores


def test_many_trees_are_added_in_chunks(tables):
    splits = tables["price"]
    model, variables = fit("scikit-learn", splits, Regression(), max_trees=70)
    assert model.num_trees > 64
    trees, inputs = variables["trees"], splits.test["inputs"]
    columns = np.asarray(model.apply(variables, inputs, method="columns"))
    expected = walk(trees, columns[:12], model.num_trees) + np.float64(trees["base"])
    outputs = model.apply(variables, inputs)
    np.testing.assert_allclose(outputs[:12], expected, atol=2e-6)
    np.testing.assert_allclose(boosting._evaluate(model, variables, inputs), outputs, atol=2e-6)
    is_missing = splits.test["inputs"][:, splits.encoder.groups()["size"].stop - 1] == 1
    assert is_missing.any() and np.all(np.isneginf(columns[:, 0]) == is_missing)


def test_columns_are_those_of_the_encoder(tables):
    """A number without its bins, levels, an ordinal month, and statistics for new examples by all
    training examples."""
    splits = tables["price"]
    model, variables = fit("scikit-learn", splits, Regression(), 2)
    inputs, groups = splits.test["inputs"], splits.encoder.groups()
    columns = np.asarray(model.apply(variables, inputs, method="columns"))
    np.testing.assert_array_equal(columns[:, 1], inputs[:, groups["age"].start])
    months = [int(cell.as_py().month) for cell in splits.examples["test"].columns["day"]]
    combinations = columns[:, model.num_inputs :]
    np.testing.assert_array_equal(combinations[:, 0], months)
    town = splits.train["inputs"][:, groups["town"]].argmax(1)
    y, prior = splits.train["targets"], splits.train["targets"].mean(dtype=float)
    expected = [
        (y[town == level].sum(dtype=float) + 10 * prior) / (np.sum(town == level) + 10) - prior
        for level in inputs[:, groups["town"]].argmax(1)
    ]
    np.testing.assert_allclose(combinations[:, 2], expected, atol=1e-6)


def table_of(tmp_path, columns, **options):
    path = tmp_path / "table.csv"
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]))
    source = Table(data=path, **options)
    return make_splits(source, source.load(lambda _: None), 0.25, 0)


def test_target_statistics_do_not_leak(tmp_path):
    """A random category of 150 levels says nothing about a random target."""
    rng, n = np.random.default_rng(0), 800
    level = [f"l{x}" for x in rng.integers(0, 150, n)]
    splits = table_of(tmp_path, {"level": level, "y": rng.integers(0, 2, n)})
    inputs, y = splits.train["inputs"], splits.train["targets"]
    columns = boosting._Columns.fit(splits.encoder, inputs.shape[1])
    outside, _, projection = columns.encode(inputs, inputs, np.float64(y[:, None]), 0)
    assert np.corrcoef(inputs @ projection[:, 0], y)[0, 1] > 0.3, "with the example's own target"
    assert abs(np.corrcoef(outside[:, 0], y)[0, 1]) < 0.1
    model, variables = fit("scikit-learn", splits, Classification(), 40)
    logits = jnp.concatenate(
        [model.apply(variables, part["inputs"]) for part in (splits.val, splits.test)]
    )
    truth = np.concatenate([splits.val["targets"], splits.test["targets"]])
    loss = -jax.nn.log_softmax(logits)[np.arange(len(truth)), truth].mean()
    assert abs(float(loss) - np.log(2)) < 0.02


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_seed_gives_the_same_bits(library, tables):
    if library not in boosting.available():
        pytest.skip(f"{library} is not installed")
    splits = tables["dear"]
    (model, first), (again, second), (_, other) = (
        fit(library, splits, Classification(), 5, seed) for seed in (3, 3, 4)
    )
    assert model == again
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(other)))


def state_of(model, variables, task, inputs):
    recipe = train.Recipe(model, task, NoOptimizer())
    key = jax.random.key(0)
    variables = jax.tree.map(jnp.asarray, variables)
    return recipe, train.init(recipe, train.Hparams(), inputs[:1], key, variables)


def test_a_checkpoint_has_the_trees(tables, tmp_path):
    splits, task = tables["class"], Classification()
    inputs = splits.test["inputs"]
    recipe, state = state_of(*fit("scikit-learn", splits, task, 3), task, inputs)
    checkpoints = Checkpoints(tmp_path, task)
    checkpoints.save(Checkpoint(state, [], None))
    abstract = train.abstract(recipe, train.Hparams(), inputs[:1])
    restored = checkpoints.restore(abstract, 0).state
    jax.tree.map(np.testing.assert_array_equal, state.collections, restored.collections)
    outputs = train.forward(recipe, restored, train.Hparams(), inputs)
    np.testing.assert_array_equal(outputs, train.forward(recipe, state, train.Hparams(), inputs))
    assert outputs.shape == (len(inputs), 4) and outputs.dtype == np.float32


def test_the_exported_model_predicts_the_same(tables):
    splits, task = tables["price"], Regression()
    raw = splits.encoder.raw(splits.examples["test"])
    recipe, state = state_of(*fit("scikit-learn", splits, task, 66), task, splits.test["inputs"])
    predictor = types.SimpleNamespace(
        config=types.SimpleNamespace(recipe=recipe, hparams=train.Hparams()), calibration={},
        encoder=splits.encoder, state=lambda: state,
    )  # fmt: skip
    content, load = export._onnx(*export.export_stages(predictor))
    outputs = train.forward(recipe, state, train.Hparams(), splits.test["inputs"])
    expected, session = task.predictions(outputs, {}, splits.encoder.target, {}), load(content)
    for name, values in expected.items():
        for size in (1, 7, len(raw)):
            np.testing.assert_allclose(session(raw[:size])[name], values[:size], 1e-5, 1e-5)


def test_classes_without_training_examples(tables):
    """Two or three of four classes, and the single output of a network for two classes."""
    splits, one = tables["class"], train.losses.BinaryCrossEntropy()
    targets, val_targets = splits.train["targets"], splits.val["targets"]
    for classes in ([1, 3], [0, 1, 3]):
        rows = np.isin(targets, classes)
        model, variables = boosting.fit_trees(
            "scikit-learn", splits.encoder, Classification(), splits.train["inputs"][rows],
            targets[rows], splits.val["inputs"], val_targets, seed=0, max_trees=9, threads=1,
        )  # fmt: skip
        p = softmax(boosting._evaluate(model, variables, splits.val["inputs"]), 1)
        assert p[:, classes].sum(1).min() > 0.999999
        rows = np.isin(val_targets, classes)
        assert np.mean(p.argmax(1)[rows] == val_targets[rows]) > 0.5
    both = fit("scikit-learn", tables["dear"], Classification(), 5)
    single = fit("scikit-learn", tables["dear"], Classification(loss=one), 5)
    inputs = tables["dear"].test["inputs"]
    logits, logit = (boosting._evaluate(*fits, inputs) for fits in (both, single))
    assert logit.shape[1:] == (1,)
    np.testing.assert_array_equal(logits[:, :1], np.zeros_like(logit))
    np.testing.assert_array_equal(logits[:, 1:], logit)


def test_inputs_that_are_no_table():
    """All of them are columns; bytes as a step sees them."""
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), np.uint8)
    labels = np.int32(images[:, 1, 2, 0] > 120)
    source = Arrays({"inputs": images, "targets": labels}, {"inputs": images, "targets": labels})
    splits = make_splits(source, source.load(lambda _: None), 0.3, 0)
    model, variables = fit("scikit-learn", splits, Classification(), 20)
    logits = model.apply(variables, train.floats(images))
    assert model.num_inputs == 16 and np.mean(logits.argmax(1) == labels) > 0.9


def test_refusals(tables, monkeypatch):
    splits = tables["class"]
    with pytest.raises(InputError, match="--task Regression: boosted trees predict one of"):
        fit("scikit-learn", splits, Regression())
    with pytest.raises(InputError, match="--task Classification: boosted trees"):
        fit("scikit-learn", tables["price"], Classification())
    constant = types.SimpleNamespace(
        encoder=splits.encoder, val=splits.val,
        train={"inputs": splits.train["inputs"], "targets": splits.train["targets"] * 0},
    )  # fmt: skip
    with pytest.raises(InputError, match="have one value"):
        fit("scikit-learn", constant, Classification())
    monkeypatch.setattr(boosting, "MODULES", {"CatBoost": "no_such_module"})
    assert boosting.available() == ()
    with pytest.raises(InputError, match="CatBoost is not installed: pip install catboost"):
        fit("CatBoost", splits, Classification())


def test_a_limit_of_seconds_is_a_number_of_trees(tables, monkeypatch):
    """The folds have as many trees as fit by the clock; as a limit, that number fits the same."""
    splits, clock = tables["class"], [0.0]
    arrays = splits.train["inputs"], splits.train["targets"]
    fold_of = np.arange(len(arrays[0])) % 2
    evaluate = boosting.fit_trees

    def take_time(*args, **options):
        clock[0] += 2 + 0.5 * options["max_trees"]
        return evaluate(*args, **options)

    monkeypatch.setattr(boosting, "fit_trees", take_time)
    monkeypatch.setattr(boosting.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(boosting.os, "cpu_count", lambda: 1)

    def fit_folds(**limits):
        return boosting.fit_folds(
            "scikit-learn", splits.encoder, Classification(), *arrays, fold_of, seed=0, **limits
        )

    limited = fit_folds(max_trees=60, seconds=28.5 + 2 * (2 + 0.5 * 45))
    assert limited.max_trees == 45
    again = fit_folds(max_trees=45)
    np.testing.assert_array_equal(limited.outputs, again.outputs)
    with pytest.raises(TimeoutError):
        fit_folds(max_trees=60, seconds=28.5 + 2 * (2 + 0.5 * 39))


def test_many_classes_have_fewer_and_larger_rounds():
    (few, rounds), (many, fewer) = (tree_libraries.parameters("LightGBM", k, 200) for k in (3, 32))
    assert rounds == 200 and few["learning_rate"] == 0.05
    assert fewer == 50 and many["learning_rate"] == 0.2
