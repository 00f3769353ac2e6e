"""The contract of a launcher: calls that workers compute, and arrays that they share."""

import abc
import contextlib
import functools
import os
import pickle
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np

from dlflax.errors import RunError
from dlflax.train.layout import use_all_cores


class WorkerLost(Exception):
    """A worker ended before it returned its result. The message is one short reason."""


@functools.cache
def load_file(path: Path) -> Any:
    """Returns arrays in a file, which all processes of a host map into the same memory."""
    import joblib  # only where there are workers

    return jax.tree.map(np.asarray, joblib.load(path, mmap_mode="r"))


class Launcher(abc.ABC):
    """Workers that compute calls. A context manager, which ends all workers on exit. width: number
    of workers."""

    patience: ClassVar[float] = 1800.0  # seconds until the first sign of life of a call

    def __init__(self, width: int, folder: Path):
        self.width, self.folder = width, folder / "workers"
        self._shared: list[Path] = []

    @abc.abstractmethod
    def submit(self, function, /, *args) -> Future:
        """Returns the future result of function(*args), of a module's top level. It raises what the
        function raises, and WorkerLost when its worker ended before."""

    @abc.abstractmethod
    def end(self, future: Future) -> None:
        """Ends the worker that computes this call: the future raises WorkerLost. Never waits for
        the worker, which may be silent."""

    def share(self, arrays: Any) -> Callable[[], Any]:
        """Returns a small function for arguments of calls, which returns the arrays (nested dicts),
        read-only; within a process always the same object."""
        import joblib

        path = self.folder / f"data-{os.getpid()}-{len(self._shared)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shared.append(path)
        joblib.dump(jax.tree.map(np.asarray, arrays), path)
        return functools.partial(load_file, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        try:
            self.close()
        finally:
            for path in self._shared:
                path.unlink(missing_ok=True)

    @abc.abstractmethod
    def close(self) -> None:
        """Ends all workers at once; calls that are not done raise WorkerLost."""


class Inline(Launcher):
    """Computes every call at once, in this process."""

    def submit(self, function, /, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def end(self, future):
        pass  # no call outlives `submit`

    def share(self, arrays):
        return lambda: arrays

    def close(self):
        pass


class ClusterLauncher(Launcher):
    """A call is a task of a cluster, which starts it when there is room."""

    def __init__(self, width: int, folder: Path):
        super().__init__(width, folder)
        self._lock = threading.Lock()
        self._tasks: dict[Future, Any] = {}

    @abc.abstractmethod
    def _cancel(self, tasks: list) -> None:
        """Ends tasks at once."""

    def end(self, future):
        with self._lock:
            task = self._tasks.pop(future, None)
        settle(future, error=WorkerLost("ended"))
        if task is not None:
            threading.Thread(target=self._cancel, args=([task],), daemon=True).start()

    def close(self):
        with self._lock:
            tasks, self._tasks = self._tasks, {}
        for future in tasks:
            settle(future, error=WorkerLost("the launcher was closed"))
        if tasks:
            self._cancel(list(tasks.values()))


def outcome(function, args) -> tuple[Any, Exception | None]:
    """Returns (result, None) or (None, error) of a call. An error has the worker's traceback as a
    note, and can be pickled."""
    try:
        return function(*args), None
    except Exception as error:
        error.add_note(f"In a worker:\n{traceback.format_exc()}")
        error.__traceback__ = error.__cause__ = error.__context__ = None
        try:
            pickle.loads(pickle.dumps(error))
            return None, error
        except Exception:  # a class of a library, whose arguments are not those of its instance
            return None, RunError(f"{type(error).__name__}: {error}")


def load_and_call(message: bytes) -> Any:
    """Returns the result of a pickled (function, args)."""
    function, args = pickle.loads(message)
    return function(*args)


def settle(future: Future, result=None, error: Exception | None = None) -> None:
    """Sets the outcome of a future, unless it has one: `end` may come at the same time."""
    with contextlib.suppress(Exception):  # InvalidStateError, also for one that was cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def shared_config(platform: str) -> dict[str, Any]:
    """Returns the part of this process's jax.config that its workers share."""
    config = {"jax_platforms": "cpu"} if platform == "cpu" else {}
    if folder := jax.config.jax_compilation_cache_dir:
        config["jax_compilation_cache_dir"] = folder
        config["jax_persistent_cache_min_compile_time_secs"] = 0.0
    return config


def configure_jax(config: dict[str, Any], cores: int | None = None) -> None:
    """Prepares a worker's JAX before its first computation: jax.config, and one virtual CPU device
    a core. cores: of the worker, where the operating system does not bind it to some."""
    for name, value in config.items():
        jax.config.update(name, value)
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    flags, name = os.environ.get("XLA_FLAGS", ""), "xla_force_host_platform_device_count"
    if cores and name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={cores}".strip()
    use_all_cores()
