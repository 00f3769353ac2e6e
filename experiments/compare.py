"""Several architectures on one task, side by side: scores, size, cost, time.

python -m experiments.compare mnist

python -m experiments.compare forecast --models mlp rnn --seeds 3

python -m experiments.compare my_experiment.py

All flags of the experiment but --model, --preset and --resume hold for every architecture, each
with the settings of the preset of its name, if there is one. With --run-dir the same command
continues what was stopped.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

import experiments
from dlflax import run
from dlflax.errors import InputError
from dlflax.run.compare import compare
from dlflax.run.flags import OPTIONAL, with_lists


@dataclass(frozen=True)
class Options:
    """What is compared; every other flag is one of the experiment's."""

    experiment: tyro.conf.Positional[str] = "mnist"
    """Name of an experiment, a module, or a file that ends in .py."""
    models: tuple[str, ...] = ()
    """Architectures of that experiment, or its presets if it has none (default: all)."""
    seeds: int = 1
    """Each is trained under this many seeds: --seed, --seed + 1, ..."""
    run_dir: Path | None = None
    """Where all is written (default: runs/compare/EXPERIMENT/TIME)."""


def command(args: list[str]) -> list[dict]:
    """The rows of the table. Raises InputError."""
    options, rest = tyro.cli(
        Options, args=with_lists(args, ("models",)),
        description=__doc__, prog="python -m experiments.compare",
        return_unknown_args=True, registry=OPTIONAL,
    )  # fmt: skip
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds} must be 1 or more.")
    for flag in ("--model", "--preset", "--resume"):
        if flag in rest:
            raise InputError(
                f"{flag} has no meaning here, each of --models is trained: leave it out."
            )
    experiment = run.find(options.experiment, experiments)
    return compare(experiment, options.models, options.seeds, options.run_dir, rest)


if __name__ == "__main__":
    run.with_exit_codes(
        lambda: command(sys.argv[1:]),
        again="the same command with --run-dir continues",
    )
