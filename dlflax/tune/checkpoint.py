"""Where a batch of trials in training stands, on disk: a kill costs no more than an epoch of it."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dlflax.errors import RunError
from dlflax.train import checkpoint_files
from dlflax.train.population import Population
from dlflax.tune.trial import Outcome, Trial

SHARE = 0.05  # of a sweep's time that its checkpoints may take
FIRST = 1.0  # seconds that the first one is taken to cost


class BatchCheckpoint:
    """The folder `population/` of a sweep, with the last checkpoint of the batch in training.

    It is written after an epoch, as often as SHARE allows: an epoch that takes 20 times what a
    checkpoint costs has one; of shorter epochs a kill loses about 20 times that cost. What fails
    is one warning: the batch is then trained from its beginning after a kill. study: what tells the
    study from another one that was in this folder.
    """

    def __init__(self, folder: Path, study: str = "", log: Callable[[str], None] = print):
        self.folder, self._log = Path(folder).absolute() / "population", log
        self._study = study
        self._next, self._failed = time.monotonic() + FIRST / SHARE, False

    def due(self) -> bool:
        """Whether it is time for another."""
        return not self._failed and time.monotonic() >= self._next

    def save(
        self,
        batch: list[Trial],
        outcomes: dict[int, Outcome],
        populations: list[Population],
        **notes: Any,
    ) -> None:
        """Writes where a batch stands. outcomes: place in the batch -> those that are trained;
        populations: those in training; notes: JSON values that `notes` gives back."""
        arrays, records = zip(*(each.saved() for each in populations), strict=True)
        notes |= {
            "batch": _key(batch),
            "outcomes": [[place, dataclasses.asdict(each)] for place, each in outcomes.items()],
            "populations": records,
        }
        self.write(_numbered(arrays), notes)

    def notes(self, batch: list[Trial]) -> dict[str, Any] | None:
        """The notes of the last checkpoint, with its outcomes; None where there is none of this
        batch, or it is damaged, which is said."""
        notes = self.newest()
        if notes is None or notes.get("batch") != _key(batch):
            return None
        outcomes = {place: outcome_of(each) for place, each in notes["outcomes"]}
        return {**notes, "outcomes": outcomes}

    def restore(self, notes: dict[str, Any], populations: list[Population]) -> bool:
        """Puts the populations where the checkpoint with these notes was; whether that went
        well."""
        records = notes["populations"]
        abstract = [each.abstract(of) for each, of in zip(populations, records, strict=True)]
        arrays = self.read(_numbered(abstract))
        if arrays is None:
            return False
        for i, (each, of) in enumerate(zip(populations, records, strict=True)):
            each.restore(arrays.get(str(i), {}), of)
        return True

    def write(self, tree, notes: dict[str, Any]) -> None:
        """Writes a tree of arrays, and JSON values."""
        clock = time.monotonic()
        step = max(checkpoint_files.steps(self.folder), default=0) + 1
        try:
            checkpoint_files.write(self.folder, step, tree, {**notes, "study": self._study})
            for other in self.folder.iterdir():
                if other.name != str(step):
                    shutil.rmtree(other, ignore_errors=True)
        except Exception as error:  # tensorstore wraps a full disk in ValueError
            self._failed = True
            self._log(
                f"warning: no checkpoint of the population in training "
                f"({checkpoint_files.reason(error)}): a kill loses it; what is recorded is safe"
            )
        ended = time.monotonic()
        self._next = ended + (ended - clock) / SHARE

    def newest(self) -> dict[str, Any] | None:
        """The notes of the last checkpoint; None where there is none of this study, or it is
        damaged, which is said."""
        for step in checkpoint_files.steps(self.folder)[-1:]:
            try:
                notes = checkpoint_files.read_notes(self.folder, step)
            except RunError as error:
                self._log(str(error))
                continue
            if notes.get("study") == self._study:
                return notes
        return None

    def read(self, abstract):
        """The tree of the last checkpoint, whose shapes these are; None where it cannot be read,
        which is said."""
        try:
            step = checkpoint_files.steps(self.folder)[-1]
            return checkpoint_files.read(self.folder, step, abstract)[0]
        except RunError as error:
            self._log(str(error))
            return None

    def clear(self) -> None:
        """Deletes it: the sweep is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _numbered(trees):
    """{"0": tree, ...} without empty ones, which Orbax does not take."""
    return {str(i): tree for i, tree in enumerate(trees) if jax.tree.leaves(tree)}


def _key(batch):
    """What decides how a batch comes out, of one study."""
    return json.loads(json.dumps([[trial.index, trial.params] for trial in batch]))


def outcome_of(saved: dict[str, Any]) -> Outcome:
    """An Outcome as the notes have it."""
    intermediate = {int(epoch): value for epoch, value in saved["intermediate"].items()}
    return Outcome(**{**saved, "intermediate": intermediate})
