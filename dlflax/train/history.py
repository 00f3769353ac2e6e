"""History: one row per epoch, and the functions that depend on it alone.

Best epoch, patience, reduce-on-plateau and divergence follow from the rows, so single runs and
members of a population share them, and a resume needs no other state.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dlflax.errors import InputError
from dlflax.train.hparams import Hparams
from dlflax.train.metrics import Collecting, additive_scores, collecting_scores
from dlflax.train.tasks import Task

History = list[dict[str, float]]
"""One row per epoch: epoch (from 1), step, train_<score>, val_<score> if there is a validation
split, and for single runs learning_rate, seconds and examples_per_second."""


def best_epoch(history: History, task: Any) -> int:
    """Returns the 0-based index of the epoch with the best monitored validation score, the first on
    a tie; the last epoch without validation."""
    name = f"val_{task.monitor}"
    if name not in history[-1]:
        return len(history) - 1
    pick = max if task.metric(task.monitor).direction == "max" else min
    return pick(range(len(history)), key=lambda i: history[i][name])


def is_complete(history: History, task: Any, epochs: int, patience: int = 0) -> bool:
    """True after all epochs, or after `patience` epochs without a better validation score. Patience
    0 never stops a run, nor does any patience without validation."""
    if patience and history and len(history) - 1 - best_epoch(history, task) >= patience:
        return True
    return len(history) >= epochs


def plateau_factor(history: History, task: Any, patience: int, factor: float = 0.5) -> float:
    """Returns the learning-rate factor of reduce-on-plateau (Keras' with min_delta 0). It is
    multiplied by `factor` after every `patience` epochs in a row without a better validation score,
    and is 1 for patience 0 or without validation."""
    name, higher = f"val_{task.monitor}", task.metric(task.monitor).direction == "max"
    best, wait, scale = math.nan, 0, 1.0
    for row in history if patience else ():
        if name not in row:
            continue
        better = math.isnan(best) or (row[name] > best if higher else row[name] < best)
        best, wait = (row[name], 0) if better else (best, wait + 1)
        if wait >= patience:
            scale, wait = scale * factor, 0
    return scale


class Validation(NamedTuple):
    """Results of an epoch on the validation split."""

    sums: Mapping[str, Any]
    """The sums of `metrics.batch_sums`."""
    outputs: Any = None
    """float32 (N, ...), required by collecting metrics."""
    batch: Mapping[str, Any] | None = None
    """The examples, as `evaluation.host_batch` returns them."""


@dataclasses.dataclass
class Training:
    """The progress of a single run or of a member of a population."""

    task: Task
    hparams: Hparams
    steps_per_epoch: int
    epochs: int
    patience: int = 0
    plateau_patience: int = 0
    history: History = dataclasses.field(default_factory=list)
    diverged_at: int | None = None
    """1-based step of the first loss or gradient that is not finite."""
    objective: str = "loss"
    """A metric to compute at every epoch, besides the monitor."""

    @property
    def collecting(self) -> tuple[Collecting, ...]:
        """The collecting metrics to compute at every epoch's validation."""
        names = {self.task.monitor, self.objective}
        return tuple(m for m in self.task.metrics if isinstance(m, Collecting) and m.name in names)

    def is_complete(self, until: int | None = None) -> bool:
        """True if the training diverged, stopped early, or has `until` epochs (default: all)."""
        until = self.epochs if until is None else until
        stopped = is_complete(self.history, self.task, until, self.patience)
        return self.diverged_at is not None or stopped

    def current_hparams(self) -> Hparams:
        """Returns the hparams of the next epoch, with reduce-on-plateau's learning rate."""
        factor = plateau_factor(self.history, self.task, self.plateau_patience)
        return self.hparams.replace(learning_rate=self.hparams.learning_rate * factor)

    def add(
        self, sums: Mapping[str, Any], val: Validation | None = None, **columns: float
    ) -> dict[str, float]:
        """Appends and returns the row of an epoch, and sets `diverged_at`. sums: of the training
        steps; columns: values other than scores. Raises InputError for a collecting metric that is
        undefined on the validation split."""
        epoch, metrics = len(self.history) + 1, self.task.metrics
        step, row = epoch * self.steps_per_epoch, {}
        scores = {"train": additive_scores(metrics, sums)}
        if val is not None:
            scores["val"] = additive_scores(metrics, val.sums)
            if self.collecting:
                outputs = np.asarray(val.outputs)
                scores["val"] |= collecting_scores(self.collecting, outputs, val.batch)
        for split, values in scores.items():
            row |= {f"{split}_{name}": float(value) for name, value in values.items()}
        row = {"epoch": epoch, "step": step, **row, **columns}
        self.history.append(row)
        if sums["first_bad_step"] < step:
            self.diverged_at = int(sums["first_bad_step"]) + 1
        elif not math.isfinite(row.get("val_loss", 0.0)):
            self.diverged_at = step
        else:
            for name in (self.task.monitor, self.objective):
                if not math.isfinite(row.get(f"val_{name}", 0.0)):
                    self._handle_nan(name, step, val)
                    break
        return row

    def _handle_nan(self, name, step, val) -> None:
        """Raises InputError for a metric that is undefined on the validation split; a model whose
        outputs are not finite diverged."""
        collecting = name in {metric.name for metric in self.collecting}
        if not collecting or not np.isfinite(val.outputs).all():
            self.diverged_at = step
            return
        raise InputError(
            f"{name} is undefined on the {len(val.outputs):,} validation examples: choose another "
            "--task.monitor or --objective, or another validation split."
        )
