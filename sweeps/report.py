"""Report of a running, stopped or finished sweep: table, figures, report.html.

python -m sweeps.report runs/sweeps/mnist_bayes_opt

A sweep writes its report after every population; this command writes it at any time.
"""

from pathlib import Path

import tyro

from dlflax import run
from dlflax.report.sweep.trials import print_findings
from dlflax.run.flags import REGISTRY
from dlflax.tune.pool import sweep_report


def command(folder: tyro.conf.Positional[Path], storage: str | None = None) -> None:
    """Writes the report of a sweep.

    Args:
        folder: Folder of the sweep, such as runs/sweeps/mnist_bayes_opt.
        storage: URL of the storage, with the password (default: $DLFLAX_STORAGE, or the one saved
            in the folder).
    """
    results = sweep_report.write_report(folder, storage)
    print_findings(results["findings"])
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    options = {"prog": "python -m sweeps.report", "description": __doc__, "registry": REGISTRY}
    run.with_exit_codes(lambda: tyro.cli(command, **options))
