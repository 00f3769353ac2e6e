"""Logger: base class of the loggers of --logger."""

import abc
from pathlib import Path
from typing import Any


class Logger(abc.ABC):
    """Logger of the scores and figures of one run, whose methods may raise anything.

    A resumed run starts a logger again in the same folder. `__init__` imports its package.
    """

    @abc.abstractmethod
    def __init__(self, experiment: str, folder: Path, last_step: int | None):
        """Starts or continues the record of a run. folder: the run folder, for an id to continue
        with; last_step: of the last row before a resume, which is logged again."""

    @abc.abstractmethod
    def scalars(self, row: dict[str, Any], step: int) -> None:
        """Logs a row of numbers at a step; None is missing."""

    @abc.abstractmethod
    def figure(self, name: str, path: Path, step: int) -> None:
        """Logs a figure, a PNG file, at a step."""

    @abc.abstractmethod
    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        """Logs the hparams and results of the run."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the record."""
