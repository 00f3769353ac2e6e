"""An ensemble of a sweep's models, chosen on validation data.

Greedy selection with replacement (Caruana, Niculescu-Mizil, Crew and Ksikes 2004): beginning with
the best few, each round adds the model that makes the loss lowest. Then a temperature calibrates
the probabilities (Guo, Pleiss, Sun and Weinberger 2017).
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import run, train
from dlflax.models import calibration
from dlflax.report.sweep.trials import digits, short_text
from dlflax.train.ensemble import Ensemble, NoOptimizer

FIRST = 5  # models at most to begin with: as many of the best as are best together
ROUNDS = 30


class Chosen(NamedTuple):
    """The result of `choose`."""

    weights: list[float]  # the share of each model, 0 for most
    temperature: float
    loss: float  # of the ensemble on the validation data, with its temperature
    alone: float  # of the best model alone


def choose(task, hparams, outputs, batch, most: int) -> Chosen:
    """Returns the greedy selection of at most `most` different models. outputs: of all models,
    float32 (models, n, ...), on a batch of n examples."""
    nothing = jnp.zeros_like(outputs[0])
    alone = np.asarray(_losses(task, hparams, nothing, jnp.float32(0), outputs, batch))
    order = np.argsort(np.nan_to_num(alone, nan=np.inf), kind="stable")[: min(FIRST, most)]
    prefixes = [(float(alone[order[0]]), outputs[order[0]])]
    for done, added in enumerate(order[1:], 1):
        mean = _add(task, prefixes[-1][1], outputs[added], jnp.float32(done))
        prefixes.append((float(task.loss(mean, batch, hparams).mean()), mean))
    size = int(np.argmin([loss for loss, _ in prefixes]))
    counts = np.bincount(order[: size + 1], minlength=len(outputs))
    best, ensemble = (prefixes[size][0], counts.copy(), prefixes[size][1]), prefixes[size][1]
    for done in range(size + 1, ROUNDS):
        new = np.asarray(_losses(task, hparams, ensemble, jnp.float32(done), outputs, batch))
        if np.sum(counts > 0) >= most:
            new = np.where(counts > 0, new, math.inf)
        added = int(np.argmin(new))
        counts[added] += 1
        ensemble = _add(task, ensemble, outputs[added], jnp.float32(done))
        if new[added] < best[0]:
            best = float(new[added]), counts.copy(), ensemble
    loss, counts, ensemble = best
    temperature = 1.0
    if task.logits:
        temperature, loss = calibration.temperature(task.loss, hparams, ensemble, batch)
    weights = [float(count) for count in counts / counts.sum()]
    return Chosen(weights, temperature, loss, float(np.nanmin(alone)))


def _add(task, ensemble, added, done):
    """Returns the outputs of an ensemble of `done` models with one more."""
    shares = jnp.stack([done, jnp.float32(1)]) / (done + 1)
    return task.mean(jnp.stack([ensemble, added]), shares)


@functools.partial(jax.jit, static_argnums=0)
def _losses(task, hparams, ensemble, done, outputs, batch):
    """Returns the mean loss of the ensemble with each of the models added, float32 (models,)."""

    def one(added):
        return task.loss(_add(task, ensemble, added, done), batch, hparams).mean()

    return jax.lax.map(one, outputs)


def build(most: int, config: run.Config, members, structures, val_set, log):
    """Chooses an ensemble of at most `most` models, or None, which is logged, where no two models
    are together better than one.

    Returns (its entry of results.json, the Config, variables and row of its run). config: of the
    best trial; structures: (Recipe, Hparams) of each member.
    """
    if len(members) < 2:
        log("no ensemble: the models of fewer than two trials are here")
        return None
    task, hparams = config.recipe.task, train.as_float32(config.hparams.evaluation())
    outputs = jnp.stack([member.outputs for member in members])
    part = {name: leaf[: outputs.shape[1]] for name, leaf in val_set.items()}
    chosen = choose(task, hparams, outputs, train.host_batch(task, part), most)
    picked = [row for row in zip(chosen.weights, members, structures, strict=True) if row[0]]
    if len(picked) < 2:
        log("no ensemble: none is better than the best model alone")
        return None
    picked.sort(key=lambda row: -row[0])
    log(
        f"testing an ensemble of {len(picked)} models: validation loss {digits(chosen.loss)}, the "
        f"best alone {digits(chosen.alone)}; temperature {short_text(chosen.temperature)}"
    )
    shares, trees = [w for w, _, _ in picked], [member.variables for _, member, _ in picked]
    raw = task.mean(jnp.stack([m.outputs for _, m, _ in picked]), jnp.float32(shares))
    config = _run_config(config, [s for _, _, s in picked], shares, chosen.temperature)
    scores = train.scores(task, config.hparams, part, raw / chosen.temperature)
    row = {"epoch": 1, "step": 1, **{f"val_{name}": value for name, value in scores.items()}}
    variables = {
        name: {f"members_{i}": tree[name] for i, tree in enumerate(trees) if name in tree}
        for name in {name for tree in trees for name in tree}
    }
    entry = {
        "models": [{"trial": m.trial, "seed": m.seed, "weight": w} for w, m, _ in picked],
        "temperature": chosen.temperature,
        "validation_loss": chosen.loss,
        "validation_loss_of_the_best_alone": chosen.alone,
        # comparable with models that have no temperature
        "uncalibrated": train.scores(task, config.hparams, part, raw),
    }
    return entry, config, variables, row


def _run_config(config, recipes, shares, temperature) -> run.Config:
    """Returns the Config of the ensemble's run. recipes: (Recipe, Hparams) of each member."""
    frozen = config.transfer is not None and config.transfer.is_frozen
    model = Ensemble(
        # clones: Flax gives one object in two fields one set of parameters
        members=tuple(recipe.model.clone() for recipe, _ in recipes),
        hparams=tuple(hparams for _, hparams in recipes),
        weights=tuple(shares),
        task=config.recipe.task,
        temperature=temperature,
        shared=frozen,
    )
    recipe = train.Recipe(
        model, config.recipe.task, NoOptimizer(), batch_size=config.recipe.batch_size
    )
    return dataclasses.replace(
        config, recipe=recipe, epochs=1, patience=0, plateau_patience=0, given=(),
        transfer=config.transfer if frozen else None,
    )  # fmt: skip
