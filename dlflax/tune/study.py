"""The study of a sweep: its trials, in a storage of Optuna. One process, the driver, writes."""

import contextlib
import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalRedisBackend
from optuna.trial import FrozenTrial, TrialState

from dlflax.config.run_folder import load_config
from dlflax.errors import InputError, RunError
from dlflax.files import file_lock

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would report every study and trial

JOURNAL = "study.journal"


class Journal(BaseJournalBackend):
    """Optuna's journal file with atomic batches, and a lock that the kernel frees.

    Every line counts the lines of its batch after it. A batch that a kill left torn is not read,
    and is truncated before the next write. With the locks and the reader of Optuna itself the next
    writer waits for 30 s, and a torn line before another one makes the file unreadable.
    """

    def __init__(self, path: Path):
        self.path, self._logs, self._end = Path(path), [], 0  # of complete batches
        self._batch: list[dict[str, Any]] | None = None
        self.path.touch()

    def _read(self) -> None:
        """Reads new complete batches."""
        with open(self.path, "rb") as file:
            file.seek(self._end)
            batch, end = [], self._end
            for line in file:
                if not line.endswith(b"\n"):
                    break
                batch.append(json.loads(line))
                end += len(line)
                if not batch[-1].pop("more", 0):
                    self._logs += batch
                    batch, self._end = [], end

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Returns the entries of complete batches from that number on."""
        self._read()
        return [*self._logs, *(self._batch or [])][log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes entries, or collects them until the end of a `batch`. Raises OSError."""
        if self._batch is not None:
            self._batch += json.loads(json.dumps(logs))  # equal to what is read later
            return
        rows = [log | ({"more": more} if more else {})
                for more, log in zip(reversed(range(len(logs))), logs, strict=True)]  # fmt: skip
        lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        with file_lock(Path(f"{self.path}.lock"), wait=True), open(self.path, "rb+") as file:
            self._read()  # of other writers
            file.truncate(self._end)
            file.seek(self._end)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def batch(self):
        """Collects all entries, and writes them together at the end; none after an error."""
        self._batch = []
        try:
            yield
            logs = self._batch
        finally:
            self._batch = None
        if logs:
            self.append_logs(logs)


class Study:
    """The trials of a sweep, and Optuna's samplers, which suggest their parameters."""

    def __init__(self, storage: BaseStorage, name: str, direction: str):
        self._storage, self.direction = storage, direction
        self.saved: dict[str, Any] = {}  # the settings that it began with, once they were asked for
        backend = getattr(storage, "_backend", None)
        self._batch = backend.batch if isinstance(backend, Journal) else contextlib.nullcontext
        with self._batch():
            self._study = optuna.create_study(
                study_name=name, storage=storage, direction=direction, load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
            )  # fmt: skip
        directions = [way.name.lower() for way in self._study.directions]
        if directions != [direction]:
            raise InputError(
                f"--study {name}: the existing study is to {' and '.join(directions)} its "
                "objective: give the same --objective, or another --study NAME."
            )
        self._id = storage.get_study_id_from_name(name)
        self._safe, self._pending = len(self.finished_trials()), 0

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials in number order. A pruned one has its best report as value, where
        Optuna has the last one."""
        return _trials(self._study, self.direction)

    def finished_trials(self) -> list[FrozenTrial]:
        """Returns the trials that are finished."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def settings(self, new: Mapping[str, Any], first=()) -> dict[str, Any]:
        """Returns the settings that the study began with: `new`, if it is a new study, which then
        enqueues `first`, the parameters of its first trials."""
        self.saved = self._study.user_attrs.get("settings")
        if self.saved is None:
            self.saved = json.loads(json.dumps(new))
            with self.writing():
                for params in first:
                    self._study.enqueue_trial(params)
                self._study.set_user_attr("settings", self.saved)
        return self.saved

    def ask(
        self, sampler: BaseSampler, distributions: Mapping[str, BaseDistribution],
        suggestions: list[dict[str, Any] | None],
    ) -> list[FrozenTrial]:  # fmt: skip
        """Returns new trials, RUNNING, with these parameters; for None the sampler suggests."""
        self._study.sampler, asked = sampler, []
        with self.writing():
            for params in suggestions:
                if params is not None:
                    self._study.enqueue_trial(params)
                asked.append(self._study.ask(dict(distributions)).number)
        trials = self._study.get_trials(deepcopy=False)
        return [trials[number] for number in asked]

    def complete_running(
        self, sampler: BaseSampler, distributions: Mapping[str, BaseDistribution]
    ) -> None:
        """Suggests the parameters that trials which are RUNNING lack after a kill."""
        self._study.sampler = sampler
        with self.writing():
            for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if trial.params.keys() == distributions.keys():
                    continue
                resumed = optuna.trial.Trial(self._study, self._trial_id(trial.number))
                for name, d in distributions.items():
                    if hasattr(d, "choices"):
                        resumed.suggest_categorical(name, d.choices)
                    else:
                        resumed.suggest_float(name, d.low, d.high, log=d.log)

    @contextlib.contextmanager
    def writing(self):
        """Writes all records of a block together. Raises RunError where that fails, as on a full
        disk."""
        self._pending = 0
        try:
            with self._batch():
                yield
            self._safe += self._pending
        except (OSError, sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            raise RunError(
                f"could not write the study: {reason_of(error)}; the {self._safe} recorded trials "
                "are safe, and the same command continues from there."
            ) from error

    def report(self, number: int, values: Mapping[int, float]) -> None:
        """Records values of a trial by epoch, from 1."""
        for epoch, value in values.items():
            self._storage.set_trial_intermediate_value(self._trial_id(number), epoch, value)

    def tell(
        self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]
    ) -> None:
        """Records the end of a trial. value: of a complete one, else None; attrs: JSON values."""
        for name, attr in attrs.items():
            attr = json.loads(json.dumps(attr))
            self._storage.set_trial_user_attr(self._trial_id(number), name, attr)
        self._study.tell(number, value, state=state)
        self._pending += 1

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def score(trial: FrozenTrial, direction: str) -> float | None:
    """Returns the value of a finished trial, the best report of a pruned one, or None."""
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return (min if direction == "minimize" else max)(trial.intermediate_values.values())
    return trial.value if trial.state.is_finished() else None


def _trials(study: optuna.Study, direction: str) -> list[FrozenTrial]:
    """Returns all trials in number order, with `score` as the value of the pruned ones."""
    trials = list(study.get_trials(deepcopy=False))
    for i, trial in enumerate(trials):
        if trial.state == TrialState.PRUNED:
            trials[i] = copy.copy(trial)
            trials[i].value = score(trial, direction)
    return trials


@contextlib.contextmanager
def open_study(folder: Path | None, url: str | None, name: str, direction: str):
    """Yields the Study of a sweep's folder, and locks the folder meanwhile.

    The study is in a journal file there, in any storage that Optuna opens, or without a folder in
    memory. Raises InputError where the storage cannot be used.
    """
    with contextlib.ExitStack() as stack:
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"--run-dir {folder} cannot be made: {error.strerror}.") from error
            if not stack.enter_context(file_lock(folder / ".lock")):
                raise InputError(
                    f"{folder} is in use by another sweep: wait for it, or use another --study."
                )
        with _storage_errors(url):
            storage = _open_storage(folder, url)
            if engine := getattr(storage, "engine", None):
                stack.callback(engine.dispose)
            study = Study(storage, name, direction)
        yield study


def _open_storage(folder: Path | None, url: str | None) -> BaseStorage:
    if url:
        if "://" not in url:
            raise InputError(
                f"--storage {url}: use an address that Optuna opens, such as sqlite:///{url}."
            )
        if url.startswith("redis"):
            return JournalStorage(JournalRedisBackend(url))
        # RDBStorage formats the address, whose password may have braces
        return RDBStorage(url.replace("{", "{{").replace("}", "}}"))
    if folder is None:
        return InMemoryStorage()
    if (folder / "study.db").exists() and not (folder / JOURNAL).exists():
        raise InputError(
            f"{folder / 'study.db'} is of an earlier version: continue it with --storage "
            f"sqlite:///{folder.absolute() / 'study.db'}, or give another --study NAME."
        )
    return JournalStorage(Journal(folder / JOURNAL))


def load_trials(
    folder: Path, storage: str | None = None
) -> tuple[dict[str, Any], list[FrozenTrial], str]:
    """Returns (the contents of config.json, the finished trials, minimize or maximize) of a sweep's
    folder. storage: its address, if it is outside the folder. Raises InputError for a folder that
    is not that of a sweep, or has no finished trial yet."""
    folder, saved = Path(folder), load_config(folder)
    config = saved["config"]
    if "study" not in config:
        raise InputError(f"{folder} is the folder of a run, not of a sweep: it has its own report.")
    if "search" not in saved or not {"objective", "sampler", "storage"} <= config.keys():
        raise InputError(f"{folder}/config.json is damaged: a sweep writes other keys.")
    # config.json has the address without its password
    url = storage or os.environ.get("DLFLAX_STORAGE") or config["storage"] or ""
    name, path = config["study"], folder / JOURNAL
    if url.startswith("sqlite:///"):  # opening a missing database would create it
        path = Path(url.removeprefix("sqlite:///").partition("?")[0])
    if (not url or url.startswith("sqlite:///")) and not path.exists():
        raise InputError(f"{path} is missing: give the sweep's --storage.")
    with _storage_errors(url):
        opened = _open_storage(folder, url)
        if name not in [summary.study_name for summary in opened.get_all_studies()]:
            raise InputError(f"{without_password(url or str(folder))} has no study {name}: give "
                             "its --storage.")  # fmt: skip
        study = optuna.load_study(study_name=name, storage=opened)
        direction = study.direction.name.lower()
        trials = [trial for trial in _trials(study, direction) if trial.state.is_finished()]
    if not trials:
        raise InputError(f"the study {name} has no trial yet: wait for its first population.")
    return saved, trials, direction


@contextlib.contextmanager
def _storage_errors(url: str | None):
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
    # RuntimeError: tables of another version of Optuna; ValueError, KeyError: a damaged journal
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, RuntimeError, OSError,
            ValueError, KeyError) as error:  # fmt: skip
        reason = reason_of(error)
        if isinstance(error, ValueError | KeyError):
            reason = f"it is damaged or not a journal ({reason})"
        raise InputError(f"--storage {shown} cannot be used: {reason}.") from error


def without_password(url: str) -> str:
    """Returns the address with *** for its password."""
    return re.sub(r"(://[^:/]*):.*@", r"\1:***@", re.sub(r"password=[^&]*", "password=***", url))


def reason_of(error: BaseException) -> str:
    """Returns the first line of the database driver's own message."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
