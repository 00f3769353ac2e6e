"""Evaluation of a trained model: its outputs, loss and metrics on any data."""

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
from dlflax.train.batch import gather, with_targets
from dlflax.train.hparams import Hparams, as_traced
from dlflax.train.metrics import additive_scores, batch_sums, collecting_scores
from dlflax.train.recipe import Recipe, forward
from dlflax.train.state import State
from dlflax.train.tasks import Task


def evaluate(
    recipe: Recipe, state: State, hparams: Hparams, data: Mapping[str, Any], batch_size: int = 256
) -> tuple[dict[str, float], np.ndarray]:
    """Evaluates data (as in `train_steps`) without training, every example once.

    Returns (the loss and every metric of the task that is defined for them, outputs float32
    (N, ...)). The averaged weights are used where there are any. Arrays on disk (`DiskArray`) are
    read in pieces.
    """
    sums, outputs = jax.device_get(evaluate_sums(recipe, state, hparams, data, batch_size))
    return _all_scores(recipe.task, data, sums, outputs), outputs


def _all_scores(task, data, sums, outputs):
    """Returns every metric that is defined for the data and the outputs."""
    collected = collecting_scores(task.metrics, outputs, host_batch(task, data))
    values = {**additive_scores(task.metrics, sums), **collected}
    names = dict.fromkeys(["loss", *(metric.name for metric in task.metrics)])
    return {n: values[n] for n in names if n not in collected or not math.isnan(values[n])}


def host_batch(task: Task, data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all examples as one batch of NumPy arrays without padding, for `Collecting` metrics:
    with the task's targets, and inputs as they are stored. data: arrays (N, ...)."""
    batch = {n: leaf for n, leaf in data.items() if n != "weight"}
    count, size = len(batch["inputs"]), 4096
    if type(task).targets is not Task.targets:  # the task may compute them from the inputs
        parts = [
            np.asarray(with_targets(task, {n: leaf[i : i + size] for n, leaf in batch.items()})
                       ["targets"])
            for i in range(0, count, size)
        ]  # fmt: skip
        batch["targets"] = np.concatenate(parts)
    on_disk = {n: leaf for n, leaf in batch.items() if isinstance(leaf, DiskArray)}
    arrays = {n: np.asarray(leaf) for n, leaf in batch.items() if n not in on_disk}
    return {**arrays, **on_disk, "mask": np.ones(count, np.float32)}


def evaluate_sums(
    recipe: Recipe, state: State, hparams: Hparams, data: Mapping[str, Any], batch_size: int = 256
) -> tuple[dict[str, Any], Any]:
    """Returns (the sums of `metrics.batch_sums`, outputs (N, ...)) of data: `evaluate` before any
    metric is computed from them. Traced or not."""
    data = {name: leaf for name, leaf in data.items() if name != "weight"}
    hparams = as_traced(hparams.evaluation())
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
    """Returns (sums, outputs float32 (batches, size, ...)) of the examples in batches, int32
    (batches, size), -1 for padding. hparams: those to evaluate with. Traced."""

    def one(index):
        batch = parallel.shard_batch(gather(data, parallel.shard_batch(index)))
        batch = with_targets(recipe.task, batch)
        outputs = forward(recipe, state, hparams, batch["inputs"])
        return parallel.replicate((_sums(recipe.task, hparams, outputs, batch), outputs))

    sums, outputs = lax.map(one, batches)
    return jax.tree.map(lambda leaf: leaf.sum(0), sums), outputs


def _sums(task, hparams, outputs, batch):
    return batch_sums(task.metrics, outputs, task.loss(outputs, batch, hparams), batch)


def scores(task: Task, hparams: Hparams, data: Mapping[str, Any], outputs: Any) -> dict[str, float]:
    """Returns `evaluate`'s scores of any model's outputs, float32 (N, ...), on data in memory."""
    arrays = {name: jnp.asarray(leaf) for name, leaf in data.items() if name != "weight"}
    arrays = {**arrays, "outputs": jnp.asarray(outputs)}
    sums = _sums_of_outputs(task, as_traced(hparams.evaluation()), arrays)
    return _all_scores(task, data, jax.device_get(sums), np.asarray(outputs))


@functools.partial(jax.jit, static_argnums=0)
def _sums_of_outputs(task, hparams, data):
    def one(index):
        batch = gather(data, index)
        outputs = batch.pop("outputs")
        return _sums(task, hparams, outputs, with_targets(task, batch))

    sums = lax.map(one, all_batches(len(data["outputs"])))
    return jax.tree.map(lambda leaf: leaf.sum(0), sums)


@functools.partial(jax.jit, static_argnums=(0, 4))
def predict(
    recipe: Recipe, state: State, hparams: Hparams, inputs: Any, batch_size: int = 256
) -> jax.Array:
    """The model's outputs, float32 (N, ...), on inputs (N, ...): no targets are needed."""
    n = inputs.shape[0]

    def one(index):
        batch = parallel.shard_batch(gather({"inputs": inputs}, parallel.shard_batch(index)))
        return parallel.replicate(forward(recipe, state, hparams, batch["inputs"]))

    outputs = lax.map(one, all_batches(n, batch_size))
    return outputs.reshape(-1, *outputs.shape[2:])[:n]


def all_batches(n: int, batch_size: int = 256) -> np.ndarray:
    """int32 (batches, size): every example once, in order, then -1, padding."""
    batch_size = -(-min(batch_size, n) // parallel.mesh_size()) * parallel.mesh_size()
    batches = math.ceil(n / batch_size)
    index = np.arange(batches * batch_size, dtype=np.int32)
    return np.where(index < n, index, -1).reshape(batches, batch_size)
