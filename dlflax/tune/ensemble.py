"""An ensemble of a sweep's models: chosen on validation data, saved as a run of its own.

Greedy selection with replacement (Caruana, Niculescu-Mizil, Crew and Ksikes 2004): from the best
few on, again and again the model is added whose addition makes the loss lowest. Then a temperature
makes its probabilities as sure as they should be (Guo, Pleiss, Sun and Weinberger 2017).
"""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import parallel, run, train
from dlflax.report.trials import digits, short_text
from dlflax.run.folder import begin, load_config
from dlflax.run.prepare import prepare
from dlflax.run.resume import differences
from dlflax.train import calibration, checkpoint_files
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.ensemble import Ensemble, NoOptimizer

FIRST = 5  # of the best alone, as many at most as are best together, to begin with
ROUNDS = 30


class Chosen(NamedTuple):
    """The result of `choose`."""

    weights: list[float]
    """The share of each model, 0 for most."""
    temperature: float
    loss: float
    """The score of the ensemble on the validation data, with its temperature."""
    alone: float
    """The score of the best model alone."""


def choose(task, hparams, outputs, batch, most: int) -> Chosen:
    """Returns the greedy selection of at most `most` different models from their outputs, float32
    (models, n, ...), on a batch of n examples."""
    nothing = jnp.zeros_like(outputs[0])
    alone = np.asarray(_losses(task, hparams, nothing, jnp.float32(0), outputs, batch))
    order = np.argsort(np.nan_to_num(alone, nan=np.inf), kind="stable")[: min(FIRST, most)]
    prefixes = [(float(alone[order[0]]), outputs[order[0]])]
    for done, added in enumerate(order[1:], 1):
        joined = _joined(task, prefixes[-1][1], outputs[added], jnp.float32(done))
        prefixes.append((float(task.loss(joined, batch, hparams).mean()), joined))
    size = int(np.argmin([loss for loss, _ in prefixes]))
    counts = np.bincount(order[: size + 1], minlength=len(outputs))
    best, ensemble = (prefixes[size][0], counts.copy(), prefixes[size][1]), prefixes[size][1]
    for done in range(size + 1, ROUNDS):
        new = np.asarray(_losses(task, hparams, ensemble, jnp.float32(done), outputs, batch))
        if np.sum(counts > 0) >= most:
            new = np.where(counts > 0, new, math.inf)
        added = int(np.argmin(new))
        counts[added] += 1
        ensemble = _joined(task, ensemble, outputs[added], jnp.float32(done))
        if new[added] < best[0]:
            best = float(new[added]), counts.copy(), ensemble
    loss, counts, ensemble = best
    temperature = 1.0
    if task.logits:
        temperature, loss = calibration.temperature(task.loss, hparams, ensemble, batch)
    weights = [float(count) for count in counts / counts.sum()]
    return Chosen(weights, temperature, loss, float(np.nanmin(alone)))


def _joined(task, ensemble, added, done):
    """Returns the outputs of an ensemble of so many models with one more; of 0, that one alone."""
    shares = jnp.stack([done, jnp.float32(1)]) / (done + 1)
    return task.mean(jnp.stack([ensemble, added]), shares)


@functools.partial(jax.jit, static_argnums=0)
def _losses(task, hparams, ensemble, done, outputs, batch):
    """The mean loss of the ensemble with each of the models added, float32 (models,)."""

    def one(added):
        return task.loss(_joined(task, ensemble, added, done), batch, hparams).mean()

    return jax.lax.map(one, outputs)


def build(experiment, config: run.Config, objective, trials, folder: Path, dataset, log):
    """Chooses an ensemble of the sweep's models, saves it as the run folder `folder`, and tests it
    once. Returns what results.json says of it; None, which is said, where no two models are
    together better than one. config: of the sweep's best trial."""
    members = parallel.from_main(lambda: list(objective.members.of(trials)))
    if len(members) < 2:
        log("no ensemble: the models of fewer than two trials are here")
        return None
    task, hparams = config.recipe.task, train.as_traced(config.hparams.evaluation())
    outputs = jnp.stack([member.outputs for member in members])
    part = {name: leaf[: outputs.shape[1]] for name, leaf in objective.splits[1].items()}
    batch = train.host_batch(task, part)
    found = choose(task, hparams, outputs, batch, objective.sweep.ensemble)
    chosen = [(member, w) for member, w in zip(members, found.weights, strict=True) if w]
    if len(chosen) < 2:
        log("no ensemble: none is better than the best model alone")
        return None
    chosen.sort(key=lambda pair: -pair[1])
    log(
        f"testing an ensemble of {len(chosen)} models: validation loss {digits(found.loss)}, the "
        f"best alone {digits(found.alone)}; temperature {short_text(found.temperature)}"
    )
    by_number = {trial.number: trial.params for trial in trials}

    def of_trial(member):
        sweep = objective.sweep
        return objective.space.apply(by_number[member.trial], sweep.recipe, sweep.hparams)

    shares = jnp.float32([w for _, w in chosen])
    picked = jnp.stack([member.outputs for member, _ in chosen])
    logits = task.mean(picked, shares) / found.temperature
    config = _as_run(config, chosen, of_trial, found.temperature)
    scores = train.scores(task, config.hparams, part, logits)
    # one host looks, and moves what is in the way, before all begin
    resume = parallel.from_main(lambda: in_folder(config, folder).resume)
    parallel.from_main(lambda: folder.mkdir(exist_ok=True))
    config = dataclasses.replace(config, run_dir=folder, resume=resume)
    if not checkpoint_files.steps(folder / "checkpoints"):
        _save(experiment, config, [member for member, _ in chosen], dataset, scores, log)
    config = dataclasses.replace(config, resume=True)
    tested = run.run(experiment, config, log, dataset, brief=True)
    return {
        "models": [{"trial": m.trial, "seed": m.seed, "weight": w} for m, w in chosen],
        "temperature": found.temperature,
        "validation_loss": found.loss,
        "validation_loss_of_the_best_alone": found.alone,
        "val": tested.get("val"),
        "test": tested.get("test"),
        "run_dir": str(folder),
    }


def _as_run(config, chosen, of_trial, temperature):
    """The Config of the run that the ensemble is. chosen: members and their shares; of_trial: a
    member -> its (Recipe, Hparams)."""
    frozen = config.transfer is not None and config.transfer.frozen
    recipes = [of_trial(member) for member, _ in chosen]
    model = Ensemble(
        # copies: Flax gives one object that stands at two places one set of parameters
        members=tuple(recipe.model.clone() for recipe, _ in recipes),
        hparams=tuple(numbers for _, numbers in recipes),
        weights=tuple(weight for _, weight in chosen),
        task=config.recipe.task,
        temperature=temperature,
        shared=frozen,
    )
    recipe = train.Recipe(
        model, config.recipe.task, NoOptimizer(), batch_size=config.recipe.batch_size
    )
    return dataclasses.replace(
        config, recipe=recipe, epochs=1, patience=0, reduce_on_plateau=0, given=(),
        transfer=config.transfer if frozen else None,
    )  # fmt: skip


def _save(experiment, config, members, dataset, scores, log) -> None:
    """Writes the run folder of an ensemble, as if it had been trained for one epoch."""
    _, job = prepare(config, dataset, lambda _: None)
    begin(experiment, config, job.dataset, job.examples, config.run_dir, lambda _: None)
    trees = [member.variables for member in members]
    params = {f"members_{i}": tree["params"] for i, tree in enumerate(trees)}
    names = {name for tree in trees for name in tree} - {"params"}
    collections = {
        name: {f"members_{i}": tree[name] for i, tree in enumerate(trees) if name in tree}
        for name in names
    }
    row = {"epoch": 1, "step": 1, **{f"val_{name}": value for name, value in scores.items()}}
    row |= {"learning_rate": 0.0, "seconds": 0.0, "examples_per_second": 0.0}
    checkpoints = Checkpoints(config.run_dir / "checkpoints", config.recipe.task, log)
    # placed as that of any run, whatever hosts and devices there are
    with parallel.use(parallel.devices(config.devices, config.recipe.batch_size)):
        state = _state(params, collections, job.abstract.opt_state, np.uint32(config.seed))
        checkpoints.save(train.Saved(state, [row]))


@jax.jit
def _state(params, collections, opt_state, seed):
    state = train.State(jnp.int32(1), params, collections, opt_state, None, jax.random.key(seed))
    return parallel.constrain_state(state)


def set_aside(path: Path) -> None:
    """Renames what an earlier study left there, if anything, so that nobody predicts with it."""
    if path.exists():
        path.rename(path.with_name(f"{path.stem}_{time.time():.0f}{path.suffix}"))


def in_folder(config: run.Config, folder: Path) -> run.Config:
    """The Config for its run folder: continued where it is the same run, else what is there is
    moved aside."""
    here = dataclasses.replace(config, run_dir=folder, resume=(folder / "config.json").exists())
    if here.resume:
        old = load_config(folder)
        # the sweep has compared the data
        if differences(old, {**old, "config": run.to_json(here)}, here):
            set_aside(folder)
            here = dataclasses.replace(here, resume=False)
    return here
