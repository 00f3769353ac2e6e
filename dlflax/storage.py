"""Where the trials of a sweep are recorded: SQLite for one process, PostgreSQL for many.

A sweep takes a batch of trials, trains them in one program, and records what came out. What to try
next is asked of a pure function `suggest(history, indices)`; nothing here samples. Trials are kept
by Optuna's storages, so optuna-dashboard and Optuna itself can open them.
"""

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlflax.errors import InputError, RunError

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would report every study and trial

HOUR = 3600.0  # how long a worker waits for a database that is away, in seconds
OUTAGE = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError)


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
    seconds: float = 0.0
    """Its share of the time that its batch took."""
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values, kept as user attributes (1.5 ms each in SQLite)."""

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
):
    """A context manager: `Local` for None (in memory) and sqlite:///FILE, `Shared` for
    postgresql+psycopg://USER:PASSWORD@HOST/DATABASE. direction: minimize or maximize; heartbeat:
    seconds. InputError when the database cannot be used."""
    if url is None or url.startswith("sqlite:///"):
        return Local(url, study, direction, distributions)
    if url.startswith("postgresql"):
        return Shared(url, study, direction, distributions, heartbeat, say)
    raise InputError(
        f"--storage {without_password(url)}: use sqlite:///FILE, or "
        "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE for several workers."
    )


class Local:
    """One process, which a lock beside the file makes sure of.

    A trial is written once, when it is finished (9 ms; asking and telling through SQLite costs 50),
    in index order, so its number is its index. Writing goes on while the next trials train: a kill
    loses no more than the batch before, which is then trained again with the same outcome.
    """

    def __init__(self, url, study, direction, distributions):
        self.direction, self._distributions, self._url = direction, distributions, url
        self._lock = url and _lock(Path(url.removeprefix("sqlite:///")), url)
        try:
            storage = RDBStorage(url) if url else optuna.storages.InMemoryStorage()
            _create_study(storage, study, direction, url)
        except (sqlalchemy.exc.SQLAlchemyError, *OUTAGE) as error:
            self._unlock()
            raise InputError(f"--storage {url} cannot be used: {_reason(error)}.") from error
        except InputError:
            self._unlock()
            raise
        self._storage, self._id = storage, storage.get_study_id_from_name(study)
        self._trials: list[FrozenTrial] = storage.get_all_trials(self._id)
        self._writer, self._pending = ThreadPoolExecutor(1), []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self._writer.shutdown()
            if kind is None:
                self._check_writes()
        finally:
            self._unlock()

    def _unlock(self):
        if self._lock:
            self._lock.close()

    def trials(self) -> list[FrozenTrial]:
        """All trials in number order."""
        return list(self._trials)

    def settings(self, new: dict[str, Any]) -> dict[str, Any]:
        """The settings that the study was begun with: `new`, if it has none yet."""
        return _settings(self._storage, self._id, new)

    def take(self, suggest: Suggest, count: int, total: int) -> list[Trial]:
        """The next trials, at most `count`; [] when `total` are recorded.

        Batches begin at multiples of `count` whatever is recorded, and what was recorded of a batch
        is asked for again and left out: a sweep that was killed between two writes goes on with
        the suggestions that it would have had.
        """
        self._check_writes(wait=False)
        n = len(self._trials)
        if n >= total:
            return []
        start = n // count * count
        indices = list(range(start, min(start + count, total)))
        return [trial for trial in suggest(self._trials[:start], indices) if trial.index >= n]

    def record(self, batch: list[Trial], outcomes: list[Outcome]) -> None:
        """Records what came of the trials that `take` gave. RunError when the disk is full, at the
        latest at the next call."""
        self._check_writes(wait=False)
        for trial, outcome in zip(batch, outcomes, strict=True):
            made = create_trial(
                state=outcome.state,
                value=outcome.value,
                params=trial.params,
                distributions=self._distributions,
                user_attrs=outcome.attrs,
                system_attrs=trial.system_attrs,
                intermediate_values=outcome.intermediate,
            )
            made.number = trial.index
            made.datetime_start = made.datetime_complete - timedelta(seconds=outcome.seconds)
            self._trials.append(made)
            self._pending.append(
                self._writer.submit(self._storage.create_new_trial, self._id, made)
            )

    def _check_writes(self, wait=True):
        done = [write for write in self._pending if wait or write.done()]
        self._pending = [write for write in self._pending if write not in done]
        for write in done:
            try:
                write.result()
            except Exception as error:
                self._writer.shutdown(cancel_futures=True)
                raise RunError(
                    f"could not write a trial to {self._url}: {_reason(error)}; those written "
                    "before are safe, and the same command goes on with them."
                ) from error

    def seconds(self) -> float:
        """What training the trials has taken so far, in this process and those before."""
        return sum(trial.duration.total_seconds() for trial in self._trials)

    def claim_finish(self, total: int) -> None:
        """None: this process finishes the sweep. Waits for what is still being written."""
        self._check_writes()

    def finish(self, results: dict[str, Any]) -> None:
        """Nothing: results.json is enough for one process."""


class Shared:
    """PostgreSQL: any number of workers, on any hosts, that run the same command.

    What must not be done by two at once happens under an advisory lock. A worker shows that it
    lives by a heartbeat for every trial it trains; the trials of one that was silent for four of
    them become FAIL and are queued again, at most three times. While the database is away everybody
    waits.
    """

    def __init__(self, url, study, direction, distributions, heartbeat, say):
        self.direction, self._distributions, self._say = direction, distributions, say
        self._study, self._beat = study, max(1, round(heartbeat))
        self._mine: set[int] = set()  # trial ids whose heart beats
        shown = without_password(url)
        try:
            with _quiet():
                self._storage = RDBStorage(
                    url,
                    engine_kwargs={"pool_pre_ping": True},
                    heartbeat_interval=self._beat,
                    grace_period=4 * self._beat,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
                )
            with self._locked():
                _create_study(self._storage, study, direction, shown)
        except ImportError as error:
            raise InputError(
                f"--storage {shown} needs psycopg: pip install 'dlflax[postgres]', and begin the "
                "address with postgresql+psycopg://."
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, *OUTAGE) as error:
            raise InputError(f"--storage {shown} cannot be used: {_reason(error)}.") from error
        self._id = self._storage.get_study_id_from_name(study)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._storage.engine.dispose()

    def _keep_beating(self):
        while not self._stop.wait(self._beat):
            for trial_id in list(self._mine):
                with contextlib.suppress(*OUTAGE):  # the next beat may get through
                    self._storage.record_heartbeat(trial_id)

    @contextlib.contextmanager
    def _locked(self):
        """Only one worker of the study at a time."""
        key = int.from_bytes(hashlib.sha256(self._study.encode()).digest()[:8], signed=True)
        with self._storage.engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield

    def _patiently(self, operation):
        """operation's result; waits and tries again while the database is away. The operations are
        such that doing one twice does no harm."""
        since, wait = None, 1.0
        while True:
            try:
                result = operation()
            except OUTAGE as error:
                since = since or time.monotonic()
                if time.monotonic() - since > HOUR:
                    raise RunError(
                        f"the database has been away for an hour ({_reason(error)}): start the "
                        "same command again when it is back."
                    ) from error
                if wait == 1.0:
                    self._say(f"the database is away ({_reason(error)}): waiting for it")
                time.sleep(wait)
                wait = min(2 * wait, 30.0)
                continue
            if since:
                self._say(f"the database is back after {time.monotonic() - since:.0f} s")
            return result

    def trials(self) -> list[FrozenTrial]:
        """All trials in number order, but those that a retry has replaced."""
        last = {_index(trial): trial for trial in self._all(self._id)}
        return sorted(last.values(), key=lambda trial: trial.number)

    def _all(self, study_id):
        return self._patiently(lambda: self._storage.get_all_trials(study_id))

    def settings(self, new: dict[str, Any]) -> dict[str, Any]:
        """The settings that the study was begun with: `new`, if it has none yet."""

        def operation():
            with self._locked():
                return _settings(self._storage, self._id, new)

        return self._patiently(operation)

    def take(self, suggest: Suggest, count: int, total: int) -> list[Trial]:
        """The next trials, at most `count`; [] when `total` are finished, by whomever. Waits while
        others train the last ones, in case they die."""
        waiting = False
        while True:
            batch = self._patiently(lambda: self._take(self._id, suggest, count, total))
            if batch or not self._unfinished(self._id):
                return batch
            if not waiting:
                self._say("nothing left to begin: waiting for the other workers' trials")
                waiting = True
            time.sleep(min(self._beat, 5.0))

    def _unfinished(self, study_id):
        return any(not trial.state.is_finished() for trial in self._all(study_id))

    def _take(self, study_id, suggest, count, total):
        storage = self._storage
        with self._locked():
            self._give_up_the_silent(study_id)
            history = storage.get_all_trials(study_id)
            # an outage may have come between claiming these and training them
            batch = [
                Trial(_index(trial), trial.params, {}, trial._trial_id)
                for trial in history
                if trial.state == TrialState.RUNNING and trial._trial_id in self._mine
            ]
            count -= len(batch)
            begun = len({_index(trial) for trial in history})
            waiting = sum(trial.state == TrialState.WAITING for trial in history)
            indices = list(range(begun, min(begun + max(count - waiting, 0), total)))
            for trial in suggest(history, indices) if indices else []:
                storage.create_new_trial(
                    study_id,
                    create_trial(
                        state=TrialState.WAITING,
                        params=trial.params,
                        distributions=self._distributions,
                        user_attrs={"index": trial.index},
                        system_attrs=trial.system_attrs,
                    ),
                )
            for trial in storage.get_all_trials(study_id, states=(TrialState.WAITING,))[:count]:
                # the heartbeat first: killed in between, the trial is still waiting; killed after,
                # it is running with a heartbeat that goes silent
                storage.record_heartbeat(trial._trial_id)
                if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    self._mine.add(trial._trial_id)
                    batch.append(Trial(_index(trial), trial.params, {}, trial._trial_id))
            return batch

    def _give_up_the_silent(self, study_id):
        study = optuna.load_study(
            study_name=self._storage.get_study_name_from_id(study_id), storage=self._storage
        )
        with _quiet():
            optuna.storages.fail_stale_trials(study)

    def record(self, batch: list[Trial], outcomes: list[Outcome]) -> None:
        """Records what came of the trials that `take` gave. One that was given up meanwhile, and is
        trained by another worker, stays theirs."""
        for trial, outcome in zip(batch, outcomes, strict=True):
            self._patiently(lambda t=trial, o=outcome: self._record(t.id, o))

    def _record(self, trial_id, outcome):
        storage = self._storage
        try:
            for epoch, value in outcome.intermediate.items():
                storage.set_trial_intermediate_value(trial_id, epoch, value)
            for name, value in outcome.attrs.items():
                storage.set_trial_user_attr(trial_id, name, value)
            storage.set_trial_state_values(trial_id, outcome.state, [outcome.value])
        except optuna.exceptions.UpdateFinishedTrialError:
            if storage.get_trial(trial_id).state == TrialState.FAIL:  # else our own first try
                number = storage.get_trial(trial_id).number
                self._say(f"trial {number} was given up and queued again while this worker had it")
        self._mine.discard(trial_id)

    def seconds(self) -> float:
        """From the beginning of the first trial to the end of the last."""
        trials = [trial for trial in self._all(self._id) if trial.state.is_finished()]
        if not trials:
            return 0.0
        begin = min(trial.datetime_start for trial in trials)
        return (max(trial.datetime_complete for trial in trials) - begin).total_seconds()

    def claim_finish(self, total: int) -> dict[str, Any] | None:
        """None: this process finishes the sweep; else the results of the one that did, for which
        it waits. Finishing is itself a trial, of a study beside the other: one worker gets it, and
        another when that one dies."""
        name = f"{self._study}: finish of {total} trials"

        def create():
            with self._locked():
                return _create_study(self._storage, name, self.direction, "")

        study_id = self._patiently(create)

        def only_one(history, indices):
            return [Trial(index, {}) for index in indices]

        waiting = False
        while True:
            batch = self._patiently(lambda: self._claim(study_id, only_one))
            if batch:
                self._finishing = batch[0]
                return None
            for trial in self._all(study_id):
                if trial.state == TrialState.COMPLETE:
                    return json.loads(trial.user_attrs["results"])
            if not waiting:
                self._say("another worker retrains the best: waiting for its results")
                waiting = True
            time.sleep(min(self._beat, 5.0))

    def _claim(self, study_id, only_one):
        kept, self._distributions = self._distributions, {}
        try:
            return self._take(study_id, only_one, 1, 1)
        finally:
            self._distributions = kept

    def finish(self, results: dict[str, Any]) -> None:
        """Hands the results to the other workers."""
        self.record([self._finishing], [Outcome(0.0, attrs={"results": json.dumps(results)})])


def _index(trial: FrozenTrial) -> int:
    return trial.user_attrs.get("index", trial.number)


def _create_study(storage, study, direction, shown):
    """The study's id. InputError where it is there with another direction."""
    made = optuna.create_study(
        study_name=study, storage=storage, direction=direction, load_if_exists=True
    )
    if made.direction.name.lower() != direction:
        raise InputError(
            f"--storage {shown}: the study {study} there is to {made.direction.name.lower()} its "
            "objective: give the same --objective, or another --study NAME."
        )
    return storage.get_study_id_from_name(study)


def _settings(storage, study_id, new):
    saved = storage.get_study_user_attrs(study_id).get("settings")
    if saved is None:
        saved = json.dumps(new)
        storage.set_study_user_attr(study_id, "settings", saved)
    return json.loads(saved)


def _lock(path: Path, url: str):
    """An open file that is locked as long as this process has it; None on Windows."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        file = open(path.with_name(path.name + ".lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"--storage {url} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InputError(
            f"--storage {url} is in use by another process: wait for it, give another --study, or "
            "use PostgreSQL for several workers (--storage postgresql+psycopg://...)."
        ) from error
    return file


@contextlib.contextmanager
def _quiet():
    """Heartbeats are experimental, and meant for Optuna's own loop, says Optuna."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def without_password(url: str) -> str:
    """The address as it may be shown."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url.split("://")[0] + "://..."


def _reason(error: BaseException) -> str:
    """The database driver's own first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
