"""The loop over epochs on the host, for single runs, populations, folds and learning-rate searches.

Reads no files, prints nothing.
"""

import abc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import parallel
from dlflax.data.order import Order, batch_order
from dlflax.data.stream import fits_on_device
from dlflax.errors import InputError, RunError
from dlflax.train.evaluation import evaluate_sums, host_batch
from dlflax.train.history import History, Training, Validation, best_epoch
from dlflax.train.hparams import Hparams, as_float32
from dlflax.train.loop import Feed, train_steps
from dlflax.train.recipe import NEVER, Recipe, check_arrays, init_on_devices, zero_sums
from dlflax.train.state import State

Member = tuple[int, int]
"""(configuration, seed): indices of both."""


class Driver(abc.ABC):
    """The training of configurations, each under one or more seeds, in a loop over epochs.

    hparams: one per configuration (n); seeds: uint32 (n, seeds). train_set, val_set: {"inputs":
    (N, ...), "targets": (N, ...)}; train_set may have "weight" (N,). Without val_set, histories
    have no val_* columns, the last epoch is the best, and patience and plateau_patience (numbers
    of epochs, 0 is off) do nothing. objective: a metric to compute at every epoch besides the
    monitor. orders: one `Order` per seed, all of equally many steps. Raises InputError for arrays
    that the task cannot take.
    """

    def __init__(
        self, recipe: Recipe, hparams: Sequence[Hparams], seeds: Any,
        train_set: Mapping[str, Any], val_set: Mapping[str, Any] | None, *, epochs: int,
        patience: int = 0, plateau_patience: int = 0, objective: str = "loss",
        orders: Sequence[Order] | None = None,
    ):  # fmt: skip
        check_arrays(recipe, as_float32(hparams[0]), train_set, val_set)
        self.recipe = recipe
        self._orders = orders or [batch_order(train_set, recipe.batch_size)] * np.shape(seeds)[1]
        assert len(self._orders) == np.shape(seeds)[1], "an order belongs to a seed"
        steps = self._orders[0].steps
        hparams = [h.replace(total_steps=float(epochs * steps)) for h in hparams]
        self.seeds = np.asarray(seeds, np.uint32)
        self.trainings = [
            [Training(recipe.task, h, steps, epochs, patience, plateau_patience,
                      objective=objective) for _ in row]
            for h, row in zip(hparams, self.seeds, strict=True)
        ]  # fmt: skip
        """`[configuration][seed]` -> the member's progress."""
        self.members: list[Member] = list(np.ndindex(self.seeds.shape))
        """The members that may be trained further."""
        collecting = val_set is not None and self.trainings[0][0].collecting
        self._host_val = host_batch(recipe.task, val_set) if collecting else None

    @property
    def histories(self) -> list[list[History]]:
        """`[configuration][seed]` -> history."""
        return [[member.history for member in row] for row in self.trainings]

    @property
    def divergence_steps(self) -> dict[int, int]:
        """Diverged configuration -> 1-based step at which its first seed diverged."""
        steps = ([m.diverged_at for m in row if m.diverged_at] for row in self.trainings)
        return {i: min(row) for i, row in enumerate(steps) if row}

    def train(
        self, until: int | Sequence[int], on_epoch: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Trains all members that are neither complete nor diverged up to epoch `until`, one number
        or one per configuration. Calls on_epoch after every epoch. Calls should_stop before every
        epoch, and in a single run within it; if it returns True, training ends."""
        untils = [until] * len(self.trainings) if isinstance(until, int) else until
        while (running := self._running(untils)) and not should_stop():
            epoch = self._train_epoch(running, untils, should_stop)
            if epoch is None:
                return
            for (i, j), (sums, validation, columns) in epoch.items():
                self.trainings[i][j].add(sums, validation, **columns)
            self._end_epoch([member for member in running if self._is_best(*member)])
            on_epoch()

    def _running(self, untils) -> list[Member]:
        """Returns the members that need another epoch."""
        diverged = self.divergence_steps
        return [
            (i, j) for i, j in self.members
            if i not in diverged and not self.trainings[i][j].is_complete(untils[i])
        ]  # fmt: skip

    def _is_best(self, i, j) -> bool:
        """True if the member's last epoch is its best so far."""
        history = self.trainings[i][j].history
        return best_epoch(history, self.recipe.task) == len(history) - 1

    @abc.abstractmethod
    def _train_epoch(
        self, running: list[Member], untils: Sequence[int], should_stop: Callable[[], bool]
    ) -> dict[Member, tuple[Mapping, Validation | None, dict[str, float]]] | None:
        """Returns the arguments of `Training.add` of each member after an epoch; None if
        should_stop ended it."""

    @abc.abstractmethod
    def _end_epoch(self, best: list[Member]) -> None:
        """Saves the variables of the members in `best`, whose last epoch is their best so far."""


class Checkpoint(NamedTuple):
    """The saved state and history of a run, from which `fit` resumes."""

    state: State
    history: History
    partial: dict[str, list] | None = None
    """The sums of an incomplete epoch."""


class Fit(Driver):
    """A single run over all devices of `parallel.use_devices`, as `fit` returns it and passes to
    `on_epoch`. It has no member axis, streams examples that do not fit, and can stop within an
    epoch."""

    state: State
    """The State after the last epoch."""
    best: State | None = None
    """A copy of the State of the best epoch; None if that epoch is earlier than a resume (its
    checkpoint has it). Without validation, a copy of the last State, once training has ended."""
    compile_seconds: float = 0.0
    """Time to trace and compile, or to read the compilation cache, with one evaluation."""
    partial: dict[str, list] | None = None
    """The sums of an incomplete epoch that `should_stop` ended."""

    def __init__(
        self, recipe, hparams, train_set, val_set, *, seed, pretrained, resume, on_steps, **options
    ):  # fmt: skip
        super().__init__(recipe, [hparams], [[seed]], train_set, val_set, **options)
        ((self._training,),) = self.trainings
        if resume is None:
            arguments = as_float32(self._training.hparams), train_set["inputs"][:1]
            state = init_on_devices(recipe, *arguments, np.uint32(seed), pretrained)
            resume = Checkpoint(state, [])
        self.state, history, self._partial_sums = resume
        self._training.history.extend(history)
        self._zero = zero_sums(recipe, self._training.hparams, train_set)
        self._feed = Feed(train_set, lambda epoch: self._orders[0].batches(seed, epoch))
        self._n, self._on_steps = len(train_set["inputs"]), on_steps
        val_fits = val_set is not None and fits_on_device(val_set)
        self._val, self._is_compiled = parallel.put_on_all(val_set) if val_fits else val_set, False

    @property
    def history(self) -> History:
        """One row per epoch."""
        return self._training.history

    def checkpoint(self) -> Checkpoint:
        """Returns the Checkpoint to resume from."""
        return Checkpoint(self.state, self.history, self.partial)

    def _train_epoch(self, running, untils, should_stop):
        hparams, self._current = self._training.hparams, self._training.current_hparams()
        if not self.compile_seconds:  # compiled by a call without steps
            data, batches, *_ = next(self._feed.pieces(0))
            self._compile(
                lambda: self._advance(data, batches, self._zero, np.int32(0), np.int32(0))
            )
        clock = time.perf_counter()
        sums = self._train_steps(should_stop)
        if sums is None:
            return None
        seconds, val_seconds, validation = time.perf_counter() - clock, 0.0, None
        if self._val is not None:
            if not self._is_compiled:  # after the first steps, so that these start sooner
                self._compile(lambda: evaluate_sums(self.recipe, self.state, hparams, self._val))
                self._is_compiled = True
            clock = time.perf_counter()
            val_sums, outputs = evaluate_sums(self.recipe, self.state, hparams, self._val)
            validation = Validation(jax.device_get(val_sums), outputs, self._host_val)
            val_seconds = time.perf_counter() - clock
        columns = {
            "learning_rate": self._learning_rate(int(self.state.step)),
            "seconds": seconds + val_seconds,
            "examples_per_second": self._n / seconds,
        }
        return {(0, 0): (sums, validation, columns)}

    def _compile(self, call):
        clock = time.perf_counter()
        jax.block_until_ready(call())
        self.compile_seconds += time.perf_counter() - clock

    def _advance(self, data, batches, sums, start, stop):
        """Trains steps `start` to `stop`. Returns the sums."""
        self.state, sums = train_steps(
            self.recipe, self.state, as_float32(self._current), data, batches, sums, start, stop
        )
        return sums

    def _train_steps(self, should_stop):
        """Trains the remaining steps of an epoch. Returns its sums; None if should_stop ends it."""
        history, steps = self.history, self._training.steps_per_epoch
        sums, done = self._begin_epoch()
        last = history[-1].get("seconds", math.inf) if history else math.inf
        # several hosts have to make the same calls, whether they show progress or not
        seconds = 0.2 if self._on_steps and jax.process_count() == 1 else 5.0
        spans = self._feed.spans(len(history), done, seconds, parallel.max_over_hosts(last))
        for data, batches, start, stop in spans:
            sums = jax.device_get(self._advance(data, batches, sums, start, stop))
            done += int(stop - start)
            if sums["first_bad_step"] != NEVER:
                raise self._divergence(int(sums["first_bad_step"]) + 1)
            if self._on_steps:
                self._on_steps(len(history), done, sums)
            if done < steps and should_stop():
                self.partial = {name: np.asarray(leaf).tolist() for name, leaf in sums.items()}
                return None
        return sums

    def _begin_epoch(self):
        """Returns the sums and the number of steps of the epoch so far: zero unless a resumed
        checkpoint is within the epoch."""
        partial, self._partial_sums = self._partial_sums, None
        if not partial:
            return self._zero, 0
        if set(partial) != set(self._zero):
            raise InputError(
                "--resume: the checkpoint is within an epoch and has the sums of other metrics: "
                "continue with the task and the version of dlflax that wrote it."
            )
        sums = {k: np.asarray(partial[k], leaf.dtype) for k, leaf in self._zero.items()}
        done = int(self.state.step) - len(self.history) * self._training.steps_per_epoch
        return sums, done

    def _end_epoch(self, best):
        if self._training.diverged_at:
            raise self._divergence(self._training.diverged_at)
        if best and self._val is not None:
            self.best = jax.tree.map(jnp.copy, self.state)

    def _learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step of this epoch, 1-based."""
        return float(self.recipe.schedule(np.float32(step - 1), self._current))

    def _divergence(self, step: int) -> RunError:
        rate = self._learning_rate(step)
        return RunError(
            f"the loss became NaN or infinite at step {step} (learning rate {rate:g}): try a "
            f"smaller --hparams.learning-rate, for example {rate / 10:g}, or --hparams.clip-norm "
            "1; checkpoints of earlier epochs are safe."
        )


def fit(
    recipe: Recipe, hparams: Hparams, train: Mapping[str, Any],
    val: Mapping[str, Any] | None = None, *, epochs: int, seed: int = 0, patience: int = 0,
    plateau_patience: int = 0, pretrained: Mapping[str, Any] | None = None,
    resume: Checkpoint | None = None, should_stop: Callable[[], bool] = lambda: False,
    on_steps: Callable[[int, int, dict], None] | None = None,
    on_epoch: Callable[[Fit], None] | None = None,
) -> Fit:  # fmt: skip
    """Trains for `epochs` epochs, or until `patience` epochs bring no better validation score.

    train, val, patience, plateau_patience: as for `Driver`; NumPy or jax arrays are put on the
    device, `DiskArray`s are streamed, with bitwise equal results. pretrained: as for `init`.
    resume: a Checkpoint to continue, bitwise as if uninterrupted. should_stop() is called every
    five seconds, by all hosts at the same step, and True ends the fit, even within an epoch.
    on_steps(epoch, step, sums) is called a few times per second. Raises InputError for arrays that
    the task cannot take, RunError for a loss of NaN.
    """
    result = Fit(
        recipe, hparams, train, val, epochs=epochs, seed=seed, patience=patience,
        plateau_patience=plateau_patience, pretrained=pretrained, resume=resume,
        on_steps=on_steps,
    )  # fmt: skip
    result.train(epochs, lambda: on_epoch and on_epoch(result), should_stop)
    if val is None:
        result.best = jax.tree.map(jnp.copy, result.state)
    result._feed = result._val = None  # frees the data on the device
    return result
