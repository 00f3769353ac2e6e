"""Workers of a Ray cluster: a task a call."""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dlflax.errors import InputError, RunError
from dlflax.tune.launch.launcher import (
    ClusterLauncher,
    WorkerLost,
    configure_jax,
    outcome,
    settle,
    shared_config,
)


@functools.cache
def _get(reference):
    """Returns arrays in Ray's object store, which all processes of a host map into their memory."""
    import ray

    return ray.get(reference)


class RayLauncher(ClusterLauncher):
    """A task a call, on the cluster of an address or of this machine."""

    patience = 4 * 3600.0  # a cluster may have to grow first

    def __init__(
        self, workers: int, folder: Path, platform: str, devices: int, options: Mapping[str, str],
        log: Callable[[str], None],
    ):  # fmt: skip
        super().__init__(workers, folder)
        amounts = {"num_cpus": 1, **{"gpu": {"num_gpus": 1}, "tpu": {"TPU": 1}}.get(platform, {})}
        for name, word in options.items():
            if name not in ("address", "num_cpus", "num_gpus", "TPU"):
                raise InputError(
                    f"--launcher-options {name}: Ray has address, num_cpus, num_gpus and TPU."
                )
            if name != "address" and not (word.isdecimal() and int(word)):
                raise InputError(f"--launcher-options {name}={word} must be 1 or more.")
            amounts |= {} if name == "address" else {name: int(word)}
        cores, tpus = amounts["num_cpus"], amounts.pop("TPU", 0)
        is_cpu = not (tpus or "num_gpus" in amounts)
        address = options.get("address") or os.environ.get("RAY_ADDRESS")
        if not address and platform != "cpu" and workers > devices:
            raise InputError(
                f"--workers {workers}: this machine has {devices} {platform.upper()} devices, and "
                f"every worker needs one: use {devices} or fewer, or the address of a cluster."
            )
        self._ray, self._owner = _connect(address, workers * cores)
        self._task = self._ray.remote(_compute).options(
            **amounts, resources={"TPU": tpus} if tpus else {}, max_retries=0
        )
        if not address and is_cpu:  # Ray then divides this machine's cores among the workers
            cores = max(1, devices // workers)
        # the workers may have accelerators where this process has none
        self._config = shared_config("cpu" if is_cpu else "any"), cores
        cpus = self._ray.cluster_resources().get("CPU", 0)
        log(f"Ray has {cpus:g} CPUs for {workers} workers")

    def share(self, arrays):
        return functools.partial(_get, self._ray.put(arrays))

    def close(self):
        super().close()
        if self._owner:
            self._ray.shutdown()

    def _cancel(self, tasks):
        for task in tasks:
            with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.cancel(task, force=True)

    def submit(self, function, /, *args):
        future = Future()
        try:
            task = self._task.remote(*self._config, function, args)
        except Exception as error:  # such as a PicklingError
            settle(future, error=error)
            return future
        self._tasks[future] = task
        task.future().add_done_callback(functools.partial(self._finish, future))
        return future

    def _finish(self, future: Future, answer: Future) -> None:
        with self._lock:
            if self._tasks.pop(future, None) is None:
                return
        try:
            settle(future, *answer.result())
        except self._ray.exceptions.RayTaskError as error:
            settle(future, error=RunError(str(error)))
        except Exception as error:
            lines = str(error).splitlines() or [""]
            settle(future, error=WorkerLost(f"{type(error).__name__}: {lines[0][:200]}"))


def _connect(address: str | None, cores: int):
    """Returns (the module ray, connected to a cluster, and True if this call connected it). Raises
    InputError where it is not installed, or no cluster answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # ports of 127.0.0.1
    try:
        import ray
    except ImportError:
        raise InputError(
            "--launcher ray needs the package ray: pip install 'dlflax[ray]'."
        ) from None
    if ray.is_initialized():
        return ray, False
    quiet = {"log_to_driver": False, "logging_level": "error"}
    # Ray's processes start another program at once, so JAX's threads do no harm
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    if not address:
        ray.init(num_cpus=cores, include_dashboard=False, **quiet)
        return ray, True
    try:
        ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"--launcher ray: no cluster answers at {address} ({reason}).") from None
    return ray, True


def _compute(config: dict[str, Any], cores: int, function, args):
    """Returns the outcome of a call, in a worker."""
    configure_jax(config, cores)
    return outcome(function, args)
