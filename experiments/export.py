"""A trained model as a file that runs without this package.

python -m experiments.export runs/mnist/2026-01-31_12-00-00

python -m experiments.export runs/mnist/2026-01-31_12-00-00 --to stablehlo --file digits.stablehlo
"""

from pathlib import Path

import tyro

import experiments
from dlflax import run
from dlflax.run import flags
from dlflax.run.export import Format, export
from dlflax.run.predict import Predictor


def command(
    run_dir: tyro.conf.Positional[Path],
    to: Format = "onnx",
    file: Path | None = None,
    experiment: str = "",
) -> None:
    """Writes the model of a run or a sweep, what comes before and after it included, and tries the
    file against it. FILE.json says what it takes and gives.

    Args:
        run_dir: Folder of a run, runs/EXPERIMENT/NAME, or of a sweep.
        to: onnx (pip install 'dlflax[export]') runs in ONNX Runtime; stablehlo in JAX, by
            jax.export.deserialize.
        file: Where it is written (default: model.onnx or model.stablehlo in the folder).
        experiment: The file or module that made the run, where it has moved or was not run here.
    """
    export(Predictor(run_dir, experiments, experiment or None), to, file)


if __name__ == "__main__":
    run.with_exit_codes(lambda: flags.called(command, "python -m experiments.export", __doc__))
