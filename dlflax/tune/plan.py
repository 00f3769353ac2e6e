"""A sweep in words: its plan, and lines while it runs."""

import math
import time
from collections.abc import Iterable

import jax
from optuna.distributions import CategoricalDistribution

from dlflax.report.trials import digits, short_text
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


class Lines:
    """The lines about trials that are printed while a sweep runs: one a population, or an eighth of
    all epochs where trials pause. over: numbers of the trials that were recorded before."""

    def __init__(self, job, budget, population: int, over: list[int]):
        self._sign, self._population = job.sign, population
        self._epochs = budget.trials * budget.epochs
        self.trained, self.pauses = 0, False
        self._last = time.perf_counter(), 0, over

    def next(self, trials: Iterable, is_end: bool) -> tuple[int, str] | None:
        """Returns (how many trials a line is about, the line); None while none is due. trials: all,
        as `pool.Begun`."""
        clock, trained, before = self._last
        over = [trial.number for trial in trials if trial.is_over]
        new = [trial for trial in trials if trial.is_over and trial.number not in {*before}]
        share = (self.trained - trained) / self._epochs
        is_full = len(new) >= self._population and not self.pauses
        if share < 1 / 8 and not is_full and not (is_end and (new or share)):
            return None
        self._last = time.perf_counter(), self.trained, over
        seconds = self._last[0] - clock
        rate = 60 * len(new) / max(seconds, 1e-9)
        line = (
            f"trials {range_text([trial.number for trial in new])}: {seconds:.1f} s, "
            f"{rate:,.{0 if rate > 20 else 1}f} trials/min"
        )
        if self.pauses or not new:
            epochs = sum(len(trial.values) for trial in trials)
            line = f"{epochs:,} epochs: {len(trials)} trials begun, {len(over)} to their end"
        diverged = sum(trial.value is not None and not math.isfinite(trial.value) for trial in new)
        line += f", {diverged} diverged" if diverged else ""
        if best := self._best(trials):
            value, trial = best
            line += f"; best so far {digits(value)}, trial {trial.number}: "
            line += params_text(trial.params)
        return len(new), line

    def _best(self, trials):
        """Returns (what it counts, the trial) of the best one so far, the first on a tie."""
        best = min if self._sign == 1 else max
        values = [
            (best(trial.values) if trial.value is None else trial.value, trial)
            for trial in trials if trial.values and not trial.is_failed
        ]  # fmt: skip
        return min(values, key=lambda pair: (self._sign * pair[0], pair[1].number), default=None)


def range_text(numbers: list[int]) -> str:
    """Returns the first and the last of some numbers."""
    if not numbers:
        return "none"
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"
