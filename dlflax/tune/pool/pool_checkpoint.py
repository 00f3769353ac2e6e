"""The trials in training on disk: a kill costs no more than an epoch of them."""

import math
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlflax.errors import RunError
from dlflax.train import checkpoint_files

SHARE = 0.05  # of a sweep's time that its checkpoints may take
FIRST = 1.0  # seconds: the assumed cost of the first one


class PoolCheckpoint:
    """The folder `population/` of a sweep: its trials, with the States of those that are not over.

    It is written after an epoch, as often as SHARE allows: a kill loses one epoch, or 20 times the
    cost of a checkpoint. A failure is one warning: after a kill the trials are then trained from
    their beginning. study: a digest, as a checkpoint of an earlier study is not read.
    """

    def __init__(self, folder: Path, study: str = "", log: Callable[[str], None] = print):
        self.folder, self._log = Path(folder).absolute() / "population", log
        self._study, self._next = study, time.monotonic() + FIRST / SHARE

    def remaining_seconds(self) -> float:
        """Returns the time until the next one; inf once one has failed."""
        return self._next - time.monotonic()

    def save(self, trials: Iterable, orders: Iterable) -> None:
        """Writes the trials of a pool, and its unfinished orders."""
        clock, trials = time.monotonic(), list(trials)
        tree = {str(t.number): t.arrays for t in trials if t.arrays} or {"none": np.zeros(1)}
        notes = {
            "study": self._study,
            "orders": [[order.numbers(), order.width] for order in orders],
            "trials": [
                {
                    "number": t.number, "params": t.params, "goal": t.goal, "values": t.values,
                    "value": t.value, "is_over": t.is_over, "is_failed": t.is_failed,
                    "records": None if t.is_over else t.records, "seconds": t.seconds,
                    "shapes": [[list(leaf.shape), leaf.dtype.name] for leaf in t.arrays],
                }
                for t in trials
            ],
        }  # fmt: skip
        step = max(checkpoint_files.steps(self.folder), default=0) + 1
        try:
            checkpoint_files.write(self.folder, step, tree, notes)
            for other in self.folder.iterdir():
                if other.name != str(step):
                    shutil.rmtree(other, ignore_errors=True)
        except Exception as error:  # tensorstore wraps a full disk in ValueError
            self._next = math.inf
            self._log(
                f"warning: no checkpoint of the population in training "
                f"({checkpoint_files.reason(error)}): a kill loses it; recorded trials are safe"
            )
            return
        end = time.monotonic()
        self._next = end + (end - clock) / SHARE

    def load(self) -> tuple[dict[int, dict[str, Any]], list[tuple[list[int], int]]]:
        """Returns (number -> the fields of a trial, (numbers, width) of each order). Both are empty
        without a checkpoint of this study, and for a damaged one, which is logged."""
        for step in checkpoint_files.steps(self.folder)[-1:]:
            try:
                notes = checkpoint_files.read_notes(self.folder, step)
                if notes.get("study") != self._study or "orders" not in notes:
                    break
                trials = {trial["number"]: trial for trial in notes["trials"]}
                abstract = {
                    str(number): [jax.ShapeDtypeStruct(tuple(s), dtype) for s, dtype in leaves]
                    for number, trial in trials.items() if (leaves := trial.pop("shapes"))
                }  # fmt: skip
                abstract = abstract or {"none": jax.ShapeDtypeStruct((1,), np.float64)}
                tree = checkpoint_files.read(self.folder, step, abstract)[0]
            except RunError as error:
                self._log(str(error))
                break
            for number, trial in trials.items():
                trial["arrays"] = [np.asarray(leaf) for leaf in tree.get(str(number), [])]
            return trials, [(list(numbers), int(width)) for numbers, width in notes["orders"]]
        return {}, []

    def clear(self) -> None:
        """Deletes it: the sweep is over."""
        shutil.rmtree(self.folder, ignore_errors=True)
