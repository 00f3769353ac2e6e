"""Where the trials of a sweep are recorded: SQLite for one process, PostgreSQL for many.

A sweep takes a batch of trials, trains them in one program, and records what came out. What to try
next is asked of a pure function `suggest(history, indices)`; nothing here samples. Trials are kept
in Optuna's own tables, so optuna-dashboard and Optuna itself can open them.
"""

import contextlib
import copy
import dataclasses
import datetime
import hashlib
import json
import math
import re
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import InMemoryStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlflax.errors import InputError, RunError

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would report every study and trial

HOUR = 3600.0  # how long a worker waits for a database that is away, in seconds
SCHEMA = "v3.2.0.a"  # of Optuna's tables since 2023: what `_insert` and `_replace` write directly
DETAILS = ("trial_user_attributes", "trial_intermediate_values")
TABLES = ("trials", "trial_values", "trial_params", "trial_system_attributes", *DETAILS)
CONNECTION = {  # libpq's: a network that swallows packets is an outage, not a wait without end
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trial:
    """One configuration that this process is to train."""

    index: int
    """0-based count of configurations; decides seeds and grid point. A retry keeps it."""
    params: dict[str, Any]
    system_attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the sampler left (CMA-ES keeps its state there)."""
    id: int | None = None
    """Optuna's trial id (PostgreSQL only)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training a trial brought."""

    value: float
    """+-inf for one that diverged, never NaN."""
    intermediate: dict[int, float] = dataclasses.field(default_factory=dict)
    """Epoch, from 1 -> value."""
    pruned: bool = False
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values, kept as user attributes."""

    @property
    def state(self) -> TrialState:
        return TrialState.PRUNED if self.pruned else TrialState.COMPLETE


Suggest = Callable[[list[FrozenTrial], list[int]], list[Trial]]


def open_study(
    url: str | None,
    study: str,
    direction: str,
    distributions: dict[str, BaseDistribution],
    heartbeat: float = 30.0,
    say: Callable[[str], None] = print,
) -> "Local | Shared":
    """A context manager: `Local` for None (in memory) and sqlite:///FILE, `Shared` for
    postgresql+psycopg://USER:PASSWORD@HOST/DATABASE. direction: minimize or maximize; heartbeat:
    seconds. InputError when the database cannot be used."""
    if url is None or re.match(r"sqlite:///(?!:memory:).", url):
        return Local(url, study, direction, distributions)
    if re.match(r"postgresql(\+psycopg2?)?://", url):
        return Shared(url, study, direction, distributions, heartbeat, say)
    raise InputError(
        f"--storage {without_password(url)}: use sqlite:///FILE, or "
        "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE for several workers."
    )


class Local:
    """One process, which a lock beside the file makes sure of.

    A batch is written in one transaction when it is finished (0.3 ms a trial, where Optuna's own
    `tell` costs 50), in index order, so a trial's number is its index. Writing goes on while the
    next batch trains: a kill loses no more than the batch before, which is then trained again.
    """

    def __init__(self, url, study, direction, distributions):
        self.direction, self._distributions, self._url = direction, distributions, url
        with contextlib.ExitStack() as stack, _opening(url):
            if url:
                stack.enter_context(_lock(url))
                self._storage = RDBStorage(_without_template(url))
                stack.callback(self._storage.engine.dispose)
                with self._storage.engine.connect() as connection:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")  # fails where writing would
            else:
                self._storage = InMemoryStorage()
            _create_study(self._storage, study, direction, url)
            self._id = self._storage.get_study_id_from_name(study)
            self._trials = self._storage.get_all_trials(self._id)
            self._tables = _tables(self._storage)
            self._writer = stack.enter_context(ThreadPoolExecutor(1))
            self._write: Future[None] | None = None
            self._safe, self._taken = len(self._trials), datetime.datetime.now()
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
        return _settings(self._storage, self._id, new)

    def take(self, suggest: Suggest, count: int, total: int) -> list[Trial]:
        """The next trials, at most `count`; [] when `total` are recorded.

        Batches begin at multiples of `count` whatever is recorded, and what was recorded of a batch
        is asked for again and left out: a sweep that goes on in the middle of a batch gets the
        suggestions that it would have had.
        """
        self._check_write()
        self._taken, done = datetime.datetime.now(), len(self._trials)
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
            frozen = _frozen(trial, self._distributions, outcome)
            frozen.number, frozen.datetime_start = trial.index, self._taken
            made.append(frozen)
        self._trials += made
        self._write = self._writer.submit(self._write_trials, made)

    def _write_trials(self, trials):
        if self._tables:
            _insert(self._storage.engine, self._tables, self._id, trials)
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
                    f"could not write to {self._url}: {_reason(error)}; the first {self._safe} "
                    "trials are safe, and the same command goes on from there."
                ) from error

    def claim_finish(self, total: int) -> None:
        """None: this process finishes the sweep. Waits for what is being written."""
        self._check_write(wait=True)

    def finish(self, results: dict[str, Any]) -> None:
        """Nothing: nobody else waits for the results."""


class Shared:
    """PostgreSQL: any number of workers, on any hosts, that run the same command.

    What two must not do at once happens under an advisory lock. A worker shows that it lives by a
    heartbeat for every trial it trains; the trials of one that was silent for four of them become
    FAIL and are queued again, at most three times. While the database is away everybody waits.
    """

    def __init__(self, url, study, direction, distributions, heartbeat, say):
        self.direction, self._distributions, self._say = direction, distributions, say
        self._name, self._beat = study, max(1, round(heartbeat))
        self._mine: set[int] = set()  # ids of the trials that this worker trains
        self._judge_after = 0.0
        shown = without_password(url)
        with contextlib.ExitStack() as stack, _opening(shown), _quiet():
            if "@" in (sqlalchemy.make_url(url).host or ""):
                raise InputError(f"--storage {shown}: write an @ in the password as %40.")
            options = {"pool_pre_ping": True, "connect_args": CONNECTION}
            self._engine = sqlalchemy.create_engine(url, **options)
            stack.callback(self._engine.dispose)
            with _locked(self._engine, "the tables of Optuna"):  # workers that start together
                self._storage = RDBStorage(
                    _without_template(url), options,
                    heartbeat_interval=self._beat, grace_period=4 * self._beat,
                )  # fmt: skip
            stack.callback(self._storage.engine.dispose)
            with _locked(self._engine, study):
                self._study = _create_study(self._storage, study, direction, shown)
            self._id = self._storage.get_study_id_from_name(study)
            self._tables = _tables(self._storage)
            self._retry = RetryHeartbeatStaleTrialCallback(max_retry=3)
            self._retry_always = RetryHeartbeatStaleTrialCallback()
            self._resources = stack.pop_all()
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, daemon=True)
        self._heart.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Gives back, for others to train, what was taken and not recorded."""
        self._closing.set()
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError, StorageInternalError):
            for trial_id in self._mine:
                with contextlib.suppress(UpdateFinishedTrialError):
                    self._storage.set_trial_state_values(trial_id, TrialState.WAITING)
        self._heart.join(timeout=5.0)
        self._resources.close()

    def _keep_beating(self):
        while not self._closing.wait(self._beat):
            try:
                for trial_id in list(self._mine):
                    self._storage.record_heartbeat(trial_id)
            except Exception:  # the next beat may get through; without beats all would be lost
                self._saw_the_database(away=True)

    def _saw_the_database(self, away):
        """After an outage nobody has shown signs of life: the others get time to, before this
        worker takes them for dead."""
        if away:
            self._judge_after = math.inf
        elif self._judge_after == math.inf:
            self._judge_after = time.monotonic() + 4 * self._beat

    def _patiently(self, operation):
        """operation's result; waits and tries again while the database is away. The operations are
        such that it does no harm when the first try went through unseen."""
        since, wait = None, 1.0
        while True:
            try:
                result = operation()
            except (StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
                if not _is_outage(error):
                    raise
                self._saw_the_database(away=True)
                if since is None:
                    since = time.monotonic()
                    self._say(f"the database is away ({_reason(error)}): waiting for it")
                if time.monotonic() - since > HOUR:
                    raise RunError(
                        f"the database has been away for an hour ({_reason(error)}): what was "
                        "recorded is safe; start the same command again when it is back."
                    ) from error
                time.sleep(wait)
                wait = min(2 * wait, 30.0)
                continue
            self._saw_the_database(away=False)
            if since is not None:
                self._say(f"the database is back after {time.monotonic() - since:.0f} s")
            return result

    def trials(self) -> list[FrozenTrial]:
        """All trials in number order, but those that a retry has replaced."""
        trials = self._patiently(self._study.get_trials)
        return sorted(_current(trials).values(), key=lambda trial: trial.number)

    def settings(self, new: dict[str, Any]) -> dict[str, Any]:
        """The settings that the study was begun with: `new`, if it has none yet."""

        def operation():
            with _locked(self._engine, self._name):
                return _settings(self._storage, self._id, new)

        return self._patiently(operation)

    def take(self, suggest: Suggest, count: int, total: int) -> list[Trial]:
        """The next trials, at most `count`; [] when `total` are finished, by whomever. Waits while
        others train the last ones, in case they die."""
        waiting = "nothing left to begin: waiting for the other workers' trials"
        return self._next(self._study, self._retry, suggest, count, total, waiting)

    def _next(self, study, retry, suggest, count, total, waiting):
        while True:
            batch, unfinished = self._patiently(
                lambda: self._claim(study, retry, suggest, count, total)
            )
            if batch or not unfinished:
                return batch
            if waiting:
                self._say(waiting)
                waiting = None
            time.sleep(min(self._beat, 5.0))

    def _claim(self, study, retry, suggest, count, total):
        """(the next trials, whether any trial is unfinished)"""
        with _locked(self._engine, self._name):
            if time.monotonic() > self._judge_after:
                with _quiet():
                    optuna.storages.fail_stale_trials(study)
            # Not the storage's own callback: it is lost when a worker dies after the line above.
            for trial in _current(study.get_trials(deepcopy=False)).values():
                if trial.state == TrialState.FAIL:
                    retry(study, copy.deepcopy(trial))  # it appends to the trial's attributes
            current = _current(study.get_trials(deepcopy=False))
            history = sorted(current.values(), key=lambda trial: trial.number)

            def queued(trial):  # an outage may have come after a claim that went through
                mine = trial._trial_id in self._mine
                return trial.state == TrialState.WAITING or (
                    trial.state == TrialState.RUNNING and mine
                )

            batch = [
                Trial(_index(trial), trial.params, trial.system_attrs, trial._trial_id)
                for trial in history
                if queued(trial)
            ][:count]
            begun = len(current)
            indices = list(range(begun, min(begun + count - len(batch), total)))
            for trial in suggest(history, indices) if indices else []:
                frozen = _frozen(trial, self._distributions)
                trial_id = self._storage.create_new_trial(self._id_of(study), frozen)
                batch.append(dataclasses.replace(trial, id=trial_id))
            for trial in batch:
                # The heartbeat first: killed in between, the trial still waits; killed after, it
                # has a heartbeat that goes silent.
                self._storage.record_heartbeat(trial.id)
                self._mine.add(trial.id)
                self._storage.set_trial_state_values(trial.id, TrialState.RUNNING)
            unfinished = any(not trial.state.is_finished() for trial in history)
            return batch, unfinished

    def _id_of(self, study):
        return self._storage.get_study_id_from_name(study.study_name)

    def record(self, batch: list[Trial], outcomes: list[Outcome]) -> None:
        """Records what came of the trials that `take` gave. One that was given up meanwhile stays
        with the worker that trains it again."""
        done = {trial.id: outcome for trial, outcome in zip(batch, outcomes, strict=True)}
        self._patiently(lambda: self._record_details(done))
        for trial_id, outcome in done.items():
            self._patiently(lambda i=trial_id, o=outcome: self._record_end(i, o))

    def _record_details(self, outcomes):
        if self._tables:
            _replace_details(self._storage.engine, self._tables, outcomes)
            return
        with contextlib.suppress(UpdateFinishedTrialError):
            for trial_id, outcome in outcomes.items():
                for name, value in outcome.attrs.items():
                    self._storage.set_trial_user_attr(trial_id, name, value)
                for epoch, value in outcome.intermediate.items():
                    self._storage.set_trial_intermediate_value(trial_id, epoch, value)

    def _record_end(self, trial_id, outcome):
        try:
            self._storage.set_trial_state_values(trial_id, outcome.state, [outcome.value])
        except UpdateFinishedTrialError:
            trial = self._storage.get_trial(trial_id)
            if trial.state == TrialState.FAIL:  # otherwise the first try went through unseen
                self._say(
                    f"trial {trial.number} was given up, as this worker was silent for too long: "
                    "its outcome is left to the worker that trains it again"
                )
        self._mine.discard(trial_id)
