"""The study of a sweep: its trials, as Optuna keeps them. One process, the driver, writes."""

import contextlib
import copy
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalRedisBackend
from optuna.trial import FrozenTrial, TrialState

from dlflax.errors import InputError, RunError
from dlflax.run.folder import load_config

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would report every study and trial

JOURNAL = "study.journal"


class Journal(BaseJournalBackend):
    """Optuna's journal file, whose batches count whole or not at all, and whose lock the kernel
    frees, however the process ends.

    Every line says how many of its batch follow. A batch that a kill left torn is not read, and is
    cut before the next one is written; with the locks and the reader of Optuna itself the next
    writer waits for 30 s, and a torn line that is followed by another one makes the file
    unreadable.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._offsets = [0]  # where each entry of a whole batch begins, and the last one ends
        self._batch: list[dict[str, Any]] | None = None
        self.path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yields the entries from that number on."""
        with open(self.path, "rb") as file:
            start = min(log_number_from, len(self._offsets) - 1)
            file.seek(self._offsets[start])
            yield from self._read(file, start, log_number_from)
        yield from (self._batch or [])[max(0, log_number_from - len(self._offsets) + 1) :]

    def _read(self, file, number, log_number_from):
        """Yields the entries of whole batches, of which the next one has this number."""
        end, offsets, logs = self._offsets[number], [], []
        for line in file:
            if not line.endswith(b"\n"):
                return
            log, end = json.loads(line), end + len(line)
            offsets.append(end)
            logs.append(log)
            if log.pop("more", 0):
                continue
            self._offsets[number + 1 :] = offsets
            yield from logs[max(0, log_number_from - number) :]
            number, offsets, logs = number + len(logs), [], []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes entries, or keeps them until the end of a `batch`. Raises OSError."""
        if self._batch is not None:
            self._batch += json.loads(json.dumps(logs))  # as they will be read again
            return
        with _locked(Path(f"{self.path}.lock")):
            for _ in self.read_logs(len(self._offsets) - 1):  # of others
                pass
            lines = [
                json.dumps(log | ({"more": more} if more else {}), separators=(",", ":")) + "\n"
                for more, log in zip(reversed(range(len(logs))), logs, strict=True)
            ]
            with open(self.path, "rb+") as file:
                file.truncate(self._offsets[-1])
                file.seek(self._offsets[-1])
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def batch(self):
        """All that is written meanwhile is written together, at the end; nothing after an error."""
        self._batch = []
        try:
            yield
        except BaseException:
            self._batch = None
            raise
        logs, self._batch = self._batch, None
        if logs:
            self.append_logs(logs)


@contextlib.contextmanager
def _locked(path: Path, refusal: str = ""):
    """No other process has this lock meanwhile; without effect on Windows. Raises InputError with
    the refusal, if there is one, where another process has it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise InputError(refusal) from error
        except OSError as error:
            raise InputError(f"{path} cannot be file_lock: {error.strerror}.") from error
        yield


class Study:
    """The trials of a sweep, and Optuna's samplers, which suggest others."""

    def __init__(self, storage: BaseStorage, name: str, direction: str):
        self._storage, self.direction = storage, direction
        with _journal_batch(storage):
            self._study = optuna.create_study(
                study_name=name, storage=storage, direction=direction, load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
            )  # fmt: skip
        directions = [each.name.lower() for each in self._study.directions]
        if directions != [direction]:
            raise InputError(
                f"--study {name}: the study that is there is to {' and '.join(directions)} its "
                "objective: give the same --objective, or another --study NAME."
            )
        self._id = storage.get_study_id_from_name(name)
        self._safe, self._told = len(self.finished()), 0

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials in number order; the value of a pruned one is its best report, where
        Optuna has the last one."""
        return with_scores(self._study.get_trials(deepcopy=False), self.direction)

    def finished(self) -> list[FrozenTrial]:
        """Returns the trials that are finished."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def settings(self, new: Mapping[str, Any], enqueued=()) -> dict[str, Any]:
        """Returns the settings that the study was begun with: `new`, if it is new; then `enqueued`,
        parameters each, are those of its first trials."""
        saved = self._study.user_attrs.get("settings")
        if saved is None:
            saved = json.loads(json.dumps(new))
            with self.writing():
                for params in enqueued:
                    self._study.enqueue_trial(params)
                self._study.set_user_attr("settings", saved)
        return saved

    def ask(
        self, sampler: optuna.samplers.BaseSampler, distributions: Mapping[str, BaseDistribution],
        params: list[dict[str, Any] | None],
    ) -> list[FrozenTrial]:  # fmt: skip
        """Returns new trials, RUNNING: with these parameters, or those that the sampler suggests
        for None."""
        self._study.sampler, asked = sampler, []
        with self.writing():
            for each in params:
                if each is not None:
                    self._study.enqueue_trial(each)
                asked.append(self._study.ask(dict(distributions)).number)
        trials = self._study.get_trials(deepcopy=False)
        return [trials[number] for number in asked]

    def complete_running(
        self, sampler: optuna.samplers.BaseSampler, distributions: Mapping[str, BaseDistribution]
    ) -> None:
        """Suggests now what a kill left out of the parameters of trials that are RUNNING."""
        self._study.sampler = sampler
        with self.writing():
            for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if trial.params.keys() == distributions.keys():
                    continue
                id_ = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
                begun = optuna.trial.Trial(self._study, id_)
                for name, distribution in distributions.items():
                    _suggest(begun, name, distribution)

    @contextlib.contextmanager
    def writing(self):
        """Writes together all that is recorded meanwhile. Raises RunError where that fails, as on a
        full disk."""
        self._told = 0
        try:
            with _journal_batch(self._storage):
                yield
            self._safe += self._told
        except (OSError, sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            raise RunError(
                f"could not write the study: {reason_of(error)}; the {self._safe} recorded trials "
                "are safe, and the same command continues from there."
            ) from error

    def report(self, number: int, values: Mapping[int, float]) -> None:
        """Records values of a trial by epoch, from 1."""
        id_ = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        for epoch, value in values.items():
            self._storage.set_trial_intermediate_value(id_, epoch, value)

    def tell(
        self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]
    ) -> None:
        """Records the end of a trial. value: None but for a complete one; attrs: JSON values."""
        id_ = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        for name, attr in attrs.items():
            self._storage.set_trial_user_attr(id_, name, json.loads(json.dumps(attr)))
        self._study.tell(number, value, state=state)
        self._told += 1


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    """Lets an unfinished trial have a parameter."""
    if hasattr(distribution, "choices"):
        trial.suggest_categorical(name, distribution.choices)
        return
    kind = trial.suggest_int if isinstance(distribution.low, int) else trial.suggest_float
    kind(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _journal_batch(storage):
    backend = getattr(storage, "_backend", None)
    return backend.batch() if isinstance(backend, Journal) else contextlib.nullcontext()


def score(trial: FrozenTrial, direction: str) -> float | None:
    """Returns what a trial counts: its value, or the best report of a pruned one; None without."""
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return (min if direction == "minimize" else max)(trial.intermediate_values.values())
    return trial.value if trial.state.is_finished() else None


def with_scores(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """Returns the trials with `score` as their value."""
    scored = []
    for trial in trials:
        if trial.state == TrialState.PRUNED:
            trial = copy.copy(trial)
            trial.value = score(trial, direction)
        scored.append(trial)
    return scored


@contextlib.contextmanager
def open_study(folder: Path | None, url: str | None, name: str, direction: str):
    """Yields the Study of a sweep's folder, which no other process writes meanwhile. It is in a
    journal file there, in any storage that Optuna opens, or without a folder in memory. Raises
    InputError where the storage cannot be used."""
    with contextlib.ExitStack() as stack:
        if folder is not None:
            refusal = f"{folder} is in use by another sweep: wait for it, or use another --study."
            stack.enter_context(_locked(folder / ".lock", refusal))
        with opening(url):
            storage = _storage(folder, url)
            if engine := getattr(storage, "engine", None):
                stack.callback(engine.dispose)
            study = Study(storage, name, direction)
        yield study


def _storage(folder: Path | None, url: str | None) -> BaseStorage:
    if url:
        if "://" not in url:
            raise InputError(
                f"--storage {url}: use an address that Optuna opens, such as sqlite:///{url}."
            )
        if url.startswith("redis"):
            return JournalStorage(JournalRedisBackend(url))
        # it takes {} in an address, such as those of a password, for a template
        return RDBStorage(url.replace("{", "{{").replace("}", "}}"))
    if folder is None:
        return InMemoryStorage()
    if (folder / "study.db").exists() and not (folder / JOURNAL).exists():
        raise InputError(
            f"{folder / 'study.db'} is of an earlier version: continue it with --storage "
            f"sqlite:///{folder.absolute() / 'study.db'}, or give another --study NAME."
        )
    return JournalStorage(Journal(folder / JOURNAL))


def trials_of(
    folder: Path, storage: str | None = None
) -> tuple[dict[str, Any], list[FrozenTrial], str]:
    """Returns (the contents of config.json, the finished trials, minimize or maximize) of a sweep's
    folder. storage: the address of its storage, if that is not in the folder. Raises InputError
    when the folder is not that of a sweep, or has no finished trial yet."""
    folder, saved = Path(folder), load_config(folder)
    if "study" not in saved["config"]:
        raise InputError(f"{folder} is the folder of a run, not of a sweep: it has its own report.")
    if "search" not in saved or not {"objective", "sampler", "storage"} <= saved["config"].keys():
        raise InputError(f"{folder}/config.json is damaged: it is not what a sweep writes.")
    kept = saved["config"]["storage"]  # without its password
    url, name = storage or os.environ.get("DLFLAX_STORAGE") or kept, saved["config"]["study"]
    database = Path((url or "").removeprefix("sqlite:///").partition("?")[0])
    if (url or "").startswith("sqlite:///") and not database.exists():  # opening it would make it
        raise InputError(f"{database} is not there: give the sweep's --storage.")
    if not url and not (folder / JOURNAL).exists():
        raise InputError(f"{folder / JOURNAL} is not there: give the sweep's --storage.")
    with opening(url):
        opened = _storage(folder, url)
        if name not in [each.study_name for each in opened.get_all_studies()]:
            raise InputError(f"{without_password(url or str(folder))} has no study {name}: give "
                             "its --storage.")  # fmt: skip
        study = optuna.load_study(study_name=name, storage=opened)
        direction = study.direction.name.lower()
        trials = with_scores(study.get_trials(deepcopy=False), direction)
    trials = [trial for trial in trials if trial.state.is_finished()]
    if not trials:
        raise InputError(f"the study {name} has no trial yet: wait for its first population.")
    return saved, trials, direction


@contextlib.contextmanager
def opening(url: str | None):
    """Raises InputError, in one sentence, where the storage cannot be used."""
    shown = without_password(url) if url else JOURNAL
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"--storage {shown} needs a package: {error}; for PostgreSQL pip install "
            "'dlflax[postgres]', and begin the address with postgresql+psycopg://."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, RuntimeError, OSError) as error:
        # RuntimeError: tables of another version of Optuna
        raise InputError(f"--storage {shown} cannot be used: {reason_of(error)}.") from error
    except (ValueError, KeyError) as error:
        reason = f"it is damaged or not a journal ({reason_of(error)})"
        raise InputError(f"--storage {shown} cannot be used: {reason}.") from error


def without_password(url: str) -> str:
    """Returns the address as it may be shown."""
    return re.sub(r"(://[^:/]*):.*@", r"\1:***@", re.sub(r"password=[^&]*", "password=***", url))


def reason_of(error: BaseException) -> str:
    """Returns the database driver's own first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
