"""The configuration of a sweep, and the checks that need no data."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dlflax import run
from dlflax.errors import InputError
from dlflax.run.config import check
from dlflax.train.check import check_count
from dlflax.tune.launch import Engine
from dlflax.tune.rules import FreezeThaw, Full, Halving, Rule
from dlflax.tune.samplers import check_sampler

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
    until another one is not expected to gain more than chance or the tolerance."""
    tolerance: float = dataclasses.field(default=0.01, metadata=FREE)
    """--trials auto: a gain that is not worth another trial, as a share of the best value."""
    population: int = 0
    """Trials that are trained at once; 0 chooses by devices and memory."""
    seeds: int = 1
    """Every trial is trained under this many seeds, and counts by their mean."""
    rank: Literal["mean", "cautious"] = "mean"
    """With --seeds: cautious counts one standard deviation worse than the mean."""
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
    """The rule of what trains next. full: every trial is trained to its end; halving: only the
    best of a population continue after a share of the epochs; freeze-thaw: trials pause, and those
    that rank well continue."""
    mode: Literal["auto", "vmap", "map"] = "auto"
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
    ensemble: int = dataclasses.field(default=16, metadata=FREE)
    """Most models of the ensemble of the best trials, 0 for none. The best model is the one with
    the best validation score of three: the best trial as it was trained, its configuration
    retrained, and the ensemble."""
    retrain_on_all: bool = False
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
    if not is_auto and sweep.tolerance != Sweep.tolerance:
        raise InputError("--tolerance is for --trials auto: remove the flag.")
    if not 0 <= sweep.tolerance < 1:
        raise InputError(f"--tolerance {sweep.tolerance:g} must be from 0 up to below 1.")
    check_count("population", sweep.population, 0, 10**6)
    check_count("seeds", sweep.seeds, 1, 1000)
    check_count("ensemble", sweep.ensemble, 0, 1000)
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
        raise InputError("--trials auto goes by whole trials: remove it, or use --search full.")
    if sweep.validation == 0:
        raise InputError("--validation 0: a sweep compares its trials on validation data.")
    if sweep.rank == "cautious" and sweep.seeds == 1:
        raise InputError("--rank cautious is for --seeds 2 or more, whose spread it goes by.")
    if sweep.launcher_options and sweep.launcher == "local":
        raise InputError("--launcher-options is for --launcher slurm or ray: remove the flag.")
