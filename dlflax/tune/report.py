"""The report of a sweep: written at its end, after every population, and for any folder."""

import contextlib
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
from dlflax.tune.stores import trials_of

SHARE = 0.05  # of a sweep's time that its reports may take while it runs


def facts(saved: dict[str, Any], trials: list[FrozenTrial], direction: str) -> dict[str, Any]:
    """What results.json says of the trials. saved: the contents of config.json."""
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
    for name in ("best", "ensemble"):
        if results.get(name) and (drawn := folder / name / "reliability.png").exists():
            pictures[f"reliability_of_the_{name}"] = drawn
    write_html(folder, results, trials, pictures, direction, objective)


class Live:
    """Writes the report of a sweep that runs, in another thread, as often as SHARE allows. What
    fails is one warning. A context manager."""

    def __init__(self, folder: Path, saved: dict[str, Any], direction: str, log=print):
        self._folder, self._saved, self._direction, self._log = folder, saved, direction, log
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._next, self._failed = 0.0, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.shutdown()

    def __call__(self, trials: list[FrozenTrial]) -> None:
        """After a population: all trials so far."""
        busy = self._last is not None and not self._last.done()
        if not busy and not self._failed and time.monotonic() >= self._next:
            self._last = self._thread.submit(self._write, list(trials))

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
