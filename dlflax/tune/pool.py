"""The trials of a sweep in one pool: take an order of them, let a worker train it, record what came
of it, report. A Rule decides what trains next, a launcher where."""

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from dlflax.report.trials import digits
from dlflax.tune import stopping
from dlflax.tune.checkpoint import PoolCheckpoint
from dlflax.tune.cost import costs
from dlflax.tune.encoding import Encoding
from dlflax.tune.launch import Inline, Launcher, WorkerLost, open_launcher
from dlflax.tune.members import Members
from dlflax.tune.plan import params_text
from dlflax.tune.report import Watch
from dlflax.tune.rules import Budget, Curve, Go, Rule, Stop
from dlflax.tune.samplers import sampler_of
from dlflax.tune.study import Study
from dlflax.tune.worker import Assignment, Job, Outcome, seeds_of, train_order

MOST_FAILURES = 3  # of the workers that a trial is given to
SILENCE = 30.0  # seconds without a sign of life after which a worker is ended
LEAST_DEADLINE = 1800.0  # seconds that any order may take where no sign of life can be seen


@dataclasses.dataclass
class Begun:
    """A trial that was begun."""

    number: int
    params: dict[str, Any]
    goal: int = 0
    """Epochs that its last order is to bring it to."""
    values: list[float] = dataclasses.field(default_factory=list)
    """The objective after each epoch."""
    value: float | None = None
    """What it counts, once it is over."""
    is_over: bool = False
    records: list | None = None
    arrays: list[np.ndarray] = dataclasses.field(default_factory=list)
    """As in an Assignment: its State, in host memory."""
    seconds: float = 0.0
    failures: int = 0
    is_failed: bool = False


@dataclasses.dataclass
class Order:
    """Trials that one worker trains together, until each has its goal."""

    numbers: list[int]
    width: int
    """Trials that the programs are made for."""
    future: concurrent.futures.Future | None = None
    began: float = 0.0
    beat: Path | None = None
    """A file that the worker touches as a sign of life."""
    last_beat: tuple[float, float] = (0.0, 0.0)
    """Its time, and when that was seen to change."""


class Line(NamedTuple):
    """The trials at the last line that was printed."""

    seconds: float
    epochs: int
    over: list[int]


class Pool:
    """All trials of a sweep, and the loop that trains them.

    arrays: {"train": ..., "val": ..., "pretrained": ...}, which every worker gets; folder: that of
    the sweep.
    is_enough: true of all trials once no new one is to be begun; costs: parameters -> attributes of
    a trial that are known before.
    """

    def __init__(
        self, job: Job, study: Study, sampler: BaseSampler, rule: Rule, budget: Budget,
        population: int, launcher: Launcher, arrays: Mapping[str, Any], folder: Path, members: Members,
        checkpoint: PoolCheckpoint | None, watch: Watch, *,
        is_enough: Callable[[list[FrozenTrial]], bool] = lambda trials: False,
        costs: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda params: {},
        log: Callable[[str], None] = print,
    ):  # fmt: skip
        self._job, self._study, self._sampler, self._rule = job, study, sampler, rule
        self._budget, self._population, self._launcher = budget, population, launcher
        self._arrays, self._folder, self._members = arrays, Path(folder), members
        self._checkpoint, self._watch, self._log = checkpoint, watch, log
        self._is_enough, self._costs = is_enough, costs
        self._traces, self._longest, self._pauses = 0, 0.0, False
        self._load()
        self._line = Line(time.perf_counter(), self._epochs(), self._over())

    @classmethod
    def of_sweep(cls, sweep, bound, study, members, digest, watch, log) -> "Pool":
        """Returns the pool of a sweep (a `config.Sweep`, and what it is bound to)."""
        space, direction = bound.space, study.direction
        price = costs(sweep.cost, bound.recipes, sweep.hparams, bound.train["inputs"])
        return cls(
            bound.job(sweep), study,
            sampler_of(sweep.search.sampler or sweep.sampler, space, sweep.seed),
            sweep.search,
            Budget(sweep.trials, sweep.epochs, Encoding(space.distributions).size()),
            sweep.population,
            open_launcher(
                sweep.launcher, sweep.workers, sweep.run_dir, platform=jax.default_backend(),
                devices=jax.local_device_count(), options=sweep.options(), log=log,
            ),
            {"train": bound.train, "val": bound.val, "pretrained": bound.pretrained or {}},
            sweep.run_dir, members, PoolCheckpoint(sweep.run_dir, digest, log), watch,
            is_enough=lambda trials: sweep.auto and stopping.is_enough(
                space, direction, sweep.seed, sweep.tolerance, trials, log
            ),
            costs=lambda params: price and {
                sweep.cost: price[space.apply(params, bound.recipe, sweep.hparams)[0]]
            },
            log=log,
        )  # fmt: skip

    def run(self) -> int:
        """Trains until the rule has nothing more to do. Returns how many programs were compiled.
        Raises what training raises, and RunError where the study cannot be written."""
        with self._launcher:
            self._data = self._launcher.share(self._arrays)
            self._loop()
        return self._traces

    def _loop(self) -> None:
        while True:
            while sum(order.future is not None for order in self._orders) < self._launcher.width:
                order = next((o for o in self._orders if o.future is None), None)
                order = order or self._decide()
                if order is None:
                    break
                self._submit(order)
            if not self._orders:
                break
            self._collect()
        self._say(True)
        if self._checkpoint:
            self._checkpoint.clear()

    # what trains next

    def _decide(self) -> Order | None:
        budget = self._budget
        while True:
            steps = self._rule.decide(self._curves(), self._population, budget)
            gone = [step for step in steps if isinstance(step, Go)]
            if any(go.trial is None for go in gone) and budget.trials > len(self._trials):
                if self._is_enough(self._study.trials()):
                    self._budget = budget = budget._replace(trials=len(self._trials))
                    continue
            self._stop([step.trial for step in steps if isinstance(step, Stop)])
            if gone:
                return self._order(gone)
            if not steps:
                return None

    def _curves(self) -> list[Curve]:
        busy = {number for order in self._orders for number in order.numbers}
        return [
            Curve(t.number, t.params, [self._job.sign * value for value in t.values], t.is_over,
                  t.number in busy)
            for t in self._trials.values()
        ]  # fmt: skip

    def _order(self, gone: list[Go]) -> Order:
        new = [go for go in gone if go.trial is None]
        begun = iter(self._begin(new))
        trials = [self._trials[go.trial] if go.trial is not None else next(begun) for go in gone]
        for trial, go in zip(trials, gone, strict=True):
            trial.goal = go.until
            self._pauses |= go.until < self._budget.epochs
        is_narrow = self._rule.is_narrow and not new
        order = Order([t.number for t in trials], len(gone) if is_narrow else self._population)
        self._orders.append(order)
        return order

    def _begin(self, new: list[Go]) -> list[Begun]:
        """Returns new trials: first those that were in training when the driver ended."""
        resumed = [self._running.pop(0) for _ in new[: len(self._running)]]
        asked = self._study.ask(
            self._sampler, self._job.space.distributions,
            [go.params and dict(go.params) for go in new[len(resumed) :]],
        )  # fmt: skip
        begun = []
        for trial, go in zip([*resumed, *asked], new, strict=True):
            each = Begun(trial.number, dict(trial.params))
            if go.parent is not None:
                parent = self._trials[go.parent]
                each.records, each.arrays = parent.records, parent.arrays
                each.values = list(parent.values)
            begun.append(each)
            self._trials[trial.number] = each
        self._trials = dict(sorted(self._trials.items()))
        return begun

    def _stop(self, numbers: list[int]) -> None:
        if not numbers:
            return
        for number in numbers:
            self._end(self._trials[number])
        with self._study.writing():
            for number in numbers:
                trial = self._trials[number]
                self._tell(trial, TrialState.PRUNED, None, seeds_of(self._job, trial.records))
        self._recorded(numbers)

    # training

    def _submit(self, order: Order) -> None:
        trials = [self._trials[number] for number in order.numbers]
        assignments = [
            # those that are over keep their places, but have no goal
            Assignment(t.number, t.params, 0 if t.is_over else t.goal, t.records, t.arrays)
            for t in trials if not t.is_failed
        ]  # fmt: skip
        seconds = self._checkpoint.seconds_left() if self._checkpoint else math.inf
        is_inline = isinstance(self._launcher, Inline)
        order.beat = None if is_inline else self._folder / "workers" / f"beat-{order.numbers[0]}"
        order.began, order.last_beat = time.monotonic(), (0.0, 0.0)
        others = self._epochs() - sum(len(t.values) for t in trials)
        progress = self._progress_of(others) if is_inline else None
        order.future = self._launcher.submit(
            train_order, self._job, self._data, assignments, order.width, seconds,
            self._members.worth(), order.beat, progress,
        )  # fmt: skip

    def _progress_of(self, others: int):
        over = sum(
            self._budget.epochs - len(trial.values)
            for trial in self._trials.values() if trial.is_over
        )  # fmt: skip
        return lambda epochs: self._watch.progress((others + over + epochs) / self._budget.epochs)

    def _collect(self) -> None:
        """Waits for a worker, and records what it returns."""
        futures = [order.future for order in self._orders if order.future]
        concurrent.futures.wait(futures, 1.0, concurrent.futures.FIRST_COMPLETED)
        for order in [o for o in self._orders if o.future]:
            if not order.future.done():
                self._end_if_silent(order)
                continue
            future, order.future = order.future, None
            try:
                outcomes, traces = future.result()
            except WorkerLost as error:
                self._lose(order, error)
            else:
                self._traces += traces
                self._longest = max(self._longest, time.monotonic() - order.began)
                self._record(order, outcomes)
            if all(self._is_done(number) for number in order.numbers):
                self._orders.remove(order)
        if self._checkpoint and self._checkpoint.seconds_left() <= 0:
            self._checkpoint.save(self._trials.values(), self._orders)
        self._say(False)

    def _is_done(self, number: int) -> bool:
        trial = self._trials[number]
        return trial.is_over or len(trial.values) >= trial.goal

    def _end_if_silent(self, order: Order) -> None:
        """Ends a worker that no longer shows that it lives, or is out of all time."""
        now = time.monotonic()
        try:
            beat = order.beat.stat().st_mtime
        except OSError:  # no sign yet, or on a disk of its own
            limit = max(LEAST_DEADLINE, 10 * self._longest)
            if now - order.began > limit:
                self._log(f"a worker has not answered for {limit / 60:.0f} minutes: it is ended")
                self._launcher.end(order.future)
                order.began = now
            return
        if beat != order.last_beat[0]:
            order.last_beat = beat, now
        elif now - order.last_beat[1] > SILENCE:
            self._log(f"a worker has shown no sign of life for {SILENCE:.0f} s: it is ended")
            self._launcher.end(order.future)
            order.last_beat = beat, now

    def _lose(self, order: Order, error: WorkerLost) -> None:
        trials = [self._trials[number] for number in order.numbers]
        trials = [trial for trial in trials if not self._is_done(trial.number)]
        for trial in trials:
            trial.failures += 1
        failed = [trial for trial in trials if trial.failures >= MOST_FAILURES]
        next_step = "they are trained again"
        if failed:
            next_step = f"which has happened {MOST_FAILURES} times: recorded as failed"
        self._log(f"warning: the worker of trials {_range(order.numbers)} was lost ({error}); "
                  f"{next_step}")  # fmt: skip
        for trial in failed:
            trial.is_failed = True
            self._end(trial)
        with self._study.writing():
            for trial in failed:
                self._tell(trial, TrialState.FAIL, None, {})
        self._recorded([trial.number for trial in failed])

    # records

    def _record(self, order: Order, outcomes: list[Outcome]) -> None:
        over = []
        for outcome in outcomes:
            trial = self._trials[outcome.number]
            if trial.is_over:
                continue
            self._members.add(outcome)
        with self._study.writing():
            for outcome in outcomes:
                trial = self._trials[outcome.number]
                if trial.is_over:
                    continue
                new = dict(enumerate(outcome.curve, 1))
                self._study.report(
                    trial.number, {e: v for e, v in new.items() if e > len(trial.values)}
                )
                trial.values, trial.records = outcome.curve, outcome.records
                trial.arrays = outcome.arrays
                trial.seconds += outcome.seconds
                if outcome.is_over:
                    trial.value = outcome.value
                    self._end(trial)
                    over.append(trial.number)
                    self._tell(trial, TrialState.COMPLETE, outcome.value, outcome.attrs)
        self._recorded(over)

    def _end(self, trial: Begun) -> None:
        trial.is_over, trial.arrays = True, []

    def _tell(self, trial, state, value, attrs) -> None:
        attrs = {**attrs, **self._costs(trial.params), "seconds": trial.seconds}
        if trial.params == self._job.space.defaults:
            attrs["defaults"] = True
        self._study.tell(trial.number, state, value, attrs)

    def _recorded(self, numbers: list[int]) -> None:
        trials = self._study.trials()
        for number in numbers:
            self._watch.trial(trials[number])
        self._watch.trials(trials)

    def _over(self) -> list[int]:
        return [trial.number for trial in self._trials.values() if trial.is_over]

    def _epochs(self) -> int:
        return sum(len(trial.values) for trial in self._trials.values())

    def _say(self, is_end: bool) -> None:
        """Prints a line about a population of trials, or an eighth of all epochs."""
        last, over = self._line, self._over()
        new = [self._trials[number] for number in over if number not in {*last.over}]
        share = (self._epochs() - last.epochs) / (self._budget.trials * self._budget.epochs)
        is_due = is_end and (new or share)
        if share < 1 / 8 and not is_due and (self._pauses or len(new) < self._population):
            return
        self._line = Line(time.perf_counter(), self._epochs(), over)
        seconds = self._line.seconds - last.seconds
        rate = 60 * len(new) / max(seconds, 1e-9)
        line = (
            f"trials {_range([trial.number for trial in new])}: {seconds:.1f} s, "
            f"{rate:,.{0 if rate > 20 else 1}f} trials/min"
        )
        if self._pauses:
            line = (
                f"{self._epochs():,} epochs: {len(self._trials)} trials begun, {len(over)} to "
                "their end"
            )
        lost = sum(trial.value is not None and not math.isfinite(trial.value) for trial in new)
        line += f", {lost} diverged" if lost else ""
        trials = [t for t in self._trials.values() if t.values and not t.is_failed]
        if trials:
            best = min(trials, key=lambda t: (self._job.sign * self._best_value(t), t.number))
            value = digits(self._best_value(best))
            line += f"; best so far {value}, trial {best.number}: {params_text(best.params)}"
        self._watch.line(len(new), line)

    def _best_value(self, trial: Begun) -> float:
        """Returns what a trial counts, or its best epoch so far."""
        if trial.value is not None:
            return trial.value
        return (min if self._job.sign == 1 else max)(trial.values)

    def _load(self) -> None:
        """Continues where the driver ended: finished trials from the study, others from the last
        checkpoint, and what neither has from its beginning."""
        self._trials: dict[int, Begun] = {}
        self._orders: list[Order] = []
        running = self._study.running(self._sampler, self._job.space.distributions)
        saved, orders = self._checkpoint.load() if self._checkpoint else ({}, [])
        for trial in self._study.trials():
            fields = saved.get(trial.number, {"number": trial.number, "params": dict(trial.params)})
            begun = Begun(**fields)
            if trial.state.is_finished():
                begun.values = list(trial.intermediate_values.values())
                begun.value = trial.value
                begun.is_failed = trial.state == TrialState.FAIL
                self._end(begun)
            elif trial.number not in saved:
                continue
            self._trials[trial.number] = begun
        self._running = [trial for trial in running if trial.number not in saved]
        for numbers, width in orders:
            if not all(map(self._is_done, numbers)):
                self._orders.append(Order(numbers, width))
        if saved:
            self._log(f"continuing in the middle of trials {_range(list(saved))}")


def _range(numbers: list[int]) -> str:
    if not numbers:
        return "none"
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"
