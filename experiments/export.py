"""Export of a trained model to a file that runs without this package.

python -m experiments.export runs/mnist/2026-01-31_12-00-00

python -m experiments.export runs/mnist/2026-01-31_12-00-00 --to stablehlo --file digits.stablehlo
"""

from pathlib import Path

import tyro

import experiments
from dlflax import run
from dlflax.inference.export import Format, export
from dlflax.inference.predict import Predictor
from dlflax.run.flags import REGISTRY


def command(
    run_dir: tyro.conf.Positional[Path],
    to: Format = "onnx",
    file: Path | None = None,
    experiment: str = "",
) -> None:
    """Writes the model of a run or a sweep, with preprocessing and postprocessing, and compares
    the file with predict. FILE.json describes inputs and outputs.

    Args:
        run_dir: Folder of a run, runs/EXPERIMENT/NAME, or of a sweep.
        to: onnx (pip install 'dlflax[export]') runs in ONNX Runtime; stablehlo in JAX, by
            jax.export.deserialize.
        file: Path of the file (default: model.onnx or model.stablehlo in the folder).
        experiment: File or module of a run with code outside of dlflax.
    """
    export(Predictor(run_dir, experiments, experiment or None), to, file)


if __name__ == "__main__":
    options = {"prog": "python -m experiments.export", "description": __doc__, "registry": REGISTRY}
    run.with_exit_codes(lambda: tyro.cli(command, **options))
