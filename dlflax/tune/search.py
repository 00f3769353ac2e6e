"""The search of a sweep: its plan, and the pool that trains its trials."""

import dataclasses

import jax
from optuna.distributions import CategoricalDistribution

from dlflax.files import pluralize
from dlflax.report.sweep.trials import short_text
from dlflax.run.time_limit import Clock
from dlflax.train.layout import layout_for
from dlflax.tune import time_plan
from dlflax.tune.bind import Bound
from dlflax.tune.launch import open_launcher
from dlflax.tune.pool.pool import Pool
from dlflax.tune.pool.pool_checkpoint import PoolCheckpoint
from dlflax.tune.pool.rules import Budget, FreezeThaw, Full, Halving, halving_rungs
from dlflax.tune.pool.sweep_report import Watch
from dlflax.tune.pool.trial_models import MOST_TRIALS, Members
from dlflax.tune.pool.workers import Workers
from dlflax.tune.study import Study
from dlflax.tune.suggest import stopping
from dlflax.tune.suggest.cost import cost
from dlflax.tune.suggest.encoding import Encoding
from dlflax.tune.suggest.samplers import make_sampler


def train_trials(bound: Bound, study: Study, clock: Clock, log) -> int:
    """Trains all trials, those that remain where the sweep continues. Returns the number of
    compiled programs."""
    sweep, space, job, rule = bound.sweep, bound.job.space, bound.job, bound.sweep.search
    population, folder = study.saved["config"]["population_size"], sweep.run_dir
    _log_plan(bound, population, len(study.finished_trials()), log)
    encoding = Encoding(space.distributions)
    budget = Budget(sweep.trials, sweep.epochs, encoding.size())
    inputs = bound.arrays["train"]["inputs"]
    costs = {r: cost(sweep.cost, r, sweep.hparams, inputs) for r in bound.recipes if sweep.cost}

    def reason_to_stop(trials):
        args = encoding, study.direction, sweep.seed, sweep.min_improvement
        reason = stopping.reason_to_stop(*args, trials) if sweep.auto else None
        return reason or time_plan.reason_to_stop(sweep, population, clock, trials)

    def cost_of(params):
        recipe, _ = space.apply(params, job.recipe, sweep.hparams)
        return {sweep.cost: costs[recipe]} if costs else {}

    lines = population if isinstance(rule, Full) else 0
    with Watch(folder, study, sweep.trials, sweep.epochs, lines, log) as watch:
        launcher = open_launcher(
            sweep.launcher, sweep.workers, folder, platform=jax.default_backend(),
            devices=jax.local_device_count(), options=sweep.options(), log=log,
        )  # fmt: skip
        members = Members(
            folder, job.sign, MOST_TRIALS if sweep.ensemble_size else 1, log,
            kept=0 if sweep.bag_folds else None,  # the defaults, for the ensemble
        )  # fmt: skip
        known = dataclasses.replace(space, known=study.saved.get("known", []))
        sampler = make_sampler(rule.sampler or sweep.sampler, known, sweep.seed)
        return Pool(
            job, study, sampler, rule, budget, population,
            Workers(launcher, job, bound.arrays, folder, log), members,
            PoolCheckpoint(folder, log), watch,
            reason_to_stop=reason_to_stop, costs=cost_of, log=log,
        ).run()  # fmt: skip


def _log_plan(bound: Bound, population: int, done: int, log) -> None:
    """Logs data, space, structures and layout. done: recorded trials of a sweep that continues."""
    sweep, rule, recipes = bound.sweep, bound.sweep.search, bound.recipes
    train, val = bound.arrays["train"], bound.arrays["val"]
    rows, seeds = f"{len(train['targets']):,} train, {len(val['targets']):,} validation", ""
    if sweep.bag_folds:
        rows, seeds = f"{len(train['targets']):,} train", f", bags of {bound.job.num_seeds} folds"
    elif sweep.num_seeds > 1:
        seeds = f" under {sweep.num_seeds} seeds"
    log(f"{bound.dataset.source}: {rows}")
    for name, distribution in bound.job.space.distributions.items():
        log(f"  {name}: {_describe(distribution)}")
    by = "freeze-thaw" if isinstance(rule, FreezeThaw) else sweep.sampler
    log(
        f"{pluralize(sweep.trials, 'trials')} of {pluralize(sweep.epochs, 'epochs')}{seeds} by "
        f"{by}, {pluralize(len(recipes), 'structures')}: {pluralize(len(recipes), 'compiles')}"
    )
    mode = None if sweep.population_map == "auto" else sweep.population_map
    members, inputs = population * bound.job.num_seeds, train["inputs"][:1]
    layouts = [layout_for(recipe, sweep.hparams, inputs, members, mode) for recipe in recipes]
    modes = " or ".join(sorted({layout.mode for layout in layouts}))
    devices = pluralize(layouts[0].devices, f"{jax.devices()[0].platform} devices")
    where = f"over {devices}"
    if sweep.workers > 1:
        where = f"by each of {sweep.workers} workers ({sweep.launcher})"
    log(f"{population} at once by {modes} {where}")
    if isinstance(rule, FreezeThaw):
        log(f"freeze-thaw: {sweep.trials * sweep.epochs:,} epochs, on as many trials as are worth "
            "beginning")  # fmt: skip
    if isinstance(rule, Halving):
        rungs = halving_rungs(sweep.epochs, rule.reduction_factor)
        log(f"one in {rule.reduction_factor} continues after epoch {', '.join(map(str, rungs))}")
    if done:
        log(f"continuing after {pluralize(done, 'recorded trials')}")
    log(f"writing {sweep.run_dir}; stopped or killed, the same command continues")


def _describe(distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(short_text, distribution.choices))
    log = ", logarithmic" if distribution.log else ""
    return f"{short_text(distribution.low)} to {short_text(distribution.high)}{log}"
