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
from dlflax.tune.pool.training import Trial

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
    sign: 1 where lower is better, else -1; kept: number of a trial that stays in any case.
    """

    def __init__(
        self, folder: Path, sign: int, most: int = MOST_TRIALS, log: Callable[[str], None] = print,
        kept: int | None = None,
    ):  # fmt: skip
        self.folder, self._sign, self._most = Path(folder) / "members", sign, most
        self._log, self._is_full, self._kept = log, False, kept

    def threshold(self) -> float:
        """Returns the number that a value, times the sign, must be below to be among the best."""
        if self._is_full:
            return -math.inf
        ranks = [rank for rank, _ in self._files().values()]
        return ranks[self._most - 1] if len(ranks) >= self._most else math.inf

    def add(self, trial: Trial) -> None:
        """Writes the models of a trial, if it has any, and deletes those that are no longer among
        the best. A full disk is one warning, after which no more are written."""
        if not (trial.models and self._sign * trial.value < self.threshold()):
            return
        flat = {
            f"{seed}/{name}": np.ascontiguousarray(leaf)
            for seed, model in enumerate(trial.models)
            for name, leaf in traverse_util.flatten_dict(model._asdict(), sep="/").items()
        }
        notes = {"value": trial.value, "histories": [history for history, _ in trial.records]}
        total = 0
        try:
            self.folder.mkdir(exist_ok=True)
            with atomic_write(self._path(trial.number)) as temporary:
                temporary.write_bytes(safetensors.numpy.save(flat, {"dlflax": json.dumps(notes)}))
            for i, (number, (_, size)) in enumerate(self._files().items()):
                total += size
                if number != self._kept and (i >= self._most or (i and total > MOST_BYTES)):
                    self._path(number).unlink(missing_ok=True)
        except OSError as error:
            self._is_full = True
            self._log(f"warning: no ensemble, its models cannot be kept ({error.strerror})")

    def read(self, trials: list[FrozenTrial]) -> Iterator[Member]:
        """Yields the models of these trials, the best trial first; without those whose file is
        missing, was changed, or is of another study."""
        values = {trial.number: trial.value for trial in trials if outcome(trial) == "complete"}
        for number, (rank, _) in self._files().items():
            if number in values and self._sign * values[number] == rank:
                histories = self._notes(self._path(number))["histories"]
                flat = safetensors.numpy.load_file(self._path(number))
                tree = traverse_util.unflatten_dict(flat, sep="/")
                for seed in sorted(tree, key=int):
                    yield Member(number, int(seed), **tree[seed], history=histories[int(seed)])

    def _path(self, number):
        return self.folder / f"{number:06d}.safetensors"

    def _notes(self, path):
        with safetensors.safe_open(path, "np") as file:
            return json.loads(file.metadata()["dlflax"])

    def _files(self) -> dict[int, tuple[float, int]]:
        """Returns number -> (value, lower is better; bytes) of the undamaged files, the best
        first."""
        files = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                rank = self._sign * float(self._notes(path)["value"])
                files[int(path.stem)] = rank, path.stat().st_size
            except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
                continue
        return dict(sorted(files.items(), key=lambda item: item[1]))
