"""Logger for TensorBoard. tensorboardX is imported lazily: start-up time counts."""

import contextlib
import sys
import time
from pathlib import Path

from dlflax.report.loggers.logger import Logger
from dlflax.report.tables import SPLITS


@contextlib.contextmanager
def _without_torch():
    """Context in which tensorboardX does not import torch, which takes seconds and is not used."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if absent:
            del sys.modules["torch"]


class TensorBoard(Logger):
    """Event files in FOLDER/NAME. Charts drop earlier values at last_step or later, which a resumed
    run logs again."""

    def __init__(
        self, experiment: str, folder: Path, last_step: int | None = None, name: str = "tensorboard"
    ):
        # not SummaryWriter: after a failed write its thread ends, and the process hangs
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import SessionLog

        folder = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX names files by the second: a quick resume would overwrite the first file
        suffix = f".{len(list(folder.glob('events*')))}"
        self._writer = EventsWriter(str(folder / "events"), suffix)
        if last_step is not None:
            self._write(last_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step, **fields):
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **fields))
        self._writer.flush()

    def scalars(self, row: dict, step: int) -> None:
        """Logs a row of the History, with train_loss as loss/train: splits share a group."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=_tag(name), simple_value=float(value))
            for name, value in row.items()
            if value is not None and name not in ("epoch", "step")
        ]
        self._write(step, summary=Summary(value=values))

    def figure(self, tag: str, path: str | Path, step: int) -> None:
        import PIL.Image
        from tensorboardX.proto.summary_pb2 import Summary

        with PIL.Image.open(path) as png:
            width, height = png.size
        image = Summary.Image(
            encoded_image_string=Path(path).read_bytes(), width=width, height=height, colorspace=4
        )
        self._write(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def hparams(self, hparams: dict, metrics: dict[str, float]) -> None:
        """Logs a row of the HParams tab, and the metrics as result/<name>. None is dropped; values
        other than numbers, bool and str become text."""
        # not SummaryWriter.add_hparams, which adds a second run, named by the time
        from tensorboardX.summary import hparams as summaries

        plain = (bool, int, float, str, type(None))
        hparams = {k: v if isinstance(v, plain) else str(v) for k, v in hparams.items()}
        results = {f"result/{_tag(name)}": value for name, value in metrics.items()}
        for summary in summaries(hparams, results):
            self._write(0, summary=summary)
        self.scalars(results, 0)

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    split, _, rest = name.partition("_")
    return f"{rest}/{split}" if split in SPLITS and rest else name
