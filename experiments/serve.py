"""A trained model behind HTTP: a page to try it, and JSON for programs.

python -m experiments.serve runs/mnist/2026-01-31_12-00-00

curl -H "Content-Type: image/png" --data-binary @digit.png http://127.0.0.1:8000/predict
"""

from pathlib import Path

import tyro

import experiments
from dlflax import run
from dlflax.errors import InputError
from dlflax.run import flags
from dlflax.run.predict import Predictor


def command(
    run_dir: tyro.conf.Positional[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    experiment: str = "",
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
) -> None:
    """Serves the model of a run or a sweep until Ctrl-C or SIGTERM; then it finishes what it has.

    Args:
        run_dir: Folder of a run, runs/EXPERIMENT/NAME, or of a sweep.
        host: Address to listen at; 0.0.0.0 lets others in, who can then ask it anything.
        port: Port to listen at; 0 takes any free one.
        experiment: The file or module that made the run, where it has moved or was not run here.
        allow_host: A name that others reach the server by, such as models.example.com, beside
            localhost and the host; each name with a flag of its own.
    """
    try:
        from dlflax.run.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        sentence = "serve needs Starlette and uvicorn: pip install 'dlflax[serve]'."
        raise InputError(sentence) from error
    serve(Predictor(run_dir, experiments, experiment or None), host, port, allow_hosts=allow_host)


if __name__ == "__main__":
    run.with_exit_codes(lambda: flags.called(command, "python -m experiments.serve", __doc__))
