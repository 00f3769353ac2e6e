"""An ensemble of a sweep's models, chosen on validation data."""

import dataclasses

import jax.numpy as jnp

from dlflax import run, train
from dlflax.report.sweep.trials import digits, short_text
from dlflax.train.ensemble import choose, ensemble_recipe, nest_variables


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
    shares = [weight for weight, _, _ in picked]
    raw = task.mean(jnp.stack([m.outputs for _, m, _ in picked]), jnp.float32(shares))
    config = _run_config(config, [s for _, _, s in picked], shares, chosen.temperature)
    scores = train.scores(task, config.hparams, part, raw / chosen.temperature)
    row = {"epoch": 1, "step": 1, **{f"val_{name}": value for name, value in scores.items()}}
    variables = nest_variables([member.variables for _, member, _ in picked])
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
    members = [(recipe.model, hparams) for recipe, hparams in recipes]
    recipe = ensemble_recipe(config.recipe, members, shares, temperature, frozen)
    return dataclasses.replace(
        config, recipe=recipe, epochs=1, patience=0, plateau_patience=0, given=(),
        transfer=config.transfer if frozen else None,
    )  # fmt: skip
