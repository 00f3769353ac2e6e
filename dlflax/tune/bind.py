"""A sweep bound to its data: its space, the structures in it, and the size of its population."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from dlflax import data, run, train, transfer
from dlflax.data.stream import fits_on_device
from dlflax.errors import InputError
from dlflax.report.sweep.trials import COSTS
from dlflax.run import blend
from dlflax.run.prepare import balance, read_data, split_data
from dlflax.train.augment import AUGMENTATIONS
from dlflax.train.check import check_batch_size, reject_unused_flags
from dlflax.train.layout import free_bytes, member_bytes
from dlflax.tune.pool.rules import FreezeThaw
from dlflax.tune.pool.sweep_report import params_text
from dlflax.tune.pool.training import Job
from dlflax.tune.suggest import stopping
from dlflax.tune.suggest.encoding import Encoding
from dlflax.tune.suggest.space import Space, guess, space
from dlflax.tune.sweep_config import Sweep, check_sweep


class Bound(NamedTuple):
    """A sweep with its data and structures. With a frozen backbone, arrays are its features and
    recipes those of its head."""

    sweep: Sweep  # with every setting set
    search: str
    experiment: run.Experiment
    dataset: data.Dataset
    examples: data.Splits  # as read and split
    start: transfer.Start
    arrays: dict[str, Any]  # train, val, pretrained, fold_of: what every worker needs
    job: Job
    recipes: list[train.Recipe]  # all structures of the space
    population_size: int  # trials that are trained at once

    @property
    def direction(self) -> str:
        """minimize or maximize."""
        return "minimize" if self.job.sign == 1 else "maximize"


def bind(sweep: Sweep, search: str, experiment: run.Experiment, log) -> Bound:
    """Returns the sweep with its data and structures. Raises InputError for settings that
    contradict each other or the data."""
    if sweep.bag_folds and (sweep.transfer or not sweep.data.has_trial_bags):
        log("note: a trial is one network, scored on --val-split: a run would train a bag")
        sweep = dataclasses.replace(sweep, bag_folds=0)
    check_sweep(sweep, log)
    sweep, dataset = read_data(sweep, log)
    sweep, examples = split_data(sweep, dataset, log)
    if sweep.bag_folds:
        if examples.val is not None:
            raise InputError("--bag-folds must be 0 in a sweep of data with a validation split.")
        count = len(examples.train["inputs"])
        sweep = blend.calibrated_monitor(sweep, count, sweep.bag_folds)
    sweep, tried = _bind_space(sweep, search, experiment, log)
    recipe, hparams = sweep.recipe, sweep.hparams
    _check_objective(sweep.objective, sweep.cost, recipe.task, tried)
    _check_transfer(sweep.transfer, tried)
    start = transfer.prepare(sweep.transfer, recipe, hparams, examples, sweep.seed, log)
    examples = dataclasses.replace(examples, weights_sha256=start.splits.weights_sha256)
    if sweep.class_weights == "balanced":
        start = balance(start)
    splits, arrays = (start.splits.train, start.splits.val), {"pretrained": start.pretrained or {}}
    num_seeds = sweep.num_seeds
    if sweep.bag_folds:
        splits, arrays["fold_of"] = splits[:1] * 2, blend.folds(sweep, dataset)
        num_seeds = int(arrays["fold_of"].max()) + 1
    arrays |= {"train": splits[0], "val": splits[1]}
    if not all(map(fits_on_device, splits)):
        raise InputError(
            "these data do not fit into memory, which a sweep needs: use a smaller --image-size, "
            "or --finetune head."
        )
    structures = _structures(start.recipe, hparams, tried, splits[0])
    recipes = [structure for structure, _ in structures]
    check_structures(sweep, tried, structures, splits[0], start.pretrained, log)
    metric = sweep.objective.removeprefix("val_")
    job = Job(
        start.recipe, hparams, tried, epochs=sweep.epochs, seed=sweep.seed,
        num_seeds=num_seeds, patience=sweep.patience,
        plateau_patience=sweep.plateau_patience, metric=metric,
        sign=1 if recipe.task.metric(metric).direction == "min" else -1, rank=sweep.rank,
        population_map=sweep.population_map, has_folds=bool(sweep.bag_folds),
    )  # fmt: skip
    size = choose_population_size(sweep, recipes, splits, num_seeds)
    return Bound(sweep, search, experiment, dataset, examples, start, arrays, job, recipes, size)


def _bind_space(sweep, search, experiment, log) -> tuple[Sweep, Space]:
    """Returns the sweep with the settings that its space decides, and the space."""
    recipe, is_grid = sweep.recipe, sweep.sampler == "grid"
    recipes = tuple(preset.recipe for preset in experiment.presets.values())
    tried = space(sweep.space, recipe, sweep.hparams, grid=is_grid, recipes=recipes)
    prior = guess(sweep.prior, tried, recipe)
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


def choose_population_size(sweep, recipes, splits, num_seeds: int) -> int:
    """Returns --population-size, or 16, rounded up to use all devices, within half the memory.

    A sampler that learns has fewer, so that it sees its first results in time, and of bags there
    are as many as have 16 networks. num_seeds: members of a trial. Raises InputError for a
    population that cannot fit.
    """
    inputs = splits[0]["inputs"][:1]
    trial = max(member_bytes(recipe, sweep.hparams, inputs) for recipe in recipes) * num_seeds
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
    if sweep.bag_folds:
        wanted = min(wanted, max(1, 16 // num_seeds))
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
    unused = reject_unused_flags(
        sweep.given, tried.distributions, structures, sweep.hparams, train_set, views
    )
    for name in sorted(unused & {*tried.distributions}):
        log(f"note: nothing here reads {name}: its values make no difference")
