"""Config: all settings of a run."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dlflax import data, train
from dlflax.errors import InputError
from dlflax.report.loggers import Log
from dlflax.train.check import check_count, check_hparams, check_recipe

MAX_SECONDS = 10**8  # of --time-limit


# metadata: "resume" as in `resume`; "saved": False keeps a field out of config.json
@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, saved as config.json."""

    recipe: Annotated[train.Recipe, tyro.conf.arg(name="")]
    """Static structure: a new value compiles a new program."""
    hparams: Any = train.Hparams()
    """Traced numbers: a new value compiles nothing."""
    data: Annotated[Any, tyro.conf.arg(name="")] = data.Images()
    """Data source, a `data.Source`."""
    transfer: Annotated[Any, tyro.conf.arg(name="")] = None
    """Transfer learning from pretrained weights, a `transfer.Transfer`."""
    epochs: int = 5
    """Passes over the train split."""
    seed: int = 0
    """Random seed of the folds, validation split, initial parameters, example order, augmentation
    and dropout."""
    val_split: float = 0.1
    """Share of the training data held out as the validation split; 0: none."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weights classes by inverse frequency, n / (classes * n of the class)."""
    patience: int = 0
    """Stop after this many epochs without a better validation score; 0: never."""
    plateau_patience: int = 0
    """Halve the learning rate after this many epochs without improvement; 0: never."""
    folds: int = 0
    """Number of folds of a cross-validation, which tests on each fold once; 0: none."""
    bag_folds: int = 0
    """Number of networks, each trained with another fold held out and averaged; the folds take the
    place of the validation split. 0: one network."""
    time_limit: float = 0.0
    """Seconds for the whole command: fewer epochs or trials where not all fit. 0: no limit."""
    blend: Literal["auto", "none"] = "auto"
    """--bag-folds: auto averages linear models and boosted trees in, by their loss on the folds."""
    run_dir: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """Run folder (default: runs/EXPERIMENT/TIME)."""
    resume: bool = dataclasses.field(default=False, metadata={"resume": "free"})
    """Continue the run in --run-dir, or the newest one."""
    devices: int = dataclasses.field(default=0, metadata={"resume": "local"})
    """Devices that every batch is sharded over; 0: all GPUs or TPUs, or one CPU with all cores."""
    fsdp: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Fully sharded data parallel: shards parameters and optimizer state over the devices too."""
    distributed: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Train on several hosts, by SLURM, TPU pods, Open MPI or $JAX_COORDINATOR_ADDRESS."""
    profile: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Write a trace of some steps to profile/ in the run folder, for TensorBoard or Perfetto."""
    baseline: Literal["auto", "none"] = dataclasses.field(
        default="auto", metadata={"resume": "local"}
    )
    """auto: fits baselines on the same data and prints their test scores."""
    logger: Log = dataclasses.field(default="none", metadata={"resume": "local"})
    """Loggers of scores and figures, besides TensorBoard."""
    verbose: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Print every epoch, every parameter of the network and the scores of each class."""
    given: Annotated[tuple[str, ...], tyro.conf.Suppress] = dataclasses.field(
        default=(), metadata={"saved": False}
    )
    """Flags of hparams on the command line, such as hparams.momentum, refused if without effect."""
    stand_ins: Annotated[dict[str, dict[str, Any]], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict, metadata={"saved": False}
    )
    """Name of a data set -> field values that replace the Config's where it stands in."""


def check(config: Config) -> None:
    """Raises InputError for values that are out of range."""
    check_hparams(config.hparams)
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed} must be from 0 to {2**32 - 1}.")
    for name, least in (("epochs", 1), ("patience", 0), ("plateau_patience", 0), ("devices", 0),
                        ("folds", 0), ("bag_folds", 0)):  # fmt: skip
        check_count(name, getattr(config, name), least)
    if not 0 <= config.val_split < 1:
        raise InputError(f"--val-split {config.val_split:g} must be from 0 up to below 1.")
    if config.time_limit and not 1 <= config.time_limit <= MAX_SECONDS:
        raise InputError(
            f"--time-limit {config.time_limit:g} must be from 1 to {MAX_SECONDS:,} seconds, or 0."
        )
    if config.time_limit and config.distributed:
        raise InputError("--time-limit is for one host: remove it, or --distributed.")
    if config.bag_folds == 1:
        raise InputError("--bag-folds 1 must be 2 or more, or 0 for one network.")
    if config.blend == "none" and not config.bag_folds:
        raise InputError("--blend none is for --bag-folds: remove the flag.")
    if config.run_dir is not None and str(config.run_dir) in ("", "."):
        raise InputError("--run-dir must name a folder of its own, such as runs/mnist/first.")
    if config.val_split == 0 and (config.patience or config.plateau_patience):
        raise InputError(
            "--patience and --plateau-patience must be 0 with --val-split 0: they need a "
            "validation score."
        )
    check_recipe(config.recipe, config.data)
