"""Report of a sweep that runs, was stopped or is finished: table, pictures, report.html.

python -m sweeps.report runs/sweeps/mnist_bayes_opt

A sweep writes its report after every population by itself; this command writes it at any moment.
"""

from pathlib import Path

import tyro

from dlflax import run
from dlflax.report.trials import print_findings
from dlflax.run import flags
from dlflax.tune import report


def command(folder: tyro.conf.Positional[Path], storage: str | None = None) -> None:
    """Writes the report of a sweep.

    Args:
        folder: Its folder, such as runs/sweeps/mnist_bayes_opt.
        storage: Address of its storage, with the password (default: $DLFLAX_STORAGE, or what is in
            the folder).
    """
    results = report.write_report(folder, storage)
    print_findings(results["findings"])
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    run.with_exit_codes(lambda: flags.called(command, "python -m sweeps.report", __doc__))
