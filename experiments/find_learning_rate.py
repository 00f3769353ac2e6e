"""Finds a learning rate: 36 of them, a few hundred steps each, in one compiled program.

python -m experiments.find_learning_rate mnist

python -m experiments.find_learning_rate cifar10 --steps 300 --optimizer lion

python -m experiments.find_learning_rate my_experiment.py

All flags of the experiment hold. It prints a suggestion, and writes a table and a picture.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

import experiments
from dlflax import run
from dlflax.run.find_learning_rate import find_learning_rate
from dlflax.run.flags import OPTIONAL
from dlflax.train.layout import use_all_cores


@dataclass(frozen=True)
class Options:
    """Flags of its own; every other one is of the experiment."""

    experiment: tyro.conf.Positional[str] = "mnist"
    """Name of an experiment, a module, or a file that ends in .py."""
    steps: int = 200
    """Steps at each learning rate."""
    run_dir: Path | None = None
    """Folder of the results (default: runs/learning_rates/EXPERIMENT)."""


def command(args: list[str]) -> dict:
    """Returns what `find_learning_rate` does. Raises InputError and RunError."""
    options, rest = tyro.cli(
        Options, args=args, description=__doc__, prog="python -m experiments.find_learning_rate",
        return_unknown_args=True, registry=OPTIONAL,
    )  # fmt: skip
    experiment = run.find(options.experiment, experiments)
    config = run.parse(experiment, rest)
    use_all_cores()
    folder = options.run_dir or Path("runs") / "learning_rates" / experiment.name
    found = find_learning_rate(config, folder, options.steps)
    rate = found["suggestion"]
    print(f"suggestion: --hparams.learning-rate {rate:g}, the lowest loss after that many steps")
    print(f"to tune it: --space.learning-rate {rate / 10:.2g} {rate * 3:.2g} log")
    print(f"table and picture: {folder}")
    return found


if __name__ == "__main__":
    run.with_exit_codes(
        lambda: command(sys.argv[1:]), again="run the same command again; it takes seconds"
    )
