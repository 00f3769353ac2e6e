"""Evaluation: a model's outputs, loss and metrics on any data."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlflax import parallel
from dlflax.data.dataset import DiskArray
from dlflax.data.stream import fits_on_device, stream_in_order
from dlflax.train.batch import add_targets, gather
from dlflax.train.hparams import Hparams, as_float32
from dlflax.train.metrics import additive_scores, batch_sums, collecting_scores
from dlflax.train.recipe import Recipe, forward
from dlflax.train.state import State
from dlflax.train.tasks import Task


def evaluate(
    recipe: Recipe, state: State, hparams: Hparams, data: Mapping[str, Any], batch_size: int = 256
) -> tuple[dict[str, float], np.ndarray]:
    """Returns (loss and metrics of the task, outputs float32 (N, ...)) on data, each example once.
    Undefined metrics are missing. Averaged weights are used if the recipe has `ema`. `DiskArray`s
    are streamed."""
    sums, outputs = jax.device_get(evaluate_sums(recipe, state, hparams, data, batch_size))
    return _all_scores(recipe.task, data, sums, outputs), outputs


def _all_scores(task, data, sums, outputs):
    """Returns the loss and all metrics that are defined, in the task's order."""
    collecting = collecting_scores(task.metrics, outputs, host_batch(task, data))
    values = {**additive_scores(task.metrics, sums), **collecting}
    names = dict.fromkeys(["loss", *(metric.name for metric in task.metrics)])
    return {n: values[n] for n in names if n not in collecting or not math.isnan(values[n])}


def host_batch(task: Task, data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all examples, arrays (N, ...), as one batch for `Collecting` metrics: NumPy arrays
    without padding, with the task's targets, and inputs as stored."""
    batch = {n: leaf for n, leaf in data.items() if n != "weight"}
    count, size = len(batch["inputs"]), 4096
    if type(task).targets is not Task.targets:  # the task may compute them from the inputs
        parts = (
            add_targets(task, {n: leaf[i : i + size] for n, leaf in batch.items()})
            for i in range(0, count, size)
        )
        batch["targets"] = np.concatenate([np.asarray(part["targets"]) for part in parts])
    batch = {n: x if isinstance(x, DiskArray) else np.asarray(x) for n, x in batch.items()}
    return {**batch, "mask": np.ones(count, np.float32)}


def evaluate_sums(
    recipe: Recipe, state: State, hparams: Hparams, data: Mapping[str, Any], batch_size: int = 256
) -> tuple[dict[str, Any], Any]:
    """Returns (sums of `metrics.batch_sums`, outputs (N, ...)) of data: the first part of
    `evaluate`. Traced or not."""
    data = {name: leaf for name, leaf in data.items() if name != "weight"}
    hparams = as_float32(hparams.evaluation())
    if isinstance(data["inputs"], jax.Array):
        return _evaluate(recipe, state, hparams, data, batch_size)
    if fits_on_device(data):
        return _evaluate(recipe, state, hparams, parallel.put_on_all(data), batch_size)
    parts = [
        jax.device_get(_evaluate(recipe, state, hparams, parallel.put_on_all(part), batch_size))
        for part in stream_in_order(data)
    ]
    sums = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *(sums for sums, _ in parts))
    return sums, np.concatenate([outputs for _, outputs in parts])


@functools.partial(jax.jit, static_argnums=(0, 4))
def _evaluate(recipe, state, hparams, data, batch_size):
    n = data["inputs"].shape[0]
    sums, outputs = evaluate_batches(recipe, state, hparams, data, all_batches(n, batch_size))
    return sums, outputs.reshape(-1, *outputs.shape[2:])[:n]


def evaluate_batches(
    recipe: Recipe, state: State, hparams: Hparams, data: Mapping[str, Any], batches: Any
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns (sums, outputs float32 (batches, size, ...)) of batches. Traced. batches: int32
    (batches, size), indices of examples, -1 for padding; hparams: those of `Hparams.evaluation`."""

    def evaluate_batch(index):
        batch = parallel.shard_batch(gather(data, parallel.shard_batch(index)))
        batch = add_targets(recipe.task, batch)
        outputs = forward(recipe, state, hparams, batch["inputs"])
        return parallel.replicate((_sums(recipe.task, hparams, outputs, batch), outputs))

    sums, outputs = lax.map(evaluate_batch, batches)
    return jax.tree.map(lambda leaf: leaf.sum(0), sums), outputs


def _sums(task, hparams, outputs, batch):
    return batch_sums(task.metrics, outputs, task.loss(outputs, batch, hparams), batch)


def scores(task: Task, hparams: Hparams, data: Mapping[str, Any], outputs: Any) -> dict[str, float]:
    """Returns the scores of any model's outputs, float32 (N, ...), on data in memory."""
    arrays = {name: jnp.asarray(leaf) for name, leaf in data.items() if name != "weight"}
    arrays = {**arrays, "outputs": jnp.asarray(outputs)}
    sums = _sums_of_outputs(task, as_float32(hparams.evaluation()), arrays)
    return _all_scores(task, data, jax.device_get(sums), np.asarray(outputs))


@functools.partial(jax.jit, static_argnums=0)
def _sums_of_outputs(task, hparams, data):
    def sum_batch(index):
        batch = gather(data, index)
        outputs = batch.pop("outputs")
        return _sums(task, hparams, outputs, add_targets(task, batch))

    sums = lax.map(sum_batch, all_batches(len(data["outputs"])))
    return jax.tree.map(lambda leaf: leaf.sum(0), sums)


@functools.partial(jax.jit, static_argnums=(0, 4))
def predict(
    recipe: Recipe, state: State, hparams: Hparams, inputs: Any, batch_size: int = 256
) -> jax.Array:
    """Returns the model's outputs, float32 (N, ...), on inputs (N, ...)."""
    n = inputs.shape[0]

    def predict_batch(index):
        batch = parallel.shard_batch(gather({"inputs": inputs}, parallel.shard_batch(index)))
        return parallel.replicate(forward(recipe, state, hparams, batch["inputs"]))

    outputs = lax.map(predict_batch, all_batches(n, batch_size))
    return outputs.reshape(-1, *outputs.shape[2:])[:n]


def all_batches(n: int, batch_size: int = 256) -> np.ndarray:
    """Returns indices int32 (batches, size): every example once, in order, then -1 for padding."""
    batch_size = -(-min(batch_size, n) // parallel.mesh_size()) * parallel.mesh_size()
    batches = math.ceil(n / batch_size)
    index = np.arange(batches * batch_size, dtype=np.int32)
    return np.where(index < n, index, -1).reshape(batches, batch_size)
