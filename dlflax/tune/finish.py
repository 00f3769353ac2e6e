"""The end of a sweep: the winner retrained and tested, results, pictures, report."""

import dataclasses
import math

from dlflax import parallel, run
from dlflax.errors import InputError, RunError
from dlflax.files import write_json
from dlflax.report import trials as ranking
from dlflax.report.pareto import front
from dlflax.run.announce import command
from dlflax.run.resume import more_epochs_change_the_past
from dlflax.tune import ensemble, report
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
    of_best = winner = run.Config(**{**common, "recipe": recipe, "hparams": hparams})
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
    resume = parallel.from_main(lambda: ensemble.in_folder(winner, best_folder).resume)
    winner = dataclasses.replace(winner, run_dir=best_folder, resume=resume)
    # {} on other hosts than the first
    retrained = run.run(experiment, winner, log, dataset, brief=True)

    def results_with(of_ensemble):
        predict = ("experiments.predict", str(best_folder), "INPUT...")
        by_ensemble = command(predict[0], str(folder / "ensemble"), predict[-1])
        more = {"predict by the ensemble": by_ensemble}
        return {
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
            "front": [trial.number for trial in front(trials, direction)],
            "val": retrained.get("val"),
            "test": retrained["test"],
            "baselines": retrained.get("baselines"),
            "verdict": retrained.get("findings", []),
            "ensemble": of_ensemble,
            "commands": {
                "predict": command(*predict),
                **(more if of_ensemble else {}),
                "tensorboard": f"tensorboard --logdir {folder}",
                "dashboard": f"optuna-dashboard {without_password(url)}",
            },
        }

    parallel.from_main(lambda: write_json(folder / "results.json", results_with(None)))
    of_ensemble = _ensemble(experiment, of_best, objective, trials, folder, dataset, log)

    def write():
        results = results_with(of_ensemble)
        write_json(folder / "results.json", results)
        report.write(folder, results, trials, direction, log)
        return results

    return parallel.from_main(write)


def _ensemble(experiment, config, objective, trials, folder, dataset, log):
    """Returns what `ensemble.build` does; None where it fails, which is logged."""
    place, built = folder / "ensemble", None
    try:
        if objective.members is not None:
            built = ensemble.build(experiment, config, objective, trials, place, dataset, log)
        if built is None:  # one of fewer trials may be there
            parallel.from_main(lambda: ensemble.set_aside(place))
        return built
    except (InputError, RunError, OSError) as error:
        log(f"warning: no ensemble: {error}")
        return None
