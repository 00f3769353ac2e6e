"""Where the trials of a sweep are recorded: SQLite for one process, PostgreSQL for many.

A sweep takes a batch of trials, trains them in one program, and records what came out. What to try
next is asked of a pure function `suggest(history, indices)`; nothing here samples. Trials are kept
in Optuna's own tables, so optuna-dashboard and Optuna itself can open them.
"""

import contextlib
import copy
import dataclasses
import datetime
import functools
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
SCHEMA = "v3.2.0.a"  # of Optuna's tables since 2023: what `_insert` writes
TABLES = (
    "trials", "trial_values", "trial_params", "trial_user_attributes", "trial_system_attributes",
    "trial_intermediate_values",
)  # fmt: skip
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
    seconds: float = 0.0
    """Its share of the time that its batch took."""
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

    A batch is written in one transaction when it is finished (1 ms a trial at most; asking and
    telling through SQLite costs 50), in index order, so a trial's number is its index. Writing
    goes on while the next batch trains: a kill loses no more than the batch before, which is then
    trained again.
    """

    def __init__(self, url, study, direction, distributions):
        self.direction, self._distributions, self._url = direction, distributions, url
        with contextlib.ExitStack() as stack, _opening(url):
            if url:
                stack.enter_context(_lock(url))
                # a dashboard that reads may hold up a write: 60 s, in the background
                options = {"connect_args": {"timeout": 60}}
                self._storage = RDBStorage(_without_template(url), options)
                stack.callback(self._storage.engine.dispose)
            else:
                self._storage = InMemoryStorage()
            _create_study(self._storage, study, direction, url)
            self._id = self._storage.get_study_id_from_name(study)
            self._trials = self._storage.get_all_trials(self._id)
            self._tables = _tables(self._storage)
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
        return _settings(self._storage, self._id, new)

    def take(self, suggest: Suggest, count: int, total: int) -> list[Trial]:
        """The next trials, at most `count`; [] when `total` are recorded.

        Batches begin at multiples of `count` whatever is recorded, and what was recorded of a batch
        is asked for again and left out: a sweep that goes on in the middle of a batch gets the
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
            frozen = _frozen(trial, self._distributions, outcome)
            frozen.number = trial.index
            seconds = datetime.timedelta(seconds=outcome.seconds)
            frozen.datetime_start = frozen.datetime_complete - seconds
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

    def seconds(self) -> float:
        """What training the trials has taken so far, in this process and those before."""
        return sum(trial.duration.total_seconds() for trial in self._trials)

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
                    _without_template(url), options,
                    heartbeat_interval=self._beat, grace_period=4 * self._beat,
                )  # fmt: skip
            stack.callback(self._storage.engine.dispose)
            sqlalchemy.event.listen(self._storage.engine, "connect", self._prepare)
            self._storage.engine.dispose()  # the connections from before
            with _locked(self._engine, study):
                self._study = _create_study(self._storage, study, direction, shown)
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
        return copy.deepcopy(self._patiently(lambda: _current(self._study)))

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
        claim = functools.partial(self._claim, self._study, 3, suggest, count, total)
        return self._repeat(claim, waiting)

    def _repeat(self, claim, waiting):
        while True:
            batch, unfinished = self._patiently(claim)
            if batch or not unfinished:
                return batch
            if waiting:
                self._say(waiting)
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
                study.add_trial(_frozen(trial, self._distributions))
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
                self._say(
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
                return _create_study(self._storage, name, self.direction, "")

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


def _frozen(trial: Trial, distributions, outcome: Outcome | None = None) -> FrozenTrial:
    """As Optuna keeps it: waiting, or with its outcome."""
    common = {
        "params": trial.params,
        "distributions": {name: distributions[name] for name in trial.params},
        "system_attrs": json.loads(json.dumps(trial.system_attrs)),  # as they will be read again
    }
    if outcome is None:
        attrs = {"index": trial.index}
        return create_trial(state=TrialState.WAITING, user_attrs=attrs, **common)
    return create_trial(
        state=outcome.state,
        value=outcome.value,
        intermediate_values=outcome.intermediate,
        user_attrs=json.loads(json.dumps(outcome.attrs)),
        **common,
    )


def _index(trial: FrozenTrial) -> int:
    return trial.user_attrs.get("index", trial.number)


def _current(study: optuna.Study) -> list[FrozenTrial]:
    """One trial for every index, in number order: the first that has not failed, or the last."""
    current: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        before = current.get(_index(trial))
        if before is None or before.state == TrialState.FAIL:
            current[_index(trial)] = trial
    return sorted(current.values(), key=lambda trial: trial.number)


def _create_study(storage, study, direction, shown):
    """Optuna's study, made if it is not there. InputError where it has another direction."""
    made = optuna.create_study(
        study_name=study, storage=storage, direction=direction, load_if_exists=True
    )
    found = [each.name.lower() for each in made.directions]
    if found != [direction]:
        raise InputError(
            f"--storage {shown}: the study {study} there is to {' and '.join(found)} its "
            "objective: give the same --objective, or another --study NAME."
        )
    return made


def _settings(storage, study_id, new):
    saved = storage.get_study_user_attrs(study_id).get("settings")
    if saved is None:
        saved = json.loads(json.dumps(new))
        storage.set_study_user_attr(study_id, "settings", saved)
    return saved


def _tables(storage) -> dict[str, sqlalchemy.Table] | None:
    """Optuna's tables. None where they are not those that `_insert` knows, or in memory."""
    if isinstance(storage, InMemoryStorage) or storage.get_current_version() != SCHEMA:
        return None
    described = sqlalchemy.MetaData()
    described.reflect(storage.engine, only=TABLES)
    return dict(described.tables)


def _insert(engine, tables, study_id, trials: list[FrozenTrial]) -> None:
    """What `storage.create_new_trial` does for each, in one transaction and without an ORM."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES[1:]}
    with engine.begin() as connection:
        for trial in trials:
            times = {
                name: getattr(trial, name).astimezone(datetime.UTC).replace(tzinfo=None)
                for name in ("datetime_start", "datetime_complete")
            }
            row = {"study_id": study_id, "number": trial.number, "state": trial.state.name, **times}
            made = connection.execute(tables["trials"].insert(), row)
            key = {"trial_id": made.inserted_primary_key[0]}
            rows["trial_values"].append(key | {"objective": 0} | _number("value", trial.value))
            for name, value in trial.params.items():
                distribution = trial.distributions[name]
                param = {"param_name": name, "param_value": distribution.to_internal_repr(value)}
                param["distribution_json"] = distribution_to_json(distribution)
                rows["trial_params"].append(key | param)
            for kind in ("user", "system"):
                rows[f"trial_{kind}_attributes"] += (
                    key | {"key": name, "value_json": json.dumps(value)}
                    for name, value in getattr(trial, f"{kind}_attrs").items()
                )
            rows["trial_intermediate_values"] += (
                key | {"step": step} | _number("intermediate_value", value)
                for step, value in trial.intermediate_values.items()
            )
        for name, each in rows.items():
            if each:
                connection.execute(tables[name].insert(), each)


def _number(column: str, value: float) -> dict[str, Any]:
    if math.isfinite(value):
        return {column: value, f"{column}_type": "FINITE"}
    kind = "NAN" if math.isnan(value) else "INF_POS" if value > 0 else "INF_NEG"
    return {column: None, f"{column}_type": kind}


@contextlib.contextmanager
def _opening(shown: str | None):
    """InputError, in one sentence, where the database cannot be used."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"--storage {shown} needs psycopg: pip install 'dlflax[postgres]', and begin the "
            "address with postgresql+psycopg://."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        # RuntimeError: tables of another version of Optuna
        raise InputError(f"--storage {shown} cannot be used: {_reason(error)}.") from error


@contextlib.contextmanager
def _lock(url: str):
    """No other process has the SQLite file meanwhile; without effect on Windows."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(f"{sqlalchemy.make_url(url).database}.lock")
    try:
        file = open(path, "w")  # noqa: SIM115
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


def without_password(url: str) -> str:
    """The address as it may be shown."""
    return re.sub(r"(://[^:/]*):.*@", r"\1:***@", re.sub(r"password=[^&]*", "password=***", url))


def _without_template(url: str) -> str:
    """RDBStorage takes {} in an address, such as those of a password, for a template."""
    return url.replace("{", "{{").replace("}", "}}")


def _reason(error: BaseException) -> str:
    """The database driver's own first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
