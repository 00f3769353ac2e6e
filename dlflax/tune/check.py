"""Checks of a sweep before it starts."""

from flax import traverse_util

from dlflax import train, transfer
from dlflax.data.stream import fits
from dlflax.errors import InputError
from dlflax.report.trials import COSTS
from dlflax.run.config import check
from dlflax.train.augment import AUGMENTATIONS
from dlflax.train.check import check_count, refuse_unused, unused_numbers
from dlflax.tune.search import check_sampler
from dlflax.tune.space import Space


def check_sweep(sweep) -> None:
    """InputError for numbers that no sweep can have."""
    check(sweep)
    check_sampler(sweep.sampler)
    if sweep.folds:
        raise InputError("--folds is for a single run, not for a sweep: leave it out.")
    freeze_thaw, auto = sweep.search == "freeze-thaw", sweep.trials == "auto"
    if not auto:
        check_count("trials", sweep.trials, 0 if sweep.sampler == "grid" else 1, 10**6)
    if not auto and sweep.tolerance != type(sweep).tolerance:
        raise InputError("--tolerance is for --trials auto: leave it out.")
    if not 0 <= sweep.tolerance < 1:
        raise InputError(f"--tolerance {sweep.tolerance:g} must be from 0 up to below 1.")
    check_count("population", sweep.population, 0, 10**6)
    check_count("seeds", sweep.seeds, 1, 1000)
    check_count("ensemble", sweep.ensemble, 0, 1000)
    if sweep.study is not None and (not sweep.study.strip() or set(sweep.study) & set("/\\\0")):
        raise InputError(
            f"--study {sweep.study!r} must be a name without slashes: it is that of a folder too."
        )
    if sweep.prune < 0 or sweep.prune == 1:
        raise InputError(f"--prune {sweep.prune} must be 2 or more, or 0 for no pruning.")
    if sweep.prune > sweep.epochs:
        raise InputError(
            f"--prune {sweep.prune} needs at least {sweep.prune} epochs, not --epochs "
            f"{sweep.epochs}."
        )
    check_count("slice", sweep.slice, 1)
    if sweep.slice > 1 and not freeze_thaw:
        raise InputError("--slice is for --search freeze-thaw: leave it out.")
    if freeze_thaw:
        _check_freeze_thaw(sweep, auto)
    if sweep.prior and sweep.sampler == "grid":
        raise InputError("--prior does not go together with a grid, which tries every point.")
    if sweep.warm_start and sweep.sampler != "gp":
        raise InputError(
            "--warm-start is for the Gaussian process of sweeps.bayes_opt, not for --sampler "
            f"{sweep.sampler}: leave it out."
        )
    if sweep.cost:
        alone = {
            "--search freeze-thaw": freeze_thaw, "--trials auto": auto, "--prune": sweep.prune,
            f"--sampler {sweep.sampler}": sweep.sampler in ("tpe", "cmaes"),
            "--warm-start": sweep.warm_start,
        }  # fmt: skip
        for flag in (flag for flag, given in alone.items() if given):
            raise InputError(f"{flag} goes by one objective: leave it, or {sweep.cost}, out.")
    if sweep.validation == 0:
        raise InputError("--validation 0: a sweep compares its trials on validation data.")
    if sweep.rank == "cautious" and sweep.seeds == 1:
        raise InputError("--rank cautious is for --seeds 2 or more, whose spread it goes by.")
    if not 1 <= sweep.heartbeat <= 3600:
        raise InputError(f"--heartbeat {sweep.heartbeat:g} must be from 1 to 3600 seconds.")


def _check_freeze_thaw(sweep, auto) -> None:
    """Raises InputError for flags that --search freeze-thaw cannot have."""
    if sweep.sampler != "gp":
        raise InputError(
            f"--search freeze-thaw decides by itself, not by --sampler {sweep.sampler}: use "
            "sweeps.bayes_opt, without the flag."
        )
    refused = {
        "--trials auto": auto, "--prune": sweep.prune, "--distributed": sweep.distributed,
        "--warm-start": sweep.warm_start, "--prior": sweep.prior,
    }  # fmt: skip
    for flag in (flag for flag, given in refused.items() if given):
        raise InputError(f"{flag} does not go together with --search freeze-thaw: leave it out.")


def check_transfer(kind, tried: Space) -> None:
    """InputError for a space over what is the same for all trials."""
    strengths = {name for each in AUGMENTATIONS.values() for name in each.numbers}
    for name in (*tried.distributions, *tried.fixed) if kind and kind.pretrained else ():
        flag = f"--space.{name.replace('_', '-')}"
        if name.startswith("model."):
            raise InputError(f"{flag}: pretrained weights fit one model: leave it out.")
        if kind.frozen and (name == "augment" or name in strengths):
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


def check_objective(sweep, train_set, tried: Space) -> None:
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
    if not all(map(fits, splits)):
        raise InputError(
            "these data do not fit into memory, which a sweep needs: use a smaller --size, or "
            "--finetune head."
        )


def check_recipes(sweep, tried: Space, recipes, train_set, pretrained, log) -> None:
    """InputError for structures that pretrained variables do not fit, for a second objective in
    which all structures are the same, and for a number that was given and that none reads; `log`
    gets those that the experiment's own space has."""
    _check_pretrained(pretrained, recipes, sweep.hparams, train_set["inputs"][:1])
    if sweep.cost and len(recipes) < 2:
        raise InputError(
            f"--objective {sweep.objective} {sweep.cost}: all trials have the same "
            f"{sweep.cost}, as no structure is searched: add one, such as --space.model.features "
            "32 64 128."
        )
    views = transfer.numbers_of_start(sweep.transfer, sweep.recipe, sweep.hparams)
    names = {flag.partition(".")[2] for flag in sweep.given} | {*tried.distributions}
    inputs = train_set["inputs"][:1]
    states = ((recipe, train.abstract(recipe, sweep.hparams, inputs)) for recipe in recipes)
    unused = unused_numbers(names, states, sweep.hparams, train_set)
    refuse_unused(sweep.given, unused - {*views}, recipes[0])
    for name in sorted(unused & {*tried.distributions}):
        log(f"note: nothing here reads {name}: its values make no difference")
