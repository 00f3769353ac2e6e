"""The plan, the progress and the report of a sweep."""

import contextlib
import functools
import importlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from dlflax.files import read_json
from dlflax.report.loggers import Loggers, TensorBoard
from dlflax.report.progress import SweepProgress
from dlflax.report.sweep import trial_figures
from dlflax.report.sweep import trials as ranking
from dlflax.report.sweep.findings import findings
from dlflax.report.sweep.html import write_html
from dlflax.report.sweep.trials import digits, short_text
from dlflax.tune.study import Study, load_trials

SHARE = 0.05  # of a sweep's time that its reports may take while it runs


def params_text(params) -> str:
    """Returns "learning_rate 0.001, dropout 0.5"."""
    return ", ".join(f"{name} {short_text(value)}" for name, value in params.items())


def range_text(numbers: list[int]) -> str:
    """Returns the first and the last of some numbers, such as "8 to 15"."""
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


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
    """Shows a running sweep: a bar, lines, TensorBoard, and its report, which another thread writes
    as often as SHARE allows. A failure is one warning. A context manager.

    population: trials between two lines; 0: a line an eighth of all epochs, for a rule by which
    trials pause.
    """

    def __init__(
        self, folder: Path, study: Study, trials: int, epochs: int, population: int,
        log: Callable[[str], None] = print,
    ):  # fmt: skip
        self._folder, self._study, self._log = folder, study, log
        self._epochs, self._population = trials * epochs, population
        self._shown = {trial.number for trial in study.finished_trials()}
        self._lined = time.perf_counter(), _count_epochs(study.trials()), {*self._shown}
        self._progress = SweepProgress(trials, len(self._shown))
        self._writer, self._report = ThreadPoolExecutor(1), Future()
        self._report.set_result(None)
        self._next = 0.0

    def __enter__(self):
        # half a second, while the first program is compiled
        self._writer.submit(importlib.import_module, "tensorboardX.summary")
        self._progress.__enter__()
        return self

    def __exit__(self, *_):
        self._progress.__exit__()
        self._writer.shutdown()

    def progress(self, trials: float) -> None:
        """Moves the bar to so many trials, in fractions."""
        self._progress.update(trials, "training")

    def show(self, is_end: bool = False) -> None:
        """Writes newly finished trials for TensorBoard, and if it is time the report of all, and a
        line."""
        trials = self._study.trials()
        finished = [trial for trial in trials if trial.state.is_finished()]
        for trial in finished:
            if trial.number not in self._shown:
                self._writer.submit(self._write_board, trial)
        self._shown = {trial.number for trial in finished}
        if self._report.done() and time.monotonic() >= self._next:
            self._report = self._writer.submit(self._write, finished)
        clock, before, lined = self._lined
        new = [trial for trial in finished if trial.number not in lined]
        share = (_count_epochs(trials) - before) / self._epochs
        is_full = 0 < self._population <= len(new)
        if share >= 1 / 8 or is_full or (is_end and (new or share)):
            self._lined = time.perf_counter(), _count_epochs(trials), self._shown
            self._progress.population_end(len(new), self._line(trials, new, clock))

    def _line(self, trials, new, clock) -> str:
        """Returns the line about newly finished trials."""
        if self._population and new:
            seconds = time.perf_counter() - clock
            rate = 60 * len(new) / max(seconds, 1e-9)
            line = (
                f"trials {range_text([trial.number for trial in new])}: {seconds:.1f} s, "
                f"{rate:,.{0 if rate > 20 else 1}f} trials/min"
            )
        else:
            begun = sum(trial.state != TrialState.WAITING for trial in trials)
            line = (
                f"{_count_epochs(trials):,} epochs: {begun} trials begun, {len(self._shown)} to "
                "their end"
            )
        diverged = sum(ranking.outcome(trial) == "diverged" for trial in new)
        line += f", {diverged} diverged" if diverged else ""
        sign = 1 if self._study.direction == "minimize" else -1
        ranks = [
            (min(sign * value for value in trial.intermediate_values.values())
             if trial.value is None else sign * trial.value, trial.number)
            for trial in trials
            if trial.intermediate_values and trial.state != TrialState.FAIL
        ]  # fmt: skip
        if ranks:
            rank, number = min(ranks)
            line += f"; best so far {digits(sign * rank)}, trial {number}: "
            line += params_text(trials[number].params)
        return line

    def _write(self, trials):
        clock = time.monotonic()
        try:
            results = facts(self._study.saved, trials, self._study.direction)
            write(self._folder, results, trials, self._study.direction, self._log)
        except Exception as error:  # a side channel never stops a sweep
            self._next = math.inf
            self._log(f"warning: no report while the sweep runs ({type(error).__name__}: {error})")
            return
        end = time.monotonic()
        self._next = end + (end - clock) / SHARE

    def _write_board(self, trial):
        folder, name = self._folder / "tensorboard", f"trial_{trial.number:04d}"
        shutil.rmtree(folder / name, ignore_errors=True)  # of the same trial, before a kill
        start = functools.partial(TensorBoard, "", folder, name=name)
        board = Loggers({"TensorBoard": start}, self._log)
        objective = self._study.saved["config"]["objective"]
        for epoch, value in trial.intermediate_values.items():
            board.scalars({objective: value}, epoch)
        board.hparams(trial.params, {objective: trial.value})
        board.close()


def _count_epochs(trials) -> int:
    return sum(len(trial.intermediate_values) for trial in trials)


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
