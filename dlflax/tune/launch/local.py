"""Workers that are processes of this machine, each with cores or an accelerator of its own."""

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from dlflax.errors import InputError, RunError
from dlflax.tune.launch.launcher import (
    Launcher,
    WorkerLost,
    configure_jax,
    load_and_call,
    outcome,
    settle,
    shared_config,
)


class Place(NamedTuple):
    """The cores or the accelerator of a worker."""

    env: dict[str, str]
    cores: tuple[int, ...] = ()  # it is bound to these, if the system can bind
    devices: int | None = None  # virtual CPU devices, if there are no `cores`


def places(platform: str, workers: int, devices: int) -> list[Place]:
    """Returns the places of all workers. Raises InputError for more workers than devices."""
    if platform == "cpu":
        bindable = hasattr(os, "sched_getaffinity")
        cores = sorted(os.sched_getaffinity(0)) if bindable else list(range(devices))
        share = len(cores) // workers
        if not share:
            raise InputError(
                f"--workers {workers}: this machine has {len(cores)} cores: use {len(cores)} or "
                "fewer."
            )
        parts = [tuple(cores[k * share : (k + 1) * share]) for k in range(workers)]
        return [Place({}, part) if bindable else Place({}, (), share) for part in parts]
    if workers > devices:
        raise InputError(
            f"--workers {workers}: this machine has {devices} {platform.upper()} devices, and "
            f"every worker needs one: use {devices} or fewer."
        )
    name = "TPU_VISIBLE_CHIPS" if platform == "tpu" else "CUDA_VISIBLE_DEVICES"
    visible = os.environ.get(name)
    numbers = visible.split(",") if visible else [str(k) for k in range(devices)]
    bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    extra = bounds if platform == "tpu" else {}
    return [Place({name: number, **extra}) for number in numbers[:workers]]


class Local(Launcher):
    """A process a worker; another one replaces it when it ends."""

    def __init__(self, workers: int, folder: Path, platform: str, devices: int):
        super().__init__(workers, folder)
        self._config = shared_config(platform)
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._processes: dict[Future, BaseProcess] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(place,), daemon=True)
            for place in places(platform, workers, devices)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function, /, *args):
        future = Future()
        self._calls.put((future, function, args))
        return future

    def end(self, future):
        with self._lock:
            if future in self._processes:
                self._processes[future].kill()  # its thread settles the future
            else:
                settle(future, error=WorkerLost("ended before it began"))

    def close(self):
        with self._lock:
            self._closed = True
            for process in self._processes.values():
                process.kill()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, place: Place) -> None:
        """Runs calls in one worker after the other, in a thread: the processes that it starts
        inherit its cores and blocked signals."""
        if place.cores:
            os.sched_setaffinity(0, place.cores)
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # which would unblock it
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        pool, process, ready = None, None, Future()
        while (call := self._calls.get()) is not None:
            future, function, args = call
            with self._lock:
                if self._closed:
                    settle(future, error=WorkerLost("the launcher was closed"))
                if future.done():
                    continue
                if pool is None or not process.is_alive():
                    spawn = multiprocessing.get_context("spawn")
                    pool = ProcessPoolExecutor(1, spawn, _begin, (place, self._config))
                    try:
                        ready = pool.submit(os.getpid)
                    except OSError as error:  # no memory, or too many processes
                        pool = None
                        settle(future, error=RunError(f"a worker does not start: {error}."))
                        continue
                    (process,) = pool._processes.values()
                self._processes[future] = process
            result = error = None
            try:
                message = pickle.dumps((function, args))
                result, error = pool.submit(outcome, load_and_call, (message,)).result()
            except BrokenProcessPool:
                pool.shutdown()  # after which the process has its exit code
                pool, error = None, _reason(process.exitcode, ready)
            except Exception as raised:  # such as a PicklingError
                error = raised
            with self._lock:
                del self._processes[future]
            settle(future, result, error)
        if pool is not None:
            process.kill()
            pool.shutdown()


def _reason(code: int, ready: Future) -> Exception:
    """Returns the error of a call whose process has ended. ready: the first result of it."""
    if code < 0:
        return WorkerLost(f"killed by signal {-code}")
    if not ready.exception():
        return WorkerLost(f"ended with code {code}")
    return RunError(
        f"a worker ended with exit code {code} before its first call: see above; a script that "
        "starts workers does so below `if __name__ == '__main__':`."
    )


def _begin(place: Place, config: dict[str, Any]) -> None:
    """Prepares a worker, which ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if sys.platform == "linux":  # at once, even where this process is stopped
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.environ.update(place.env)
    configure_jax(config, place.devices)


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
