"""The configuration of a sweep, its checks, and the data and structures that it is bound to."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro
from flax import traverse_util

from dlflax import data, run, train, transfer
from dlflax.config.config import check
from dlflax.data.stream import fits_on_device
from dlflax.errors import InputError
from dlflax.report.sweep.trials import COSTS
from dlflax.run.prepare import balance, read_data, split_data
from dlflax.train.augment import AUGMENTATIONS
from dlflax.train.check import check_batch_size, check_count, reject_unused_flags, unused_hparams
from dlflax.train.layout import free_bytes, member_bytes
from dlflax.tune.launch import Engine
from dlflax.tune.pool.rules import FreezeThaw, Full, Halving, Rule
from dlflax.tune.pool.sweep_report import params_text
from dlflax.tune.pool.training import Job
from dlflax.tune.suggest import stopping
from dlflax.tune.suggest.encoding import Encoding
from dlflax.tune.suggest.samplers import check_sampler
from dlflax.tune.suggest.space import Space, guess, space

FREE = {"resume": "free"}


@dataclasses.dataclass(frozen=True)
class Sweep(run.Config):
    """All settings of a sweep; those that a run has, too, are the same for all its trials. Saved as
    config.json."""

    bag_folds: Annotated[int, tyro.conf.Suppress] = 0
    blend: Annotated[str, tyro.conf.Suppress] = "auto"
    time_limit: Annotated[float, tyro.conf.Suppress] = 0.0
    space: Any = None
    """The search space. Of a number: LOW HIGH [log], or three or more choices; one value fixes it;
    a grid takes all values. Of any other field: choices, each a program of its own."""
    trials: int | Literal["auto"] = dataclasses.field(default=64, metadata=FREE)
    """Trials in all: the same command with more of them continues (a grid, 0: every point). auto:
    until another one is not expected to gain more than chance or the minimum improvement."""
    min_improvement: float = dataclasses.field(default=0.01, metadata=FREE)
    """--trials auto: a gain that is not worth another trial, as a share of the best value."""
    population_size: int = 0
    """Trials that are trained at once; 0 chooses by devices and memory."""
    num_seeds: int = 1
    """Every trial is trained under this many seeds, and counts by their mean."""
    rank: Literal["mean", "pessimistic"] = "mean"
    """With --num-seeds: pessimistic counts one standard deviation worse than the mean."""
    objective: str = ""
    """The score of a trial, at its best epoch: val_loss, val_accuracy or another val_METRIC
    (default: the monitor). A second objective, parameters, flops or milliseconds (of an example),
    is minimized, too: the report then has the trials that no other one beats in both."""
    cost: Annotated[str, tyro.conf.Suppress] = ""  # the second one
    sampler: str = "gp"
    """The sampler of the next trials; module:Class of any other one for Optuna."""
    prior: tuple[str, ...] = ()
    """Your own best guess, NAME=VALUE such as learning_rate=3e-4 dropout=0.1: a trial of its
    own."""
    warm_start: str | None = None
    """Folder or name of another sweep, whose trials the sampler has from the beginning. Their
    weight depends on how much they predict of this sweep."""
    search: Rule = Full()
    """The rule that selects the trials to train next. full: every trial is trained to its end;
    halving: only the best of a population continue after a share of the epochs; freeze-thaw: trials
    pause, and the best continue."""
    population_map: Literal["auto", "vmap", "map"] = "auto"
    """The way that a device trains its share of a population: at once, or one after the other."""
    study: str | None = dataclasses.field(default=None, metadata=FREE)
    """Name of the sweep and of its folder in runs/sweeps (default: EXPERIMENT_SEARCH)."""
    storage: str | None = dataclasses.field(default=None, metadata=FREE)
    """Address of a storage that Optuna opens, such as sqlite:///FILE or postgresql+psycopg://...,
    whose password is never saved (default: $DLFLAX_STORAGE, or study.journal in the folder)."""
    launcher: Engine = dataclasses.field(default="local", metadata=FREE)
    """The engine that starts workers: local processes, each with cores or an accelerator of its
    own; jobs of SLURM; tasks of Ray."""
    workers: int = dataclasses.field(default=1, metadata=FREE)
    """Populations that are trained at the same time; 1 trains in this process."""
    launcher_options: tuple[str, ...] = dataclasses.field(default=(), metadata=FREE)
    """NAME=VALUE for SLURM, such as partition=gpu time=120, or address=... for Ray."""
    run_dir: Path | None = None
    """Folder of the sweep (default: runs/sweeps/STUDY)."""
    ensemble_size: int = dataclasses.field(default=16, metadata=FREE)
    """Most models of the ensemble of the best trials, 0 for none. The best model is the one with
    the best validation score of three: the best trial as it was trained, its configuration
    retrained, and the ensemble."""
    refit_full: bool = False
    """Retrain the best on training and validation data together: that is then the best model."""
    resume: Annotated[bool, tyro.conf.Suppress] = True  # a sweep always continues
    auto: Annotated[bool, tyro.conf.Suppress] = dataclasses.field(  # --trials auto
        default=False, metadata=FREE
    )

    def options(self) -> dict[str, str]:
        """Returns --launcher-options by name. Raises InputError for one that is not NAME=VALUE."""
        for word in self.launcher_options:
            if "=" not in word:
                raise InputError(f"--launcher-options {word} must be NAME=VALUE, such as time=60.")
        return dict(word.split("=", 1) for word in self.launcher_options)


def check_sweep(sweep: Sweep) -> None:
    """Raises InputError for settings that no sweep can have, whatever its data."""
    check(sweep)
    check_sampler(sweep.sampler)
    sweep.search.check(sweep.epochs)
    if sweep.folds:
        raise InputError("--folds is for a single run, not for a sweep: remove the flag.")
    if sweep.distributed:
        raise InputError(
            "--distributed is for one model on several hosts: a sweep has a worker on each, as by "
            "--launcher slurm --workers 8."
        )
    is_auto, is_thawing = sweep.trials == "auto", isinstance(sweep.search, FreezeThaw)
    if not is_auto:
        check_count("trials", sweep.trials, 0 if sweep.sampler == "grid" else 1, 10**6)
    if not is_auto and sweep.min_improvement != Sweep.min_improvement:
        raise InputError("--min-improvement is for --trials auto: remove the flag.")
    if not 0 <= sweep.min_improvement < 1:
        raise InputError(
            f"--min-improvement {sweep.min_improvement:g} must be from 0 up to below 1."
        )
    check_count("population_size", sweep.population_size, 0, 10**6)
    check_count("num_seeds", sweep.num_seeds, 1, 1000)
    check_count("ensemble_size", sweep.ensemble_size, 0, 1000)
    check_count("workers", sweep.workers, 1, 10_000)
    if sweep.study is not None and (not sweep.study.strip() or set(sweep.study) & set("/\\\0")):
        raise InputError(
            f"--study {sweep.study!r} must be a name without slashes: it is that of a folder too."
        )
    if sweep.prior and sweep.sampler == "grid":
        raise InputError("--prior does not go together with a grid, which tries every point.")
    if sweep.warm_start and sweep.sampler != "gp":
        raise InputError(
            "--warm-start is for the Gaussian process of sweeps.bayes_opt, not for --sampler "
            f"{sweep.sampler}: remove the flag."
        )
    if is_thawing and (sweep.sampler != "gp" or sweep.warm_start):
        flag = "--warm-start" if sweep.warm_start else f"--sampler {sweep.sampler}"
        raise InputError(
            f"--search freeze-thaw begins trials all over the space, not by {flag}: use "
            "sweeps.bayes_opt, without the flag."
        )
    single = {
        "--search halving": isinstance(sweep.search, Halving), "--trials auto": is_auto,
        "--search freeze-thaw": is_thawing, "--warm-start": sweep.warm_start,
        f"--sampler {sweep.sampler}": sweep.sampler not in ("gp", "random", "qmc", "grid"),
    }  # fmt: skip
    for flag in (flag for flag, given in single.items() if sweep.cost and given):
        raise InputError(f"{flag} goes by one objective: remove it, or {sweep.cost}.")
    if is_auto and not isinstance(sweep.search, Full):
        raise InputError("--trials auto is for complete trials: remove it, or use --search full.")
    if sweep.val_split == 0:
        raise InputError("--val-split 0: a sweep compares its trials on validation data.")
    if sweep.rank == "pessimistic" and sweep.num_seeds == 1:
        raise InputError("--rank pessimistic is for --num-seeds 2 or more: it uses their spread.")
    if sweep.launcher_options and sweep.launcher == "local":
        raise InputError("--launcher-options is for --launcher slurm or ray: remove the flag.")


class Bound(NamedTuple):
    """A sweep with its data and structures. With a frozen backbone, arrays are its features and
    recipes those of its head."""

    sweep: Sweep  # with every setting set
    search: str
    experiment: run.Experiment
    dataset: data.Dataset
    examples: data.Splits  # as read and split
    train: dict
    val: dict
    recipe: train.Recipe
    pretrained: dict | None
    space: Space
    recipes: list[train.Recipe]  # all structures of the space
    population_size: int  # trials that are trained at once
    direction: str  # minimize or maximize

    def job(self) -> Job:
        """Returns the settings that all trials have in common."""
        sweep = self.sweep
        return Job(
            self.recipe, sweep.hparams, self.space, epochs=sweep.epochs, seed=sweep.seed,
            num_seeds=sweep.num_seeds, patience=sweep.patience,
            plateau_patience=sweep.plateau_patience,
            metric=sweep.objective.removeprefix("val_"),
            sign=1 if self.direction == "minimize" else -1, rank=sweep.rank,
            population_map=sweep.population_map,
        )  # fmt: skip


def bind(sweep: Sweep, search: str, experiment: run.Experiment, log) -> Bound:
    """Returns the sweep with its data and structures. Raises InputError for settings that
    contradict each other or the data."""
    check_sweep(sweep)
    sweep, dataset = read_data(sweep, log)
    sweep, examples = split_data(sweep, dataset, log)
    sweep, tried = _bind_space(sweep, search, experiment, log)
    recipe, hparams = sweep.recipe, sweep.hparams
    _check_objective(sweep.objective, sweep.cost, recipe.task, tried)
    _check_transfer(sweep.transfer, tried)
    start = transfer.prepare(sweep.transfer, recipe, hparams, examples, sweep.seed, log)
    examples = dataclasses.replace(examples, weights_sha256=start.splits.weights_sha256)
    if sweep.class_weights == "balanced":
        start = balance(start)
    splits = start.splits.train, start.splits.val
    if not all(map(fits_on_device, splits)):
        raise InputError(
            "these data do not fit into memory, which a sweep needs: use a smaller --image-size, "
            "or --finetune head."
        )
    structures = _structures(start.recipe, hparams, tried, splits[0])
    recipes = [structure for structure, _ in structures]
    check_structures(sweep, tried, structures, splits[0], start.pretrained, log)
    population_size = choose_population_size(sweep, recipes, splits)
    metric = recipe.task.metric(sweep.objective.removeprefix("val_"))
    return Bound(
        sweep, search, experiment, dataset, examples, *splits, start.recipe, start.pretrained,
        tried, recipes, population_size, f"{metric.direction}imize",
    )  # fmt: skip


def _bind_space(sweep, search, experiment, log) -> tuple[Sweep, Space]:
    """Returns the sweep with the settings that its space decides, and the space."""
    recipe, is_grid = sweep.recipe, sweep.sampler == "grid"
    recipes = tuple(preset.recipe for preset in experiment.presets.values())
    tried = space(sweep.space, recipe, sweep.hparams, grid=is_grid, recipes=recipes)
    prior = guess(sweep.prior, tried, recipe, sweep.hparams)
    tried = dataclasses.replace(tried, guess=prior)
    recipe, hparams = tried.apply(tried.fixed, recipe, sweep.hparams)
    study, auto = sweep.study or f"{experiment.name}_{search}", sweep.trials == "auto"
    asked = trials = stopping.MOST if auto else sweep.trials
    if size := Encoding(tried.distributions).size():
        trials = min(trials or size, size)
        if trials < asked:
            log(f"note: the space has {size:,} configurations: each is tried once")
    if not is_grid and tried.defaults is None:
        log("note: the defaults are not in the space, so no trial has them")
    sweep = dataclasses.replace(
        sweep, recipe=recipe, hparams=hparams, study=study, trials=trials, auto=sweep.auto or auto,
        run_dir=sweep.run_dir or Path("runs") / "sweeps" / study,
        objective=sweep.objective or f"val_{recipe.task.monitor}",
        storage=sweep.storage or os.environ.get("DLFLAX_STORAGE"),
    )  # fmt: skip
    return sweep, tried


def _structures(recipe, hparams, tried: Space, train_set) -> list[tuple[train.Recipe, train.State]]:
    """Returns all structures of the space, each with its abstract State. Raises InputError for one
    that cannot be trained."""
    structures = []
    for params in tried.structures():
        structure, _ = tried.apply(params, recipe, hparams)
        check_batch_size(structure.batch_size, len(train_set["inputs"]))
        try:
            state = train.abstract(structure, hparams, train_set["inputs"][:1])
        except InputError as error:
            raise InputError(f"--space: {error}") from error
        except (ArithmeticError, TypeError, ValueError) as error:  # of a user's own model, too
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"--space: {params_text({**tried.fixed, **params})} cannot be built ({reason})."
            ) from error
        structures.append((structure, state))
    return structures


def choose_population_size(sweep, recipes, splits) -> int:
    """Returns --population-size, or 16, rounded up to use all devices, within half the memory.

    A sampler that learns has fewer, so that it sees its first results in time. Raises InputError
    for a population that cannot fit.
    """
    inputs = splits[0]["inputs"][:1]
    trial = max(member_bytes(recipe, sweep.hparams, inputs) for recipe in recipes) * sweep.num_seeds
    free = free_bytes(*splits)
    most = max(1, int(free / trial))
    if sweep.population_size > most:
        raise InputError(
            f"--population-size {sweep.population_size} needs about "
            f"{sweep.population_size * trial / 2**30:,.1f} GiB and there are "
            f"{free / 2**30:,.1f}: use {most} or less."
        )
    if sweep.population_size:
        return sweep.population_size
    learns = sweep.sampler not in ("random", "qmc", "grid")
    wanted = min(16, max(1, sweep.trials // 4)) if learns else min(16, sweep.trials)
    if isinstance(sweep.search, FreezeThaw):
        wanted = 4  # one trial takes as many rounds as it has epochs, however wide a round is
    devices = max(1, len(jax.devices()) // sweep.workers)
    return max(1, min(-(-wanted // devices) * devices, most // 2))


def _check_transfer(settings, tried: Space) -> None:
    """Raises InputError for a space over fields that pretrained weights fix for all trials."""
    strengths = {name for change in AUGMENTATIONS.values() for name in change.numbers}
    names = (*tried.distributions, *tried.fixed) if settings and settings.has_weights else ()
    for name in names:
        flag = f"--space.{name.replace('_', '-')}"
        if name.startswith("model."):
            raise InputError(f"{flag}: pretrained weights fit one model: remove the flag.")
        if settings.is_frozen and (name == "augment" or name in strengths):
            raise InputError(
                f"{flag}: with --finetune head the features are computed once, for all trials: use "
                f"--hparams.{flag.removeprefix('--space.')} and --num-views, or remove the flag."
            )


def _check_objective(objective: str, cost: str, task, tried: Space) -> None:
    """Raises InputError for an unknown metric or cost, or one that does not compare trials."""
    known = ["val_loss", *(f"val_{metric.name}" for metric in task.metrics)]
    if objective not in known:
        raise InputError(
            f"--objective {objective} is not a metric of {type(task).__name__}: "
            f"use {' or '.join(known)}."
        )
    if cost and cost not in COSTS:
        raise InputError(
            f"--objective {objective} {cost}: the second one must be "
            f"{', '.join(COSTS[:-1])} or {COSTS[-1]}."
        )
    if "loss" in tried.distributions and objective == "val_loss":
        raise InputError(
            "--space.loss with --objective val_loss compares different losses with each other: add "
            f"--objective {next((n for n in known if n != 'val_loss'), 'val_SCORE')}."
        )


def check_structures(sweep, tried: Space, structures, train_set, pretrained, log) -> None:
    """Raises InputError for structures that contradict pretrained variables, --objective or a flag.

    These are shapes of other variables, a cost that all structures share, and a number that no
    structure reads. Such a number of the experiment's own space is logged instead.
    """
    shapes = {k: leaf.shape for k, leaf in traverse_util.flatten_dict(pretrained or {}).items()}
    for _, state in structures if shapes else ():
        leaves = traverse_util.flatten_dict({"params": state.params, **state.collections})
        if any(k not in leaves or leaves[k].shape != shape for k, shape in shapes.items()):
            raise InputError(
                "--space.model: weights or vectors that training begins with fit one model: remove "
                "the flag."
            )
    if sweep.cost and len(structures) < 2:
        raise InputError(
            f"--objective {sweep.objective} {sweep.cost}: all trials have the same "
            f"{sweep.cost}, as no structure is searched: add one, such as --space.model.features "
            "32 64 128."
        )
    views = transfer.start_hparams(sweep.transfer, sweep.recipe, sweep.hparams)
    names = {flag.partition(".")[2] for flag in sweep.given} | {*tried.distributions}
    unused = unused_hparams(names, structures, sweep.hparams, train_set)
    reject_unused_flags(sweep.given, unused - {*views}, structures[0][0])
    for name in sorted(unused & {*tried.distributions}):
        log(f"note: nothing here reads {name}: its values make no difference")
