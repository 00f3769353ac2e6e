"""Other places that a run's scores and pictures go to, by --log: Weights & Biases, MLflow.

Each has the methods of `tensorboard.TensorBoard`. Both packages are imported where they are used,
and read their own environment variables ($WANDB_MODE, $MLFLOW_TRACKING_URI and so on) and, on a
resume, go on with the run whose id is in the folder. What fails is one warning, and the last call.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from dlflax.errors import InputError

Log = Literal["none", "wandb", "mlflow"]
LONGEST = 500  # characters of a parameter that MLflow takes


def opened(kind: Log, experiment: str, folder: Path, log: Callable[[str], None]):
    """The logger of that kind; None for none. InputError where its package is not installed."""
    if kind == "none":
        return None
    try:
        return {"wandb": Wandb, "mlflow": MLflow}[kind](experiment, folder, log)
    except ModuleNotFoundError as error:
        if error.name != kind:
            raise
        raise InputError(
            f"--log {kind} needs its package: pip install 'dlflax[{kind}]'."
        ) from error


def _harmless(method):
    """A side channel never stops a run."""

    @functools.wraps(method)
    def call(self, *args):
        if self._run is None:
            return
        try:
            method(self, *args)
        except Exception as error:  # the network's, the disk's, and theirs
            self._run = None
            self._log(f"warning: nothing more is sent to {type(self).__name__} ({error}).")

    return call


def _begun(begin):
    """Turns a failed begin into a logger that does nothing."""

    @functools.wraps(begin)
    def call(self, experiment, folder, log):
        self._log, self._run = log, None
        try:
            begin(self, experiment, folder, log)
        except ModuleNotFoundError:
            raise
        except Exception as error:
            log(f"warning: nothing is sent to {type(self).__name__} ({error}).")

    return call


class Wandb:
    """A run of Weights & Biases, in the project EXPERIMENT."""

    @_begun
    def __init__(self, experiment: str, folder: Path, log: Callable[[str], None]):
        import wandb

        self._of_picture, path = wandb.Image, folder / "wandb_id"
        known = path.read_text("utf-8") if path.exists() else wandb.util.generate_id()
        path.write_text(known, encoding="utf-8")
        self._run = wandb.init(
            project=experiment, name=folder.name, id=known, resume="allow", dir=str(folder)
        )

    @_harmless
    def scalars(self, row: dict[str, Any], step: int) -> None:
        self._run.log({k: v for k, v in row.items() if v is not None}, step=step)

    @_harmless
    def picture(self, name: str, path: Path, step: int) -> None:
        self._run.log({name: self._of_picture(str(path))})

    @_harmless
    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        self._run.config.update(hparams, allow_val_change=True)
        self._run.summary.update(metrics)

    @_harmless
    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, in the experiment EXPERIMENT."""

    @_begun
    def __init__(self, experiment: str, folder: Path, log: Callable[[str], None]):
        import mlflow

        self._client, path = mlflow.MlflowClient(), folder / "mlflow_id"
        if path.exists():
            self._run = path.read_text("utf-8")
            self._client.update_run(self._run, "RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self._run = self._client.create_run(number, run_name=folder.name).info.run_id
        path.write_text(self._run, encoding="utf-8")

    @_harmless
    def scalars(self, row: dict[str, Any], step: int) -> None:
        for name, value in row.items():
            if value is not None:
                self._client.log_metric(self._run, name, float(value), step=step)

    @_harmless
    def picture(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._run, str(path))

    @_harmless
    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        for name, value in hparams.items():
            self._client.log_param(self._run, name, str(value)[:LONGEST])
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value)

    @_harmless
    def close(self) -> None:
        self._client.set_terminated(self._run)


class Together:
    """Several loggers as one."""

    def __init__(self, *loggers):
        self._loggers = [each for each in loggers if each is not None]

    def __getattr__(self, name: str):
        def call(*args):
            for each in self._loggers:
                getattr(each, name)(*args)

        return call
