"""Workers that are SLURM jobs, one a call, by submitit."""

import math
import pickle
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dlflax.errors import InputError, RunError
from dlflax.tune.launch.launcher import (
    ClusterLauncher,
    WorkerLost,
    configure_jax,
    load_and_call,
    outcome,
    settle,
    shared_config,
)

POLL = 1.0  # seconds between two queries of all jobs
GRACE = 5.0  # seconds that a result may appear after the end of its job, as on NFS
GOING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING",
         "STAGE_OUT", "RESIZING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD",
         "SPECIAL_EXIT"}  # fmt: skip
GONE = "a state that SLURM has forgotten"


class Slurm(ClusterLauncher):
    """A job a call."""

    patience = math.inf  # a job may be in the queue for days, and SLURM detects a dead node

    def __init__(
        self, workers: int, folder: Path, options: Mapping[str, str], log: Callable[[str], None]
    ):
        super().__init__(workers, folder)
        try:
            import submitit
        except ImportError:
            raise InputError(
                "--launcher slurm needs the package submitit: pip install 'dlflax[slurm]'."
            ) from None
        self._executor = self._make_executor(submitit, self.folder / "slurm", options)
        log(f"SLURM jobs write to {self.folder / 'slurm'}")
        self._config = shared_config("any")
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._wake, self._accepted, self._closed = threading.Event(), False, False
        self._ends: dict[str, float] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _make_executor(self, submitit, folder: Path, options: Mapping[str, str]):
        for name in ("sbatch", "srun", "squeue"):
            if not shutil.which(name):
                raise InputError(
                    f"--launcher slurm: there is no {name} here: start the sweep on a host that "
                    "submits jobs."
                )
        executor = submitit.SlurmExecutor(folder)
        flags = {"no-requeue": True, **{k.replace("_", "-"): v for k, v in options.items()}}
        cores = flags.get("cpus-per-task")  # which srun does not take from sbatch
        executor.update_parameters(
            job_name="dlflax", signal_delay_s=5, additional_parameters=flags,
            time=None,  # that of the partition
            srun_args=[f"--cpus-per-task={cores}"] if cores else [],
        )  # fmt: skip
        return executor

    def submit(self, function, /, *args):
        import cloudpickle

        future = Future()
        self._calls.put((future, cloudpickle.dumps((function, args))))
        self._wake.set()
        return future

    def close(self):
        self._closed = True
        self._wake.set()
        self._thread.join()
        super().close()
        while not self._calls.empty():
            settle(self._calls.get()[0], error=WorkerLost("the launcher was closed"))

    def _cancel(self, jobs):
        """Kills jobs, as submitit ignores SIGTERM, for which SLURM would wait."""
        numbers = [job.job_id for job in jobs]
        for flags in (["--full", "--signal=KILL"], []):  # the second: jobs that have not begun
            subprocess.run(["scancel", *flags, *numbers], check=False, capture_output=True)

    def _watch(self) -> None:
        """Starts and settles calls, in the one thread that calls SLURM: it may be slow."""
        while not self._closed:
            while not self._calls.empty() and not self._closed:
                self._start(*self._calls.get())
            with self._lock:
                jobs = dict(self._tasks)
            states = self._states(list(jobs.values())) if jobs else {}
            for future, job in jobs.items():
                if self._settle(future, job, states.get(job.job_id)):
                    with self._lock:
                        self._tasks.pop(future, None)
            self._wake.wait(POLL)
            self._wake.clear()

    def _start(self, future: Future, message: bytes) -> None:
        try:
            job = self._executor.submit(_compute, list(sys.path), self._config, message)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            first = InputError(f"--launcher slurm: the job was refused ({reason}).")
            settle(future, error=WorkerLost(reason) if self._accepted else first)
            return
        self._accepted = True
        with self._lock:
            self._tasks[future] = job
        if future.done():  # it was ended meanwhile
            self.end(future)

    def _states(self, jobs) -> dict[str, str]:
        """Returns the states of the jobs that have ended, by squeue: it needs no accounting."""
        numbers = [job.job_id for job in jobs]
        command = ["squeue", "-h", "-t", "all", "-o", "%i|%T|%N", "-j", ",".join(numbers)]
        answer = subprocess.run(command, check=False, capture_output=True, text=True)
        if answer.returncode and "Invalid job id" not in answer.stderr:
            return {}  # the controller does not answer: the next query may succeed
        rows = [line.split("|") for line in answer.stdout.splitlines()]
        states = {row[0]: f"{row[1]} on {row[2] or 'no node'}" for row in rows}
        states = {number: states.get(number, GONE) for number in numbers}
        return {n: state for n, state in states.items() if state.split()[0] not in GOING}

    def _settle(self, future: Future, job, state: str | None) -> bool:
        """True if the call has ended, with or without a written outcome."""
        if job.paths.result_pickle.exists():
            try:
                verdict, result = pickle.loads(job.paths.result_pickle.read_bytes())
            except Exception as error:
                verdict, result = "error", f"the result cannot be read: {error}"
            if verdict == "success":
                settle(future, *result)
            else:
                settle(future, error=RunError(result))
            return True
        if state is None:
            return False
        ended = self._ends.setdefault(job.job_id, time.monotonic())
        if time.monotonic() < ended + GRACE:
            return False
        settle(future, error=WorkerLost(f"job {job.job_id} ended: {state}"))
        return True


def _compute(path: list[str], config: dict[str, Any], message: bytes):
    """Returns the outcome of a call, in its job."""
    sys.path += [folder for folder in path if folder not in sys.path]
    configure_jax(config)
    return outcome(load_and_call, (message,))
