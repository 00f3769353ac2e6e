"""Orders: trials that one worker trains together, and the workers that train them."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dlflax.tune.launch import Launcher, WorkerLost
from dlflax.tune.launch.launcher import Inline
from dlflax.tune.pool.training import Job, Trial, pack, release_data, train_order

SILENCE = 30.0  # seconds without a sign of life after which a worker is ended
LEAST = 20.0  # seconds that another process trains at least, before it returns States


@dataclasses.dataclass
class Order:
    """Trials that one worker trains together, until each is at its goal."""

    trials: list[Trial]
    width: int  # trials that the programs are compiled for
    future: concurrent.futures.Future | None = None
    began: float = 0.0
    beat: Path | None = None  # a file that the worker touches as a sign of life
    last_beat: tuple[float, float] = (0.0, 0.0)  # its time, and when that was seen to change

    def numbers(self) -> list[int]:
        """Returns the numbers of its trials."""
        return [trial.number for trial in self.trials]

    def is_done(self) -> bool:
        """True if all its trials are at their goals."""
        return all(trial.is_at_goal() for trial in self.trials)


class Workers:
    """The workers of a launcher, which train the orders of a job. A context manager.

    arrays: {"train": ..., "val": ..., "pretrained": ...}, shared with every worker; folder: that of
    the sweep.
    """

    def __init__(
        self, launcher: Launcher, job: Job, arrays: Mapping[str, Any], folder: Path,
        log: Callable[[str], None] = print,
    ):  # fmt: skip
        self._launcher, self._arrays, self._log = launcher, arrays, log
        self._is_inline, self._longest = isinstance(launcher, Inline), 0.0
        self._job, self._folder = job if self._is_inline else pack(job), Path(folder) / "workers"

    def __enter__(self):
        self._launcher.__enter__()
        self._data = self._launcher.share(self._arrays)
        if not self._is_inline:
            self._folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *error):
        if self._is_inline:
            release_data()
        return self._launcher.__exit__(*error)

    def has_room(self, orders: Iterable[Order]) -> bool:
        """True if a worker is idle."""
        return sum(order.future is not None for order in orders) < self._launcher.width

    def submit(
        self, order: Order, seconds: float, threshold: float, on_epoch: Callable[[int], None]
    ) -> None:
        """Submits an order to a worker; the arguments are those of `training.train_order`."""
        if not self._is_inline:
            order.beat, on_epoch = self._folder / f"beat-{order.numbers()[0]}", None
            order.beat.unlink(missing_ok=True)  # of a worker before
            seconds = max(LEAST, seconds)
        order.began, order.last_beat = time.monotonic(), (0.0, 0.0)
        order.future = self._launcher.submit(
            train_order, self._job, self._data,
            [dataclasses.replace(trial) for trial in order.trials if not trial.is_failed],
            order.width, seconds, threshold, order.beat, on_epoch,
        )  # fmt: skip

    def collect(
        self, orders: Iterable[Order]
    ) -> list[tuple[Order, tuple[list[Trial], int] | WorkerLost]]:
        """Waits a second at most. Returns each order whose worker has ended, with its results or
        the reason of its loss. Raises what training raises."""
        waiting, results = [order for order in orders if order.future], []
        futures = [order.future for order in waiting]
        concurrent.futures.wait(futures, 1.0, concurrent.futures.FIRST_COMPLETED)
        for order in waiting:
            if not order.future.done():
                self._end_if_silent(order)
                continue
            future, order.future = order.future, None
            try:
                results.append((order, future.result()))
                self._longest = max(self._longest, time.monotonic() - order.began)
            except WorkerLost as error:
                results.append((order, error))
        return results

    def _end_if_silent(self, order: Order) -> None:
        now, limit = time.monotonic(), SILENCE
        try:
            beat = order.beat.stat().st_mtime
        except OSError:  # no sign yet, or on a disk of its own
            beat, limit = 0.0, max(self._launcher.patience, 10 * self._longest)
            order.last_beat = order.last_beat if order.last_beat[1] else (beat, now)
        if beat != order.last_beat[0]:
            order.last_beat = beat, now
        elif now - order.last_beat[1] > limit:
            self._log(f"a worker has shown no sign of life for {limit:,.0f} s: it is ended")
            self._launcher.end(order.future)
            order.last_beat = beat, now
