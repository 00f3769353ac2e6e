"""The plan of a sweep in words, before it starts."""

import jax
from optuna.distributions import CategoricalDistribution

from dlflax.report.trials import short_text
from dlflax.train.layout import layout_for
from dlflax.tune.rules import FreezeThaw, Halving, halving_rungs


def log_plan(sweep, bound, done: int, log) -> None:
    """Logs data, space, structures, layout and what is continued. done: recorded trials."""
    log(
        f"{bound.dataset.source}: {len(bound.train['targets']):,} train, "
        f"{len(bound.val['targets']):,} validation"
    )
    for name, distribution in bound.space.distributions.items():
        log(f"  {name}: {_describe(distribution)}")
    rule = sweep.search
    seeds = f" under {sweep.seeds} seeds" if sweep.seeds > 1 else ""
    by = "freeze-thaw" if isinstance(rule, FreezeThaw) else sweep.sampler
    structures = len(bound.recipes)
    log(
        f"{_count(sweep.trials, 'trial')} of {_count(sweep.epochs, 'epoch')}{seeds} by {by}, "
        f"{_count(structures, 'structure')}: {_count(structures, 'compile')}"
    )
    mode = None if sweep.mode == "auto" else sweep.mode
    lanes, inputs = sweep.population * sweep.seeds, bound.train["inputs"][:1]
    layouts = [layout_for(recipe, sweep.hparams, inputs, lanes, mode) for recipe in bound.recipes]
    modes = " or ".join(sorted({layout.mode for layout in layouts}))
    device = f"{jax.devices()[0].platform} device"
    where = f"over {_count(layouts[0].devices, device)}"
    if sweep.workers > 1:
        where = f"by each of {sweep.workers} workers ({sweep.launcher})"
    log(f"{sweep.population} at once by {modes} {where}")
    if isinstance(rule, FreezeThaw):
        log(f"freeze-thaw: {sweep.trials * sweep.epochs:,} epochs, on as many trials as are worth "
            "beginning")  # fmt: skip
    if isinstance(rule, Halving):
        rungs = halving_rungs(sweep.epochs, rule.reduction_factor)
        log(f"one in {rule.reduction_factor} continues after epoch {', '.join(map(str, rungs))}")
    if done:
        log(f"continuing after {_count(done, 'recorded trial')}")
    log(f"writing {sweep.run_dir}; stopped or killed, the same command continues")


def _describe(distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(short_text, distribution.choices))
    log = ", logarithmic" if distribution.log else ""
    return f"{short_text(distribution.low)} to {short_text(distribution.high)}{log}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def params_text(params) -> str:
    return ", ".join(f"{name} {short_text(value)}" for name, value in params.items())
