"""Population-based training (Jaderberg et al. 2017): the worst lanes take over the State of better
ones, and go on with changed numbers. Copying a lane is one gather; nothing compiles.

All trials are trained at once. What comes out is a schedule: the numbers of every epoch that the
best lane's State went through.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from dlflax.tune.encoding import Encoding
from dlflax.tune.objective import Objective
from dlflax.tune.search import suggest
from dlflax.tune.space import Space
from dlflax.tune.trial import Trial

SHARE = 0.25  # of the lanes that take over another one's State, each from as many of the best
FACTORS = 0.8, 1.25  # by one of which a number is changed
ANEW = 0.25  # how often it is drawn anew from its range instead


def taken_over(values: np.ndarray, seed: int, epoch: int) -> dict[int, int]:
    """{lane: the lane whose State it takes over} after an epoch. values (n,): the lowest is the
    best, +inf of a lane that diverged. A pure function."""
    rng = np.random.default_rng([seed, epoch])
    order = np.argsort(values, kind="stable")
    count = min(max(1, round(SHARE * len(values))), len(values) // 2)
    best = [int(lane) for lane in order[:count] if math.isfinite(values[lane])]
    lost = [int(lane) for lane in order[count:] if not math.isfinite(values[lane])]
    worst = dict.fromkeys([*map(int, order[len(order) - count :]), *lost])
    if not best:
        return {}
    return {
        lane: int(rng.choice(best))
        for lane in worst
        if lane not in best and values[lane] > values[best[0]]
    }


def changed(encoding: Encoding, params: Mapping[str, Any], rng: np.random.Generator):
    """The parameters, each multiplied by one of FACTORS, or drawn anew; choices of numbers go to a
    neighbour."""
    (drawn,) = encoding.spread(rng.random((1, len(encoding.distributions))))
    found = {}
    for name, value in params.items():
        distribution, up, anew = encoding.distributions[name], rng.random() < 0.5, rng.random()
        if anew < ANEW:
            found[name] = drawn[name]
        elif hasattr(distribution, "choices"):
            levels = sorted(distribution.choices)
            place = levels.index(value) + (1 if up else -1)
            found[name] = levels[min(max(place, 0), len(levels) - 1)]
        else:
            value = value * FACTORS[up]
            found[name] = min(max(value, distribution.low), distribution.high)
    return found


class _Lanes:
    """The trials in training, and the numbers of each epoch of every lane."""

    def __init__(self, objective: Objective, space: Space, batch: list[Trial]):
        self._objective, self._batch = objective, batch
        self._encoding = Encoding(space.distributions)
        groups, hparams = objective.grouped(batch)
        (recipe,) = groups  # a State fits one structure
        self.population = objective.population(recipe, hparams, batch)
        self.by_epoch: list[dict[str, list[float]]] = [
            {name: [value] for name, value in trial.params.items()} for trial in batch
        ]
        """Of each lane, the numbers of each epoch; the last ones stay."""

    def params(self) -> list[dict[str, Any]]:
        """Of each lane, as it is trained now."""
        return [{name: values[-1] for name, values in each.items()} for each in self.by_epoch]

    def take_over(self, seed: int, epoch: int) -> None:
        """Decides after an epoch, and writes down the numbers of the next ones."""
        sweep, population = self._objective.sweep, self.population
        values = np.array([
            math.inf if lane in population.diverged
            else self._objective.sign * row[0][-1][sweep.objective]
            for lane, row in enumerate(population.histories)
        ])  # fmt: skip
        sources = taken_over(np.nan_to_num(values, nan=math.inf), seed, epoch)
        population.take_over(sources)
        before, self.by_epoch = list(zip(self.params(), self.by_epoch, strict=True)), []
        for lane in range(len(before)):
            params, past = before[sources.get(lane, lane)]
            if lane in sources:
                rng = np.random.default_rng([seed, epoch, lane])
                params = changed(self._encoding, params, rng)
            self.by_epoch.append({n: [*_until(v, epoch), params[n]] for n, v in past.items()})
        self.tell()

    def tell(self) -> None:
        """Hands the numbers to the population."""
        for row, numbers in zip(self.population.trainings, self.by_epoch, strict=True):
            row[0].hparams_by_epoch = numbers

    def outcomes(self):
        """Of every lane, with the numbers of each of its epochs."""
        found = []
        for lane in range(len(self._batch)):
            outcome = self._objective.outcome(self.population, lane, pruned=False)
            done = len(self.population.histories[lane][0])
            by_epoch = {n: _until(v, done) for n, v in self.by_epoch[lane].items()}
            attrs = {**outcome.attrs, "hparams_by_epoch": by_epoch}
            found.append(dataclasses.replace(outcome, attrs=attrs))
        return found

    def trials(self):
        """Each with the numbers of its last epoch."""
        same = [all(len(set(v)) == 1 for v in each.values()) for each in self.by_epoch]
        return [
            Trial(trial.index, params, trial.system_attrs if unchanged else {})
            for trial, params, unchanged in zip(self._batch, self.params(), same, strict=True)
        ]


def _until(values, epoch):
    """With the last one as often as it takes to have one for each epoch."""
    return (values + [values[-1]] * epoch)[:epoch]


def search(
    objective: Objective,
    space: Space,
    store,
    *,
    trials: int,
    seed: int,
    recorded: Callable[[list[FrozenTrial]], None] = lambda trials: None,
) -> None:
    """Trains so many trials at once, and lets the worst take over from the best every
    `sweep.slice` epochs. They are recorded in `store` at the end."""
    if store.trials():
        return
    sweep, checkpoint, clock = objective.sweep, objective.checkpoint, time.perf_counter()
    batch = suggest("qmc", space, seed, objective.direction, [], list(range(trials)))
    lanes, begin = _Lanes(objective, space, batch), 0
    rounds = [*range(sweep.slice, sweep.epochs, sweep.slice), sweep.epochs]
    saved = checkpoint and checkpoint.notes(batch)
    if saved and checkpoint.restore(saved, [lanes.population]):
        begin, clock = saved["stage"], clock - saved["seconds"]
        lanes.by_epoch = saved["by_epoch"]
        lanes.tell()
    for stage, until in enumerate(rounds[begin:], begin):

        def on_epoch(stage=stage):
            done = sum(len(row[0]) for row in lanes.population.histories)
            objective.tell(done / sweep.epochs, None)
            if checkpoint and checkpoint.due():
                checkpoint.save(
                    batch, {}, [lanes.population], stage=stage, by_epoch=lanes.by_epoch,
                    seconds=time.perf_counter() - clock,
                )  # fmt: skip

        lanes.population.train(until, on_epoch)
        if until < sweep.epochs:
            lanes.take_over(seed, until)
    seconds = (time.perf_counter() - clock) / trials
    outcomes = [dataclasses.replace(each, seconds=seconds) for each in lanes.outcomes()]
    objective.keep(lanes.population, list(zip([t.index for t in batch], outcomes, strict=True)))
    done = lanes.trials()
    for trial, outcome in zip(done, outcomes, strict=True):
        objective.draw(trial, outcome)
    store.record(done, outcomes)
    recorded(store.trials())
