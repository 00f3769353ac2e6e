"""Config: everything that decides a run."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dlflax import data, train
from dlflax.errors import InputError
from dlflax.report.loggers import Log
from dlflax.train.check import check_count, check_hparams, check_recipe


# metadata: "resume" is for `resume`, and what is not "saved" is not in config.json
@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. Saved as config.json."""

    recipe: Annotated[train.Recipe, tyro.conf.arg(name="")]
    """Structure: another value is another program."""
    hparams: Any = train.Hparams()
    """Numbers: another value compiles nothing."""
    data: Annotated[Any, tyro.conf.arg(name="")] = data.Images()
    """The source of the examples, a `data.Source`."""
    transfer: Annotated[Any, tyro.conf.arg(name="")] = None
    """The use of pretrained weights, as `transfer.Transfer`."""
    epochs: int = 5
    """Passes over the training data."""
    seed: int = 0
    """Decides the validation split, the initial weights, the order and all randomness."""
    validation: float = 0.1
    """Share of the training data held out for validation; 0 trains on all of it."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class counts the more, the fewer examples it has (n / (classes * its n))."""
    patience: int = 0
    """Stop after this many epochs without a better validation score; 0 never stops early."""
    reduce_on_plateau: int = 0
    """Halve the learning rate after this many such epochs; 0 never does."""
    folds: int = 0
    """Cross-validate: train so many times, each time testing on another part of all the data."""
    run_dir: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """Folder of the run (default: runs/EXPERIMENT/TIME)."""
    resume: bool = dataclasses.field(default=False, metadata={"resume": "free"})
    """Continue the run in --run-dir, or the newest one."""
    devices: int = dataclasses.field(default=0, metadata={"resume": "local"})
    """Devices that share every batch; 0: all, but one on a CPU, which has all cores already."""
    shard_state: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Share out the parameters over the devices too, for a model too large for one."""
    distributed: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Join the other hosts: found by SLURM, TPU pods, Open MPI or $JAX_COORDINATOR_ADDRESS."""
    profile: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Write a trace of some steps to profile/ in the run's folder, for TensorBoard or Perfetto."""
    baseline: Literal["auto", "none"] = dataclasses.field(
        default="auto", metadata={"resume": "local"}
    )
    """auto: state simple models, fitted on the same data, beside the network's test scores."""
    log: Log = dataclasses.field(default="none", metadata={"resume": "local"})
    """Loggers of scores and images, besides TensorBoard's files."""
    verbose: bool = dataclasses.field(default=False, metadata={"resume": "local"})
    """Print more: every epoch, every parameter of the network, the scores of each class."""
    given: Annotated[tuple[str, ...], tyro.conf.Suppress] = dataclasses.field(
        default=(), metadata={"saved": False}
    )
    """Flags of numbers that the user gave, such as hparams.momentum: refused if they do nothing."""
    stand_ins: Annotated[dict[str, dict[str, Any]], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict, metadata={"saved": False}
    )
    """Name of a data set -> fields with other values where it stands in for the one asked for."""


def check(config: Config) -> None:
    """InputError for numbers that no run can have."""
    check_hparams(config.hparams)
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed} must be from 0 to {2**32 - 1}.")
    for name, least in (("epochs", 1), ("patience", 0), ("reduce_on_plateau", 0), ("devices", 0),
                        ("folds", 0)):  # fmt: skip
        check_count(name, getattr(config, name), least)
    if not 0 <= config.validation < 1:
        raise InputError(f"--validation {config.validation:g} must be from 0 up to below 1.")
    if config.run_dir is not None and str(config.run_dir) in ("", "."):
        raise InputError("--run-dir must name a folder of its own, such as runs/mnist/first.")
    if config.validation == 0 and (config.patience or config.reduce_on_plateau):
        raise InputError(
            "--patience and --reduce-on-plateau must be 0 with --validation 0: they go by the "
            "validation score."
        )
    check_recipe(config.recipe, config.data)
