"""Event files for TensorBoard. tensorboardX is imported where it is used: start-up time counts."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dlflax.report.tables import SPLITS


def _harmless(method):
    """A side channel never stops a run: what fails is one warning, and the last call."""

    @functools.wraps(method)
    def call(self, *args):
        if self._failed:
            return
        try:
            method(self, *args)
        except Exception as error:  # the file system's, protobuf's, and those of a picture
            self._failed = True
            self._log(f"warning: TensorBoard's files are not written any more ({error}).")

    return call


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


class TensorBoard:
    """Event files in `folder`. purge_step: on a resume, the checkpoint's step; what an
    earlier run wrote at this step or later is dropped from the charts, so that it can be written
    again. What fails is one warning to `log`."""

    def __init__(
        self, folder: str | Path, purge_step: int | None = None, log: Callable[[str], None] = print
    ):
        self._log, self._failed = log, False
        self._open(Path(folder), purge_step)

    @_harmless
    def _open(self, folder, purge_step):
        # not SummaryWriter: the thread that writes for it ends at a failed write, and the process
        # then waits for it without end
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX names files by the second: a quick resume would overwrite the first run's.
        suffix = f".{len(list(folder.glob('events*')))}"
        self._writer = EventsWriter(str(folder / "events"), suffix)
        if purge_step is not None:
            self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step, **what):
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()

    @_harmless
    def scalars(self, row: dict, step: int) -> None:
        """A row of the History: train_loss as loss/train, so that the splits share a group."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=_tag(name), simple_value=float(value))
            for name, value in row.items()
            if value is not None and name not in ("epoch", "step")
        ]
        self._write(step, summary=Summary(value=values))

    @_harmless
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

    @_harmless
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
        with contextlib.suppress(Exception):  # after a failed write too
            self._writer.close()


def _tag(name: str) -> str:
    split, _, rest = name.partition("_")
    return f"{rest}/{split}" if split in SPLITS and rest else name
