"""What a recipe costs: operations of its forward pass, and a trace of its steps."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np

from dlflax import data, train
from dlflax.models.convolution import formulations
from dlflax.models.flops import flops
from dlflax.models.protocols import Convolving
from dlflax.report import tables
from dlflax.train.recipe import keywords


def forward_flops(recipe: train.Recipe, state: train.State, hparams, inputs) -> int:
    """Operations of the model's forward pass on one example, inputs (1, ...); state may be
    abstract. Convolutions count as such, whatever formulation they are computed by."""
    model = recipe.model
    if isinstance(model, Convolving):
        recipe = dataclasses.replace(recipe, model=model.clone(formulation="lax"))
    return flops(*_forward(recipe, state, hparams), inputs)


def _forward(recipe, state, hparams):
    """(the model's forward pass, a function of variables and inputs; the variables)."""
    model, options = recipe.model, keywords(recipe.model, hparams, train=False)
    variables = {"params": state.params, **state.collections}
    return lambda v, x: model.apply(v, train.floats(x), **options), variables


def profile(recipe, hparams, train_set, folder: Path) -> None:
    """Prints how the convolutions are computed, and writes a trace of 20 steps of a State of its
    own, after they are compiled: for TensorBoard's profile plugin, and perfetto_trace.json.gz for
    https://ui.perfetto.dev."""
    hparams = train.as_traced(hparams)
    n = min(data.examples(train_set), 20 * recipe.batch_size)
    part = {name: array[:n] for name, array in train_set.items()}
    batches = data.epoch_batches(n, recipe.batch_size, 0, 0)
    abstract = train.abstract(recipe, hparams, part["inputs"][:1])
    if rows := formulations(*_forward(recipe, abstract, hparams), part["inputs"]):
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
