"""Where the trials of a sweep are recorded: memory or SQLite for one process, PostgreSQL for many.

A sweep takes a batch of trials, trains them in one program, and records what came out. What to try
next is asked of a pure function `suggest(history, indices)`; nothing here samples. Trials are kept
in Optuna's own tables, so optuna-dashboard and Optuna itself can open them.
"""

import contextlib
import datetime
import os
import re
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial

from dlflax.errors import InputError, RunError
from dlflax.run.folder import load_config
from dlflax.tune.postgres import Shared
from dlflax.tune.rows import insert
from dlflax.tune.trial import (
    Outcome,
    Suggest,
    Trial,
    create_study,
    frozen,
    opening,
    reason_of,
    saved_settings,
    without_password,
    without_template,
)


def open_study(
    url: str | None,
    study: str,
    direction: str,
    distributions: dict[str, BaseDistribution],
    heartbeat: float = 30.0,
    log: Callable[[str], None] = print,
) -> "Local | Shared":
    """A context manager: `Local` for None (in memory) and sqlite:///FILE, `Shared` for
    postgresql+psycopg://USER:PASSWORD@HOST/DATABASE. direction: minimize or maximize; heartbeat:
    seconds. InputError when the database cannot be used."""
    if url is None or re.match(r"sqlite:///(?!:memory:).", url):
        return Local(url, study, direction, distributions)
    if re.match(r"postgresql(\+psycopg2?)?://", url):
        return Shared(url, study, direction, distributions, heartbeat, log)
    raise InputError(
        f"--storage {without_password(url)}: use sqlite:///FILE, or "
        "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE for several workers."
    )


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file, whatever its path is called: SQLAlchemy takes what follows a ?
    for options, so such a path is written as a URI."""
    path = str(path.absolute())
    if not set(path) & set("?#%"):
        return f"sqlite:///{path}"
    quoted = urllib.parse.quote(urllib.parse.quote(path))  # SQLAlchemy and SQLite unquote one each
    return f"sqlite:///file:{quoted}?uri=true"


def sqlite_file(url: str) -> Path:
    """The file of a SQLite address."""
    database = sqlalchemy.make_url(url).database
    if "uri=true" in url:
        database = urllib.parse.unquote(database.removeprefix("file:"))
    return Path(database)


def trials_of(
    folder: Path, storage: str | None = None
) -> tuple[dict[str, Any], list[FrozenTrial], str]:
    """(the contents of config.json, the trials so far, minimize or maximize) of a sweep's folder.
    storage: the address of its database, if that is not in the folder. InputError when the folder
    is not that of a sweep, or has no trial yet."""
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
    return saved, trials, direction


class Local:
    """One process, which a lock beside the file makes sure of.

    A batch is written when it is finished, whole or not at all, in index order, so a trial's number
    is its index. Writing continues while the next batch trains: a kill loses no more than the batch
    before, which is then trained again.
    """

    def __init__(self, url, study, direction, distributions):
        self.direction, self._distributions, self._url = direction, distributions, url
        with contextlib.ExitStack() as stack, opening(url):
            if url:
                stack.enter_context(_lock(url))
                # a dashboard that reads may hold up a write: 60 s, in the background
                options = {"connect_args": {"timeout": 60}}
                self._storage = RDBStorage(without_template(url), options)
                stack.callback(self._storage.engine.dispose)
            else:
                self._storage = InMemoryStorage()
            create_study(self._storage, study, direction, url)
            self._id = self._storage.get_study_id_from_name(study)
            self._trials = self._storage.get_all_trials(self._id)
            self._writer = stack.enter_context(ThreadPoolExecutor(1))
            self._write: Future[None] | None = None
            self._safe = len(self._trials)
            self._resources = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.close()
        except RunError:
            if kind is None:
                raise

    def close(self) -> None:
        """Waits for what is being written, and lets go of the file. RunError as of `record`."""
        self._resources.close()
        self._check_write()

    def trials(self) -> list[FrozenTrial]:
        """All trials in number order."""
        self._check_write()
        return list(self._trials)

    def settings(self, new: dict[str, Any]) -> dict[str, Any]:
        """The settings that the study was begun with: `new`, if it has none yet."""
        return saved_settings(self._storage, self._id, new)

    def take(self, suggest: Suggest, count: int, total: int) -> list[Trial]:
        """The next trials, at most `count`; [] when `total` are recorded.

        Batches begin at multiples of `count` whatever is recorded, and what was recorded of a batch
        is asked for again and left out: a sweep that continues in the middle of a batch gets the
        suggestions that it would have had.
        """
        self._check_write()
        done = len(self._trials)
        if done >= total:
            return []
        start = done // count * count
        indices = list(range(start, min(start + count, total)))
        return [t for t in suggest(self._trials[:start], indices) if t.index >= done]

    def record(self, batch: list[Trial], outcomes: list[Outcome]) -> None:
        """Records what came of the trials that `take` gave. RunError when the disk is full, at the
        latest at the next call."""
        self._check_write(wait=True)  # one after a failed write would get the wrong numbers
        made = []
        for trial, outcome in zip(batch, outcomes, strict=True):
            finished = frozen(trial, self._distributions, outcome)
            finished.number = trial.index
            seconds = datetime.timedelta(seconds=outcome.seconds)
            finished.datetime_start = finished.datetime_complete - seconds
            made.append(finished)
        self._trials += made
        self._write = self._writer.submit(self._write_trials, made)

    def _write_trials(self, trials):
        if isinstance(self._storage, RDBStorage):
            insert(self._storage, self._id, trials)
        else:
            for trial in trials:
                self._storage.create_new_trial(self._id, trial)
        self._safe += len(trials)

    def _check_write(self, wait=False):
        if self._write and (wait or self._write.done()):
            try:
                self._write.result()
            except Exception as error:  # whatever it is, it happened in another thread
                raise RunError(
                    f"could not write to {self._url}: {reason_of(error)}; the first {self._safe} "
                    "trials are safe, and the same command continues from there."
                ) from error

    def seconds(self) -> float:
        """What training the trials has taken so far, in this process and those before."""
        return sum(trial.duration.total_seconds() for trial in self._trials)

    def claim_finish(self, total: int) -> None:
        """None: this process finishes the sweep. Waits for what is being written."""
        self._check_write(wait=True)

    def finish(self, results: dict[str, Any]) -> None:
        """Nothing: nobody else waits for the results."""


@contextlib.contextmanager
def _lock(url: str):
    """No other process has the SQLite file meanwhile; without effect on Windows."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(f"{sqlite_file(url)}.lock")
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"--storage {url} cannot be used: {path}: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"--storage {url} is in use by another process; several workers need PostgreSQL: "
                "--storage postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."
            ) from error
        except OSError as error:
            raise InputError(f"{path} cannot be locked: {error.strerror}.") from error
        yield
