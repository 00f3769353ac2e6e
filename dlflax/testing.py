"""Test suites for a data source, a task and a model of your own: the contracts of the library.

A test class inherits from a suite and defines its fixtures:

    class TestRings(testing.SourceSuite):
        @pytest.fixture
        def source(self):
            return rings.DATA

and pytest, which has to be installed, runs one test for each property of the contract.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax import train
from dlflax.config.experiment import Experiment
from dlflax.config.saved import load_encoder, save_encoder
from dlflax.data import Source, Splits, make_splits
from dlflax.errors import InputError
from dlflax.train.batch import add_targets, gather
from dlflax.train.check import bind_to_data, check_task
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.metrics import Additive, Collecting, additive_scores
from dlflax.train.recipe import check_arrays, init_on_devices
from dlflax.train.tasks import Asked, Task


class SourceSuite:
    """Tests a `data.Source` and its encoder. Fixture `source`: a small data source."""

    def user_input(self, source: Source, splits: Splits, folder: Path) -> Any:
        """Returns the first test example as input of `Encoder.parse`, None to skip the test. It may
        be the path of a file that this method writes into the folder."""
        return None

    def missing_file(self, source: Source) -> str | None:
        """Returns the name of a missing file; None where `Encoder.parse` accepts any string."""
        return "nowhere.csv"

    @pytest.fixture
    def splits(self, source):
        return _splits(source)

    def test_loading_again_gives_the_same_data(self, source):
        assert _load(source).checksum == _load(dataclasses.replace(source)).checksum
        assert len(_load(source).checksum) == 64

    def test_splitting_is_a_function_of_its_arguments(self, source):
        a, b = (_splits(source, seed=3) for _ in range(2))
        assert a.encoder == b.encoder and list(a.train) == list(b.train)
        for name in a.train:
            np.testing.assert_array_equal(a.train[name], b.train[name])

    def test_the_test_split_does_not_depend_on_the_seed(self, source):
        dataset = _load(source)
        a, b = (
            dataset.split.rows(dataset.examples, 0.25, seed, _silent)["test"] for seed in (0, 1)
        )
        np.testing.assert_array_equal(a, b)

    def test_every_example_is_in_one_split_at_most(self, source):
        dataset = _load(source)
        splits = dataset.split.rows(dataset.examples, 0.25, 0, _silent)
        rows = np.concatenate(list(splits.values()))
        assert len(set(rows.tolist())) == len(rows) <= len(dataset.examples)

    def test_a_validation_fraction_of_zero_holds_nothing_out(self, source, splits):
        all_train = _splits(source, 0.0)
        assert all_train.val is None and len(splits.val["inputs"]) > 0
        held_out = len(splits.val["inputs"])
        assert len(all_train.train["inputs"]) >= len(splits.train["inputs"]) + held_out

    def test_arrays_have_the_dtypes_and_shapes_of_training(self, splits):
        for split in (splits.train, splits.val, splits.test):
            assert "inputs" in split and len({len(array) for array in split.values()}) == 1
            assert split["inputs"].dtype in (np.uint8, np.float32, np.int32)
            assert split["inputs"].dtype == splits.train["inputs"].dtype
            assert split["inputs"].shape[1:] == splits.train["inputs"].shape[1:]
            if "targets" in split:
                assert split["targets"].dtype in (np.int32, np.float32)

    def test_the_encoder_is_fitted_on_the_training_examples_alone(self, source, splits):
        assert source.encoder(splits.examples["train"], _silent) == splits.encoder

    def test_the_encoder_is_saved_and_read(self, splits, tmp_path):
        save_encoder(tmp_path, splits.encoder)
        experiment = Experiment("test", sys.modules[type(splits.encoder).__module__])
        assert load_encoder(tmp_path, experiment) == splits.encoder

    def test_encoding_is_the_same_for_one_example_or_many(self, splits):
        encoder, examples = splits.encoder, splits.examples["test"]
        for row in (0, len(examples) - 1):
            alone = encoder.encode(examples.take(np.array([row])))
            for name, array in alone.items():
                np.testing.assert_array_equal(array[0], splits.test[name][row])

    def test_an_exported_model_computes_the_same_inputs(self, splits):
        encoder, spec = splits.encoder, splits.encoder.spec()
        raw = np.asarray(encoder.raw(splits.examples["test"].take(slice(4)))[:]).astype(spec.dtype)
        assert raw.shape[1:] == spec.shape
        with jax.enable_x64(spec.dtype == "float64"):
            traced = jax.jit(lambda raw: encoder.batch(raw, jnp))(raw)
            traced = {name: np.asarray(array) for name, array in traced.items()}
        for name, array in encoder.batch(raw).items():
            np.testing.assert_allclose(traced[name], array, rtol=1e-5, atol=1e-5)

    def test_user_input_is_encoded_to_the_same_inputs(self, source, splits, tmp_path):
        user_input = self.user_input(source, splits, tmp_path)
        if user_input is None:
            pytest.skip("the source has no other form of an example")
        examples = splits.encoder.parse(user_input)
        assert len(examples) == 1
        inputs = splits.encoder.encode(examples)["inputs"]
        np.testing.assert_array_equal(inputs[0], splits.test["inputs"][0])

    def test_a_missing_file_is_one_sentence(self, source, splits):
        if (name := self.missing_file(source)) is None:
            pytest.skip("the source reads no files")
        with pytest.raises(InputError, match=name) as error:
            splits.encoder.parse(name)
        assert "\n" not in str(error.value)


class TaskSuite:
    """Tests a `Task` and its metrics. Fixture `job`: (task, model, data source) that fit each
    other; `hparams`: the hyperparameters of the loss."""

    hparams: train.Hparams = train.Hparams()
    loss_is_per_example: bool = True
    """False for a loss that compares the examples of a batch with each other."""

    @pytest.fixture
    def evaluation(self, job):
        """Returns (recipe, splits, State, sums, outputs) of a fresh model on validation data."""
        return _memoize(self._evaluate, job)

    def _evaluate(self, task, model, source):
        splits = _splits(source, 0.1)
        recipe = bind_to_data(train.Recipe(model, task, batch_size=16), self.hparams, splits)
        state = init_on_devices(recipe, self.hparams, splits.val["inputs"][:1], 0, None)
        return recipe, splits, state, *train.evaluate_sums(recipe, state, self.hparams, splits.val)

    def test_it_is_hashed_by_value(self, evaluation):
        task = evaluation[0].task
        assert isinstance(task, Task)
        assert task == dataclasses.replace(task) and hash(task) == hash(dataclasses.replace(task))

    def test_arrays_pass_the_check_unless_their_lengths_differ(self, evaluation):
        recipe, splits, *_ = evaluation
        for split in (splits.train, splits.val, splits.test):
            check_arrays(recipe, train.as_float32(self.hparams), split)
        short = {name: array[: -(name != "inputs") or None] for name, array in splits.train.items()}
        short.setdefault("weight", np.ones(1, np.float32))
        with pytest.raises(InputError, match="one per example") as error:
            train.fit(recipe, self.hparams, short, epochs=1)
        assert "\n" not in str(error.value)

    def test_the_loss_has_one_value_per_example(self, evaluation):
        recipe, splits, _, sums, outputs = evaluation
        numbers = train.as_float32(self.hparams.evaluation())
        index = jnp.arange(len(outputs), dtype=jnp.int32)[:256]  # a batch of an evaluation
        batch = add_targets(recipe.task, gather(splits.val, index))
        losses = jax.jit(recipe.task.loss)(outputs[:256], batch, numbers)
        assert losses.shape == index.shape and losses.dtype == jnp.float32
        assert np.isfinite(losses).all()
        if len(outputs) <= 256:
            np.testing.assert_allclose(sums["loss"] / len(outputs), losses.mean(), rtol=1e-4)

    def test_padding_changes_no_loss(self, evaluation):
        recipe, splits, _, _, outputs = evaluation
        numbers = train.as_float32(self.hparams.evaluation())
        padded = np.int32([0, 1, 2, 3, -1, -2, -1])  # four examples, three of padding

        @jax.jit
        def losses(index):
            batch = add_targets(recipe.task, gather(splits.val, index))
            rows = jnp.where(index < 0, -1 - index, index)
            return recipe.task.loss(jnp.asarray(outputs)[rows], batch, numbers)

        np.testing.assert_allclose(losses(padded)[:4], losses(padded[:4]), rtol=1e-4, atol=1e-6)

    def test_zeros_have_the_shapes_of_sums(self, evaluation):
        recipe, splits, _, sums, _ = evaluation
        zeros = train.zero_sums(recipe, self.hparams, splits.val)
        assert set(zeros) == {*sums, "first_bad_step"}
        for name, leaf in sums.items():
            assert (zeros[name].shape, zeros[name].dtype) == (leaf.shape, leaf.dtype)
            assert leaf.dtype == np.float32 and not np.any(zeros[name])

    def test_sums_add_up_and_padding_does_not_count(self, evaluation):
        recipe, splits, state, sums, _ = evaluation
        half = len(splits.val["inputs"]) // 2
        a, b = (
            train.evaluate_sums(
                recipe, state, self.hparams, {k: v[rows] for k, v in splits.val.items()}, 7
            )[0]
            for rows in (slice(half), slice(half, None))
        )  # in batches of 7, the last one padded
        for name, leaf in sums.items():
            if name != "loss" or self.loss_is_per_example:
                np.testing.assert_allclose(a[name] + b[name], leaf, rtol=1e-4)

    def test_every_metric_is_a_finite_number(self, evaluation):
        recipe, splits, state, sums, outputs = evaluation
        check_task(recipe.task)
        scores, again = train.evaluate(recipe, state, self.hparams, splits.val)
        np.testing.assert_array_equal(outputs, again)
        assert list(scores)[0] == "loss" and recipe.task.metric().name in scores
        assert all(isinstance(value, float) and np.isfinite(value) for value in scores.values())
        for metric in recipe.task.metrics:
            assert isinstance(metric, Additive | Collecting) and metric.direction in ("min", "max")
            assert (
                metric == dataclasses.replace(metric) and recipe.task.metric(metric.name) == metric
            )
        assert scores == train.scores(recipe.task, self.hparams, splits.val, outputs)
        empty = additive_scores(
            recipe.task.metrics, train.zero_sums(recipe, self.hparams, splits.val)
        )
        assert all(np.isfinite(value) for value in empty.values())

    def test_answers_are_a_sentence_and_json_for_each_input(self, evaluation):
        recipe, splits, state, *_ = evaluation
        examples = splits.examples["test"].take(slice(2))
        batch, target = splits.encoder.batch(splits.encoder.raw(examples)), splits.target
        columns = {"times": np.full((2, 100), ""), **examples.columns}
        numbers = train.as_float32(self.hparams.evaluation())
        outputs = train.predict(recipe, state, numbers, batch["inputs"])
        predictions = recipe.task.predictions(outputs, batch, target, {})
        predictions = {name: np.asarray(array) for name, array in predictions.items()}
        assert all(len(array) == 2 for array in predictions.values())
        variables = train.variables(recipe, state)
        asked = Asked(
            ["a", "b"], "file", batch, columns, predictions, target, recipe, variables, None
        )  # fmt: skip
        answers = recipe.task.answers(asked)
        assert len(answers) == 2
        for sentence, values in answers:
            assert isinstance(sentence, str) and json.loads(json.dumps(values)) == values


class ModelSuite:
    """Tests a Linen module. Fixture `job`: (model, task, inputs (4, ...)), for targets 0 to 3;
    `hparams`: the hyperparameters of both."""

    hparams: train.Hparams = train.Hparams()

    @pytest.fixture
    def harness(self, job):
        return _memoize(lambda *args: Harness(*args, self.hparams), job)

    def test_init_is_a_function_of_the_seed(self, harness):
        assert_equal(harness.state, harness.init(0))

    def test_a_step_is_pure(self, harness):
        assert_equal(*(harness.step(harness.state, harness.hparams) for _ in range(2)))

    def test_a_gradient_reaches_every_parameter(self, harness):
        before = jax.tree_util.tree_leaves_with_path(harness.state.params)
        for (path, a), b in zip(before, jax.tree.leaves(harness.new.params), strict=True):
            assert np.any(a != b), path
        assert all(
            np.any(a != b) for a, b in pairs(harness.state.collections, harness.new.collections)
        )

    def test_another_dropout_rate_has_an_effect_without_recompilation(self, harness):
        harness.step(harness.state, harness.hparams)
        before = len(harness.traces)
        dropped, _ = harness.step(harness.state, harness.hparams.replace(dropout=np.float32(0.5)))
        assert any(np.any(a != b) for a, b in pairs(harness.new.params, dropped.params))
        assert len(harness.traces) == before

    def test_two_members_compute_the_same_as_each_alone(self, harness):
        @jax.jit
        def stack(*trees):
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

        double, other = jax.tree.map(lambda leaf: 2 * leaf, harness.hparams), harness.init(1)
        states, hparams = stack(harness.state, other), stack(harness.hparams, double)
        vmapped, _ = jax.jit(jax.vmap(harness.one_step))(states, hparams)
        alone = stack(harness.new, harness.step(other, double)[0])
        for a, b in pairs((alone.params, alone.collections), (vmapped.params, vmapped.collections)):
            np.testing.assert_allclose(a, b, atol=2e-5)

    def test_outputs_are_float32_and_finite(self, harness):
        for training in (False, True):
            outputs = harness.apply(harness.state.params, harness.inputs, training)
            assert outputs.dtype == jnp.float32 and np.isfinite(outputs).all()

    def test_it_saves_and_restores(self, harness, tmp_path):
        saved = Checkpoints(tmp_path, harness.recipe.task)
        saved.save(train.Checkpoint(harness.new, [{"epoch": 1, "step": 1, "val_loss": 0.0}]))
        abstract = train.abstract(harness.recipe, self.hparams, harness.inputs[:1])
        assert_equal(harness.new, saved.restore_last(abstract)[0])


class Harness:
    """Test harness of a model: its recipe, a batch, and its init and step, compiled once."""

    def __init__(self, model, task, inputs, hparams):
        self.model, self.inputs, self.traces = model, inputs, []
        self.recipe = train.Recipe(model, task, train.SGD(), batch_size=4)
        self.batch = {"inputs": inputs, "targets": jnp.arange(4), "mask": jnp.ones(4)}
        self.hparams = train.as_float32(hparams.replace(learning_rate=0.1))
        self.init = jax.jit(
            lambda seed: train.init(self.recipe, self.hparams, inputs[:1], jax.random.key(seed))
        )
        self.step = jax.jit(self.one_step)
        self.state = self.init(0)

    def one_step(self, state, hparams):
        self.traces.append(0)
        return train.step(self.recipe, state, hparams, self.batch)

    @functools.cached_property
    def new(self):
        """Returns the State after one step."""
        return self.step(self.state, self.hparams)[0]

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def apply(self, params, inputs, training=False):
        variables = {"params": params, **self.state.collections}
        keywords = {"train": training, "rngs": {"dropout": jax.random.key(1)}}
        return self.model.apply(variables, inputs, **keywords, mutable=["batch_stats"])[0]


def pairs(a: Any, b: Any):
    """Returns an iterator over pairs of leaves of two trees of the same structure."""
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


def assert_equal(a: Any, b: Any) -> None:
    """Raises AssertionError if two trees differ in a bit, or in their structure."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in pairs(a, b):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


_CACHE: dict[tuple[int, ...], tuple[Any, Any]] = {}


def _memoize(function, job):
    """Returns function(*job), cached by the identity of the job's objects."""
    key = tuple(map(id, job))
    if key not in _CACHE:
        _CACHE[key] = job, function(*job)  # a reference to the job, so that no other has its ids
    return _CACHE[key][1]


def _silent(sentence: str) -> None:
    """Drops a log message."""


def _load(source):
    return source.load(_silent)


def _splits(source, validation=0.25, seed=0):
    return make_splits(source, _load(source), validation, seed)
