"""Event files for TensorBoard. tensorboardX is imported where it is used: start-up time counts."""

import contextlib
import sys
import time
from pathlib import Path

from dlflax.report.loggers.logger import Logger
from dlflax.report.tables import SPLITS


@contextlib.contextmanager
def _without_torch():
    """tensorboardX imports torch where it is installed, as on Colab: seconds, for graphs of torch
    modules, which are not written here."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if absent:
            del sys.modules["torch"]


class TensorBoard(Logger):
    """Event files in FOLDER/NAME. What an earlier run wrote at last_step or later is dropped from
    the charts, so that it can be written again."""

    def __init__(
        self, experiment: str, folder: Path, last_step: int | None = None, name: str = "tensorboard"
    ):
        # not SummaryWriter: the thread that writes for it ends at a failed write, and the process
        # then waits for it without end
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import SessionLog

        folder = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX names files by the second: a quick resume would overwrite the first run's.
        suffix = f".{len(list(folder.glob('events*')))}"
        self._writer = EventsWriter(str(folder / "events"), suffix)
        if last_step is not None:
            self._write(last_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step, **what):
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()

    def scalars(self, row: dict, step: int) -> None:
        """A row of the History: train_loss as loss/train, so that the splits share a group."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=_tag(name), simple_value=float(value))
            for name, value in row.items()
            if value is not None and name not in ("epoch", "step")
        ]
        self._write(step, summary=Summary(value=values))

    def picture(self, tag: str, path: str | Path, step: int) -> None:
        """A PNG file as a picture."""
        import PIL.Image
        from tensorboardX.proto.summary_pb2 import Summary

        with PIL.Image.open(path) as opened:
            width, height = opened.size
        image = Summary.Image(
            encoded_image_string=Path(path).read_bytes(), width=width, height=height, colorspace=4
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._write(step, summary=summary)

    def hparams(self, hparams: dict, metrics: dict[str, float]) -> None:
        """The run's line in the HParams tab; its metrics become the scalars result/<name>. Values:
        numbers, bool, str; None is left out, anything else becomes text."""
        # Not SummaryWriter.add_hparams, which makes a second run, named after the clock.
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
