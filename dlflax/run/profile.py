"""Profile of a recipe: how its convolutions are computed, and a trace of its steps."""

import contextlib
from pathlib import Path

import jax
import numpy as np

from dlflax import data, train
from dlflax.models.convolution import formulations
from dlflax.report import tables


def profile(recipe, hparams, train_set, folder: Path) -> None:
    """Prints how the convolutions are computed, and writes a trace of 20 steps of a State of its
    own, after they are compiled: for TensorBoard's profile plugin, and perfetto_trace.json.gz for
    https://ui.perfetto.dev."""
    hparams = train.as_traced(hparams)
    n = min(data.num_examples(train_set), 20 * recipe.batch_size)
    part = {name: array[:n] for name, array in train_set.items()}
    batches = data.epoch_batches(n, recipe.batch_size, 0, 0)
    abstract = train.abstract(recipe, hparams, part["inputs"][:1])

    def forward(state, inputs):
        return train.forward(recipe, state, hparams, inputs)

    if rows := formulations(forward, abstract, part["inputs"]):
        tables.print_table(None, ("convolution", "computed as"), rows)
    for context in (
        contextlib.nullcontext(),
        jax.profiler.trace(folder, create_perfetto_trace=True),
    ):
        state = train.init(recipe, hparams, part["inputs"][:1], jax.random.key(0))
        sums, stop = train.zero_sums(recipe, hparams, part), np.int32(len(batches))
        with context:
            done = train.train_steps(recipe, state, hparams, part, batches, sums, np.int32(0), stop)
            jax.block_until_ready(done)
