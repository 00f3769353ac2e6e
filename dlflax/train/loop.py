"""The loop over epochs: `train_steps` loops the step on the device, `fit` is the loop over epochs.

Nothing here reads files or prints.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlflax import parallel
from dlflax.data.order import epoch_batches
from dlflax.data.stream import fits, stream
from dlflax.errors import InputError, RunError
from dlflax.train.batch import gather
from dlflax.train.evaluation import evaluate_sums, host_batch
from dlflax.train.history import Evaluated, History, Training, best_epoch, diverged
from dlflax.train.hparams import Hparams, as_traced
from dlflax.train.recipe import Recipe, check_arrays, init_placed, zero_sums
from dlflax.train.state import State
from dlflax.train.step import step


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(
    recipe: Recipe, state: State, hparams: Hparams, data: Mapping[str, Any], batches: Any,
    sums: Any, start: Any, stop: Any,
) -> tuple[State, dict[str, Any]]:  # fmt: skip
    """Steps `start` to `stop` of one epoch in one compiled call, over device-resident data.

    data: {"inputs": (N, ...), "targets": (N, ...)}; batches: int32 (steps, batch_size) from
    `epoch_batches`; sums: those of the epoch so far. start and stop are traced, so a whole epoch
    and a part of one (for a progress bar) are the same program and give the same bits.
    """

    def batch(i):
        return gather(data, parallel.split_batch(batches[i]))

    return _steps(recipe, state, hparams, batch, sums, start, stop)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_piece(
    recipe: Recipe, state: State, hparams: Hparams, piece: Mapping[str, Any], sums: Any, start: Any,
    stop: Any,
) -> tuple[State, dict[str, Any]]:  # fmt: skip
    """`train_steps` of batches that are there as such: arrays (steps, batch_size, ...), from
    `data.stream`."""

    def batch(i):
        return {name: leaf[i] for name, leaf in piece.items()}

    return _steps(recipe, state, hparams, batch, sums, start, stop)


def _steps(recipe, state, hparams, batch, sums, start, stop):
    update_state = recipe.step or step

    def body(i, carry):
        state, sums = carry
        state, new = update_state(recipe, state, hparams, parallel.split_batch(batch(i)))
        bad = jnp.minimum(sums["first_bad_step"], new.pop("first_bad_step"))
        sums = {**{name: sums[name] + new[name] for name in new}, "first_bad_step": bad}
        return parallel.constrain_state(state), parallel.replicated(sums)

    return lax.fori_loop(start, stop, body, (state, sums))


class Saved(NamedTuple):
    """The state of a training: what a checkpoint holds, and `fit` continues from."""

    state: State
    history: History
    partial: dict[str, list] | None = None
    """The sums of an epoch that was begun."""


@dataclasses.dataclass
class Fit:
    """The result of `fit`, which it returns and hands to `on_epoch` after every epoch."""

    state: State
    """After the last epoch."""
    best: State | None
    """A copy of the State with the best validation score; None if that epoch lies before a resume
    (its checkpoint has it). Without validation, when all is done, a copy of the last State."""
    history: History
    """One row an epoch."""
    compile_seconds: float
    """Tracing and compiling, or reading the compilation cache, and a first evaluation."""
    partial: dict[str, list] | None = None
    """The sums of an epoch in whose middle `should_stop` was true."""

    def saved(self) -> Saved:
        """The State to continue from."""
        return Saved(self.state, self.history, self.partial)


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

    train, val: {"inputs": (n, ...), "targets": (n, ...)} NumPy or jax arrays, which are put on the
    device whole, or `DiskArray`s, which are read in pieces, to the same result to the bit; train
    may have "weight" (n,). Without val there are no val_* columns, the last epoch counts as the
    best, and patience and reduce_on_plateau do nothing. pretrained: as for `init`. resume continues
    an earlier fit, whose later steps come out the same to the bit. patience and reduce_on_plateau
    count epochs, 0 is off. should_stop() is asked every five seconds, by all hosts at one step, and
    ends the fit, in the middle of an epoch too. on_steps(epoch, step, sums) is called a few times a
    second. Raises InputError for arrays that the task does not take, RunError for a loss of NaN."""
    check_arrays(recipe, as_traced(hparams), train, val)
    n = len(train["inputs"])
    steps = math.ceil(n / recipe.batch_size)
    hparams = hparams.replace(total_steps=float(epochs * steps))
    if resume is None:
        numbers = as_traced(hparams)
        state = init_placed(recipe, numbers, train["inputs"][:1], np.uint32(seed), pretrained)
        resume = Saved(state, [])
    training = Training(
        recipe.task, hparams, steps, epochs, patience, reduce_on_plateau, list(resume.history)
    )  # fmt: skip
    feed = (_Resident if fits(train) else _Streamed)(recipe, hparams, train, seed)
    host_val = host_batch(recipe.task, val) if val is not None and training.collecting else None
    val = parallel.put(val) if val is not None and fits(val) else val
    progress = Fit(resume.state, None, training.history, 0.0)
    clock = time.perf_counter()
    if not training.finished():
        progress.state = jax.block_until_ready(feed.compile(resume.state))
    progress.compile_seconds = time.perf_counter() - clock
    partial, evaluated = resume.partial, False

    while not training.finished() and not should_stop():
        clock = time.perf_counter()
        sums = _epoch(feed, training, progress, partial, should_stop, on_steps)
        partial = None
        if progress.partial:
            return progress
        seconds, tested = time.perf_counter() - clock, None
        if val is not None and not evaluated:  # only now, so that the first step comes sooner
            lap = time.perf_counter()
            jax.block_until_ready(evaluate_sums(recipe, progress.state, hparams, val))
            progress.compile_seconds += time.perf_counter() - lap
            clock, evaluated = clock + time.perf_counter() - lap, True
        if val is not None:
            val_sums, outputs = evaluate_sums(recipe, progress.state, hparams, val)
            tested = Evaluated(jax.device_get(val_sums), outputs, host_val)
        current, step = training.current_hparams(), np.float32(int(progress.state.step) - 1)
        training.add(
            sums, tested, learning_rate=float(recipe.schedule(step, current)),
            seconds=time.perf_counter() - clock, examples_per_second=n / seconds,
        )  # fmt: skip
        if training.diverged_at:
            raise _divergence(recipe, current, training.diverged_at)
        last = len(training.history) - 1
        if val is not None and best_epoch(training.history, recipe.task) == last:
            progress.best = jax.tree.map(jnp.copy, progress.state)
        if on_epoch:
            on_epoch(progress)
    if val is None:
        progress.best = jax.tree.map(jnp.copy, progress.state)
    return progress


def _epoch(feed, training, progress, partial, should_stop, on_steps):
    """Trains one epoch, or what is left of it; its sums. progress has the State, and if it was
    stopped the partial sums."""
    epoch, steps = len(training.history), training.steps_per_epoch
    current = training.current_hparams()
    numbers, sums, done = as_traced(current), feed.zero, 0
    if partial:
        if set(partial) != set(feed.zero):
            raise InputError(
                "--resume: the checkpoint lies inside an epoch and has the sums of other metrics: "
                "continue with the task and the version of dlflax that wrote it."
            )
        sums = {k: np.asarray(partial[k], leaf.dtype) for k, leaf in feed.zero.items()}
        done = int(progress.state.step) - epoch * steps
    last = training.history[-1].get("seconds", math.inf) if training.history else math.inf
    # hosts have to make the same calls, so all of them by what one that shows no progress does
    seconds = 0.2 if on_steps and jax.process_count() == 1 else 5.0
    for advance, count in feed.laps(epoch, done, seconds, parallel.slowest(last)):
        progress.state, sums = advance(progress.state, numbers, sums)
        sums, done = jax.device_get(sums), done + count
        if diverged(sums):
            raise _divergence(feed.recipe, current, int(sums["first_bad_step"]) + 1)
        if on_steps:
            on_steps(epoch, done, sums)
        if done < steps and should_stop():
            progress.partial = {name: np.asarray(leaf).tolist() for name, leaf in sums.items()}
            break
    return sums


class _Resident:
    """Training data on the device, whole."""

    def __init__(self, recipe, hparams, train, seed):
        self.recipe, self.seed, self.n = recipe, seed, len(train["inputs"])
        self._lengths = train.get("length")
        self.zero = zero_sums(recipe, hparams, train)
        self.hparams, self.train = hparams, parallel.put(train)

    def _batches(self, epoch):
        size = self.recipe.batch_size
        return parallel.put(epoch_batches(self.n, size, self.seed, epoch, self._lengths))

    def compile(self, state):
        """The State as it is: a call of no steps."""
        none, numbers = np.int32(0), as_traced(self.hparams)
        arguments = self.train, self._batches(0), self.zero, none, none
        return train_steps(self.recipe, state, numbers, *arguments)[0]

    def laps(self, epoch, done, seconds, last):
        """(advance, steps) for the calls of one epoch, of so many seconds each, after which
        progress is shown and SIGTERM seen. last: seconds that the epoch before took."""
        batches = self._batches(epoch)
        for start, stop in _Spans(seconds, last).of(done, len(batches)):
            span = np.int32(start), np.int32(stop)

            def advance(state, numbers, sums, span=span):
                return train_steps(self.recipe, state, numbers, self.train, batches, sums, *span)

            yield advance, stop - start


class _Streamed:
    """Training data on disk or too large for the device, read in pieces."""

    def __init__(self, recipe, hparams, train, seed):
        self.recipe, self.seed, self.n = recipe, seed, len(train["inputs"])
        self._lengths = train.get("length")
        self.zero = zero_sums(recipe, hparams, train)
        self.hparams, self.train = hparams, train

    def _batches(self, epoch):
        size = self.recipe.batch_size
        return epoch_batches(self.n, size, self.seed, epoch, self._lengths)

    def compile(self, state):
        """As that of `_Resident`."""
        piece = parallel.put_host_batches(next(stream(self.train, self._batches(0)))[0])
        none, numbers = np.int32(0), as_traced(self.hparams)
        return train_piece(self.recipe, state, numbers, piece, self.zero, none, none)[0]

    def laps(self, epoch, done, seconds, last):
        """As those of `_Resident`: one or more a piece."""
        spans = _Spans(seconds, last)
        for piece, count in stream(self.train, self._batches(epoch)[done:]):
            piece = parallel.put_host_batches(piece)
            for start, stop in spans.of(0, count):
                span = np.int32(start), np.int32(stop)

                def advance(state, numbers, sums, piece=piece, span=span):
                    return train_piece(self.recipe, state, numbers, piece, sums, *span)

                yield advance, stop - start


class _Spans:
    """Steps in calls of about so many seconds. One call for all where the epoch before was shorter:
    nothing then comes back to the host before the end."""

    def __init__(self, seconds, last):
        self.seconds, self.chunk = seconds, sys.maxsize if last < seconds else 1

    def of(self, start, steps):
        """(start, stop) of each call; it is timed by when the next is asked for."""
        while start < steps:
            stop, lap = min(start + self.chunk, steps), time.perf_counter()
            yield start, stop
            lap = max(parallel.slowest(time.perf_counter() - lap), 0.01)
            self.chunk = max(1, int((stop - start) * self.seconds / lap))
            start = stop


def _divergence(recipe, hparams, step: int) -> RunError:
    """step: 1-based."""
    rate = float(recipe.schedule(np.float32(step - 1), hparams))
    return RunError(
        f"the loss became NaN or infinite at step {step} (learning rate {rate:g}): try a "
        f"smaller --hparams.learning-rate, for example {rate / 10:g}, or --hparams.clip-norm 1; "
        "checkpoints of earlier epochs are kept."
    )
