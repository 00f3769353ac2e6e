"""HTTP server of a trained model: a page to try it, and JSON for programs.

python -m experiments.serve runs/mnist/2026-01-31_12-00-00

curl -H "Content-Type: image/png" --data-binary @digit.png http://127.0.0.1:8000/predict
"""

from pathlib import Path

import tyro

import experiments
from dlflax import run
from dlflax.inference.model import start_server
from dlflax.inference.predict import Predictor
from dlflax.run.flags import REGISTRY


def command(
    run_dir: tyro.conf.Positional[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    experiment: str = "",
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
) -> None:
    """Serves the model of a run or a sweep until Ctrl-C or SIGTERM, then finishes open requests.

    Args:
        run_dir: Folder of a run, runs/EXPERIMENT/NAME, or of a sweep.
        host: Address to listen on; 0.0.0.0: anyone in the network can then query the model.
        port: Port to listen on; 0 takes any free port.
        experiment: File or module of a run with code outside of dlflax.
        allow_host: Host name of the server besides localhost and --host, such as
            models.example.com; repeat the flag for several names.
    """
    predictor = Predictor(run_dir, experiments, experiment or None)
    start_server(predictor, port, host, allow_host)


if __name__ == "__main__":
    options = {"prog": "python -m experiments.serve", "description": __doc__, "registry": REGISTRY}
    run.with_exit_codes(lambda: tyro.cli(command, **options))
