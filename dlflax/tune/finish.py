"""The end of a sweep: the winner retrained and tested, results, pictures, report."""

import dataclasses
import math
import time
from pathlib import Path

from dlflax import parallel, run
from dlflax.errors import RunError
from dlflax.files import write_json
from dlflax.report import trials as ranking
from dlflax.run.config import more_epochs_change_the_past
from dlflax.run.folder import load_config
from dlflax.run.saved import to_json
from dlflax.tune import report
from dlflax.tune.trial import without_password


def finish(saved, experiment, sweep, dataset, trials, seconds, objective, url, log):
    """Retrains the best trial, tests it once, and writes results.json, pictures and report. Returns
    the results, on all hosts."""
    folder, direction = sweep.run_dir, objective.direction
    parallel.from_main(
        lambda: ranking.write_trials_csv(folder / "trials.csv", trials, direction, sweep.objective)
    )
    best = next(iter(ranking.ranked(trials, direction)), None)
    if best is None or not math.isfinite(best.value):
        raise RunError(
            f"all {len(trials)} trials diverged or failed: search over smaller learning rates, for "
            "example --space.learning-rate 1e-5 1e-3 log, under another --study."
        )
    recipe, hparams = objective.space.apply(best.params, sweep.recipe, sweep.hparams)
    common = {f.name: getattr(sweep, f.name) for f in dataclasses.fields(run.Config)}
    winner = run.Config(**{**common, "recipe": recipe, "hparams": hparams})
    if sweep.retrain_on_all:
        # without a validation score the last epoch counts
        epochs = ranking.best_epoch(best, direction)
        steps = -(-len(objective.splits[0]["inputs"]) // recipe.batch_size)
        if more_epochs_change_the_past(winner, epochs, steps):
            epochs = winner.epochs
        winner = dataclasses.replace(
            winner, validation=0.0, patience=0, reduce_on_plateau=0, epochs=epochs
        )
    log(f"retraining the best, trial {best.number}, with a seed that no trial had ({sweep.seed})")
    best_folder = folder / "best"
    # one host looks, and moves what is in the way, before all begin
    resume = parallel.from_main(lambda: _in_folder(winner, best_folder).resume)
    winner = dataclasses.replace(winner, run_dir=best_folder, resume=resume)
    retrained = run.run(experiment, winner, log, dataset)  # {} on other hosts than the first

    def write():
        results = {
            **report.facts(saved, trials, direction),
            "structures": len(objective.layouts),
            "traces": objective.traces(),  # by this process
            "seconds": seconds,  # without retraining
            "trials_per_minute": 60 * len(trials) / max(seconds, 1e-9),
            "best": {
                "number": best.number,
                "value": best.value,
                "std": best.user_attrs.get("std"),
                "best_epoch": ranking.best_epoch(best, direction),
                "hparams": best.params,
                "run_dir": str(best_folder),
            },
            "val": retrained.get("val"),
            "test": retrained["test"],
            "commands": {
                "predict": f"python -m experiments.predict {best_folder} INPUT...",
                "tensorboard": f"tensorboard --logdir {folder}",
                "dashboard": f"optuna-dashboard {without_password(url)}",
            },
        }
        write_json(folder / "results.json", results)
        report.write(folder, results, trials, direction, log)
        return results

    return parallel.from_main(write)


def _in_folder(winner: run.Config, folder: Path) -> run.Config:
    """The winner's Config for its run folder: continued where it is the same run, else what is
    there is moved aside."""
    here = dataclasses.replace(winner, run_dir=folder, resume=(folder / "config.json").exists())
    if here.resume:
        old, names = load_config(folder)["config"], ("recipe", "hparams", "epochs")
        if [old[name] for name in names] != [to_json(getattr(here, name)) for name in names]:
            folder.rename(folder.with_name(f"{folder.name}_{time.time():.0f}"))
            here = dataclasses.replace(here, resume=False)
    return here
