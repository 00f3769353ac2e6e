"""One sweep, from its configuration to its folder: bind, begin the study, search, finish."""

from collections.abc import Callable
from typing import Any

from dlflax import run
from dlflax.train.layout import use_all_cores
from dlflax.tune.begin import begin
from dlflax.tune.bind import bind
from dlflax.tune.finish import finish
from dlflax.tune.search import train_trials
from dlflax.tune.study import open_study
from dlflax.tune.sweep_config import Sweep


def run_sweep(
    search: str, experiment: run.Experiment | str, sweep: Sweep,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Runs the sweep, or continues it; tests and saves the best model. Returns the contents of
    results.json. search: the name of the kind of search; sweep.space: words, as `space.space`
    takes them. Raises InputError and RunError."""
    use_all_cores()
    if isinstance(experiment, str):
        experiment = run.Experiment(experiment)
    bound = bind(sweep, search, experiment, log)
    folder, url, name = bound.sweep.run_dir, bound.sweep.storage, bound.sweep.study
    with open_study(folder, url, name, bound.direction) as study:
        begin(bound, study, log)
        traces = train_trials(bound, study, log)
        return finish(bound, study, traces, log)
