"""One sweep, from the command line to its folder: space, populations, report, winner retrained.

With --distributed all hosts train one population. Process 0 alone has the storage, and writes: what
it is told there the others are told by it, and decide the same.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from dlflax import parallel, run, transfer
from dlflax.errors import InputError
from dlflax.files import write_json
from dlflax.report import tables
from dlflax.report.trials import print_findings, print_trials
from dlflax.run.folder import check_version, note_versions, settings, write_files
from dlflax.run.prepare import balance, read_data, split_data
from dlflax.run.resume import differences
from dlflax.tune import frozen, hints, report, stopping
from dlflax.tune.broadcast import Broadcast
from dlflax.tune.check import (
    check_memory,
    check_objective,
    check_recipes,
    check_sweep,
    check_transfer,
)
from dlflax.tune.checkpoint import BatchCheckpoint
from dlflax.tune.encoding import Encoding
from dlflax.tune.ensemble import set_aside
from dlflax.tune.finish import finish
from dlflax.tune.members import Members
from dlflax.tune.objective import Objective
from dlflax.tune.plan import all_recipes, log_plan, population_size
from dlflax.tune.search import Sampler, search
from dlflax.tune.space import space
from dlflax.tune.stores import Local, open_study, sqlite_url
from dlflax.tune.trial import without_password

RESULTS = "best", "ensemble", "results.json", "report.html"  # of a finished study


@dataclasses.dataclass(frozen=True)
class Sweep(run.Config):
    """Everything that decides a sweep; what a run has as well, all its trials have in common.
    Saved as config.json."""

    space: Any = None
    """The search space. Of a number: LOW HIGH [log], or three or more choices, and one fixes
    it; of a grid its values. Of what is no number: choices, each a program of its own."""
    trials: int | Literal["auto"] = dataclasses.field(default=64, metadata={"resume": "free"})
    """Trials in all: the same command with more of them continues (a grid, 0: every point). auto:
    until another one is not expected to gain more than chance or the tolerance."""
    tolerance: float = dataclasses.field(default=0.01, metadata={"resume": "free"})
    """--trials auto: a gain that is not worth another trial, as a share of the best value."""
    population: int = 0
    """Trials that are trained at once; 0 chooses by devices and memory."""
    seeds: int = 1
    """Every trial is trained under this many seeds, and counts by their mean."""
    rank: Literal["mean", "cautious"] = "mean"
    """With --seeds: cautious counts one standard deviation worse than the mean."""
    objective: str = ""
    """The score of a trial, at its best epoch: val_SCORE of a score of every epoch, such as
    val_loss or val_accuracy (default: the one that decides the best epoch). A second one,
    parameters, flops or milliseconds (of an example), is to be low as well: the report then has the
    trials that no other one beats in both."""
    cost: Annotated[str, tyro.conf.Suppress] = ""  # the second one
    sampler: Sampler = "gp"
    """The sampler of the next trials."""
    prior: tuple[str, ...] = ()
    """Your own best guess, NAME=VALUE such as learning_rate=3e-4 dropout=0.1: trial 1 has it, and
    some of the others, fewer and fewer, lie around it."""
    warm_start: str | None = None
    """Folder of another sweep, or its name, whose trials are known from the beginning; they count
    as much as they turn out to tell about this one."""
    search: Literal["whole", "freeze-thaw"] = "whole"
    """whole: every trial is trained to its end, or as --prune says; freeze-thaw: the epochs of
    --trials whole trials go to as many trials as are worth beginning, by their learning curves."""
    slice: int = 1
    """freeze-thaw: epochs that a trial is trained for before it is decided again."""
    prune: int = 0
    """Successive halving: the best 1 in N continue after 1/N, 1/N^2, ... of the epochs (try 3)."""
    mode: Literal["auto", "vmap", "map"] = "auto"
    """The way that a device trains its share of a population: at once, or one after the other."""
    study: str | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """Name of the sweep and of its folder in runs/sweeps (default: EXPERIMENT_SEARCH)."""
    storage: str | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """sqlite:///FILE (default: $DLFLAX_STORAGE, or study.db in the folder);
    postgresql+psycopg://... for workers, whose password is never saved."""
    heartbeat: float = dataclasses.field(default=30.0, metadata={"resume": "free"})
    """PostgreSQL: seconds between signs of life; a worker that misses four is given up."""
    run_dir: Path | None = None
    """Folder of the sweep (default: runs/sweeps/STUDY)."""
    ensemble: int = dataclasses.field(default=16, metadata={"resume": "free"})
    """Most models of the ensemble that is made of the best trials, 0 for none: it is tested, saved
    and used as a run of its own, beside the retrained best trial."""
    retrain_on_all: bool = False
    """Retrain the best on training and validation data together."""
    resume: Annotated[bool, tyro.conf.Suppress] = True  # a sweep always continues
    auto: Annotated[bool, tyro.conf.Suppress] = dataclasses.field(  # as --trials says
        default=False, metadata={"resume": "free"}
    )


def run_sweep(
    search_name: str,
    experiment: run.Experiment | str,
    sweep: Sweep,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the sweep, or continues it; retrains, tests and saves the winner. Returns the contents
    of results.json. sweep.space: words, as `tune.space.space` takes them. Raises InputError and
    RunError."""
    if isinstance(experiment, str):
        experiment = run.Experiment(experiment)
    sweep, dataset, examples, tried = _bound(sweep, search_name, experiment, log)
    start = transfer.prepare(sweep.transfer, sweep.recipe, sweep.hparams, examples, sweep.seed, log)
    examples = dataclasses.replace(examples, weights_sha256=start.splits.weights_sha256)
    if sweep.class_weights == "balanced":
        start = balance(start)
    splits = start.splits.train, start.splits.val
    check_memory(splits)
    recipes = all_recipes(start.recipe, sweep.hparams, tried, splits)
    check_recipes(sweep, tried, recipes, splits[0], start.pretrained, log)
    if jax.process_count() > 1:  # the winner's retraining would say so at the end
        for recipe in recipes:
            parallel.devices(sweep.devices, recipe.batch_size)
    count = parallel.from_main(lambda: population_size(sweep, recipes, splits))
    chosen = dataclasses.replace(sweep, population=count)
    shown = chosen.storage and without_password(chosen.storage)  # what is saved is shown around
    new = settings(experiment, dataclasses.replace(chosen, storage=shown), dataset, examples)
    new["search"], new["devices"] = search_name, len(jax.devices())
    folder = sweep.run_dir
    try:
        parallel.from_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    except OSError as error:
        raise InputError(f"--run-dir {folder} cannot be made: {error.strerror}.") from error

    url = _storage(sweep)
    lowest = sweep.recipe.task.metric(sweep.objective.removeprefix("val_")).direction == "min"
    direction = "minimize" if lowest else "maximize"
    opened = open_study if jax.process_count() == 1 else Broadcast
    with opened(url, sweep.study, direction, tried.distributions, sweep.heartbeat, log) as store:
        if sweep.warm_start and not store.trials():  # later they are in the settings
            new["known"] = parallel.from_main(
                lambda: hints.known_trials(sweep.warm_start, tried, sweep.objective, log)
            )
        saved = store.settings(new)
        tried = dataclasses.replace(tried, known=saved.get("known", []))
        check_version(saved, f"the study {sweep.study}")
        sweep = _as_begun(sweep, saved, new, log)
        parallel.from_main(lambda: write_json(folder / "config.json", saved))
        parallel.from_main(lambda: write_files(folder, examples))
        trials = store.trials()
        if not trials:  # the study is new, though the folder may not be
            parallel.from_main(lambda: [set_aside(folder / name) for name in RESULTS])
        lanes = dataclasses.replace(sweep, recipe=start.recipe)
        # of several workers or hosts none knows what another one trains
        study = _digest(saved)
        checkpoint = BatchCheckpoint(folder, study, log) if isinstance(store, Local) else None
        objective = Objective(
            lanes, tried, recipes, splits, direction, trials, pretrained=start.pretrained,
            members=Members(folder, direction, study) if sweep.ensemble else None,
            checkpoint=checkpoint, log=log,
        )  # fmt: skip
        log_plan(objective, dataset, splits, len(trials), log)
        live = report.Live(folder, saved, direction, log)
        with objective, live:
            recorded = live if parallel.is_main() else lambda trials: None
            _search(sweep, objective, tried, store, recorded, log)
        trials = store.trials()
        results = store.claim_finish(sweep.trials)
        if checkpoint:  # what it had is recorded now
            checkpoint.clear()
        if results is None:
            results = finish(
                saved, experiment, sweep, dataset, trials, store.seconds(), objective, url, log
            )
            store.finish(results)
        else:
            log("another worker retrained the best and wrote the report.")
    _print_end(sweep, trials, direction, results, log)
    return results


def _print_end(sweep, trials, direction, results, log) -> None:
    """Prints the best trials, the test scores of the winner and the ensemble, and what is where."""
    print_trials(trials, direction, sweep.objective)
    together = results.get("ensemble")
    models = {}
    if together:
        models[f"the ensemble of {len(together['models'])} models"] = together["test"]
    beside = {**models, **(results.get("baselines") or {})}
    tables.print_results({**results, "baselines": beside}, sweep.verbose)
    for sentence in results.get("verdict", ()):
        log(sentence)
    print_findings(results["findings"])
    log(f"report: {sweep.run_dir / 'report.html'}")
    for name, command in results["commands"].items():
        log(f"{name}: {command}")


def _search(sweep, objective, tried, store, recorded, log):
    common = dict(trials=sweep.trials, population=sweep.population, seed=sweep.seed)
    if sweep.search == "freeze-thaw":
        frozen.search(objective, tried, store, recorded=recorded, **common)
    else:
        common |= {"sampler": sweep.sampler, "enough": _enough(sweep, tried, store, log)}
        search(objective, tried, store, recorded=recorded, **common)


def _enough(sweep, tried, store, log):
    """True if trials are enough, by --trials; what it says once they are is logged."""
    encoding = Encoding(tried.distributions)

    def enough(trials):
        why = sweep.auto and parallel.from_main(
            lambda: stopping.enough(encoding, store.direction, sweep.seed, sweep.tolerance, trials)
        )
        if why:
            log(why)
        return bool(why)

    return enough


def _digest(saved) -> str:
    """Tells a study from another one that was in its folder before."""
    text = json.dumps([saved["config"], saved["data"]["sha256"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _storage(sweep: Sweep) -> str:
    """The address of the database."""
    of_folder = sqlite_url(sweep.run_dir / "study.db")
    url = sweep.storage or os.environ.get("DLFLAX_STORAGE") or of_folder
    alone = "--trials auto" if sweep.auto else ""
    if sweep.search != "whole":
        alone = f"--search {sweep.search}"
    if alone and url.startswith("postgresql"):
        raise InputError(f"{alone} is for one process: leave PostgreSQL out.")
    if sweep.heartbeat != Sweep.heartbeat and not url.startswith("postgresql"):
        raise InputError(
            "--heartbeat is for workers that share a PostgreSQL database: leave it out."
        )
    return url


def _bound(sweep, search_name, experiment, log):
    """(the sweep with nothing left open, its Dataset, Splits, Space). InputError for what does not
    go together."""
    check_sweep(sweep)
    sweep, dataset = read_data(sweep, log)
    sweep, examples = split_data(sweep, dataset, log)
    recipe = sweep.recipe
    recipes = tuple(preset.recipe for preset in experiment.presets.values())
    grid = sweep.sampler == "grid"
    tried = space(sweep.space, recipe, sweep.hparams, grid=grid, recipes=recipes)
    guessed = hints.guess(sweep.prior, tried, recipe, sweep.hparams)
    tried = dataclasses.replace(tried, guess=guessed)
    if sweep.trials == "auto":
        sweep = dataclasses.replace(sweep, trials=stopping.MOST, auto=True)
    recipe, hparams = tried.apply(tried.fixed, recipe, sweep.hparams)
    study = sweep.study or f"{experiment.name}_{search_name}"
    trials = sweep.trials
    if size := Encoding(tried.distributions).size():
        trials = min(trials or size, size)
        if trials < sweep.trials:
            log(f"note: the space has {size:,} configurations: each is tried once")
    if not grid and tried.defaults is None:
        log("note: the defaults are not in the space, so no trial has them")
    sweep = dataclasses.replace(
        sweep, recipe=recipe, hparams=hparams, study=study, trials=trials,
        run_dir=sweep.run_dir or Path("runs") / "sweeps" / study,
        objective=sweep.objective or f"val_{recipe.task.monitor}",
    )  # fmt: skip
    check_objective(sweep, examples.train, tried)
    check_transfer(sweep.transfer, tried)
    return sweep, dataset, examples, tried


def _as_begun(sweep, saved, new, log) -> Sweep:
    """The sweep with the population that the study was begun with, unless a flag says another.
    InputError when the study was begun with another setup."""
    if not sweep.population:
        sweep = dataclasses.replace(sweep, population=saved["config"]["population"])
        new = {**new, "config": {**new["config"], "population": sweep.population}}
    if different := differences(saved, new, sweep):
        raise InputError(
            f"the study {sweep.study} was begun with another setup ({different}): give the same "
            "flags and data to continue it, or another --study NAME."
        )
    note_versions(saved, new, log)
    if saved["devices"] != new["devices"]:
        log(f"note: {new['devices']} devices, it began with {saved['devices']}: "
            "the result may not be the same to the bit")  # fmt: skip
    return sweep
