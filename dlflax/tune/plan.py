"""The plan of a sweep, decided and told before it starts: structures, layouts, population."""

import itertools

import jax
from optuna.distributions import CategoricalDistribution

from dlflax import train
from dlflax.errors import InputError
from dlflax.report.trials import short_text
from dlflax.train.check import check_batch_size
from dlflax.train.layout import Layout, free_bytes, layout_for, member_bytes
from dlflax.tune.search import halving_rungs
from dlflax.tune.space import structural


def all_recipes(recipe, hparams, space, splits) -> list[train.Recipe]:
    """All structures of the space. InputError for one that cannot be trained."""
    names = [name for name in space.distributions if structural(name)]
    choices = [space.distributions[name].choices for name in names]
    recipes = []
    for values in itertools.product(*choices):
        chosen = dict(zip(names, values, strict=True))
        each, _ = space.apply(chosen, recipe, hparams)
        check_batch_size(each.batch_size, len(splits[0]["inputs"]))
        try:
            train.abstract(each, hparams, splits[0]["inputs"][:1])
        except InputError as error:
            raise InputError(f"--space: {error}") from error
        except (ArithmeticError, TypeError, ValueError) as error:  # a model of one's own, too
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"--space: {params_text({**space.fixed, **chosen})} cannot be built ({reason})."
            ) from error
        recipes.append(each)
    return recipes


def layouts(sweep, recipes, splits) -> dict[train.Recipe, Layout]:
    mode = None if sweep.mode == "auto" else sweep.mode
    lanes = sweep.population * sweep.seeds
    inputs = splits[0]["inputs"][:1]
    return {recipe: layout_for(recipe, sweep.hparams, inputs, lanes, mode) for recipe in recipes}


def population_size(sweep, recipes, splits) -> int:
    """--population, or by default 16 (fewer where a sampler that learns would see its first results
    too late), rounded up to use all devices, and no more than fits in half the memory.
    InputError when what was asked for cannot fit."""
    inputs = splits[0]["inputs"][:1]
    trial = max(member_bytes(recipe, sweep.hparams, inputs) for recipe in recipes) * sweep.seeds
    free = free_bytes(*splits)
    fits = max(1, int(free / trial))
    if sweep.population > fits:
        raise InputError(
            f"--population {sweep.population} needs about "
            f"{sweep.population * trial / 2**30:,.1f} GiB and there are {free / 2**30:,.1f}: use "
            f"{fits} or less."
        )
    if sweep.population:
        return sweep.population
    learns = sweep.sampler in ("tpe", "gp", "cmaes")
    wanted = min(16, max(1, sweep.trials // 4)) if learns else min(16, sweep.trials)
    if sweep.search == "freeze-thaw":
        wanted = 4  # one trial takes as many rounds as it has epochs, however wide a round is
    devices = len(jax.devices())
    return max(1, min(-(-wanted // devices) * devices, fits // 2))


def log_plan(objective, dataset, splits, done, log):
    sweep, space, layouts = objective.sweep, objective.space, objective.layouts
    log(
        f"{dataset.source}: {len(splits[0]['targets']):,} train, "
        f"{len(splits[1]['targets']):,} validation"
    )
    for name, distribution in space.distributions.items():
        log(f"  {name}: {_described(distribution)}")
    layout = next(iter(layouts.values()))
    seeds = f" under {sweep.seeds} seeds" if sweep.seeds > 1 else ""
    log(
        f"{_count(sweep.trials, 'trial')} of {_count(sweep.epochs, 'epoch')}{seeds} by "
        f"{sweep.sampler if sweep.search == 'whole' else sweep.search}, "
        f"{_count(len(layouts), 'structure')}: {_count(len(layouts), 'compile')}"
    )
    modes = " or ".join(sorted({layout.mode for layout in layouts.values()}))
    device = f"{jax.devices()[0].platform} device"
    hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    log(f"{sweep.population} at once by {modes} over {_count(layout.devices, device)}{hosts}")
    if sweep.search == "freeze-thaw":
        log(f"freeze-thaw: {sweep.trials * sweep.epochs:,} epochs, on as many trials as are worth "
            "beginning")  # fmt: skip
    if sweep.prune:
        rungs = halving_rungs(sweep.epochs, sweep.prune)
        log(f"one in {sweep.prune} continues after epoch {', '.join(map(str, rungs))}")
    if done:
        log(f"continuing after {_count(done, 'recorded trial')}")
    log(f"writing {sweep.run_dir}; stopped or killed, the same command continues")


def _described(distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(short_text, distribution.choices))
    log = ", logarithmic" if distribution.log else ""
    return f"{short_text(distribution.low)} to {short_text(distribution.high)}{log}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def params_text(params) -> str:
    return ", ".join(f"{name} {short_text(value)}" for name, value in params.items())
