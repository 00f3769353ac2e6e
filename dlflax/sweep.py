"""One sweep, from the command line to its folder: space, populations, report, winner retrained.

With --distributed all hosts train one population. Process 0 alone has the storage, and writes: what
it is told there the others are told by it, and decide the same.
"""

import contextlib
import dataclasses
import importlib
import itertools
import math
import pkgutil
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from optuna.distributions import CategoricalDistribution

from dlflax import (
    augment,
    logs,
    optim,
    parallel,
    population,
    report,
    run,
    storage,
    train,
    transfer,
    tune,
)
from dlflax.data.stream import fits
from dlflax.errors import InputError, RunError

SPACE = {
    "learning_rate": ("1e-4", "1e-2", "log"),
    "dropout": ("0", "0.5"),
    "l2": ("1e-7", "1e-3", "log"),
}  # what is searched for an experiment without a SPACE of its own
GRID = {
    "learning_rate": ("3e-4", "1e-3", "3e-3"),
    "dropout": ("0", "0.25", "0.5"),
    "l2": ("0", "1e-5", "1e-4"),
}


@dataclasses.dataclass(frozen=True)
class Sweep(run.Config):
    """Everything that decides a sweep; what a run has as well, all its trials have in common.
    Saved as config.json."""

    space: Any = None
    """What is searched over."""
    trials: int = 64
    """Trials in all: the same command with more of them goes on (a grid, 0: every point)."""
    population: int = 0
    """Trials that are trained at once; 0 chooses by devices and memory."""
    seeds: int = 1
    """Every trial is trained under this many seeds, and counts by their mean."""
    rank: Literal["mean", "cautious"] = "mean"
    """With --seeds: cautious counts one standard deviation worse than the mean."""
    objective: Literal["val_loss", "val_accuracy", "val_macro_f1"] = "val_loss"
    """What makes a trial better; its best epoch counts."""
    sampler: tune.Sampler = "tpe"
    """How the next trials are chosen."""
    prune: int = 0
    """Successive halving: the best 1 in N (3, say) go on after 1/N, 1/N^2, ... of the epochs."""
    mode: Literal["auto", "vmap", "map"] = "auto"
    """How a device trains its share of a population: at once, or one after the other."""
    study: str | None = None
    """Name of the sweep and of its folder in runs/sweeps (default: EXPERIMENT_SEARCH)."""
    storage: str | None = None
    """sqlite:///FILE (default: study.db in the folder); postgresql+psycopg://... for workers."""
    heartbeat: float = 30.0
    """PostgreSQL: seconds between signs of life; a worker that misses four is given up."""
    run_dir: Path | None = None
    """Where the sweep is written (default: runs/sweeps/STUDY)."""
    retrain_on_all: bool = False
    """Retrain the best on training and validation data together."""
    resume: Annotated[bool, tyro.conf.Suppress] = True  # a sweep always goes on


def main(
    search: str,
    experiments: ModuleType,
    samplers: tuple[tune.Sampler, ...],
    args: list[str] | None = None,
    description: str | None = None,
) -> None:
    """The command line of a kind of search. experiments: the package whose modules have PRESETS and
    may have ARCHITECTURES, SPACE and GRID; samplers: what --sampler offers, the default first.
    Exit codes as for `run.main`."""

    def command():
        parsed = _parse(search, experiments, samplers, args, description)
        if parsed[-1].distributed:
            parallel.initialize()
        run_sweep(*parsed)

    population.use_all_cores()
    run.with_exit_codes(command, again="the same command goes on with what is recorded")


def _parse(search, experiments, samplers, args, description):
    args = sys.argv[1:] if args is None else list(args)
    if "--resume" in args:
        raise InputError("--resume: a sweep always goes on; give the same command without it.")
    experiment = args.pop(0) if args and not args[0].startswith("-") else "mnist"
    modules = {
        found.name: importlib.import_module(f"{experiments.__name__}.{found.name}")
        for found in pkgutil.iter_modules(experiments.__path__)
    }
    modules = {name: module for name, module in modules.items() if hasattr(module, "PRESETS")}
    if experiment not in modules:
        raise InputError(f"unknown experiment {experiment!r}: choose one of {', '.join(modules)}.")
    module, grid = modules[experiment], samplers == ("grid",)
    words = getattr(module, "GRID", GRID) if grid else getattr(module, "SPACE", SPACE)

    preset = None

    def extend(config: run.Config) -> Sweep:
        """The flags' defaults: those of the experiment, and those of a sweep over it."""
        nonlocal preset
        preset = config
        space = _space_type(config.recipe.model, words, grid)
        sampler = Literal[samplers]
        if grid:
            sampler = Annotated[sampler, tyro.conf.Suppress]
        fields = [
            ("space", space, space()),
            ("sampler", sampler, samplers[0]),
            ("trials", int, 0 if grid else Sweep.trials),
        ]
        flags = dataclasses.make_dataclass("Flags", fields, bases=(Sweep,), frozen=True)
        flags.__doc__ = Sweep.__doc__
        common = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return flags(**{**common, "resume": True})

    sweep = run.parse(
        experiment, module.PRESETS, getattr(module, "ARCHITECTURES", {}), args,
        f"{description}\nExperiments: {', '.join(modules)}.",
        prog=f"python -m sweeps.{search} {experiment}", extend=extend,
    )  # fmt: skip
    for name in _words(sweep.space):
        given = getattr(sweep.hparams, name, None)
        if given is not None and given != getattr(preset.hparams, name):
            flag = name.replace("_", "-")
            raise InputError(
                f"--hparams.{flag} {given:g} and --space.{flag} contradict each other: fix it with "
                f"--space.{flag} {given:g}, or leave --hparams.{flag} out."
            )
    return search, experiment, sweep


def _space_type(model, words, grid):
    """A dataclass with a field for everything that can be searched, for tyro."""
    ranges = "LOW HIGH [log], or three or more choices; one value fixes it."
    number = tyro.conf.arg(help="Values." if grid else ranges)
    structure = tyro.conf.arg(help="Choices; each is a program of its own.")

    def field(name, arg, prefix=""):
        return name, Annotated[tuple[str, ...], arg], words.get(prefix + name, ())

    skip = ("parent", "name", "num_outputs", "vocabulary", "shape")  # the data decide these
    of_model = [f.name for f in dataclasses.fields(model) if f.name not in skip]
    model_type = dataclasses.make_dataclass(
        "ModelSpace", [field(name, structure, "model.") for name in of_model], frozen=True
    )
    numbers = [f.name for f in dataclasses.fields(optim.Hparams) if f.name != "total_steps"]
    return dataclasses.make_dataclass(
        "Space",
        [field(name, number) for name in numbers]
        + [field(name, structure) for name in tune.STRUCTURE]
        + [("model", model_type, model_type())],
        frozen=True,
    )


def _words(space) -> dict[str, tuple[str, ...]]:
    """The space's flags as `tune.space` reads them, without those that are not set."""
    flat = {f.name: getattr(space, f.name) for f in dataclasses.fields(space)}
    of_model = flat.pop("model")
    flat |= {f"model.{f.name}": getattr(of_model, f.name) for f in dataclasses.fields(of_model)}
    return {name: words for name, words in flat.items() if words}


def run_sweep(
    search: str, experiment: str, sweep: Sweep, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Runs the sweep, or goes on with it; retrains, tests and saves the winner. Returns the
    contents of results.json. Raises InputError and RunError."""
    _check(sweep)
    dataset = sweep.data.load(say)
    whole = sweep.data.split(dataset, sweep.validation, sweep.seed)
    sweep = dataclasses.replace(sweep, recipe=run.fitted(sweep.recipe, whole))
    space = tune.space(_words(sweep.space), sweep.recipe, grid=sweep.sampler == "grid")
    recipe, hparams = tune.apply(space.fixed, sweep.recipe, sweep.hparams)
    if sweep.objective != "val_loss" and recipe.loss != "cross_entropy":
        raise InputError(
            f"--objective {sweep.objective} is for classes: with --loss {recipe.loss} use val_loss."
        )
    study = sweep.study or f"{experiment}_{search}"
    folder = sweep.run_dir or Path("runs") / "sweeps" / study
    trials = sweep.trials
    if sweep.sampler == "grid":
        trials = min(trials or len(space.grid()), len(space.grid()))
    sweep = dataclasses.replace(
        sweep, recipe=recipe, hparams=hparams, study=study, run_dir=folder, trials=trials
    )
    _check_transfer(sweep.transfer, space)
    start = transfer.prepare(sweep.transfer, recipe, hparams, whole, sweep.seed, say)
    whole = dataclasses.replace(whole, info=start.splits.info)
    splits = run.weighted(sweep.class_weights, start.splits)
    splits = splits.train, splits.val
    if not all(map(fits, splits)):
        raise InputError(
            "these data do not fit into memory, which a sweep needs: use a smaller --size, or "
            "--finetune head."
        )
    recipes = _recipes(start.recipe, hparams, space, splits)
    if jax.process_count() > 1:  # the winner's retraining would say so at the end
        for recipe in recipes:
            parallel.devices(sweep.devices, recipe.batch_size)
    count = parallel.from_main(lambda: _population(sweep, recipes, splits))
    chosen = dataclasses.replace(sweep, population=count)
    settings = run.settings(experiment, chosen, dataset, whole)
    settings["search"], settings["devices"] = search, len(jax.devices())
    try:
        parallel.from_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    except OSError as error:
        raise InputError(f"--run-dir {folder} cannot be made: {error.strerror}.") from error

    url = sweep.storage or f"sqlite:///{(folder / 'study.db').absolute()}"
    direction = "minimize" if sweep.objective == "val_loss" else "maximize"
    opened = storage.open_study if jax.process_count() == 1 else OfAllHosts
    with opened(url, study, direction, space.distributions, sweep.heartbeat, say) as store:
        saved = store.settings(settings)
        sweep = _settled(sweep, saved, settings, say)
        parallel.from_main(lambda: run.write_json(folder / "config.json", saved))
        trials = store.trials()
        lanes = dataclasses.replace(sweep, recipe=start.recipe)
        objective = Objective(lanes, recipes, splits, direction, trials, start.pretrained)
        _say_plan(objective, dataset, space, splits, len(trials), say)
        with objective:
            tune.search(
                objective, space, store, sampler=sweep.sampler, trials=sweep.trials,
                population=sweep.population, seed=sweep.seed,
            )  # fmt: skip
        trials = store.trials()
        path = folder / "trials.csv"
        parallel.from_main(
            lambda: report.write_trials_csv(path, trials, direction, sweep.objective)
        )
        results = store.claim_finish(sweep.trials)
        if results is None:
            seconds = store.seconds()
            results = _finish(
                search, experiment, sweep, dataset, trials, seconds, objective, url, say
            )
            store.finish(results)
        else:
            say("another worker retrained the best and wrote the report.")
    report.print_trials(trials, direction, sweep.objective)
    logs.print_results(results)
    say(f"report: {folder / 'report.html'}")
    for name, command in results["commands"].items():
        say(f"{name}: {command}")
    return results


class OfAllHosts:
    """A study of `storage`, for several hosts that train one population: process 0 alone opens it,
    and every host gets what it answers. Takes what `storage.open_study` takes."""

    def __init__(self, url, study, direction, *more):
        self.direction = direction
        self._given, self._study = (url, study, direction, *more), None
        self._open = contextlib.ExitStack()

    def __enter__(self):
        def enter():
            self._study = self._open.enter_context(storage.open_study(*self._given))

        parallel.from_main(enter)
        return self

    def __exit__(self, *error):
        return self._open.__exit__(*error)

    def _ask(self, method, *args):
        return parallel.from_main(lambda: getattr(self._study, method)(*args))

    def trials(self):
        return self._ask("trials")

    def settings(self, new):
        return self._ask("settings", new)

    def take(self, suggest, count, total):
        return self._ask("take", suggest, count, total)

    def record(self, batch, outcomes):
        self._ask("record", batch, outcomes)

    def seconds(self):
        return self._ask("seconds")

    def claim_finish(self, total):
        return self._ask("claim_finish", total)

    def finish(self, results):
        self._ask("finish", results)


class Objective:
    """Trains batches of trials, as `tune.search` wants it. A context manager, for the progress."""

    def __init__(self, sweep, recipes, splits, direction, trials, pretrained=None):
        self.sweep, self.direction, self.pretrained = sweep, direction, pretrained
        self.layouts = _layouts(sweep, recipes, splits)
        self.splits = population.put_on_devices(self.layouts[recipes[0]], *splits)
        self.progress = logs.SweepProgress(sweep.trials, len(trials))
        self._traces = population.traces
        self._sign = 1 if direction == "minimize" else -1
        best = report.ranked(trials, direction)[:1]
        self._best = best and (self._sign * best[0].value, best[0].number, best[0].params)
        self._boards = ThreadPoolExecutor(1)  # event files are written while the devices work

    def __enter__(self):
        # half a second, while the first program is compiled
        self._boards.submit(importlib.import_module, "tensorboardX.summary")
        self.progress.__enter__()
        return self

    def __exit__(self, *_):
        self.progress.__exit__()
        self._boards.shutdown()

    def __call__(self, batch: list[storage.Trial]) -> list[storage.Outcome]:
        """The Outcome of every trial, in the batch's order."""
        clock, sweep = time.perf_counter(), self.sweep
        groups: dict[train.Recipe, list[int]] = {}
        hparams = []
        for place, trial in enumerate(batch):
            recipe, numbers = tune.apply(trial.params, sweep.recipe, sweep.hparams)
            groups.setdefault(recipe, []).append(place)
            hparams.append(numbers)
        rungs = tune.halving_rungs(sweep.epochs, sweep.prune) if sweep.prune else []
        # Halving compares the structures of a batch with each other, so they are trained in step.
        # Without it one comes after the other, and only one is in memory.
        teams = [groups] if rungs else [{recipe: group} for recipe, group in groups.items()]
        outcomes: dict[int, storage.Outcome] = {}
        for team in teams:
            trained = {
                recipe: population.Population(
                    recipe, [hparams[place] for place in group],
                    [tune.trial_seeds(sweep.seed, batch[p].index, sweep.seeds) for p in group],
                    *self.splits, epochs=sweep.epochs, layout=self.layouts[recipe],
                    patience=sweep.patience, reduce_on_plateau=sweep.reduce_on_plateau,
                    pretrained=self.pretrained,
                )
                for recipe, group in team.items()
            }  # fmt: skip
            active = {place for group in team.values() for place in group}
            for until in [*rungs, sweep.epochs]:
                for members in trained.values():
                    members.train(until, self._show(len(outcomes), len(batch), trained))
                if until in rungs:
                    active = self._survivors(team, trained, active)
                    for recipe, group in team.items():
                        trained[recipe].keep([k for k, p in enumerate(group) if p in active])
            for recipe, group in team.items():
                for k, place in enumerate(group):
                    outcomes[place] = self._outcome(trained[recipe], k, pruned=place not in active)
        seconds = time.perf_counter() - clock
        ordered = [
            dataclasses.replace(outcomes[place], seconds=seconds / len(batch))
            for place in range(len(batch))
        ]
        self._end(batch, ordered, seconds)
        return ordered

    def traces(self) -> int:
        """How many training programs this process has compiled for the sweep."""
        return population.traces - self._traces

    def _show(self, done, of, trained):
        """The callback that moves the bar: epochs of this team, in trials."""
        epochs = self.sweep.epochs

        def on_epoch(_):
            rows = sum(len(row[0]) for members in trained.values() for row in members.histories)
            self.progress.update(done + rows / epochs, f"training {of} trials")

        return on_epoch

    def _values(self, members):
        """(what each configuration counts, the scores of its seeds): float (n,), (n, seeds)."""
        scores = members.scores(self.sweep.objective.removeprefix("val_"))
        values = scores.mean(1)
        if self.sweep.rank == "cautious" and self.sweep.seeds > 1:
            finite = np.isfinite(values)
            values[finite] += self._sign * scores[finite].std(1, ddof=1)
        return values, scores

    def _survivors(self, team, trained, active):
        """The best of the active places; ties go to the earlier trial, so that nothing depends on
        the order in which the structures were trained."""
        values = {
            place: value
            for recipe, group in team.items()
            for place, value in zip(group, self._values(trained[recipe])[0], strict=True)
        }
        ranked = sorted(active, key=lambda place: (self._sign * values[place], place))
        return set(ranked[: math.ceil(len(ranked) / self.sweep.prune)])

    def _outcome(self, members, k, pruned):
        values, scores = self._values(members)
        worst = self._sign * math.inf
        # the seeds' rows by epoch, as far as all came: patience may have stopped one earlier
        rows = zip(*members.histories[k], strict=False)
        curve = [float(np.mean([row[self.sweep.objective] for row in each])) for each in rows]
        curve = [value if math.isfinite(value) else worst for value in curve]
        attrs: dict[str, Any] = {}
        if k in members.diverged:
            attrs["diverged_at"], pruned = members.diverged[k], False
        elif self.sweep.seeds > 1:
            attrs["values"] = scores[k].tolist()
            attrs["std"] = float(scores[k].std(ddof=1))
        intermediate = {epoch + 1: value for epoch, value in enumerate(curve)}
        return storage.Outcome(float(values[k]), intermediate, pruned, attrs=attrs)

    def _end(self, batch, outcomes, seconds):
        for trial, outcome in zip(batch, outcomes, strict=True):
            best = (self._sign * outcome.value, trial.index)
            if not outcome.pruned and (not self._best or best < self._best[:2]):
                self._best = (*best, trial.params)
            if parallel.is_main():
                self._boards.submit(self._write_board, trial, outcome)
        value, index, params = self._best
        numbers = f"{batch[0].index}" + (f" to {batch[-1].index}" if len(batch) > 1 else "")
        rate = 60 * len(batch) / seconds
        lost = sum(not math.isfinite(o.value) for o in outcomes)
        self.progress.population_end(
            len(batch),
            f"trials {numbers}: {seconds:.1f} s, {rate:,.{0 if rate > 20 else 1}f} trials/min"
            + (f", {lost} diverged" if lost else "")
            + f"; best so far {self._sign * value:.4f}, trial {index}: {_params(params)}",
        )

    def _write_board(self, trial, outcome):
        folder = self.sweep.run_dir / "tensorboard" / f"trial_{trial.index:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # of the same trial, before a kill
        board = logs.TensorBoard(folder)
        for epoch, value in outcome.intermediate.items():
            board.scalars({self.sweep.objective: value}, epoch)
        board.hparams(trial.params, {self.sweep.objective: outcome.value})
        board.close()


def _finish(search, experiment, sweep, dataset, trials, seconds, objective, url, say):
    """Retrains the best trial, tests it once, and writes results.json, pictures and report. Returns
    the results, on all hosts."""
    folder, metric = sweep.run_dir, sweep.objective
    direction = objective.direction
    counts = Counter(report.outcome(trial) for trial in trials)
    best = next(iter(report.ranked(trials, direction)), None)
    if best is None or not math.isfinite(best.value):
        raise RunError(
            f"all {len(trials)} trials diverged or failed: search over smaller learning rates, for "
            "example --space.learning-rate 1e-5 1e-3 log, under another --study."
        )
    recipe, hparams = tune.apply(best.params, sweep.recipe, sweep.hparams)
    common = {f.name: getattr(sweep, f.name) for f in dataclasses.fields(run.Config)}
    winner = run.Config(**{**common, "recipe": recipe, "hparams": hparams})
    if sweep.retrain_on_all:
        winner = dataclasses.replace(
            winner, validation=0.0, patience=0, reduce_on_plateau=0,
            # without a validation loss the last epoch counts
            epochs=winner.epochs if run.schedule_depends_on_epochs(winner)
            else report.best_epoch(best, direction),
        )  # fmt: skip
    what = {"Text": ' "TEXT"...', "Series": ""}.get(type(sweep.data).__name__, " PICTURE...")
    say(f"retraining the best, trial {best.number}, with a seed that no trial had ({sweep.seed})")
    best_folder = folder / "best"
    # one host looks, and moves what is in the way, before all begin
    resume = parallel.from_main(lambda: _in_folder(winner, best_folder).resume)
    winner = dataclasses.replace(winner, run_dir=best_folder, resume=resume)
    retrained = run.run(experiment, winner, say, dataset)  # {} on other hosts than the first

    def write():
        results = {
            "study": sweep.study,
            "search": search,
            "sampler": sweep.sampler,
            "experiment": experiment,
            "dataset": retrained["dataset"],
            "objective": metric,
            "trials": len(trials),
            **{name: counts[name] for name in ("complete", "pruned", "failed", "diverged")},
            "structures": len(objective.layouts),
            "traces": objective.traces(),  # by this process
            "seconds": seconds,  # without retraining
            "trials_per_minute": 60 * len(trials) / max(seconds, 1e-9),
            "best": {
                "number": best.number,
                "value": best.value,
                "std": best.user_attrs.get("std"),
                "best_epoch": report.best_epoch(best, direction),
                "hparams": best.params,
                "run_dir": str(best_folder),
            },
            "val": retrained.get("val"),
            "test": retrained["test"],
            "commands": {
                "predict": f"python -m experiments.predict {best_folder}{what}",
                "tensorboard": f"tensorboard --logdir {folder}",
                "dashboard": f"optuna-dashboard {storage.without_password(url)}",
            },
        }
        run.write_json(folder / "results.json", results)
        pictures = report.pictures(folder, trials, direction, metric)
        report.write_html(folder, results, trials, pictures, direction, metric)
        return results

    return parallel.from_main(write)


def _in_folder(winner: run.Config, folder: Path) -> run.Config:
    """The winner's Config for its run folder: gone on with where it is the same run, else what is
    there is moved aside."""
    here = dataclasses.replace(winner, run_dir=folder, resume=(folder / "config.json").exists())
    if here.resume:
        old = run.config_from_json(run.load_config(folder)["config"], folder)
        if (old.recipe, old.hparams, old.epochs) != (here.recipe, here.hparams, here.epochs):
            folder.rename(folder.with_name(f"{folder.name}_{time.time():.0f}"))
            here = dataclasses.replace(here, resume=False)
    return here


def _check(sweep: Sweep) -> None:
    """InputError for numbers that no sweep can have."""
    run.check(sweep)
    tune.check_sampler(sweep.sampler)
    least = {"trials": 0 if sweep.sampler == "grid" else 1, "population": 0, "seeds": 1}
    for name, lowest in least.items():
        if getattr(sweep, name) < lowest:
            raise InputError(f"--{name} {getattr(sweep, name)} must be {lowest} or more.")
    if sweep.prune < 0 or sweep.prune == 1:
        raise InputError(f"--prune {sweep.prune} must be 2 or more, or 0 for no pruning.")
    if sweep.prune > sweep.epochs:
        raise InputError(
            f"--prune {sweep.prune} needs at least {sweep.prune} epochs, not --epochs "
            f"{sweep.epochs}."
        )
    if sweep.validation == 0:
        raise InputError("--validation 0: a sweep compares its trials on validation data.")
    if not sweep.heartbeat >= 1:
        raise InputError(f"--heartbeat {sweep.heartbeat:g} must be 1 second or more.")


def _check_transfer(kind, space) -> None:
    """InputError for a space over what is the same for all trials."""
    strengths = {name for names in augment.STRENGTHS.values() for name in names}
    for name in (*space.distributions, *space.fixed) if kind and kind.pretrained else ():
        flag = f"--space.{name.replace('_', '-')}"
        if name.startswith("model."):
            raise InputError(f"{flag}: pretrained weights fit one model: leave it out.")
        if kind.frozen and (name == "augment" or name in strengths):
            raise InputError(
                f"{flag}: with --finetune head the features are computed once, for all trials: use "
                f"--hparams.{flag.removeprefix('--space.')} and --views, or leave it out."
            )


def _recipes(recipe, hparams, space, splits) -> list[train.Recipe]:
    """All structures of the space. InputError for one that cannot be trained."""
    names = [name for name in space.distributions if tune.structural(name)]
    choices = [space.distributions[name].choices for name in names]
    recipes = []
    for values in itertools.product(*choices):
        each, _ = tune.apply(dict(zip(names, values, strict=True)), recipe, hparams)
        run.check_batch_size(each.batch_size, len(splits[0]["targets"]))
        try:
            train.abstract(each, hparams, splits[0]["inputs"][:1])
        except InputError as error:
            raise InputError(f"--space: {error}") from error
        recipes.append(each)
    return recipes


def _layouts(sweep, recipes, splits) -> dict[train.Recipe, population.Layout]:
    mode = None if sweep.mode == "auto" else sweep.mode
    lanes = sweep.population * sweep.seeds
    inputs = splits[0]["inputs"][:1]
    return {recipe: population.layout(recipe, inputs, lanes, mode) for recipe in recipes}


def _population(sweep, recipes, splits) -> int:
    """--population, or by default 16 (fewer where a sampler that learns would see its first results
    too late), rounded up to use all devices, and no more than fits in half the memory.
    InputError when what was asked for cannot fit."""
    inputs = splits[0]["inputs"][:1]
    lane = max(population.lane_bytes(recipe, inputs) for recipe in recipes) * sweep.seeds
    free = population.memory() - len(jax.devices()) * sum(
        array.nbytes for split in splits for array in split.values()
    )
    fits = max(1, int(free / lane))
    if sweep.population > fits:
        raise InputError(
            f"--population {sweep.population} needs about "
            f"{sweep.population * lane / 2**30:,.1f} GiB and there are {free / 2**30:,.1f}: use "
            f"{fits} or less."
        )
    if sweep.population:
        return sweep.population
    learns = sweep.sampler in ("tpe", "gp", "cmaes")
    wanted = min(16, max(1, sweep.trials // 4)) if learns else min(16, sweep.trials)
    devices = len(jax.devices())
    return max(1, min(-(-wanted // devices) * devices, fits // 2))


def _settled(sweep, saved, new, say) -> Sweep:
    """The sweep with the population that the study was begun with, unless a flag says another.
    InputError when the study was begun with another setup."""
    free = {
        "trials", "data.data_dir", "data.dataset", "run_dir", "storage", "heartbeat", "study",
        *run.PLACE,
    }  # fmt: skip
    if not sweep.population:
        sweep = dataclasses.replace(sweep, population=saved["config"]["population"])
        new = {**new, "config": {**new["config"], "population": sweep.population}}
    if different := run.differences(saved, new, free):
        raise InputError(
            f"the study {sweep.study} was begun with another setup ({different}): give the same "
            "flags and data to go on with it, or another --study NAME."
        )
    run.note_versions(saved, new, say)
    if saved["devices"] != new["devices"]:
        say(f"note: {new['devices']} devices, it began with {saved['devices']}: "
            "the result may not be the same to the bit")  # fmt: skip
    return sweep


def _say_plan(objective, dataset, space, splits, done, say):
    sweep, layouts = objective.sweep, objective.layouts
    say(
        f"{dataset.source}: {len(splits[0]['targets']):,} train, "
        f"{len(splits[1]['targets']):,} validation"
    )
    for name, distribution in space.distributions.items():
        say(f"  {name}: {_described(distribution)}")
    layout = next(iter(layouts.values()))
    seeds = f" under {sweep.seeds} seeds" if sweep.seeds > 1 else ""
    say(
        f"{_count(sweep.trials, 'trial')} of {_count(sweep.epochs, 'epoch')}{seeds} by "
        f"{sweep.sampler}, {_count(len(layouts), 'structure')}: {_count(len(layouts), 'compile')}"
    )
    modes = " or ".join(sorted({layout.mode for layout in layouts.values()}))
    device = f"{jax.devices()[0].platform} device"
    hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    say(f"{sweep.population} at once by {modes} over {_count(layout.devices, device)}{hosts}")
    if sweep.prune:
        rungs = tune.halving_rungs(sweep.epochs, sweep.prune)
        say(f"one in {sweep.prune} goes on after epoch {', '.join(map(str, rungs))}")
    if done:
        say(f"going on after {_count(done, 'recorded trial')}")
    say(f"writing {sweep.run_dir}; stopped or killed, the same command goes on")


def _described(distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(_short, distribution.choices))
    log = ", logarithmic" if distribution.log else ""
    return f"{distribution.low:g} to {distribution.high:g}{log}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _params(params) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in params.items())
