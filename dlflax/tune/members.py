"""The best trained models of a sweep, on disk: what an ensemble is chosen from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from optuna.trial import FrozenTrial

from dlflax.files import replacing
from dlflax.report.trials import outcome

MOST_TRIALS = 32  # that are kept
MOST_BYTES = 2 * 10**9
MOST_OUTPUTS = 2**22  # numbers of a model's outputs on validation data


class Member(NamedTuple):
    """A trained model."""

    trial: int
    """Its number."""
    seed: int
    """Which of the trial's seeds, from 0."""
    variables: dict
    """{"params": ..., ...} of its best epoch, to evaluate with."""
    outputs: np.ndarray
    """On the first validation examples, float32 (n, ...)."""


class Members:
    """The folder `members/` of a sweep: the models of its MOST_TRIALS best trials, fewer where
    they have more than MOST_BYTES. Each trial is written before it is recorded, so the folder holds
    what the record needs whenever the sweep was killed. study: what tells the study from another
    one that was in this folder, whose files do not count."""

    def __init__(self, folder: Path, direction: str, study: str = ""):
        self.folder, self._study = Path(folder) / "members", study
        self._sign = 1 if direction == "minimize" else -1

    def wants(self, value: float) -> bool:
        """Whether a trial with this value is among the best so far."""
        ranks = sorted(rank for rank, _ in self._files().values())
        return np.isfinite(value) and (
            len(ranks) < MOST_TRIALS or self._sign * value < ranks[MOST_TRIALS - 1]
        )

    def add(self, index: int, value: float, lanes: list[tuple[dict, np.ndarray]]) -> None:
        """Keeps the models of a trial, one a seed, each variables and outputs, and deletes those
        that are no longer among the best. OSError when the disk does not take them."""
        self.folder.mkdir(exist_ok=True)
        flat = {}
        for seed, (variables, outputs) in enumerate(lanes):
            tree = traverse_util.flatten_dict({"variables": variables, "outputs": outputs}, sep="/")
            flat |= {f"{seed}/{name}": np.ascontiguousarray(leaf) for name, leaf in tree.items()}
        about = {"dlflax": json.dumps({"value": value, "study": self._study})}
        with replacing(self._path(index)) as temporary:
            temporary.write_bytes(safetensors.numpy.save(flat, about))
        total = 0
        files = sorted(self._files().items(), key=lambda item: (item[1], item[0]))
        for i, (kept, (_, size)) in enumerate(files):
            total += size
            if i >= MOST_TRIALS or (i and total > MOST_BYTES):
                self._path(kept).unlink(missing_ok=True)

    def of(self, trials: list[FrozenTrial]) -> Iterator[Member]:
        """The models of these trials that are here, the best trial first. One whose file was
        changed or is of another sweep is left out."""
        known = {}
        for trial in trials:
            if outcome(trial) == "complete":
                known[trial.user_attrs.get("index", trial.number)] = trial
        for index, (rank, _) in sorted(self._files().items(), key=lambda item: item[1]):
            if index in known and self._sign * known[index].value == rank:
                yield from self._read(index, known[index].number)

    def _read(self, index, number):
        flat = safetensors.numpy.load_file(self._path(index))
        tree = traverse_util.unflatten_dict(flat, sep="/")
        for seed in sorted(tree, key=int):
            yield Member(number, int(seed), tree[seed]["variables"], tree[seed]["outputs"])

    def _path(self, index):
        return self.folder / f"{index:06d}.safetensors"

    def _files(self):
        """{index: (value, lower is better, bytes)} of what is there and whole."""
        found = {}
        for path in self.folder.glob("*.safetensors"):
            try:
                with safetensors.safe_open(path, "np") as file:
                    about = json.loads(file.metadata()["dlflax"])
                if about["study"] == self._study:
                    found[int(path.stem)] = self._sign * float(about["value"]), path.stat().st_size
            except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
                continue
        return found
