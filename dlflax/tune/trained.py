"""Run folders of models that a sweep has trained: as if a run had trained them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlflax import parallel, run, train
from dlflax.run.folder import begin, load_config
from dlflax.run.prepare import prepare
from dlflax.run.resume import differences
from dlflax.train import checkpoint_files
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.recipe import init_on_devices
from dlflax.tune.settings import set_aside


def save_and_test(
    experiment, config: run.Config, folder: Path, variables: Mapping[str, Any],
    history: train.History, dataset, log,
) -> dict[str, Any]:  # fmt: skip
    """Saves variables as a finished run in the folder, and tests it once. Returns its results.
    variables: {"params": ..., ...} to evaluate with; history: one row an epoch, the last of which
    they are of."""
    config = dataclasses.replace(config, epochs=len(history), patience=0, reduce_on_plateau=0)
    config = in_folder(config, folder)
    folder.mkdir(exist_ok=True)
    if not checkpoint_files.steps(folder / "checkpoints"):
        _save(experiment, config, variables, history, dataset, log)
    config = dataclasses.replace(config, resume=True)
    return run.run(experiment, config, log, dataset, brief=True)


def _save(experiment, config, variables, history, dataset, log) -> None:
    """Writes the run folder. The optimizer is at its beginning."""
    _, job = prepare(config, dataset, lambda _: None)
    begin(experiment, config, job.dataset, job.examples, config.run_dir, lambda _: None)
    unknown = {"learning_rate": 0.0, "seconds": 0.0, "examples_per_second": 0.0}
    history = [{**unknown, **row} for row in history]
    checkpoints = Checkpoints(config.run_dir / "checkpoints", config.recipe.task, log)
    start, step = job.start, np.int32(history[-1]["step"])
    inputs, numbers = start.splits.train["inputs"][:1], train.as_float32(config.hparams)
    # placed as that of any run, whatever devices there are
    with parallel.use_devices(parallel.num_devices(config.devices, config.recipe.batch_size)):
        fresh = init_on_devices(
            start.recipe, numbers, inputs, np.uint32(config.seed), start.pretrained
        )
        state = _with_variables(fresh, variables, step)
        checkpoints.save(train.Checkpoint(state, history))


@jax.jit
def _with_variables(state, variables, step):
    collections = dict(variables)
    params = collections.pop("params")
    ema = None if state.ema is None else params
    averages = None if state.ema_collections is None else collections
    state = train.State(step, params, collections, state.opt_state, ema, state.key, averages)
    return parallel.constrain_state(state)


def in_folder(config: run.Config, folder: Path) -> run.Config:
    """Returns the Config for its run folder: continued where it is the same run, else what is there
    is moved aside."""
    here = dataclasses.replace(config, run_dir=folder, resume=(folder / "config.json").exists())
    if here.resume:
        old = load_config(folder)
        # the sweep has compared the data
        if differences(old, {**old, "config": run.to_json(here)}, here):
            set_aside(folder)
            here = dataclasses.replace(here, resume=False)
    return here
