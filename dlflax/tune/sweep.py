"""One sweep, from its configuration to its folder: bind, begin the study, search, finish."""

import time
from collections.abc import Callable
from typing import Any

from dlflax import run
from dlflax.run.time_limit import END, Clock
from dlflax.train.layout import use_all_cores
from dlflax.tune.begin import begin
from dlflax.tune.bind import bind
from dlflax.tune.finish import finish
from dlflax.tune.search import train_trials
from dlflax.tune.study import open_study
from dlflax.tune.sweep_config import Sweep
from dlflax.tune.time_plan import plan_sweep


def run_sweep(
    search: str, experiment: run.Experiment | str, sweep: Sweep,
    log: Callable[[str], None] = print, started: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs the sweep, or continues it; tests and saves the best model. Returns the contents of
    results.json. search: the name of the kind of search; sweep.space: words, as `space.space`
    takes them; started: of time.perf_counter, for the time limit (default: now). Raises InputError
    and RunError."""
    started = time.perf_counter() if started is None else started
    clock = Clock(max(0.0, sweep.time_limit - END), started)  # its report takes as long as a test
    use_all_cores()
    if isinstance(experiment, str):
        experiment = run.Experiment(experiment)
    bound = bind(sweep, search, experiment, log)
    folder, url, name = bound.sweep.run_dir, bound.sweep.storage, bound.sweep.study
    with open_study(folder, url, name, bound.direction) as study:
        begin(bound, study, log)
        bound, others = plan_sweep(bound, study.saved["config"]["population_size"], clock, log)
        traces = train_trials(bound, study, clock, log)
        return finish(bound, study, traces, log, others)
