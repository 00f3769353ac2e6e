"""The report of a sweep: written at its end, after every population, and for any folder."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from dlflax.errors import InputError
from dlflax.files import read_json
from dlflax.report import trial_figures
from dlflax.report import trials as ranking
from dlflax.report.findings import findings
from dlflax.report.html import write_html
from dlflax.run.folder import load_config
from dlflax.tune.stores import sqlite_file, sqlite_url
from dlflax.tune.trial import opening, without_password, without_template

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
    storage: the address of its database, if that is not in the folder. Returns what the report
    says. InputError when the folder is not that of a sweep, or has no trial yet."""
    saved = load_config(folder)
    if "study" not in saved["config"]:
        raise InputError(f"{folder} is the folder of a run, not of a sweep: it has its own report.")
    if "search" not in saved or not {"objective", "sampler", "storage"} <= saved["config"].keys():
        raise InputError(f"{folder}/config.json is damaged: it is not what a sweep writes.")
    kept = saved["config"]["storage"]  # without its password
    url = storage or os.environ.get("DLFLAX_STORAGE") or kept
    url, study = url or sqlite_url(Path(folder) / "study.db"), saved["config"]["study"]
    if url.startswith("sqlite") and not sqlite_file(url).exists():  # opening it would make it
        raise InputError(f"{sqlite_file(url)} is not there: give the sweep's --storage.")
    with opening(without_password(url)):
        tables = RDBStorage(without_template(url))
        names = [each.study_name for each in tables.get_all_studies()]
        if study not in names:
            raise InputError(f"{without_password(url)} has no study {study}: give its --storage.")
        loaded = optuna.load_study(study_name=study, storage=tables)
        trials, direction = loaded.get_trials(deepcopy=False), loaded.direction.name.lower()
    if not trials:
        raise InputError(f"the study {study} has no trial yet: wait for its first population.")
    results = facts(saved, trials, direction)
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there yet, or damaged
        results = {**read_json(Path(folder) / "results.json"), **results}
    write(Path(folder), results, trials, direction, log)
    return results
