"""Report of a sweep that runs, was stopped or is finished: table, pictures, report.html.

python -m sweeps.report runs/sweeps/mnist_bayes_opt

A sweep writes its report after every population by itself; this command writes it at any moment.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from dlflax import run
from dlflax.report.trials import print_findings
from dlflax.tune import report


@dataclass(frozen=True)
class Options:
    """Which sweep."""

    folder: tyro.conf.Positional[Path]
    """Its folder, such as runs/sweeps/mnist_bayes_opt."""
    storage: str | None = None
    """Address of its PostgreSQL database, with the password (default: $DLFLAX_STORAGE, or what is
    in the folder)."""


def command() -> None:
    options = tyro.cli(Options, description=__doc__, prog="python -m sweeps.report")
    results = report.of_folder(options.folder, options.storage)
    print_findings(results["findings"])
    print(f"report: {options.folder / 'report.html'}")


if __name__ == "__main__":
    run.with_exit_codes(command)
