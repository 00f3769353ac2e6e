"""The trials of a sweep in one pool: take an order of them, let a worker train it, record the
results, report. A Rule selects the trials to train next, a launcher starts the workers."""

from collections.abc import Callable, Mapping
from typing import Any

from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from dlflax.errors import RunError
from dlflax.tune.launch import WorkerLost
from dlflax.tune.pool.pool_checkpoint import PoolCheckpoint
from dlflax.tune.pool.rules import Budget, Curve, Go, Rule, Stop
from dlflax.tune.pool.sweep_report import Watch, range_text
from dlflax.tune.pool.training import Job, Trial, seed_attrs
from dlflax.tune.pool.trial_models import Members
from dlflax.tune.pool.workers import Order, Workers
from dlflax.tune.study import Study

MOST_FAILURES = 3  # workers that a trial may lose


class Pool:
    """All trials of a sweep, and the loop that trains them.

    reason_to_stop: all trials -> the reason to begin no more, or None; costs: parameters ->
    attributes of a trial that depend on nothing else.
    """

    def __init__(
        self, job: Job, study: Study, sampler: BaseSampler, rule: Rule, budget: Budget,
        population: int, workers: Workers, members: Members, checkpoint: PoolCheckpoint,
        watch: Watch, *,
        reason_to_stop: Callable[[list[FrozenTrial]], str | None] = lambda trials: None,
        costs: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda params: {},
        log: Callable[[str], None] = print,
    ):  # fmt: skip
        self._job, self._study, self._sampler, self._rule = job, study, sampler, rule
        self._budget, self._population, self._workers = budget, population, workers
        self._members, self._checkpoint, self._watch, self._log = members, checkpoint, watch, log
        self._reason_to_stop, self._costs = reason_to_stop, costs
        # continues with the trials of the last checkpoint; all others begin anew, and `_replay`
        # reads their records
        study.complete_running(sampler, job.space.distributions)
        saved, orders = checkpoint.load()
        self._trials = {number: Trial(**fields) for number, fields in sorted(saved.items())}
        self._orders = [Order([self._trials[n] for n in ns], width) for ns, width in orders]
        self._recorded = {trial.number: trial for trial in study.finished_trials()}
        self._earlier = [
            trial for trial in study.trials()
            if trial.number not in saved and trial.state != TrialState.WAITING
        ]  # fmt: skip
        if saved:
            log(f"continuing in the middle of trials {range_text(list(saved))}")

    def run(self) -> int:
        """Trains until the rule has nothing more to do. Returns the number of compiled programs.
        Raises what training raises, and RunError where the study cannot be written."""
        traces = 0
        with self._workers:
            while True:
                while self._workers.has_room(self._orders):
                    waiting = [order for order in self._orders if order.future is None]
                    order = waiting[0] if waiting else self._decide()
                    if order is None:
                        break
                    self._replay(order)
                    if order.is_done():
                        self._orders.remove(order)
                    else:
                        self._submit(order)
                if not self._orders:
                    break
                traces += self._collect()
        self._watch.show(is_end=True)
        self._checkpoint.clear()
        return traces

    # selection

    def _decide(self) -> Order | None:
        while True:
            budget = self._budget
            steps = self._rule.decide(self._curves(), self._population, budget)
            gone = [step for step in steps if isinstance(step, Go)]
            is_new = any(go.trial is None for go in gone) and not self._earlier
            may_begin = is_new and budget.trials > len(self._trials)
            if may_begin and (reason := self._reason_to_stop(self._study.trials())):
                self._log(reason)
                self._budget = budget._replace(trials=len(self._trials))
                continue
            stops = [self._trials[step.trial] for step in steps if isinstance(step, Stop)]
            stops = [trial for trial in stops if not trial.is_over]
            self._end(stops, TrialState.PRUNED)
            if gone:
                return self._order(gone)
            if not stops:
                return None

    def _curves(self) -> list[Curve]:
        busy = {number for order in self._orders for number in order.numbers()}
        return [
            Curve(t.number, t.params, [self._job.sign * value for value in t.values], t.is_over,
                  t.number in busy)
            for t in self._trials.values()
        ]  # fmt: skip

    def _order(self, gone: list[Go]) -> Order:
        idle = {c.number for c in self._curves() if not c.is_over and not c.is_busy}
        for go in gone:
            if go.trial is not None and go.trial not in idle or go.until < 1:
                raise RunError(
                    f"{type(self._rule).__name__} returned {go}: the trial is over or in training, "
                    "or has no epoch to train; the recorded trials are safe."
                )
        new = [go for go in gone if go.trial is None]
        begun = iter(self._begin(new))
        trials = [next(begun) if go.trial is None else self._trials[go.trial] for go in gone]
        for trial, go in zip(trials, gone, strict=True):
            trial.goal = go.until
        is_narrow = self._rule.is_narrow and not new
        order = Order(trials, len(gone) if is_narrow else self._population)
        self._orders.append(order)
        return order

    def _begin(self, new: list[Go]) -> list[Trial]:
        """Returns new trials: first those that were begun before the driver ended."""
        resumed = [self._earlier.pop(0) for _ in new[: len(self._earlier)]]
        asked = self._study.ask(
            self._sampler, self._job.space.distributions,
            [go.params and dict(go.params) for go in new[len(resumed) :]],
        )  # fmt: skip
        begun = []
        for trial, go in zip([*resumed, *asked], new, strict=True):
            copy = Trial(trial.number, dict(trial.params))
            parent = self._trials.get(go.parent)
            # a kill may have left the parent without its State: the copy then begins anew
            if parent is not None and parent.arrays and trial.number not in self._recorded:
                copy.records, copy.arrays = parent.records, parent.arrays
                copy.values = list(parent.values)
                with self._study.writing():
                    self._study.report(copy.number, dict(enumerate(copy.values, 1)))
            begun.append(copy)
            self._trials[trial.number] = copy
        self._trials = dict(sorted(self._trials.items()))
        return begun

    # training

    def _submit(self, order: Order) -> None:
        epochs = self._budget.epochs
        done = sum(epochs if t.is_over else len(t.values) for t in self._trials.values())
        before = done - sum(len(trial.values) for trial in order.trials)
        self._workers.submit(
            order, self._checkpoint.remaining_seconds(), self._members.threshold(),
            lambda trained: self._watch.progress((before + trained) / epochs),
        )  # fmt: skip

    def _collect(self) -> int:
        """Waits for a worker, and records its results. Returns the number of compiled programs."""
        traces = 0
        for order, result in self._workers.collect(self._orders):
            if isinstance(result, WorkerLost):
                self._lose(order, result)
            else:
                trials, count = result
                traces += count
                self._record(trials)
            if order.is_done():
                self._orders.remove(order)
        if self._checkpoint.remaining_seconds() <= 0:
            self._checkpoint.save(self._trials.values(), self._orders)
        return traces

    def _replay(self, order: Order) -> None:
        """Takes epochs that were trained before the driver ended from their records, so that a rule
        decides again as it did then."""
        for trial in order.trials:
            recorded = self._recorded.get(trial.number)
            if recorded is None or trial.is_over:
                continue
            reports = list(recorded.intermediate_values.values())
            trial.values = reports[: trial.goal]
            is_stopped = recorded.state == TrialState.PRUNED and len(reports) >= trial.goal
            if len(reports) <= trial.goal and not is_stopped:
                trial.value, trial.is_failed = recorded.value, recorded.state == TrialState.FAIL
                trial.end()

    def _lose(self, order: Order, error: WorkerLost) -> None:
        trials = [trial for trial in order.trials if not trial.is_at_goal()]
        for trial in trials:
            trial.failures += 1
        failed = [trial for trial in trials if trial.failures >= MOST_FAILURES]
        numbers, next_step = range_text(order.numbers()), "they are trained again"
        if failed:
            next_step = f"which has happened {MOST_FAILURES} times: recorded as failed"
        self._log(f"warning: the worker of trials {numbers} was lost ({error}); {next_step}")
        self._end(failed, TrialState.FAIL)

    # records

    def _record(self, trained: list[Trial]) -> None:
        pairs = [(self._trials[new.number], new) for new in trained]
        pairs = [(trial, new) for trial, new in pairs if not trial.is_at_goal()]
        for _, new in pairs:
            self._members.add(new)
        with self._study.writing():
            for trial, new in pairs:
                reports = list(enumerate(new.values, 1))[len(trial.values) :]
                self._study.report(trial.number, dict(reports))
                vars(trial).update(vars(new))
                if trial.is_over:
                    trial.end()
                    self._tell(trial, TrialState.COMPLETE)
        self._watch.show()

    def _end(self, trials: list[Trial], state: TrialState) -> None:
        """Ends trials without a value: stopped ones, or failed ones."""
        if not trials:
            return
        with self._study.writing():
            for trial in trials:
                trial.is_failed = state == TrialState.FAIL
                trial.attrs = {} if trial.is_failed else seed_attrs(self._job, trial.records)
                trial.end()
                if trial.number not in self._recorded:
                    self._tell(trial, state)
        self._watch.show()

    def _tell(self, trial: Trial, state: TrialState) -> None:
        attrs = {**trial.attrs, **self._costs(trial.params), "seconds": trial.seconds}
        if trial.params == self._job.space.defaults:
            attrs["defaults"] = True
        self._study.tell(trial.number, state, trial.value, attrs)
