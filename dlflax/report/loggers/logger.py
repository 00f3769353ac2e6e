"""The contract of a logger: another place for a run's scores and figures, by --log."""

import abc
import contextlib
from collections.abc import Callable, Mapping
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


class Loggers:
    """Several loggers as one, none of which stops a run: what fails is one warning, and the last
    call of that logger. starts: name -> function that starts one. Raises ModuleNotFoundError."""

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
            except Exception as error:  # the network's, the disk's, and theirs
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

    def picture(self, name: str, path: Path, step: int) -> None:
        """Calls `Logger.picture` of each."""
        self._call(Logger.picture, name, path, step)

    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        """Calls `Logger.hparams` of each."""
        self._call(Logger.hparams, hparams, metrics)

    def close(self) -> None:
        """Calls `Logger.close` of each."""
        self._call(Logger.close)
