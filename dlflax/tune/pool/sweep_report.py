"""The plan, the progress and the report of a sweep."""

import contextlib
import functools
import importlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from dlflax.files import read_json
from dlflax.report.loggers import Loggers, TensorBoard
from dlflax.report.progress import SweepProgress
from dlflax.report.sweep import trial_figures
from dlflax.report.sweep import trials as ranking
from dlflax.report.sweep.findings import findings
from dlflax.report.sweep.html import write_html
from dlflax.report.sweep.trials import digits, short_text
from dlflax.train.layout import layout_for
from dlflax.tune.pool.rules import FreezeThaw, Halving, halving_rungs
from dlflax.tune.study import Study, load_trials

SHARE = 0.05  # of a sweep's time that its reports may take while it runs


def log_plan(bound, done: int, log) -> None:
    """Logs data, space, structures and layout. done: recorded trials of a sweep that continues."""
    sweep = bound.sweep
    log(
        f"{bound.dataset.source}: {len(bound.train['targets']):,} train, "
        f"{len(bound.val['targets']):,} validation"
    )
    for name, distribution in bound.space.distributions.items():
        log(f"  {name}: {_describe(distribution)}")
    rule, structures = sweep.search, len(bound.recipes)
    seeds = f" under {sweep.num_seeds} seeds" if sweep.num_seeds > 1 else ""
    by = "freeze-thaw" if isinstance(rule, FreezeThaw) else sweep.sampler
    log(
        f"{_count(sweep.trials, 'trial')} of {_count(sweep.epochs, 'epoch')}{seeds} by {by}, "
        f"{_count(structures, 'structure')}: {_count(structures, 'compile')}"
    )
    mode = None if sweep.population_map == "auto" else sweep.population_map
    members, inputs = bound.population_size * sweep.num_seeds, bound.train["inputs"][:1]
    layouts = [layout_for(recipe, sweep.hparams, inputs, members, mode) for recipe in bound.recipes]
    modes = " or ".join(sorted({layout.mode for layout in layouts}))
    where = f"over {_count(layouts[0].devices, f'{jax.devices()[0].platform} device')}"
    if sweep.workers > 1:
        where = f"by each of {sweep.workers} workers ({sweep.launcher})"
    log(f"{bound.population_size} at once by {modes} {where}")
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


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def params_text(params) -> str:
    """Returns "learning_rate 0.001, dropout 0.5"."""
    return ", ".join(f"{name} {short_text(value)}" for name, value in params.items())


def range_text(numbers: list[int]) -> str:
    """Returns the first and the last of some numbers, such as "8 to 15"."""
    if not numbers:
        return "none"
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


class Lines:
    """The lines of a running sweep: one a population, or where trials pause one an eighth of all
    epochs. over: numbers of the trials that were recorded before."""

    def __init__(self, sign: int, epochs: int, population: int, over: list[int]):
        self._sign, self._epochs, self._population = sign, epochs, population
        self.trained, self.pauses = 0, False
        self._last = time.perf_counter(), 0, over

    def next(self, trials: Iterable, is_end: bool) -> tuple[int, str] | None:
        """Returns (the number of new trials, a line about them); None while no line is due. trials:
        all, as `training.Trial`."""
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
        best = min if self._sign == 1 else max
        values = [
            (best(trial.values) if trial.value is None else trial.value, trial)
            for trial in trials if trial.values and not trial.is_failed
        ]  # fmt: skip
        if values:
            value, trial = min(values, key=lambda pair: (self._sign * pair[0], pair[1].number))
            line += f"; best so far {digits(value)}, trial {trial.number}: "
            line += params_text(trial.params)
        return len(new), line


def facts(saved: dict[str, Any], trials: list[FrozenTrial], direction: str) -> dict[str, Any]:
    """Returns the part of results.json about the trials. saved: the contents of config.json."""
    config, objective = saved["config"], saved["config"]["objective"]
    counts = Counter(ranking.outcome(trial) for trial in trials)
    return {
        "study": config["study"],
        "search": saved["search"],
        "sampler": config["sampler"],
        "experiment": saved["experiment"],
        "dataset": saved["data"]["name"],
        "objective": objective,
        "trials": len(trials),
        **{name: counts[name] for name in ("complete", "pruned", "failed", "diverged")},
        "findings": findings(trials, direction, objective, saved["data"].get("validation")),
    }


def write(
    folder: Path, results: dict[str, Any], trials: list[FrozenTrial], direction: str,
    log: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Writes trials.csv, figures and report.html. results: of the sweep, or `facts`."""
    objective = results["objective"]
    ranking.write_trials_csv(folder / "trials.csv", trials, direction, objective)
    figures = trial_figures.draw(folder, trials, direction, objective, log)
    if results.get("model") and (figure := folder / "best" / "reliability.png").exists():
        figures["reliability_of_the_best"] = figure
    write_html(folder, results, trials, figures, direction, objective)


class Watch:
    """Shows a running sweep: a bar and lines, TensorBoard, and its report, which another thread
    writes as often as SHARE allows. A failure is one warning. A context manager."""

    def __init__(self, folder: Path, trials: int, saved: dict[str, Any], study: Study, log=print):
        self._folder, self._saved, self._log = folder, saved, log
        self._direction = study.direction
        self._progress = SweepProgress(trials, len(study.finished_trials()))
        self._reports, self._boards = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._next, self._failed = 0.0, False

    def __enter__(self):
        # half a second, while the first program is compiled
        self._boards.submit(importlib.import_module, "tensorboardX.summary")
        self._progress.__enter__()
        return self

    def __exit__(self, *_):
        self._progress.__exit__()
        self._reports.shutdown()
        self._boards.shutdown()

    def progress(self, trials: float) -> None:
        """Moves the bar to so many trials, in fractions."""
        self._progress.update(trials, "training")

    def line(self, count: int, line: str) -> None:
        """Prints a line about so many trials."""
        self._progress.population_end(count, line)

    def show(self, trials: list[FrozenTrial], new: list[int]) -> None:
        """Writes newly finished trials for TensorBoard, and if it is time the report of all."""
        for number in new:
            self._boards.submit(self._write_board, trials[number])
        is_busy = self._last is not None and not self._last.done()
        if not is_busy and not self._failed and time.monotonic() >= self._next:
            finished = [trial for trial in trials if trial.state.is_finished()]
            self._last = self._reports.submit(self._write, finished)

    def _write(self, trials):
        clock = time.monotonic()
        try:
            results = facts(self._saved, trials, self._direction)
            write(self._folder, results, trials, self._direction, self._log)
        except Exception as error:  # a side channel never stops a sweep
            self._failed = True
            self._log(f"warning: no report while the sweep runs ({type(error).__name__}: {error})")
        end = time.monotonic()
        self._next = end + (end - clock) / SHARE

    def _write_board(self, trial):
        folder, name = self._folder / "tensorboard", f"trial_{trial.number:04d}"
        shutil.rmtree(folder / name, ignore_errors=True)  # of the same trial, before a kill
        start = functools.partial(TensorBoard, "", folder, name=name)
        board, objective = Loggers({"TensorBoard": start}, self._log), self._saved["config"]
        objective = objective["objective"]
        for epoch, value in trial.intermediate_values.items():
            board.scalars({objective: value}, epoch)
        board.hparams(trial.params, {objective: trial.value})
        board.close()


def write_report(
    folder: Path, storage: str | None = None, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Writes the report of a sweep's folder at any time, and returns its contents. storage, errors:
    as for `load_trials`."""
    saved, trials, direction = load_trials(folder, storage)
    results = facts(saved, trials, direction)
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing as yet, or damaged
        results = {**read_json(Path(folder) / "results.json"), **results}
    write(Path(folder), results, trials, direction, log)
    return results
