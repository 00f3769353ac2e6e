"""One sweep, from its configuration to its folder: bind, open the study, train the pool, finish."""

from collections.abc import Callable
from typing import Any

from dlflax import run
from dlflax.train.layout import use_all_cores
from dlflax.tune import settings
from dlflax.tune.bind import bind
from dlflax.tune.config import Sweep
from dlflax.tune.finish import finish
from dlflax.tune.members import MOST_TRIALS, Members
from dlflax.tune.plan import log_plan
from dlflax.tune.report import Watch
from dlflax.tune.search import make_pool
from dlflax.tune.study import open_study


def run_sweep(
    search: str,
    experiment: run.Experiment | str,
    sweep: Sweep,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the sweep, or continues it; tests and saves the best model. Returns the contents of
    results.json. search: the name of the kind of search; sweep.space: words, as `space.space`
    takes them. Raises InputError and RunError."""
    use_all_cores()
    if isinstance(experiment, str):
        experiment = run.Experiment(experiment)
    sweep, bound = bind(sweep, search, experiment, log)
    settings.make_folder(sweep.run_dir)
    metric = sweep.recipe.task.metric(sweep.objective.removeprefix("val_"))
    with open_study(sweep.run_dir, sweep.storage, sweep.study, f"{metric.direction}imize") as study:
        sweep, bound, saved = settings.begin(sweep, bound, search, experiment, study, log)
        log_plan(sweep, bound, len(study.finished()), log)
        digest = settings.digest(saved)
        most = MOST_TRIALS if sweep.ensemble else 1
        members = Members(sweep.run_dir, study.direction, digest, most, log)
        with Watch(sweep, saved, study, log) as watch:
            traces = make_pool(sweep, bound, study, members, digest, watch, log).run()
        return finish(sweep, bound, experiment, study, members, saved, traces, log)
