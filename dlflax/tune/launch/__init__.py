"""Workers for the trials of a sweep: processes of this machine, SLURM jobs, or a Ray cluster."""

import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from dlflax.errors import InputError
from dlflax.tune.launch.launcher import Inline, Launcher, WorkerLost

__all__ = ["Engine", "Launcher", "WorkerLost", "open_launcher"]

Engine = Literal["local", "slurm", "ray"]


def open_launcher(
    name: Engine, workers: int, folder: Path, *, platform: str, devices: int,
    options: Mapping[str, str] = {}, log: Callable[[str], None] = print,
) -> Launcher:  # fmt: skip
    """Returns the launcher of this name. Raises InputError for workers that it cannot start.

    folder: that of the sweep, on a disk that all workers share; platform: JAX's, of this process;
    devices: accelerators of this host, or cores; options: of sbatch, or ray.init's address.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(
            "--workers: a worker imports the script that started it, which must start the sweep "
            "below `if __name__ == '__main__':`."
        )
    if name == "slurm":
        from dlflax.tune.launch.slurm import Slurm

        return Slurm(workers, folder, options, log)
    if name == "ray":
        from dlflax.tune.launch.ray import RayLauncher

        return RayLauncher(workers, folder, platform, devices, options, log)
    if workers == 1:
        return Inline(1, folder)
    from dlflax.tune.launch.local import Local

    return Local(workers, folder, platform, devices)
