"""The best trained models of a sweep on disk, for the best model and the ensemble."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from optuna.trial import FrozenTrial

from dlflax.files import atomic_write
from dlflax.report.sweep.trials import outcome
from dlflax.tune.pool.training import Outcome

MOST_TRIALS = 32
MOST_BYTES = 2 * 10**9


class Member(NamedTuple):
    """A trained model, as `training.Model`, with its history."""

    trial: int
    seed: int  # its index within the trial
    variables: dict
    outputs: np.ndarray
    history: list[dict[str, float]]  # one row an epoch


class Members:
    """The folder `members/` of a sweep: the models of its `most` best trials, up to MOST_BYTES.

    A trial is written before it is recorded, so that a kill leaves no record without its models.
    study: a digest, as files of an earlier study in the same folder do not count.
    """

    def __init__(
        self, folder: Path, direction: str, study: str = "", most: int = MOST_TRIALS,
        log: Callable[[str], None] = print,
    ):  # fmt: skip
        self.folder, self._study, self._most = Path(folder) / "members", study, most
        self._sign, self._log = 1 if direction == "minimize" else -1, log
        self._is_full = False

    def threshold(self) -> float:
        """Returns the number that a value, times the sign, must be below to be among the best."""
        if self._is_full:
            return -math.inf
        ranks = sorted(rank for rank, _ in self._files().values())
        return ranks[self._most - 1] if len(ranks) >= self._most else math.inf

    def add(self, outcome: Outcome) -> None:
        """Writes the models of a trial, if it has any, and deletes those that are no longer among
        the best. A full disk is one warning, after which no more are written."""
        if not (outcome.models and self._sign * outcome.value < self.threshold()):
            return
        try:
            self._write(outcome)
        except OSError as error:
            self._is_full = True
            self._log(f"warning: no ensemble, its models cannot be kept ({error.strerror})")

    def _write(self, outcome):
        self.folder.mkdir(exist_ok=True)
        flat = {}
        for seed, model in enumerate(outcome.models):
            tree = traverse_util.flatten_dict(model._asdict(), sep="/")
            flat |= {f"{seed}/{name}": np.ascontiguousarray(leaf) for name, leaf in tree.items()}
        notes = {
            "value": outcome.value, "study": self._study,
            "histories": [history for history, _ in outcome.records],
        }  # fmt: skip
        with atomic_write(self._path(outcome.number)) as temporary:
            temporary.write_bytes(safetensors.numpy.save(flat, {"dlflax": json.dumps(notes)}))
        total = 0
        files = sorted(self._files().items(), key=lambda item: (item[1], item[0]))
        for i, (number, (_, size)) in enumerate(files):
            total += size
            if i >= self._most or (i and total > MOST_BYTES):
                self._path(number).unlink(missing_ok=True)

    def read(self, trials: list[FrozenTrial]) -> Iterator[Member]:
        """Yields the models of these trials, the best trial first; without those whose file is
        missing, was changed, or is of another sweep."""
        complete = {trial.number: trial for trial in trials if outcome(trial) == "complete"}
        for number, (rank, _) in sorted(self._files().items(), key=lambda item: item[1]):
            if number in complete and self._sign * complete[number].value == rank:
                tree = safetensors.numpy.load_file(self._path(number))
                tree = traverse_util.unflatten_dict(tree, sep="/")
                histories = self._notes(self._path(number))["histories"]
                for seed in sorted(tree, key=int):
                    yield Member(number, int(seed), **tree[seed], history=histories[int(seed)])

    def _path(self, number):
        return self.folder / f"{number:06d}.safetensors"

    def _notes(self, path):
        with safetensors.safe_open(path, "np") as file:
            return json.loads(file.metadata()["dlflax"])

    def _files(self):
        """Returns {number: (value, lower is better, bytes)} of the undamaged files."""
        files = {}
        for path in self.folder.glob("*.safetensors"):
            try:
                notes = self._notes(path)
                if notes["study"] == self._study:
                    files[int(path.stem)] = self._sign * float(notes["value"]), path.stat().st_size
            except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
                continue
        return files
