"""Logger for Weights & Biases, configured by its environment variables, such as $WANDB_MODE."""

from pathlib import Path
from typing import Any

from dlflax.report.loggers.logger import Logger


class Wandb(Logger):
    """A run of Weights & Biases, in the project EXPERIMENT."""

    def __init__(self, experiment: str, folder: Path, last_step: int | None):
        import wandb

        self._image, path = wandb.Image, folder / "wandb_id"
        run_id = path.read_text("utf-8") if path.exists() else wandb.util.generate_id()
        path.write_text(run_id, encoding="utf-8")
        self._run = wandb.init(
            project=experiment, name=folder.name, id=run_id, resume="allow", dir=str(folder)
        )

    def scalars(self, row: dict[str, Any], step: int) -> None:
        self._run.log({k: v for k, v in row.items() if v is not None}, step=step)

    def figure(self, name: str, path: Path, step: int) -> None:
        self._run.log({name: self._image(str(path))})

    def hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        self._run.config.update(hparams, allow_val_change=True)
        self._run.summary.update(metrics)

    def close(self) -> None:
        self._run.finish()
