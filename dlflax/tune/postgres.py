"""Trials in PostgreSQL, for any number of workers on any hosts."""

import contextlib
import copy
import datetime
import functools
import hashlib
import math
import threading
import time
import warnings
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from dlflax.errors import InputError, RunError
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

HOUR = 3600.0  # how long a worker waits for a database that is away, in seconds
CONNECTION = {  # libpq's: a network that swallows packets is an outage, not a wait without end
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip


class Shared:
    """PostgreSQL: any number of workers, on any hosts, that run the same command.

    What two must not do at once happens under an advisory lock. A worker shows that it lives by a
    heartbeat for every trial it trains; the trials of one that was silent for four of them become
    FAIL and are queued again, at most three times. While the database is away everybody waits.
    """

    def __init__(self, url, study, direction, distributions, heartbeat, log):
        self.direction, self._distributions, self._log = direction, distributions, log
        self._name, self._beat = study, max(1, round(heartbeat))
        self._mine: set[int] = set()  # ids of the trials that this worker trains
        self._judge_after = 0.0
        shown = without_password(url)
        with contextlib.ExitStack() as stack, opening(shown), _quiet():
            if url.partition("?")[0].count("@") > 1:
                raise InputError(f"--storage {shown}: write an @ in the password as %40.")
            try:
                address = sqlalchemy.make_url(url)
            except ValueError as error:
                raise InputError(f"--storage {shown}: the port is not a number.") from error
            network = {name: CONNECTION[name] for name in CONNECTION if name not in address.query}
            options = {"pool_pre_ping": True, "connect_args": network}
            self._engine = sqlalchemy.create_engine(url, **options)
            stack.callback(self._engine.dispose)
            with _locked(self._engine, "the tables of Optuna"):  # workers that start together
                self._storage = RDBStorage(
                    without_template(url), options,
                    heartbeat_interval=self._beat, grace_period=4 * self._beat,
                )  # fmt: skip
            stack.callback(self._storage.engine.dispose)
            sqlalchemy.event.listen(self._storage.engine, "connect", self._prepare)
            self._storage.engine.dispose()  # the connections from before
            with _locked(self._engine, study):
                self._study = create_study(self._storage, study, direction, shown)
            self._id = self._storage.get_study_id_from_name(study)
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

    def _prepare(self, connection, _):
        """Heartbeats are kept without a time zone: workers with their own, or the change to summer
        time, would make the living look dead. And who freezes in mid-transaction must not lock the
        others out."""
        with connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'")
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{4 * self._beat}s'")
        connection.commit()

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
                    self._log(f"the database is away ({reason_of(error)}): waiting for it")
                if time.monotonic() - since > HOUR:
                    raise RunError(
                        f"the database has been away for an hour ({reason_of(error)}): what was "
                        "recorded is safe; start the same command again when it is back."
                    ) from error
                time.sleep(wait)
                wait = min(2 * wait, 30.0)
                continue
            self._saw_the_database(away=False)
            if since is not None:
                self._log(f"the database is back after {time.monotonic() - since:.0f} s")
            return result

    def trials(self) -> list[FrozenTrial]:
        """All trials in number order, but those that a retry has replaced."""
        return copy.deepcopy(self._patiently(lambda: _current(self._study)))

    def settings(self, new: dict[str, Any]) -> dict[str, Any]:
        """The settings that the study was begun with: `new`, if it has none yet."""

        def operation():
            with _locked(self._engine, self._name):
                return saved_settings(self._storage, self._id, new)

        return self._patiently(operation)

    def take(self, suggest: Suggest, count: int, total: int) -> list[Trial]:
        """The next trials, at most `count`; [] when `total` are finished, by whomever. Waits while
        others train the last ones, in case they die."""
        waiting = "nothing left to begin: waiting for the other workers' trials"
        claim = functools.partial(self._claim, self._study, 3, suggest, count, total)
        return self._repeat(claim, waiting)

    def _repeat(self, claim, waiting):
        while True:
            batch, unfinished = self._patiently(claim)
            if batch or not unfinished:
                return batch
            if waiting:
                self._log(waiting)
                waiting = None
            time.sleep(min(self._beat, 5.0))

    def _claim(self, study, retries, suggest, count, total):
        """(the next trials, whether any trial is unfinished)"""
        with _locked(self._engine, self._name):
            with _quiet():
                retry = RetryHeartbeatStaleTrialCallback(retries)
                if time.monotonic() > self._judge_after:
                    optuna.storages.fail_stale_trials(study)
            # Not as the storage's own callback, which a worker that dies here would never call.
            for trial in _current(study):
                if trial.state == TrialState.FAIL:
                    retry(study, copy.deepcopy(trial))  # it appends to the trial's attributes
            history = _current(study)
            begun, queued = len(history), len(self._queued(history))
            indices = list(range(begun, min(begun + count - queued, total)))
            for trial in suggest(history, indices) if indices else []:
                study.add_trial(frozen(trial, self._distributions))
            batch = self._queued(_current(study))[:count]
            for trial in batch:
                # The heartbeat first: killed in between, the trial still waits; killed after, it
                # has a heartbeat that goes silent.
                self._storage.record_heartbeat(trial.id)
                self._mine.add(trial.id)
                self._storage.set_trial_state_values(trial.id, TrialState.RUNNING)
            return batch, any(not trial.state.is_finished() for trial in history)

    def _queued(self, trials):
        """Those that wait, and those whose claim went through unseen before an outage."""
        return [
            Trial(_index(trial), trial.params, trial.system_attrs, trial._trial_id)
            for trial in trials
            if trial.state == TrialState.WAITING
            or (trial.state == TrialState.RUNNING and trial._trial_id in self._mine)
        ]

    def record(self, batch: list[Trial], outcomes: list[Outcome]) -> None:
        """Records what came of the trials that `take` gave. One that was given up meanwhile stays
        with the worker that trains it again."""
        for trial, outcome in zip(batch, outcomes, strict=True):
            self._patiently(lambda i=trial.id, o=outcome: self._record(i, o))

    def _record(self, trial_id, outcome):
        storage = self._storage
        try:
            for epoch, value in outcome.intermediate.items():
                storage.set_trial_intermediate_value(trial_id, epoch, value)
            for name, value in outcome.attrs.items():
                storage.set_trial_user_attr(trial_id, name, value)
            storage.set_trial_state_values(trial_id, outcome.state, [outcome.value])
        except UpdateFinishedTrialError:
            trial = storage.get_trial(trial_id)
            if trial.state == TrialState.FAIL:  # otherwise the first try went through unseen
                self._log(
                    f"trial {trial.number} was given up, as this worker was silent for too long: "
                    "its outcome is left to the worker that trains it again"
                )
        self._mine.discard(trial_id)

    def seconds(self) -> float:
        """From the beginning of the first trial to the end of the last."""
        trials = [trial for trial in self.trials() if trial.state.is_finished()]
        if not trials:
            return 0.0
        begin = min(trial.datetime_start for trial in trials)
        return (max(trial.datetime_complete for trial in trials) - begin).total_seconds()

    def claim_finish(self, total: int) -> dict[str, Any] | None:
        """None: this process finishes the sweep; else the results of the one that did, for which
        it waits. Finishing is itself a trial, of a study beside the other: one worker gets it, and
        another when that one dies."""
        name = f"{self._name}: finish of {total} trials"

        def create():
            with _locked(self._engine, self._name), _quiet():
                return create_study(self._storage, name, self.direction, "")

        def only_one(history, indices):
            return [Trial(index, {}) for index in indices]

        study = self._patiently(create)
        waiting = "another worker finishes the sweep: waiting for its results"
        claim = functools.partial(self._claim, study, None, only_one, 1, 1)
        self._finishing = self._repeat(claim, waiting)
        if self._finishing:
            return None
        return self._patiently(lambda: _current(study))[0].user_attrs["results"]

    def finish(self, results: dict[str, Any]) -> None:
        """Hands the results (JSON values) to the other workers."""
        self.record(self._finishing, [Outcome(0.0, attrs={"results": results})])


def _index(trial: FrozenTrial) -> int:
    return trial.user_attrs["index"]


def _current(study: optuna.Study) -> list[FrozenTrial]:
    """One trial for every index, in number order: the first that has not failed, or the last. What
    others put into the study, by Optuna or its dashboard, has no index and is left alone."""
    current: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if "index" not in trial.user_attrs:
            continue
        if trial.state != TrialState.WAITING and trial.datetime_start is None:
            # set so from outside; Optuna takes no trial that ended and never began
            trial = copy.copy(trial)
            trial.datetime_start = trial.datetime_complete or datetime.datetime.now()
        before = current.get(_index(trial))
        if before is None or before.state == TrialState.FAIL:
            current[_index(trial)] = trial
    return sorted(current.values(), key=lambda trial: trial.number)


@contextlib.contextmanager
def _locked(engine, name: str):
    """One worker at a time, among those of the database that give the same name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    with engine.begin() as connection:
        # so that one who freezes here does not stop all others; `suggest` may take its time
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '10min'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({key})")
        yield


@contextlib.contextmanager
def _quiet():
    """Optuna says that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _is_outage(error: Exception) -> bool:
    """Whether the database cannot be reached, or not now; not that it refuses what it is told."""
    error = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(error, sqlalchemy.exc.OperationalError) or (
        isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
    )
