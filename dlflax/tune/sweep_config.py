"""The configuration of a sweep, and its checks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dlflax import run
from dlflax.errors import InputError
from dlflax.run import blend
from dlflax.train.check import check_count
from dlflax.tune.launch import Engine
from dlflax.tune.pool.rules import FreezeThaw, Full, Halving, Rule
from dlflax.tune.suggest.samplers import check_sampler

FREE = {"resume": "free"}


@dataclasses.dataclass(frozen=True)
class Sweep(run.Config):
    """All settings of a sweep; those that a run has, too, are the same for all its trials. Saved as
    config.json."""

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
    retrained, and the ensemble. With --bag-folds it is the ensemble, of the best bags."""
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


def check_sweep(sweep: Sweep, log: Callable[[str], None]) -> None:
    """Raises InputError for settings that no sweep can have, besides those that no run can have."""
    check_sampler(sweep.sampler)
    if sweep.bag_folds:
        blend.check(sweep, log)
    sweep.search.check(sweep.epochs)
    is_grid, is_auto = sweep.sampler == "grid", sweep.trials == "auto"
    counts = [("population_size", 0, 10**6), ("num_seeds", 1, 1000), ("ensemble_size", 0, 1000),
              ("workers", 1, 10_000)]  # fmt: skip
    for name, least, most in counts if is_auto else [("trials", int(not is_grid), 10**6), *counts]:
        check_count(name, getattr(sweep, name), least, most)
    study, is_thawing = sweep.study, isinstance(sweep.search, FreezeThaw)
    refusals = {
        "--folds is for a single run, not for a sweep: remove the flag.": sweep.folds,
        "--distributed is for one model on several hosts: a sweep has a worker on each, as by "
        "--launcher slurm --workers 8.": sweep.distributed,
        "--min-improvement is for --trials auto: remove the flag.":
            not is_auto and sweep.min_improvement != Sweep.min_improvement,
        f"--min-improvement {sweep.min_improvement:g} must be from 0 up to below 1.":
            not 0 <= sweep.min_improvement < 1,
        f"--study {study!r} must be a name without slashes: it is that of a folder too.":
            study is not None and (not study.strip() or set(study) & set("/\\\0")),
        "--prior does not go together with a grid, which tries every point.":
            sweep.prior and is_grid,
        "--warm-start is for the Gaussian process of sweeps.bayes_opt, not for --sampler "
        f"{sweep.sampler}: remove the flag.": sweep.warm_start and sweep.sampler != "gp",
        "--search freeze-thaw begins trials all over the space, not by --sampler "
        f"{sweep.sampler}: use sweeps.bayes_opt, without the flag.":
            is_thawing and sweep.sampler != "gp",
        "--search freeze-thaw begins trials all over the space, not by --warm-start: remove one "
        "of the flags.": is_thawing and sweep.warm_start,
        "--trials auto is for complete trials: remove it, or use --search full.":
            is_auto and not isinstance(sweep.search, Full),
        "--val-split 0: a sweep compares its trials on validation data.":
            sweep.val_split == 0 and not sweep.bag_folds,
        "--num-seeds is for one network a trial: remove it, or add --bag-folds 0.":
            sweep.bag_folds and sweep.num_seeds > 1,
        "--time-limit is for one local worker, whose time can be planned: remove it, or --workers "
        "and --launcher.": sweep.time_limit and (sweep.workers > 1 or sweep.launcher != "local"),
        "--time-limit is for --search full: the other rules plan epochs themselves; remove one.":
            sweep.time_limit and not isinstance(sweep.search, Full),
        "--time-limit leaves no time for --refit-full: remove one of the flags.":
            sweep.time_limit and sweep.refit_full,
        "--refit-full has no effect on bags, which train on all data: remove it, or add "
        "--bag-folds 0.": sweep.bag_folds and sweep.refit_full,
        "--rank pessimistic is for --num-seeds 2 or more: it uses their spread.":
            sweep.rank == "pessimistic" and sweep.num_seeds == 1,
        "--launcher-options is for --launcher slurm or ray: remove the flag.":
            sweep.launcher_options and sweep.launcher == "local",
    }  # fmt: skip
    single = {
        "--search halving": isinstance(sweep.search, Halving), "--trials auto": is_auto,
        "--search freeze-thaw": is_thawing, "--warm-start": sweep.warm_start,
        f"--sampler {sweep.sampler}": sweep.sampler not in ("gp", "random", "qmc", "grid"),
    }  # fmt: skip
    refusals |= {
        f"{flag} goes by one objective: remove it, or {sweep.cost}.": sweep.cost and given
        for flag, given in single.items()
    }
    for sentence, is_wrong in refusals.items():
        if is_wrong:
            raise InputError(sentence)
