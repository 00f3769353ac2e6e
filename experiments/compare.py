"""Comparison of several architectures on one task: scores, size, cost, time.

python -m experiments.compare mnist

python -m experiments.compare forecast --models mlp rnn --num-seeds 3

python -m experiments.compare my_experiment.py

Takes all flags of the experiment but --model, --preset and --resume. An architecture has the
settings of the preset with its name, if there is one. With --run-dir the same command continues a
stopped comparison.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

import experiments
from dlflax import run
from dlflax.errors import InputError
from dlflax.run.compare import compare
from dlflax.run.flags import REGISTRY, refuse_old_flags


@dataclass(frozen=True)
class Options:
    """Flags of the comparison, beside the experiment's."""

    experiment: tyro.conf.Positional[str] = "mnist"
    """Name of an experiment, a module, or a file that ends in .py."""
    models: tuple[str, ...] = ()
    """Architectures of that experiment, or its presets if it has none (default: all)."""
    num_seeds: int = 1
    """Number of seeds for each architecture: --seed, --seed + 1, ..."""
    run_dir: Path | None = None
    """Folder of the results (default: runs/compare/EXPERIMENT/TIME)."""


def command(args: list[str]) -> list[dict]:
    """Returns the rows of the table. Raises InputError."""
    options, rest = tyro.cli(
        Options, args=args, description=__doc__, prog="python -m experiments.compare",
        return_unknown_args=True, registry=REGISTRY,
    )  # fmt: skip
    refuse_old_flags(rest, options)
    if options.num_seeds < 1:
        raise InputError(f"--num-seeds {options.num_seeds} must be 1 or more.")
    for flag in ("--model", "--preset", "--resume"):
        if flag in rest:
            remedy = "remove it" if flag != "--resume" else "add --run-dir in its place"
            raise InputError(f"{flag} is no flag of compare, which trains --models: {remedy}.")
    experiment = run.find(options.experiment, experiments)
    return compare(experiment, options.models, options.num_seeds, options.run_dir, rest)


if __name__ == "__main__":
    run.with_exit_codes(
        lambda: command(sys.argv[1:]), continuation="the same command with --run-dir continues"
    )
