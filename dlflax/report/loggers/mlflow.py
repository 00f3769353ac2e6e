"""MLflow, whose package reads its own environment variables, such as $MLFLOW_TRACKING_URI."""

from pathlib import Path
from typing import Any

from dlflax.report.loggers.logger import Logger

LONGEST = 500  # characters of a parameter that MLflow takes


class MLflow(Logger):
    """A run of MLflow, in the experiment EXPERIMENT."""

    def __init__(self, experiment: str, folder: Path, last_step: int | None):
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

    def scalars(self, row: dict[str, Any], step: int) -> None:
        for name, value in row.items():
            if value is not None:
                self._client.log_metric(self._run, name, float(value), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._run, str(path))

    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        for name, value in hparams.items():
            self._client.log_param(self._run, name, str(value)[:LONGEST])
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value)

    def close(self) -> None:
        self._client.set_terminated(self._run)
