"""What a run shows and writes: tables, progress, metrics.csv, TensorBoard events, pictures.

rich, tensorboardX and matplotlib are imported where they are used: start-up time counts.
"""

import contextlib
import csv
import functools
import os
import sys
import time
from pathlib import Path

History = list[dict[str, float]]
"""One row an epoch: epoch (from 1), step, learning_rate, train_loss, train_accuracy, val_loss,
val_accuracy, val_macro_f1, seconds, examples_per_second. Without validation no val_*."""

SPLITS = ("train", "val", "test")
SCORES = {
    "loss": "loss", "accuracy": "accuracy", "macro_precision": "precision",
    "macro_recall": "recall", "macro_f1": "macro F1", "roc_auc": "ROC AUC", "mae": "mae",
    "linear_probe_accuracy": "linear probe",
}  # fmt: skip
EPOCH_LINE = (  # the highest number is left out first on a narrow terminal
    ("train_loss", "loss {:.4f}", 1), ("train_accuracy", "acc {:.4f}", 2),
    ("val_loss", "val loss {:.4f}", 0), ("val_accuracy", "val acc {:.4f}", 0),
    ("val_macro_f1", "val F1 {:.4f}", 4), ("seconds", "{:.1f} s", 3),
    ("examples_per_second", "{:,.0f} examples/s", 5),
)  # fmt: skip


def print_model_table(name: str, rows: list[tuple[str, tuple[int, ...], int]], total: int) -> None:
    """Prints one line a parameter, (name, shape, number of values), and their total; of a deep
    model, with more than 60 parameters, one line for those that belong together."""
    lines = [(n, " x ".join(map(str, shape)), f"{count:,}") for n, shape, count in rows]
    if len(rows) > 60:
        counts: dict[str, int] = {}
        for path, _, count in rows:
            part = path.partition("/")[0].partition("_")[0]
            counts[part] = counts.get(part, 0) + count
        lines = [(f"{part}...", "", f"{count:,}") for part, count in counts.items()]
    print_table(name, ("parameter", "shape", "count"), [*lines, ("total", "", f"{total:,}")])


def print_results(results: dict) -> None:
    """Prints the SCORES of results["train"], ["val"] and ["test"], whichever are there, those of
    each test class unless they are many, and the forecasts; the rest of `results` (that of
    `run.run`) is left out."""
    splits = {split: results[split] for split in SPLITS if results.get(split)}
    have = [name for name in SCORES if any(name in scores for scores in splits.values())]
    lines = []
    for split, scores in splits.items():
        values = [scores.get(name) for name in have]
        lines.append([split, *("" if value is None else f"{value:.4f}" for value in values)])
    if have:
        print_table(None, ["", *(SCORES[name] for name in have)], lines)
    per_class = results.get("test", {}).get("per_class", {})
    if 0 < len(per_class) <= 12:
        lines = [
            (name, *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1")),
             f"{row['support']:,}")
            for name, row in per_class.items()
        ]  # fmt: skip
        print_table(None, ("test", "precision", "recall", "F1", "support"), lines)
    if forecasts := results.get("forecasts"):
        lines = [
            (name.replace("_", " "), f"{row['rmse']:.4g}", f"{row['mae']:.4g}")
            for name, row in forecasts.items()
        ]
        columns = ("test, in the series' unit", "rmse", "mae")
        print_table(None, columns, lines)


def print_table(title, columns, lines) -> None:
    """Prints lines of words under columns; all but the first are aligned right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column(columns[0], overflow="fold")  # narrow terminals: names fold, numbers never
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line, style="bold" if line[0] == "total" else None)
    Console(markup=False, highlight=False).print(table)


@contextlib.contextmanager
def replacing(path: str | Path):
    """A temporary file name next to `path`, which it replaces when all went well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: str | Path, history: History) -> None:
    """Writes all rows, atomically. The columns are all keys, in the order they first appear; what
    a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


class Progress:
    """A bar on a terminal; elsewhere no more than one plain line an epoch. A context manager.

    epochs: of the whole run. first_epoch: how many of them an earlier run has done.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, batch_size: int, first_epoch: int = 0):
        self.epochs, self.steps_per_epoch, self.batch_size = epochs, steps_per_epoch, batch_size
        self.interactive = interactive()
        self._shown = (first_epoch, 0, None, None)
        self._run_mark = self._epoch_mark = None  # (clock, step) of the first update
        self._speed = self._ends = None  # examples a second, clock at the run's end

    def __enter__(self) -> "Progress":
        if self.interactive:
            from rich.console import Console
            from rich.live import Live

            console = Console(markup=False, highlight=False)
            self._live = Live(self, console=console, transient=True, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.interactive:
            self._live.stop()

    def update(self, epoch: int, step_in_epoch: int, loss: float, accuracy: float | None) -> None:
        """After `step_in_epoch` steps of `epoch`, counted from 0, with the means of this epoch so
        far. accuracy None is not shown."""
        clock, step = time.monotonic(), epoch * self.steps_per_epoch + step_in_epoch
        self._shown = (epoch, step_in_epoch, loss, accuracy)
        # Both from the first update on: no compiling. Only the run's pace has the evaluations in.
        self._epoch_mark = self._epoch_mark or (clock, step)
        self._run_mark = self._run_mark or (clock, step)
        since, first = self._epoch_mark
        if step > first:
            self._speed = self.batch_size * (step - first) / max(clock - since, 1e-9)
        since, first = self._run_mark
        if step > first:
            left = self.epochs * self.steps_per_epoch - step
            self._ends = clock + (clock - since) / (step - first) * left

    def epoch_end(self, row: dict, best: bool) -> None:
        """Prints one line from a row of the History, with a star when it is the best so far. What
        the row lacks is left out; so is, on a narrow terminal, what matters least."""
        self._epoch_mark = None
        width = max(2, len(str(self.epochs)))
        parts = [(f"epoch {int(row['epoch']):>{width}}/{self.epochs}", 0)]
        for key, text, rank in EPOCH_LINE:
            if row.get(key) is not None:
                parts.append((text.format(row[key]), rank))
        parts += [("*", 0)] if best else []
        if self.interactive:
            console = self._live.console
            line = "  ".join(_fitting(parts, console.width))
            console.print(line, no_wrap=True, overflow="ellipsis", style="bold" if best else None)
        else:
            print("  ".join(text for text, _ in parts), flush=True)

    def __rich__(self):
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        epoch, step, loss, accuracy = self._shown
        left = "-:--:--"
        if self._ends is not None:
            seconds = max(0, round(self._ends - time.monotonic()))
            left = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        step_text = f"step {step:>{len(str(self.steps_per_epoch))}}/{self.steps_per_epoch}"
        # The blanks stand for the bar, which gets what is left over.
        parts = [(f"epoch {epoch + 1}/{self.epochs}", 0), (" " * 10, 3), (step_text, 4)]
        parts += [] if loss is None else [(f"loss {loss:.4f}", 0)]
        parts += [] if accuracy is None else [(f"acc {accuracy:.4f}", 1)]
        parts += [] if self._speed is None else [(f"{self._speed:,.0f} examples/s", 5)]
        parts += [(f"{left} left", 2)]
        room = self._live.console.width - 1  # some terminals wrap after the last column
        texts = _fitting(parts, room)
        spare = room - len("  ".join(texts))
        bar = ProgressBar(self.steps_per_epoch, step, width=10 + max(0, min(30, spare)))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(*(Text(t, no_wrap=True) if t.strip() else bar for t in texts))
        return line


def _fitting(parts: list[tuple[str, int]], width: int) -> list[str]:
    """The texts without those of the highest ranks, so that joined by two blanks they fit."""
    for top in range(max(rank for _, rank in parts), -1, -1):
        texts = [text for text, rank in parts if rank <= top]
        if len("  ".join(texts)) <= width:
            break
    return texts


def interactive() -> bool:
    """Whether a person watches, on a terminal that can draw a bar."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _bar():
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ends in"),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(markup=False, highlight=False),
        transient=True,
    )


@contextlib.contextmanager
def counting(what: str, total: int):
    """A bar over `total` things; gives the function that is told how many more are done. Elsewhere
    than on a terminal nothing is shown."""
    if not total or not interactive():
        yield lambda more: None
        return
    with _bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)


class SweepProgress:
    """A bar over a sweep's trials on a terminal; elsewhere one plain line a population. A context
    manager. done: how many of `trials` were recorded earlier."""

    def __init__(self, trials: int, done: int = 0):
        self.trials, self._done = trials, done
        self._bar = None

    def __enter__(self) -> "SweepProgress":
        if interactive():
            self._bar = _bar()
            self._task = self._bar.add_task("trials", total=self.trials, completed=self._done)
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, trials: float, what: str) -> None:
        """trials: how many of the population now in training are done, in fractions; what: its
        stage in words."""
        if self._bar:
            self._bar.update(self._task, completed=self._done + trials, description=what)

    def population_end(self, trials: int, line: str) -> None:
        """Prints what came of a population of `trials`."""
        self._done += trials
        (self._bar.console.print if self._bar else functools.partial(print, flush=True))(line)


class TensorBoard:
    """Event files in `folder`. purge_step: on a resume, the checkpoint's step; what an
    earlier run wrote at this step or later is dropped from the charts, so that it can be written
    again."""

    def __init__(self, folder: str | Path, purge_step: int | None = None):
        from tensorboardX import SummaryWriter

        folder = Path(folder)
        # tensorboardX names files by the second: a quick resume would overwrite the first run's.
        suffix = f".{len(list(folder.glob('events*')))}"
        self._writer = SummaryWriter(
            str(folder), purge_step=purge_step, flush_secs=5, filename_suffix=suffix
        )

    def scalars(self, row: dict, step: int) -> None:
        """A row of the History: train_loss as loss/train, so that the splits share a group."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=_tag(name), simple_value=float(value))
            for name, value in row.items()
            if value is not None and name not in ("epoch", "step")
        ]
        self._writer.file_writer.add_summary(Summary(value=values), step)

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
        self._writer.file_writer.add_summary(summary, step)

    def hparams(self, hparams: dict, metrics: dict[str, float]) -> None:
        """The run's line in the HParams tab; its metrics become the scalars result/<name>. Values:
        numbers, bool, str; None is left out, anything else becomes text."""
        # Not SummaryWriter.add_hparams, which makes a second run, named after the clock.
        from tensorboardX.summary import hparams as summaries

        plain = (bool, int, float, str, type(None))
        hparams = {k: v if isinstance(v, plain) else str(v) for k, v in hparams.items()}
        results = {f"result/{_tag(name)}": value for name, value in metrics.items()}
        for summary in summaries(hparams, results):
            self._writer.file_writer.add_summary(summary)
        self.scalars(results, 0)

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    split, _, rest = name.partition("_")
    return f"{rest}/{split}" if split in SPLITS and rest else name
