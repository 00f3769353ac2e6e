"""The loop over epochs on the host, for all that is trained: a run, the members of a population,
folds, learning rates. A run is a population of one.

Nothing here reads files or prints.
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
from dlflax.train.history import Evaluated, History, Training, best_epoch, diverged
from dlflax.train.hparams import Hparams, as_traced
from dlflax.train.loop import Feed, train_steps
from dlflax.train.recipe import Recipe, check_arrays, init_placed, zero_sums
from dlflax.train.state import State

Member = tuple[int, int]
"""(configuration, seed): indices of both."""


class Driver(abc.ABC):
    """Configurations in training, each under one or more seeds, and the loop over their epochs.

    hparams: one a configuration (n); seeds: uint32 (n, seeds). train_set, val_set: {"inputs":
    (n, ...), "targets": (n, ...)}; train_set may have "weight" (n,). Without val_set there are no
    val_* columns, the last epoch counts as the best, and patience and reduce_on_plateau, which
    count epochs, do nothing; 0 is off. objective: a metric that every epoch has, whatever the task
    monitors. orders: for each configuration the batches of its epochs, as many steps for all.
    Raises InputError for arrays that the task does not take.
    """

    def __init__(
        self, recipe: Recipe, hparams: Sequence[Hparams], seeds: Any,
        train_set: Mapping[str, Any], val_set: Mapping[str, Any] | None, *, epochs: int,
        patience: int = 0, reduce_on_plateau: int = 0, objective: str = "loss",
        orders: Sequence[Order] | None = None,
    ):  # fmt: skip
        check_arrays(recipe, as_traced(hparams[0]), train_set, val_set)
        self.recipe = recipe
        self._orders = orders or [batch_order(train_set, recipe.batch_size)] * len(hparams)
        steps = self._orders[0].steps
        hparams = [h.replace(total_steps=float(epochs * steps)) for h in hparams]
        self.seeds = np.asarray(seeds, np.uint32)
        self.trainings = [
            [Training(recipe.task, h, steps, epochs, patience, reduce_on_plateau,
                      objective=objective) for _ in row]
            for h, row in zip(hparams, self.seeds, strict=True)
        ]  # fmt: skip
        """`[configuration][seed]` -> the member's record."""
        self.members: list[Member] = [(i, j) for i, row in enumerate(self.seeds)
                                      for j in range(len(row))]  # fmt: skip
        """The members that are in training or may continue."""
        collecting = val_set is not None and self.trainings[0][0].collecting
        self._host_val = host_batch(recipe.task, val_set) if collecting else None

    @property
    def histories(self) -> list[list[History]]:
        """`[configuration][seed]` -> rows, one an epoch."""
        return [[member.history for member in row] for row in self.trainings]

    @property
    def diverged(self) -> dict[int, int]:
        """configuration -> 1-based step at which the first of its seeds was no longer finite."""
        steps = {
            i: [member.diverged_at for member in row if member.diverged_at]
            for i, row in enumerate(self.trainings)
        }
        return {i: min(steps[i]) for i in steps if steps[i]}

    def train(
        self, until: int | Sequence[int], on_epoch: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Trains what is neither finished nor diverged up to `until` epochs, which may be of each
        configuration. on_epoch is called when all of them have one more; should_stop, asked before
        every epoch and by a run within it, ends the training."""
        untils = [until] * len(self.trainings) if isinstance(until, int) else until
        while (running := self._running(untils)) and not should_stop():
            epoch = self._train_epoch(running, untils, should_stop)
            if epoch is None:
                return
            for (i, j), (sums, evaluated, columns) in epoch.items():
                self.trainings[i][j].add(sums, evaluated, **columns)
            self._end_epoch([member for member in running if self._is_best(*member)])
            on_epoch()

    def _running(self, untils) -> list[Member]:
        """Returns the members that need another epoch."""
        diverged = self.diverged
        return [
            (i, j) for i, j in self.members
            if i not in diverged and not self.trainings[i][j].finished(untils[i])
        ]  # fmt: skip

    def _is_best(self, i, j) -> bool:
        """True if the member's last epoch is its best so far."""
        history = self.trainings[i][j].history
        return best_epoch(history, self.recipe.task) == len(history) - 1

    @abc.abstractmethod
    def _train_epoch(
        self, running: list[Member], untils: Sequence[int], should_stop: Callable[[], bool]
    ) -> dict[Member, tuple[Mapping, Evaluated | None, dict[str, float]]] | None:
        """Returns of each member the arguments of `Training.add` after one more epoch; None where
        should_stop ended it."""

    @abc.abstractmethod
    def _end_epoch(self, best: list[Member]) -> None:
        """Keeps the variables of those members whose last epoch is their best so far."""


class Saved(NamedTuple):
    """The state of a training: what a checkpoint holds, and `fit` continues from."""

    state: State
    history: History
    partial: dict[str, list] | None = None
    """The sums of an epoch that was begun."""


class Fit(Driver):
    """One member over all devices of `parallel.use_devices`: without a member axis, streamed where
    its examples do not fit, stopped within an epoch. What `fit` returns and hands to `on_epoch`."""

    state: State
    """After the last epoch."""
    best: State | None = None
    """A copy of the State with the best validation score; None if that epoch lies before a resume
    (its checkpoint has it). Without validation, when all is done, a copy of the last State."""
    compile_seconds: float = 0.0
    """Tracing and compiling, or reading the compilation cache, and a first evaluation."""
    partial: dict[str, list] | None = None
    """The sums of an epoch in whose middle `should_stop` was true."""

    def __init__(
        self, recipe, hparams, train_set, val_set, *, seed, pretrained, resume, on_steps, **options
    ):  # fmt: skip
        super().__init__(recipe, [hparams], [[seed]], train_set, val_set, **options)
        ((self._training,),) = self.trainings
        if resume is None:
            numbers, inputs = as_traced(self._training.hparams), train_set["inputs"][:1]
            resume = Saved(init_placed(recipe, numbers, inputs, np.uint32(seed), pretrained), [])
        self.state, history, self._begun = resume
        self._training.history.extend(history)
        self._zero = zero_sums(recipe, self._training.hparams, train_set)
        self._feed = Feed(train_set, lambda epoch: self._orders[0].batches(seed, epoch))
        self._n, self._on_steps = len(train_set["inputs"]), on_steps
        is_whole = val_set is not None and fits_on_device(val_set)
        self._val, self._is_compiled = parallel.put_on_all(val_set) if is_whole else val_set, False

    @property
    def history(self) -> History:
        """One row an epoch."""
        return self._training.history

    def saved(self) -> Saved:
        """Returns the State to continue from."""
        return Saved(self.state, self.history, self.partial)

    def _train_epoch(self, running, untils, should_stop):
        hparams, self._current = self._training.hparams, self._training.current_hparams()
        if not self.compile_seconds:  # a call of no steps
            data, batches, *_ = next(self._feed.pieces(0))
            self._compile(
                lambda: self._advance(data, batches, self._zero, np.int32(0), np.int32(0))
            )
        clock = time.perf_counter()
        sums = self._train_steps(should_stop)
        if sums is None:
            return None
        seconds, val_seconds, evaluated = time.perf_counter() - clock, 0.0, None
        if self._val is not None:
            if not self._is_compiled:  # only now, so that the first step comes sooner
                self._compile(lambda: evaluate_sums(self.recipe, self.state, hparams, self._val))
                self._is_compiled = True
            clock = time.perf_counter()
            val_sums, outputs = evaluate_sums(self.recipe, self.state, hparams, self._val)
            evaluated = Evaluated(jax.device_get(val_sums), outputs, self._host_val)
            val_seconds = time.perf_counter() - clock
        columns = {
            "learning_rate": self._learning_rate(int(self.state.step)),
            "seconds": seconds + val_seconds,
            "examples_per_second": self._n / seconds,
        }
        return {(0, 0): (sums, evaluated, columns)}

    def _compile(self, call):
        clock = time.perf_counter()
        jax.block_until_ready(call())
        self.compile_seconds += time.perf_counter() - clock

    def _advance(self, data, batches, sums, start, stop):
        """Trains some steps, and returns the sums."""
        self.state, sums = train_steps(
            self.recipe, self.state, as_traced(self._current), data, batches, sums, start, stop
        )
        return sums

    def _train_steps(self, should_stop):
        """Trains one epoch, or what is left of it. Returns its sums; None where it was stopped."""
        history, steps = self.history, self._training.steps_per_epoch
        sums, done = self._begin_epoch()
        last = history[-1].get("seconds", math.inf) if history else math.inf
        # hosts have to make the same calls, so all of them by what one that shows no progress does
        seconds = 0.2 if self._on_steps and jax.process_count() == 1 else 5.0
        spans = self._feed.spans(len(history), done, seconds, parallel.max_over_hosts(last))
        for data, batches, start, stop in spans:
            sums = jax.device_get(self._advance(data, batches, sums, start, stop))
            done += int(stop - start)
            if diverged(sums):
                raise self._divergence(int(sums["first_bad_step"]) + 1)
            if self._on_steps:
                self._on_steps(len(history), done, sums)
            if done < steps and should_stop():
                self.partial = {name: np.asarray(leaf).tolist() for name, leaf in sums.items()}
                return None
        return sums

    def _begin_epoch(self):
        """Returns the sums and the number of the steps that are done: of an epoch that was begun
        before a resume, or none."""
        begun, self._begun = self._begun, None
        if not begun:
            return self._zero, 0
        if set(begun) != set(self._zero):
            raise InputError(
                "--resume: the checkpoint lies inside an epoch and has the sums of other metrics: "
                "continue with the task and the version of dlflax that wrote it."
            )
        sums = {k: np.asarray(begun[k], leaf.dtype) for k, leaf in self._zero.items()}
        done = int(self.state.step) - len(self.history) * self._training.steps_per_epoch
        return sums, done

    def _end_epoch(self, best):
        if self._training.diverged_at:
            raise self._divergence(self._training.diverged_at)
        if best and self._val is not None:
            self.best = jax.tree.map(jnp.copy, self.state)

    def _learning_rate(self, step: int) -> float:
        """Returns that of a step of this epoch, 1-based."""
        return float(self.recipe.schedule(np.float32(step - 1), self._current))

    def _divergence(self, step: int) -> RunError:
        rate = self._learning_rate(step)
        return RunError(
            f"the loss became NaN or infinite at step {step} (learning rate {rate:g}): try a "
            f"smaller --hparams.learning-rate, for example {rate / 10:g}, or --hparams.clip-norm "
            "1; checkpoints of earlier epochs are kept."
        )


def fit(
    recipe: Recipe,
    hparams: Hparams,
    train: Mapping[str, Any],
    val: Mapping[str, Any] | None = None,
    *,
    epochs: int,
    seed: int = 0,
    patience: int = 0,
    reduce_on_plateau: int = 0,
    pretrained: Mapping[str, Any] | None = None,
    resume: Saved | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_steps: Callable[[int, int, dict], None] | None = None,
    on_epoch: Callable[[Fit], None] | None = None,
) -> Fit:
    """Trains for `epochs` epochs, or until the validation score has not improved for `patience`.

    train, val, patience, reduce_on_plateau: as for `Driver`: NumPy or jax arrays, which are put on
    the device whole, or `DiskArray`s, which are read in pieces, to the same bits. pretrained: as
    for `init`. resume continues an earlier fit, whose later steps have the same bits. should_stop()
    is asked every five seconds, by all hosts at one step, and ends the fit, in the middle of an
    epoch too. on_steps(epoch, step, sums) is called a few times a second. Raises InputError for
    arrays that the task does not take, RunError for a loss of NaN."""
    trained = Fit(
        recipe, hparams, train, val, epochs=epochs, seed=seed, patience=patience,
        reduce_on_plateau=reduce_on_plateau, pretrained=pretrained, resume=resume,
        on_steps=on_steps,
    )  # fmt: skip
    trained.train(epochs, lambda: on_epoch and on_epoch(trained), should_stop)
    if val is None:
        trained.best = jax.tree.map(jnp.copy, trained.state)
    trained._feed = trained._val = None  # the data need not stay on the device
    return trained
