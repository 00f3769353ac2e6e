"""The report of a sweep: written at its end, after every population, and for any folder."""

import contextlib
import functools
import importlib
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from dlflax.files import read_json
from dlflax.report import trial_figures
from dlflax.report import trials as ranking
from dlflax.report.findings import findings
from dlflax.report.html import write_html
from dlflax.report.loggers import Loggers, TensorBoard
from dlflax.report.progress import SweepProgress
from dlflax.tune.study import Study, trials_of

SHARE = 0.05  # of a sweep's time that its reports may take while it runs


def facts(saved: dict[str, Any], trials: list[FrozenTrial], direction: str) -> dict[str, Any]:
    """Returns what results.json says of the trials. saved: the contents of config.json."""
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
    folder: Path,
    results: dict[str, Any],
    trials: list[FrozenTrial],
    direction: str,
    log: Callable[[str], None] = print,
) -> None:
    """trials.csv, the pictures and report.html. results: those of the sweep, or `facts`."""
    objective = results["objective"]
    ranking.write_trials_csv(folder / "trials.csv", trials, direction, objective)
    pictures = trial_figures.draw(folder, trials, direction, objective, log)
    if results.get("model") and (drawn := folder / "best" / "reliability.png").exists():
        pictures["reliability_of_the_best"] = drawn
    write_html(folder, results, trials, pictures, direction, objective)


class Watch:
    """Shows a sweep that runs: a bar and lines, TensorBoard, and its report, which another thread
    writes as often as SHARE allows. What fails is one warning. A context manager."""

    def __init__(self, sweep, saved: dict[str, Any], study: Study, log=print):
        self._folder, self._saved, self._log = sweep.run_dir, saved, log
        self._direction = study.direction
        self._progress = SweepProgress(sweep.trials, len(study.finished()))
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

    def trial(self, trial: FrozenTrial) -> None:
        """Writes a finished trial for TensorBoard."""
        self._boards.submit(self._write_board, trial)

    def trials(self, trials: list[FrozenTrial]) -> None:
        """Writes the report of all trials so far, if it is time for one."""
        busy = self._last is not None and not self._last.done()
        if not busy and not self._failed and time.monotonic() >= self._next:
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
        ended = time.monotonic()
        self._next = ended + (ended - clock) / SHARE

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


def of_folder(
    folder: Path, storage: str | None = None, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Writes the report of a sweep's folder, whether the sweep runs, was stopped or is finished.
    Returns what the report says. storage, errors: as for `trials_of`."""
    saved, trials, direction = trials_of(folder, storage)
    results = facts(saved, trials, direction)
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there yet, or damaged
        results = {**read_json(Path(folder) / "results.json"), **results}
    write(Path(folder), results, trials, direction, log)
    return results
