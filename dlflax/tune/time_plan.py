"""--time-limit of a sweep: the epochs of a trial, and the number of trials, from measured seconds.

The plan is saved as plan.json in the sweep's folder, so that a sweep that continues has the same.
"""

import dataclasses
import functools
import time

import numpy as np
from optuna.trial import FrozenTrial

from dlflax.files import write_json
from dlflax.run import blend
from dlflax.run.prepare import Setup
from dlflax.run.time_limit import EPOCHS, MEASURED, PLAN, Clock, plan_epochs, read_plan
from dlflax.tune.bind import Bound
from dlflax.tune.pool.training import Trial, train_order
from dlflax.tune.sweep_config import Sweep

LONG = 0.4  # share of the limit: after a first epoch as long as this no second one is measured
LATE = 0.7  # share of a population's time: with less left none begins


def plan_sweep(bound: Bound, population: int, clock: Clock, log) -> tuple[Bound, list | None]:
    """Returns (the sweep with the epochs of a trial that fit, the linear model and trees of its
    ensemble). These are fitted first, as the epochs get the time that they leave; None without
    folds or a limit, and where the plan was made before."""
    sweep, others, max_trees = bound.sweep, None, {}
    if not sweep.time_limit:
        return bound, None
    if sweep.bag_folds and not read_plan(sweep.run_dir):
        setup = Setup(bound.dataset, bound.examples, bound.start, None)
        others = blend.fit_others(
            sweep, setup, *blend.join_splits(sweep, setup), clock, max_trees, log
        )
    measure = functools.partial(_measure_epoch, bound, population)
    sweep = plan_epochs(sweep, sweep.run_dir, clock, measure, log, {"max_trees": max_trees})
    job = dataclasses.replace(bound.job, epochs=sweep.epochs)
    return bound._replace(sweep=sweep, job=job), others


def _measure_epoch(bound: Bound, population: int) -> float:
    """Returns the seconds of an epoch of a population, in the program that trains it later."""
    space, limit = bound.job.space, bound.sweep.time_limit
    params = space.defaults or {
        name: values.choices[0] if hasattr(values, "choices") else values.low
        for name, values in space.distributions.items()
    }
    trials, seconds = [Trial(number, params) for number in range(population)], [0.0]
    for goal in (1, EPOCHS):  # the first epoch compiles
        begun, done = time.perf_counter(), len(trials[0].values)
        if trials[0].is_over or seconds[-1] > LONG * limit:
            break
        for trial in trials:
            trial.goal = goal
        trials, _ = train_order(
            bound.job, lambda: bound.arrays, trials, population, MEASURED * limit
        )  # fmt: skip
        seconds.append((time.perf_counter() - begun) / (len(trials[0].values) - done))
    return seconds[-1]


def reason_to_stop(
    sweep: Sweep, population: int, clock: Clock, trials: list[FrozenTrial]
) -> str | None:
    """Returns the reason to begin no more trials, or None. Plans their number when the first ones
    have ended, and again where later ones take longer."""
    seconds = [trial.user_attrs["seconds"] for trial in trials if trial.state.is_finished()]
    if not sweep.time_limit or not seconds:
        return None
    count, plan = len(seconds), read_plan(sweep.run_dir)
    share = clock.remaining() / max(population * float(np.mean(seconds)), 1e-9)
    planned = plan.get("trials", min(sweep.trials, count + population * int(share)))
    planned = count if share < LATE else planned
    if planned != plan.get("trials"):
        write_json(sweep.run_dir / PLAN, {**plan, "trials": planned})
    if count < planned:
        return None
    return f"time limit of {sweep.time_limit:g} s: {count:,} of {sweep.trials:,} trials"
