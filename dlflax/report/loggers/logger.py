"""The contract of a logger: another place for a run's scores and figures, by --log."""

import abc
from pathlib import Path
from typing import Any


class Logger(abc.ABC):
    """A logger of one run; a method may raise anything, as `Loggers` stops no run.

    A resumed run starts it again, in the same folder. Its package is imported in `__init__`.
    """

    @abc.abstractmethod
    def __init__(self, experiment: str, folder: Path, last_step: int | None):
        """Starts, or continues, the run's record. folder: the run folder, for an id to continue
        by; last_step: that of the last row before a resume, which is logged again."""

    @abc.abstractmethod
    def scalars(self, row: dict[str, Any], step: int) -> None:
        """Logs a row of numbers, of which None is none, at a step."""

    @abc.abstractmethod
    def picture(self, name: str, path: Path, step: int) -> None:
        """Logs a figure, a PNG file, at a step."""

    @abc.abstractmethod
    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        """Logs the run's hparams, and its results."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the record."""
