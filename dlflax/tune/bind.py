"""Data, space, structures and population of a sweep, ready to train."""

import dataclasses
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import jax
from flax import traverse_util

from dlflax import data, run, train, transfer
from dlflax.data.stream import fits_on_device
from dlflax.errors import InputError
from dlflax.report.trials import COSTS
from dlflax.run.prepare import balance, read_data, split_data
from dlflax.train.augment import AUGMENTATIONS
from dlflax.train.check import check_batch_size, reject_unused_flags, unused_hparams
from dlflax.train.layout import free_bytes, member_bytes
from dlflax.tune import hints, stopping
from dlflax.tune.config import Sweep, check_sweep
from dlflax.tune.encoding import Encoding
from dlflax.tune.plan import params_text
from dlflax.tune.rules import FreezeThaw
from dlflax.tune.space import Space, space, structural
from dlflax.tune.worker import Job


class Bound(NamedTuple):
    """A sweep's data and structures."""

    dataset: data.Dataset
    examples: data.Splits
    """The examples as read and split."""
    train: dict
    """The arrays that are trained with: features, with a frozen backbone."""
    val: dict
    recipe: train.Recipe
    """The recipe of the trials: with a frozen backbone that of its head."""
    pretrained: dict | None
    space: Space
    recipes: list[train.Recipe]
    """All structures of the space."""
    population: int
    """Trials that are trained at once."""

    def job(self, sweep: Sweep) -> Job:
        """Returns what all trials have in common."""
        metric = sweep.objective.removeprefix("val_")
        return Job(
            self.recipe, sweep.hparams, self.space, epochs=sweep.epochs, seed=sweep.seed,
            seeds=sweep.seeds, patience=sweep.patience, reduce_on_plateau=sweep.reduce_on_plateau,
            metric=metric, sign=1 if self.recipe.task.metric(metric).direction == "min" else -1,
            rank=sweep.rank, mode=sweep.mode,
        )  # fmt: skip


def bind(sweep: Sweep, search: str, experiment: run.Experiment, log) -> tuple[Sweep, Bound]:
    """Returns (the sweep with nothing left open, what it is bound to). Raises InputError for what
    does not go together."""
    check_sweep(sweep)
    sweep, dataset = read_data(sweep, log)
    sweep, examples = split_data(sweep, dataset, log)
    sweep, tried = _bind_space(sweep, search, experiment, log)
    check_objective(sweep, tried)
    check_transfer(sweep.transfer, tried)
    start = transfer.prepare(sweep.transfer, sweep.recipe, sweep.hparams, examples, sweep.seed, log)
    examples = dataclasses.replace(examples, weights_sha256=start.splits.weights_sha256)
    if sweep.class_weights == "balanced":
        start = balance(start)
    splits = start.splits.train, start.splits.val
    check_memory(splits)
    recipes = all_recipes(start.recipe, sweep.hparams, tried, splits)
    check_recipes(sweep, tried, recipes, splits[0], start.pretrained, log)
    count = population_size(sweep, recipes, splits)
    return sweep, Bound(
        dataset, examples, *splits, start.recipe, start.pretrained, tried, recipes, count
    )  # fmt: skip


def _bind_space(sweep, search, experiment, log) -> tuple[Sweep, Space]:
    """Returns the sweep with what its space decides, and the space."""
    recipe, is_grid = sweep.recipe, sweep.sampler == "grid"
    recipes = tuple(preset.recipe for preset in experiment.presets.values())
    tried = space(sweep.space, recipe, sweep.hparams, grid=is_grid, recipes=recipes)
    guess = hints.guess(sweep.prior, tried, recipe, sweep.hparams)
    tried = dataclasses.replace(tried, guess=guess)
    if sweep.trials == "auto":
        sweep = dataclasses.replace(sweep, trials=stopping.MOST, auto=True)
    recipe, hparams = tried.apply(tried.fixed, recipe, sweep.hparams)
    study = sweep.study or f"{experiment.name}_{search}"
    trials = sweep.trials
    if size := Encoding(tried.distributions).size():
        trials = min(trials or size, size)
        if trials < sweep.trials:
            log(f"note: the space has {size:,} configurations: each is tried once")
    if not is_grid and tried.defaults is None:
        log("note: the defaults are not in the space, so no trial has them")
    sweep = dataclasses.replace(
        sweep, recipe=recipe, hparams=hparams, study=study, trials=trials,
        run_dir=sweep.run_dir or Path("runs") / "sweeps" / study,
        objective=sweep.objective or f"val_{recipe.task.monitor}",
        storage=sweep.storage or os.environ.get("DLFLAX_STORAGE"),
    )  # fmt: skip
    return sweep, tried


def all_recipes(recipe, hparams, space, splits) -> list[train.Recipe]:
    """All structures of the space. InputError for one that cannot be trained."""
    names = [name for name in space.distributions if structural(name)]
    choices = [space.distributions[name].choices for name in names]
    recipes = []
    for values in itertools.product(*choices):
        chosen = dict(zip(names, values, strict=True))
        each, _ = space.apply(chosen, recipe, hparams)
        check_batch_size(each.batch_size, len(splits[0]["inputs"]))
        try:
            train.abstract(each, hparams, splits[0]["inputs"][:1])
        except InputError as error:
            raise InputError(f"--space: {error}") from error
        except (ArithmeticError, TypeError, ValueError) as error:  # a model of one's own, too
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"--space: {params_text({**space.fixed, **chosen})} cannot be built ({reason})."
            ) from error
        recipes.append(each)
    return recipes


def population_size(sweep, recipes, splits) -> int:
    """Returns --population, or 16, rounded up to use all devices, as far as half the memory goes.
    A sampler that learns has fewer, so that it sees its first results in time. Raises InputError
    for a population that cannot fit."""
    inputs = splits[0]["inputs"][:1]
    trial = max(member_bytes(recipe, sweep.hparams, inputs) for recipe in recipes) * sweep.seeds
    free = free_bytes(*splits)
    fits = max(1, int(free / trial))
    if sweep.population > fits:
        raise InputError(
            f"--population {sweep.population} needs about "
            f"{sweep.population * trial / 2**30:,.1f} GiB and there are {free / 2**30:,.1f}: use "
            f"{fits} or less."
        )
    if sweep.population:
        return sweep.population
    learns = sweep.sampler not in ("random", "qmc", "grid")
    wanted = min(16, max(1, sweep.trials // 4)) if learns else min(16, sweep.trials)
    if isinstance(sweep.search, FreezeThaw):
        wanted = 4  # one trial takes as many rounds as it has epochs, however wide a round is
    devices = max(1, len(jax.devices()) // sweep.workers)
    return max(1, min(-(-wanted // devices) * devices, fits // 2))


def check_transfer(kind, tried: Space) -> None:
    """InputError for a space over what is the same for all trials."""
    strengths = {name for each in AUGMENTATIONS.values() for name in each.numbers}
    for name in (*tried.distributions, *tried.fixed) if kind and kind.has_weights else ():
        flag = f"--space.{name.replace('_', '-')}"
        if name.startswith("model."):
            raise InputError(f"{flag}: pretrained weights fit one model: leave it out.")
        if kind.is_frozen and (name == "augment" or name in strengths):
            raise InputError(
                f"{flag}: with --finetune head the features are computed once, for all trials: use "
                f"--hparams.{flag.removeprefix('--space.')} and --views, or leave it out."
            )


def _check_pretrained(pretrained, recipes, hparams, inputs) -> None:
    """InputError for structures that the variables which training begins with do not fit."""
    given = traverse_util.flatten_dict(pretrained or {})
    for recipe in recipes if given else ():
        state = train.abstract(recipe, hparams, inputs)
        own = traverse_util.flatten_dict({"params": state.params, **state.collections})
        if any(path not in own or own[path].shape != leaf.shape for path, leaf in given.items()):
            raise InputError(
                "--space.model: weights or vectors that training begins with fit one model: leave "
                "it out."
            )


def check_objective(sweep, tried: Space) -> None:
    """InputError for what is not a score or a cost, or does not compare trials."""
    known = ["val_loss", *(f"val_{metric.name}" for metric in sweep.recipe.task.metrics)]
    if sweep.objective not in known:
        raise InputError(
            f"--objective {sweep.objective} is not a metric of {type(sweep.recipe.task).__name__}: "
            f"use {' or '.join(known)}."
        )
    if sweep.cost and sweep.cost not in COSTS:
        raise InputError(
            f"--objective {sweep.objective} {sweep.cost}: the second one must be "
            f"{', '.join(COSTS[:-1])} or {COSTS[-1]}."
        )
    if "loss" in tried.distributions and sweep.objective == "val_loss":
        raise InputError(
            "--space.loss with --objective val_loss compares different losses with each other: add "
            f"--objective {next((n for n in known if n != 'val_loss'), 'val_SCORE')}."
        )


def check_memory(splits) -> None:
    """InputError where the data have to be read from disk while a model is trained."""
    if not all(map(fits_on_device, splits)):
        raise InputError(
            "these data do not fit into memory, which a sweep needs: use a smaller --size, or "
            "--finetune head."
        )


def check_recipes(sweep, tried: Space, recipes, train_set, pretrained, log) -> None:
    """Raises InputError for structures that pretrained variables do not fit, for a second objective
    that is the same for all, and for a number that no structure reads. `log` gets such numbers of
    the experiment's own space."""
    _check_pretrained(pretrained, recipes, sweep.hparams, train_set["inputs"][:1])
    if sweep.cost and len(recipes) < 2:
        raise InputError(
            f"--objective {sweep.objective} {sweep.cost}: all trials have the same "
            f"{sweep.cost}, as no structure is searched: add one, such as --space.model.features "
            "32 64 128."
        )
    views = transfer.start_hparams(sweep.transfer, sweep.recipe, sweep.hparams)
    names = {flag.partition(".")[2] for flag in sweep.given} | {*tried.distributions}
    inputs = train_set["inputs"][:1]
    states = ((recipe, train.abstract(recipe, sweep.hparams, inputs)) for recipe in recipes)
    unused = unused_hparams(names, states, sweep.hparams, train_set)
    reject_unused_flags(sweep.given, unused - {*views}, recipes[0])
    for name in sorted(unused & {*tried.distributions}):
        log(f"note: nothing here reads {name}: its values make no difference")
