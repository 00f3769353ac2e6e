"""The trials in training on disk: a kill costs no more than an epoch of them."""

import json
import math
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.files import atomic_write

SHARE = 0.05  # of a sweep's time that its checkpoints may take
FIRST = 1.0  # seconds: the assumed cost of the first one
UNSAVED = ("arrays", "models", "attrs", "failures")  # fields of a trial, the first in arrays


class PoolCheckpoint:
    """The file `population.npz` of a sweep: its trials, with the States of those that are not over.

    It is written after an epoch, as often as SHARE allows: a kill loses one epoch, or 20 times the
    cost of a checkpoint. A failure is one warning: after a kill the trials are then trained from
    their beginning.
    """

    def __init__(self, folder: Path, log: Callable[[str], None] = print):
        self.path, self._log = Path(folder) / "population.npz", log
        self._next = time.monotonic() + FIRST / SHARE

    def remaining_seconds(self) -> float:
        """Returns the time until the next one; inf once one has failed."""
        return self._next - time.monotonic()

    def save(self, trials: Iterable, orders: Iterable) -> None:
        """Writes the trials of a pool, and its unfinished orders."""
        clock, arrays, rows = time.monotonic(), {}, []
        for trial in trials:
            row = {name: value for name, value in vars(trial).items() if name not in UNSAVED}
            row["records"] = None if trial.is_over else trial.records
            rows.append({**row, "dtypes": [leaf.dtype.name for leaf in trial.arrays]})
            arrays |= {f"{trial.number}/{k}": leaf for k, leaf in enumerate(trial.arrays)}
        notes = {"trials": rows, "orders": [[order.numbers(), order.width] for order in orders]}
        try:
            with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, notes=json.dumps(notes), **arrays)
        except OSError as error:
            self._next = math.inf
            self._log(
                f"warning: no checkpoint of the population in training ({error.strerror}): a kill "
                "loses it; recorded trials are safe"
            )
            return
        end = time.monotonic()
        self._next = end + (end - clock) / SHARE

    def load(self) -> tuple[dict[int, dict[str, Any]], list[tuple[list[int], int]]]:
        """Returns (number -> the fields of a trial, (numbers, width) of each order). Both are empty
        without a checkpoint, and for a damaged one, which is logged."""
        try:
            with np.load(self.path) as file:  # which compares checksums
                notes, trials = json.loads(str(file["notes"])), {}
                for trial in notes["trials"]:
                    number, dtypes = trial["number"], trial.pop("dtypes")
                    # a file has no name for bfloat16
                    leaves = (file[f"{number}/{k}"].view(d) for k, d in enumerate(dtypes))
                    trials[number] = {**trial, "arrays": list(leaves)}
            return trials, [(list(numbers), int(width)) for numbers, width in notes["orders"]]
        except FileNotFoundError:
            pass
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            self._log(f"{self.path} is damaged and not used: {error}")
        return {}, []

    def clear(self) -> None:
        """Deletes it: the sweep is over, or another study begins."""
        self.path.unlink(missing_ok=True)
