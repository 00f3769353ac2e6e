"""The trials of a sweep in one pool: take an order of them, let a worker train it, record what came
of it, report. A Rule decides what trains next, a launcher where."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from dlflax.errors import RunError
from dlflax.tune.checkpoint import PoolCheckpoint
from dlflax.tune.launch import WorkerLost
from dlflax.tune.members import Members
from dlflax.tune.orders import Order, Workers
from dlflax.tune.plan import Lines, range_text
from dlflax.tune.report import Watch
from dlflax.tune.rules import Budget, Curve, Go, Rule, Stop
from dlflax.tune.study import Study
from dlflax.tune.worker import Assignment, Job, Outcome, seeds_of

MOST_FAILURES = 3  # of the workers that a trial is given to


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
    """The score of a trial that is over."""
    is_over: bool = False
    records: list | None = None
    arrays: list[np.ndarray] = dataclasses.field(default_factory=list)
    """The State in host memory, as in an Assignment."""
    seconds: float = 0.0
    failures: int = 0
    is_failed: bool = False


class Pool:
    """All trials of a sweep, and the loop that trains them.

    is_enough: true of all trials once no new one is to be begun; costs: parameters -> attributes of
    a trial that are known before.
    """

    def __init__(
        self, job: Job, study: Study, sampler: BaseSampler, rule: Rule, budget: Budget,
        population: int, workers: Workers, members: Members, checkpoint: PoolCheckpoint | None,
        watch: Watch, *, is_enough: Callable[[list[FrozenTrial]], bool] = lambda trials: False,
        costs: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda params: {},
        log: Callable[[str], None] = print,
    ):  # fmt: skip
        self._job, self._study, self._sampler, self._rule = job, study, sampler, rule
        self._budget, self._population, self._workers = budget, population, workers
        self._members, self._checkpoint, self._watch, self._log = members, checkpoint, watch, log
        self._is_enough, self._costs, self._traces = is_enough, costs, 0
        self._load()
        self._lines = Lines(job, budget, population, [*self._recorded])

    def run(self) -> int:
        """Trains until the rule has nothing more to do. Returns how many programs were compiled.
        Raises what training raises, and RunError where the study cannot be written."""
        with self._workers:
            self._loop()
        self._say(True)
        if self._checkpoint:
            self._checkpoint.clear()
        return self._traces

    def _loop(self) -> None:
        while True:
            while self._workers.has_room(self._orders):
                order = next((o for o in self._orders if o.future is None), None)
                order = order or self._decide()
                if order is None:
                    break
                self._replay(order)
                if self._is_done(order):
                    self._orders.remove(order)
                else:
                    self._submit(order)
            if not self._orders:
                return
            self._collect()

    # what trains next

    def _decide(self) -> Order | None:
        budget = self._budget
        while True:
            steps = self._rule.decide(self._curves(), self._population, budget)
            gone = [step for step in steps if isinstance(step, Go)]
            is_new = any(go.trial is None for go in gone) and not self._earlier
            may_begin = is_new and budget.trials > len(self._trials)
            if may_begin and self._is_enough(self._study.trials()):
                self._budget = budget = budget._replace(trials=len(self._trials))
                continue
            stopped = [step.trial for step in steps if isinstance(step, Stop)]
            stopped = [number for number in stopped if not self._trials[number].is_over]
            self._stop(stopped)
            if gone:
                return self._order(gone)
            if not stopped:
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
        idle = {c.number for c in self._curves() if not c.is_over and not c.is_busy}
        for go in gone:
            if go.trial is not None and go.trial not in idle or go.until < 1:
                raise RunError(
                    f"{type(self._rule).__name__} returned {go}: the trial is over or in training, "
                    "or has no epoch to train; what is recorded is safe."
                )
        begun = iter(self._begin(new))
        trials = [self._trials[go.trial] if go.trial is not None else next(begun) for go in gone]
        for trial, go in zip(trials, gone, strict=True):
            trial.goal = go.until
            self._lines.pauses |= go.until < self._budget.epochs
        is_narrow = self._rule.is_narrow and not new
        order = Order([t.number for t in trials], len(gone) if is_narrow else self._population)
        self._orders.append(order)
        return order

    def _begin(self, new: list[Go]) -> list[Begun]:
        """Returns new trials: first those that were begun before the driver ended."""
        resumed = [self._earlier.pop(0) for _ in new[: len(self._earlier)]]
        asked = self._study.ask(
            self._sampler, self._job.space.distributions,
            [go.params and dict(go.params) for go in new[len(resumed) :]],
        )  # fmt: skip
        begun = []
        for trial, go in zip([*resumed, *asked], new, strict=True):
            each = Begun(trial.number, dict(trial.params))
            parent = self._trials.get(go.parent)
            # a kill may have left the parent without its State: the copy then begins anew
            if parent is not None and parent.arrays and trial.number not in self._recorded:
                each.records, each.arrays = parent.records, parent.arrays
                each.values = list(parent.values)
                with self._study.writing():
                    self._study.report(each.number, dict(enumerate(each.values, 1)))
            begun.append(each)
            self._trials[trial.number] = each
        self._trials = dict(sorted(self._trials.items()))
        return begun

    def _stop(self, numbers: list[int]) -> None:
        if not numbers:
            return
        for number in numbers:
            self._end(self._trials[number])
        numbers = [number for number in numbers if number not in self._recorded]
        with self._study.writing():
            for number in numbers:
                trial = self._trials[number]
                self._tell(trial, TrialState.PRUNED, None, seeds_of(self._job, trial.records))
        self._show(numbers)

    # training

    def _submit(self, order: Order) -> None:
        trials = [self._trials[number] for number in order.numbers]
        assignments = [
            # those at their goal have nothing to do, and keep their places
            Assignment(t.number, t.params, t.goal * (not self._is_at_goal(t)), t.records, t.arrays)
            for t in trials if not t.is_failed
        ]  # fmt: skip
        seconds = self._checkpoint.seconds_left() if self._checkpoint else math.inf
        before = self._progress() - sum(len(trial.values) for trial in trials)
        self._workers.submit(
            order, assignments, seconds, self._members.worth(),
            lambda epochs: self._watch.progress((before + epochs) / self._budget.epochs),
        )  # fmt: skip

    def _progress(self) -> int:
        """Returns the epochs of all trials; one that is over has all of its."""
        return sum(
            self._budget.epochs if trial.is_over else len(trial.values)
            for trial in self._trials.values()
        )

    def _collect(self) -> None:
        """Waits for a worker, and records what it returns."""
        for order, ended in self._workers.collect(self._orders):
            if isinstance(ended, WorkerLost):
                self._lose(order, ended)
            else:
                outcomes, traces = ended
                self._traces += traces
                self._record(outcomes)
            if self._is_done(order):
                self._orders.remove(order)
        if self._checkpoint and self._checkpoint.seconds_left() <= 0:
            self._checkpoint.save(self._trials.values(), self._orders)
        self._say(False)

    def _is_done(self, order: Order) -> bool:
        return all(self._is_at_goal(self._trials[number]) for number in order.numbers)

    def _is_at_goal(self, trial: Begun) -> bool:
        return trial.is_over or len(trial.values) >= trial.goal

    def _replay(self, order: Order) -> None:
        """Takes what trials were trained to before the driver ended from their records, so that a
        rule decides again what it decided then."""
        for number in order.numbers:
            trial, recorded = self._trials[number], self._recorded.get(number)
            if recorded is None or trial.is_over:
                continue
            reports = list(recorded.intermediate_values.values())
            trial.values = reports[: trial.goal]
            is_stopped = recorded.state == TrialState.PRUNED and len(reports) >= trial.goal
            if len(reports) <= trial.goal and not is_stopped:
                trial.value, trial.is_failed = recorded.value, recorded.state == TrialState.FAIL
                self._end(trial)

    def _lose(self, order: Order, error: WorkerLost) -> None:
        trials = [self._trials[number] for number in order.numbers]
        trials = [trial for trial in trials if not self._is_at_goal(trial)]
        for trial in trials:
            trial.failures += 1
        failed = [trial for trial in trials if trial.failures >= MOST_FAILURES]
        next_step = "they are trained again"
        if failed:
            next_step = f"which has happened {MOST_FAILURES} times: recorded as failed"
        self._log(f"warning: the worker of trials {range_text(order.numbers)} was lost ({error}); "
                  f"{next_step}")  # fmt: skip
        for trial in failed:
            trial.is_failed = True
            self._end(trial)
        with self._study.writing():
            for trial in failed:
                self._tell(trial, TrialState.FAIL, None, {})
        self._show([trial.number for trial in failed])

    # records

    def _record(self, outcomes: list[Outcome]) -> None:
        new = [each for each in outcomes if not self._is_at_goal(self._trials[each.number])]
        for outcome in new:
            self._members.add(outcome)
        with self._study.writing():
            for outcome in new:
                trial = self._trials[outcome.number]
                reports = list(enumerate(outcome.curve, 1))[len(trial.values) :]
                self._study.report(trial.number, dict(reports))
                self._lines.trained += len(reports)
                trial.values, trial.records = outcome.curve, outcome.records
                trial.arrays = outcome.arrays
                trial.seconds += outcome.seconds
                if outcome.is_over:
                    trial.value = outcome.value
                    self._end(trial)
                    self._tell(trial, TrialState.COMPLETE, outcome.value, outcome.attrs)
        self._show([outcome.number for outcome in new if outcome.is_over])

    def _end(self, trial: Begun) -> None:
        trial.is_over, trial.arrays = True, []

    def _tell(self, trial, state, value, attrs) -> None:
        attrs = {**attrs, **self._costs(trial.params), "seconds": trial.seconds}
        if trial.params == self._job.space.defaults:
            attrs["defaults"] = True
        self._study.tell(trial.number, state, value, attrs)

    def _show(self, numbers: list[int]) -> None:
        trials = self._study.trials()
        for number in numbers:
            self._watch.trial(trials[number])
        self._watch.trials(trials)

    def _say(self, is_end: bool) -> None:
        """Prints a line, where one is due."""
        if line := self._lines.next(self._trials.values(), is_end):
            self._watch.line(*line)

    def _load(self) -> None:
        """Continues where the driver ended, with the trials of the last checkpoint as they were.
        All others begin anew, and `_replay` has what is recorded of them."""
        self._study.complete_running(self._sampler, self._job.space.distributions)
        trials = self._study.trials()
        saved, orders = self._checkpoint.load() if self._checkpoint else ({}, [])
        self._trials = {number: Begun(**fields) for number, fields in sorted(saved.items())}
        self._orders = [Order(numbers, width) for numbers, width in orders]
        self._recorded = {t.number: t for t in trials if t.state.is_finished()}
        self._earlier = [
            trial for trial in trials
            if trial.number not in saved and trial.state != TrialState.WAITING
        ]  # fmt: skip
        if saved:
            self._log(f"continuing in the middle of trials {range_text(list(saved))}")
