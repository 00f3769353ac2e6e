"""The record of a training run: one row an epoch, and what follows from it alone.

Best epoch, patience, reduce-on-plateau and divergence are functions of the rows, so a run of its
own and a member of a population share them, and a resume needs nothing more.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dlflax.errors import InputError
from dlflax.train.hparams import Hparams
from dlflax.train.metrics import Collecting, additive_scores, collecting_scores
from dlflax.train.recipe import NEVER
from dlflax.train.tasks import Task

History = list[dict[str, float]]
"""One row an epoch: epoch (from 1), step, train_<score>, val_<score>, and of a run of its own
learning_rate, seconds and examples_per_second. Without validation no val_*."""


def improved(task, value: float, best: float) -> bool:
    """True if a value of the task's monitored score is better than another."""
    return value > best if task.metric(task.monitor).direction == "max" else value < best


def best_epoch(history: History, task: Any) -> int:
    """0-based index of the row with the best value of the monitored score on the validation data,
    the first on a tie; of the last row where there is no validation."""
    name = f"val_{task.monitor}"
    if name not in history[-1]:
        return len(history) - 1
    best = 0
    for i, row in enumerate(history):
        if improved(task, row[name], history[best][name]):
            best = i
    return best


def finished(history: History, task: Any, epochs: int, patience: int = 0) -> bool:
    """True if a run is over: all epochs are done, or `patience` of them (0 never stops) brought no
    better validation score. Without validation patience does nothing."""
    if patience and history and len(history) - 1 - best_epoch(history, task) >= patience:
        return True
    return len(history) >= epochs


def plateau_factor(history: History, task: Any, patience: int, factor: float = 0.5) -> float:
    """Returns the factor of the learning rate by reduce-on-plateau after these epochs: `factor` for
    every `patience` epochs in a row without a better validation score (Keras' ReduceLROnPlateau
    with min_delta 0). 1 for patience 0, and without validation."""
    name = f"val_{task.monitor}"
    best, wait, scale = math.nan, 0, 1.0
    for row in history if patience else ():
        if name not in row:
            continue
        better = math.isnan(best) or improved(task, row[name], best)
        best, wait = (row[name], 0) if better else (best, wait + 1)
        if wait >= patience:
            scale, wait = scale * factor, 0
    return scale


class Evaluated(NamedTuple):
    """The validation of one epoch."""

    sums: Mapping[str, Any]
    """The sums of `metrics.batch_sums`."""
    outputs: Any = None
    """float32 (N, ...), which collecting metrics need."""
    batch: Mapping[str, Any] | None = None
    """The examples, as `evaluation.host_batch` returns them."""


@dataclasses.dataclass
class Training:
    """One training in progress: a run of its own, or a member of a population."""

    task: Task
    hparams: Hparams
    steps_per_epoch: int
    epochs: int
    patience: int = 0
    reduce_on_plateau: int = 0
    history: History = dataclasses.field(default_factory=list)
    diverged_at: int | None = None
    """1-based step at which the loss or the gradient was no longer finite."""
    objective: str = "loss"
    """A metric that every epoch has besides the monitor."""

    @property
    def collecting(self) -> tuple[Collecting, ...]:
        """The collecting metrics that every epoch's validation has."""
        names = {self.task.monitor, self.objective}
        return tuple(m for m in self.task.metrics if isinstance(m, Collecting) and m.name in names)

    def finished(self, until: int | None = None) -> bool:
        """True if there is nothing more to train, up to `until` epochs (default: all)."""
        until = self.epochs if until is None else until
        stopped = finished(self.history, self.task, until, self.patience)
        return self.diverged_at is not None or stopped

    def current_hparams(self) -> Hparams:
        """The numbers of the next epoch: the learning rate as reduce-on-plateau leaves it."""
        factor = plateau_factor(self.history, self.task, self.reduce_on_plateau)
        return self.hparams.replace(learning_rate=self.hparams.learning_rate * factor)

    def add(
        self, sums: Mapping[str, Any], val: Evaluated | None = None, **more: float
    ) -> dict[str, float]:
        """Appends the row of one more epoch, and returns it; notes where it diverged. sums: of the
        training steps; more: columns that are not scores. Raises InputError for a collecting metric
        that is undefined on the validation data."""
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
        row = {"epoch": epoch, "step": step, **row, **more}
        self.history.append(row)
        if sums["first_bad_step"] < step:
            self.diverged_at = int(sums["first_bad_step"]) + 1
        elif not math.isfinite(row.get("val_loss", 0.0)):
            self.diverged_at = step
        elif undefined := [
            name
            for name in ("loss", self.task.monitor, self.objective)
            if not math.isfinite(row.get(f"val_{name}", 0.0))
        ]:
            self._refuse(undefined[0], step, val)
        return row

    def _refuse(self, name, step, val) -> None:
        """Raises InputError for a metric that these validation data do not define; where a model
        has no finite outputs, that diverged."""
        collecting = name in {metric.name for metric in self.collecting}
        if not collecting or not np.isfinite(val.outputs).all():
            self.diverged_at = step
            return
        raise InputError(
            f"{name} is undefined on the {len(val.outputs):,} validation examples: choose another "
            "--task.monitor or --objective, or other validation data."
        )


def diverged(sums) -> bool:
    """True if a step so far was not finite."""
    return sums["first_bad_step"] != NEVER
