"""An ensemble of a sweep's models: chosen on validation data, saved as a run of its own.

Greedy selection with replacement (Caruana, Niculescu-Mizil, Crew and Ksikes 2004): from the best
few on, again and again the model is added whose addition makes the loss lowest. Then a temperature
makes its probabilities as sure as they should be (Guo, Pleiss, Sun and Weinberger 2017).
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import run, train
from dlflax.report.trials import digits, short_text
from dlflax.train import calibration
from dlflax.train.ensemble import Ensemble, NoOptimizer
from dlflax.tune.bind import Bound
from dlflax.tune.trained import save_and_test

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


def build(sweep, bound: Bound, experiment, config: run.Config, members, trials, log):
    """Chooses an ensemble of the sweep's models, saves it as the run folder `ensemble`, and tests
    it once. Returns (what results.json says of it, the results of the run); None, which is logged,
    where no two models are together better than one. config: of the sweep's best trial."""
    if len(members) < 2:
        log("no ensemble: the models of fewer than two trials are here")
        return None
    task, hparams = config.recipe.task, train.as_float32(config.hparams.evaluation())
    outputs = jnp.stack([member.outputs for member in members])
    part = {name: leaf[: outputs.shape[1]] for name, leaf in bound.val.items()}
    batch = train.host_batch(task, part)
    chosen = choose(task, hparams, outputs, batch, sweep.ensemble)
    pairs = [(member, w) for member, w in zip(members, chosen.weights, strict=True) if w]
    if len(pairs) < 2:
        log("no ensemble: none is better than the best model alone")
        return None
    pairs.sort(key=lambda pair: -pair[1])
    log(
        f"testing an ensemble of {len(pairs)} models: validation loss {digits(chosen.loss)}, the "
        f"best alone {digits(chosen.alone)}; temperature {short_text(chosen.temperature)}"
    )
    params = {trial.number: trial.params for trial in trials}

    def of_trial(member):
        return bound.space.apply(params[member.trial], bound.recipe, sweep.hparams)

    shares = jnp.float32([w for _, w in pairs])
    picked = jnp.stack([member.outputs for member, _ in pairs])
    raw = task.mean(picked, shares)
    logits = raw / chosen.temperature
    config = _as_run(config, pairs, of_trial, chosen.temperature)
    scores = train.scores(task, config.hparams, part, logits)
    row = {"epoch": 1, "step": 1, **{f"val_{name}": value for name, value in scores.items()}}
    trees = [member.variables for member, _ in pairs]
    params = {f"members_{i}": tree["params"] for i, tree in enumerate(trees)}
    collections = {
        name: {f"members_{i}": tree[name] for i, tree in enumerate(trees) if name in tree}
        for name in {name for tree in trees for name in tree} - {"params"}
    }
    variables = {"params": params, **collections}
    folder = sweep.run_dir / "ensemble"
    tested = save_and_test(experiment, config, folder, variables, [row], bound.dataset, log)
    return {
        "models": [{"trial": m.trial, "seed": m.seed, "weight": w} for m, w in pairs],
        "temperature": chosen.temperature,
        "validation_loss": chosen.loss,
        "validation_loss_of_the_best_alone": chosen.alone,
        # by which it compares with models that have no temperature
        "uncalibrated": train.scores(task, config.hparams, part, raw),
        "val": tested.get("val"),
        "test": tested.get("test"),
        "run_dir": str(folder),
    }, tested


def _as_run(config, chosen, of_trial, temperature):
    """The Config of the run that the ensemble is. chosen: members and their shares; of_trial: a
    member -> its (Recipe, Hparams)."""
    frozen = config.transfer is not None and config.transfer.is_frozen
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
