"""Profile of a recipe: implementations of its convolutions, and a trace of its steps."""

import contextlib
from pathlib import Path

import jax
import numpy as np

from dlflax import data, train
from dlflax.ops.convolution import list_algorithms
from dlflax.report import tables
from dlflax.train.recipe import init_on_devices


def profile(recipe, hparams, train_set, folder: Path) -> None:
    """Prints the convolutions' implementations and writes a trace of 20 compiled steps, for
    TensorBoard or https://ui.perfetto.dev."""
    hparams = train.as_float32(hparams)
    n = min(data.num_examples(train_set), 20 * recipe.batch_size)
    examples = {name: array[:n] for name, array in train_set.items()}
    batches = data.epoch_batches(n, recipe.batch_size, 0, 0)
    inputs = examples["inputs"]
    abstract = train.abstract(recipe, hparams, inputs[:1])

    def forward(state, inputs):
        return train.forward(recipe, state, hparams, inputs)

    if rows := list_algorithms(forward, abstract, inputs):
        tables.print_table(None, ("convolution", "computed as"), rows)
    for context in (
        contextlib.nullcontext(),
        jax.profiler.trace(folder, create_perfetto_trace=True),
    ):
        state = init_on_devices(recipe, hparams, inputs[:1], 0, None)
        sums, stop = train.zero_sums(recipe, hparams, examples), np.int32(len(batches))
        with context:
            jax.block_until_ready(train.train_steps(
                recipe, state, hparams, examples, batches, sums, np.int32(0), stop
            ))  # fmt: skip
