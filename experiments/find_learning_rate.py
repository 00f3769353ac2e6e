"""Learning rate finder: 36 rates, a few hundred steps each, in one compiled program.

python -m experiments.find_learning_rate mnist

python -m experiments.find_learning_rate cifar10 --steps 300 --optimizer lion

python -m experiments.find_learning_rate my_experiment.py

Takes all flags of the experiment. Prints a suggestion, and writes a table and a figure.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

import experiments
from dlflax import run
from dlflax.run.find_learning_rate import find_learning_rate
from dlflax.run.flags import REGISTRY
from dlflax.train.layout import use_all_cores


@dataclass(frozen=True)
class Options:
    """Flags of the finder, beside the experiment's."""

    experiment: tyro.conf.Positional[str] = "mnist"
    """Name of an experiment, a module, or a file that ends in .py."""
    steps: int = 200
    """Number of steps at each learning rate."""
    run_dir: Path | None = None
    """Folder of the results (default: runs/learning_rates/EXPERIMENT)."""


def command(args: list[str]) -> dict:
    """Returns the results of `find_learning_rate`. Raises InputError and RunError."""
    options, rest = tyro.cli(
        Options, args=args, description=__doc__, prog="python -m experiments.find_learning_rate",
        return_unknown_args=True, registry=REGISTRY,
    )  # fmt: skip
    experiment = run.find(options.experiment, experiments)
    config = run.parse(experiment, rest)
    use_all_cores()
    folder = options.run_dir or Path("runs") / "learning_rates" / experiment.name
    results = find_learning_rate(config, folder, options.steps)
    rate = results["suggestion"]
    print(f"suggestion: --hparams.learning-rate {rate:g}, the lowest loss after that many steps")
    print(f"to tune it: --space.learning-rate {rate / 10:.2g} {rate * 3:.2g} log")
    print(f"table and figure: {folder}")
    return results


if __name__ == "__main__":
    run.with_exit_codes(
        lambda: command(sys.argv[1:]), continuation="run the same command again; it takes seconds"
    )
