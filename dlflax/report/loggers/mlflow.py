"""Logger for MLflow, configured by its environment variables, such as $MLFLOW_TRACKING_URI."""

from pathlib import Path
from typing import Any

from dlflax.report.loggers.logger import Logger

MAX_LENGTH = 500  # characters of a parameter in MLflow


class MLflow(Logger):
    """A run of MLflow, in the experiment EXPERIMENT."""

    def __init__(self, experiment: str, folder: Path, last_step: int | None):
        import mlflow

        self._client, path = mlflow.MlflowClient(), folder / "mlflow_id"
        if path.exists():
            self._run = path.read_text("utf-8")
            self._client.update_run(self._run, "RUNNING")
            return
        existing = self._client.get_experiment_by_name(experiment)
        number = existing.experiment_id if existing else self._client.create_experiment(experiment)
        self._run = self._client.create_run(number, run_name=folder.name).info.run_id
        path.write_text(self._run, encoding="utf-8")

    def scalars(self, row: dict[str, Any], step: int) -> None:
        for name, value in row.items():
            if value is not None:
                self._client.log_metric(self._run, name, float(value), step=step)

    def figure(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._run, str(path))

    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        for name, value in hparams.items():
            self._client.log_param(self._run, name, str(value)[:MAX_LENGTH])
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value)

    def close(self) -> None:
        self._client.set_terminated(self._run)
