"""Loggers besides TensorBoard's files. Each is one file here and one line of imports."""

import functools
from pathlib import Path
from typing import Any, Literal

from dlflax.errors import InputError
from dlflax.report.loggers.logger import Logger, Loggers
from dlflax.report.loggers.mlflow import MLflow
from dlflax.report.loggers.tensorboard import TensorBoard
from dlflax.report.loggers.wandb import Wandb

KINDS = {kind.__name__.lower(): kind for kind in Logger.__subclasses__() if kind is not TensorBoard}
"""The loggers of --log by their names."""
Log: Any = Literal["none", *KINDS]

__all__ = ["Log", "Logger", "Loggers", "MLflow", "TensorBoard", "Wandb", "start"]


def start(log_to: str, experiment: str, folder: Path, last_step: int | None, log) -> Loggers:
    """Starts TensorBoard's files and the logger of --log. Raises InputError where the package of
    that one is not installed."""
    kinds = [TensorBoard, *([KINDS[log_to]] if log_to != "none" else [])]
    run = experiment, folder, last_step
    try:
        return Loggers({kind.__name__: functools.partial(kind, *run) for kind in kinds}, log)
    except ModuleNotFoundError as error:
        if error.name != log_to:
            raise
        raise InputError(
            f"--log {log_to} needs its package: pip install 'dlflax[{log_to}]'."
        ) from error
