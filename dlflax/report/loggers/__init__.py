"""Loggers of a run: a file each, imported here."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dlflax import parallel
from dlflax.errors import InputError
from dlflax.report.loggers.logger import Logger
from dlflax.report.loggers.mlflow import MLflow
from dlflax.report.loggers.tensorboard import TensorBoard
from dlflax.report.loggers.wandb import Wandb

KINDS = {kind.__name__.lower(): kind for kind in Logger.__subclasses__() if kind is not TensorBoard}
"""Loggers of --logger by name."""
Log: Any = Literal["none", *KINDS]

__all__ = ["Log", "Logger", "Loggers", "MLflow", "TensorBoard", "Wandb", "start"]


class Loggers:
    """Several loggers as one. A logger that fails is dropped with one warning, and stops no run.
    starts: name -> function that starts a logger. Raises ModuleNotFoundError."""

    def __init__(
        self, starts: Mapping[str, Callable[[], Logger]], log: Callable[[str], None] = print
    ):
        self._log, self._loggers = log, {}
        for name, start in starts.items():
            try:
                self._loggers[name] = start()
            except ModuleNotFoundError:
                self.close()
                raise
            except Exception as error:  # of networks, disks and packages
                log(f"warning: nothing is sent to {name} ({error}).")

    def _call(self, method: Callable, *args: Any) -> None:
        for name, logger in tuple(self._loggers.items()):
            try:
                getattr(logger, method.__name__)(*args)
            except Exception as error:  # as above
                del self._loggers[name]
                self._log(f"warning: nothing more is sent to {name} ({error}).")
                with contextlib.suppress(Exception):
                    logger.close()

    def scalars(self, row: dict[str, Any], step: int) -> None:
        """Calls `Logger.scalars` of each."""
        self._call(Logger.scalars, row, step)

    def figure(self, name: str, path: Path, step: int) -> None:
        """Calls `Logger.figure` of each."""
        self._call(Logger.figure, name, path, step)

    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        """Calls `Logger.hparams` of each."""
        self._call(Logger.hparams, hparams, metrics)

    def close(self) -> None:
        """Calls `Logger.close` of each."""
        self._call(Logger.close)


def start(log_to: str, experiment: str, folder: Path, last_step: int | None, log) -> Loggers:
    """Starts TensorBoard and the logger of --logger, on the first host only. Raises InputError if
    the package of the logger is not installed."""
    if not parallel.is_main():
        return Loggers({}, log)
    kinds = [TensorBoard, *([KINDS[log_to]] if log_to != "none" else [])]
    run = experiment, folder, last_step
    try:
        return Loggers({kind.__name__: functools.partial(kind, *run) for kind in kinds}, log)
    except ModuleNotFoundError as error:
        if error.name != log_to:
            raise
        raise InputError(
            f"--logger {log_to} needs its package: pip install 'dlflax[{log_to}]'."
        ) from error
