"""Progress of training: a bar on a terminal, plain lines elsewhere. rich is imported lazily."""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

from dlflax.report.tables import number_text

SILENT_SECONDS = 2.0  # before an announcement
MAX_LINES = 7  # of epochs, without the best
MEANINGS = {
    "*": "the best so far", "acc": "accuracy, the share that is right",
    "F1": "mean F1 of the classes", "val": "on the validation split, not used for training",
}  # fmt: skip
SHORT = {"accuracy": "acc", "macro_f1": "F1"}  # names in the line of an epoch


class Progress:
    """Context manager of a bar on a terminal; elsewhere at most one plain line per epoch.

    epochs: of the run in all. first_epoch: the epochs before a resume. score: shown beside the
    loss. lines: the epochs with a line; some include the first, the last and the best.
    """

    def __init__(
        self, epochs: int, steps_per_epoch: int, batch_size: int, first_epoch: int = 0,
        score: str = "accuracy", lines: Literal["all", "some", "none"] = "some",
    ):  # fmt: skip
        self.epochs, self.steps_per_epoch, self.batch_size = epochs, steps_per_epoch, batch_size
        self.score = score
        spread = {1 + i * (epochs - 1) // (MAX_LINES - 1) for i in range(MAX_LINES)}
        numbers = {"all": range(1, epochs + 1), "some": [first_epoch + 1, *spread], "none": ()}
        self._lines = {*numbers[lines]}
        self._printed, self._first_epoch = set(), first_epoch
        self.interactive = is_interactive()
        self._shown = (first_epoch, 0, {})
        self._run_mark = self._epoch_mark = None  # (clock, step) of the first update
        self._speed = self._ends = None  # examples per second, clock at the end of the run

    def __enter__(self) -> "Progress":
        if self.interactive:
            from rich.console import Console
            from rich.live import Live

            console = Console(markup=False, emoji=False, highlight=False)
            self._live = Live(self, console=console, transient=True, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.interactive:
            self._live.stop()

    def update(self, epoch: int, step_in_epoch: int, scores: dict[str, float]) -> None:
        """Shows the scores of the epoch, counted from 0, after `step_in_epoch` steps of it."""
        clock, step = time.monotonic(), epoch * self.steps_per_epoch + step_in_epoch
        self._shown = (epoch, step_in_epoch, scores)
        # both without compilation; only the speed of the run includes evaluation
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
        """Prints a row of the History, with a star for the best so far, if the epoch has a line.
        Missing entries are skipped, and the least important ones on a narrow terminal."""
        self._epoch_mark = None
        if int(row["epoch"]) in self._lines:
            self._print(row, best)

    def end(self, rows: list[dict], best: int, validated: bool) -> None:
        """Prints the lines of the best epoch, rows[best], and of the last, unless printed already,
        and a legend. validated: if there is a validation split."""
        new = [row for row in rows if int(row["epoch"]) > self._first_epoch] if self._lines else []
        for row in [*rows[best : best + 1], *rows[-1:]] if new else []:
            if int(row["epoch"]) not in self._printed:
                self._print(row, validated and row is rows[best])
        used = [SHORT.get(name.removeprefix("val_"), "") for name in rows[-1]]
        marks = ["*", "val"] if validated else []
        marks += [mark for mark in dict.fromkeys(used) if mark in MEANINGS]
        if new and marks:
            print("; ".join(f"{mark}: {MEANINGS[mark]}" for mark in marks), flush=True)

    def _print(self, row: dict, best: bool) -> None:
        self._printed.add(int(row["epoch"]))
        width = max(2, len(str(self.epochs)))
        parts = [(f"epoch {int(row['epoch']):>{width}}/{self.epochs}", 0)]
        parts += _score_parts(row, self.score)
        parts += [(f"{row['seconds']:.1f} s", 3)] if "seconds" in row else []
        if "examples_per_second" in row:
            parts.append((f"{row['examples_per_second']:,.0f} examples/s", 5))
        parts += [("*", 0)] if best else []
        if self.interactive:
            console = self._live.console
            line = "  ".join(_fit_width(parts, console.width))
            console.print(line, no_wrap=True, overflow="ellipsis", style="bold" if best else None)
        else:
            print("  ".join(text for text, _ in parts), flush=True)

    def __rich__(self):
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        epoch, step, scores = self._shown
        left = "-:--:--"
        if self._ends is not None:
            seconds = max(0, round(self._ends - time.monotonic()))
            left = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        step_text = f"step {step:>{len(str(self.steps_per_epoch))}}/{self.steps_per_epoch}"
        # the blanks are the bar, which gets the remaining space
        parts = [(f"epoch {epoch + 1}/{self.epochs}", 0), (" " * 10, 3), (step_text, 4)]
        for rank, name in enumerate(dict.fromkeys(("loss", self.score))):
            if name in scores:
                parts.append((f"{SHORT.get(name, name)} {number_text(scores[name])}", rank))
        parts += [] if self._speed is None else [(f"{self._speed:,.0f} examples/s", 5)]
        parts += [(f"{left} left", 2)]
        width = self._live.console.width - 1  # some terminals wrap after the last column
        texts = _fit_width(parts, width)
        spare = width - len("  ".join(texts))
        bar = ProgressBar(self.steps_per_epoch, step, width=10 + max(0, min(30, spare)))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(*(Text(t, no_wrap=True) if t.strip() else bar for t in texts))
        return line


def _score_parts(row: dict, score: str) -> list[tuple[str, int]]:
    """Returns (text, rank) of the scores of an epoch: training loss and `score`, and all validation
    scores."""
    main, parts = ("loss", score), []
    for split in ("train", "val"):
        names = [name.removeprefix(f"{split}_") for name in row if name.startswith(f"{split}_")]
        others = [name for name in names if name not in main] if split == "val" else []
        for name in dict.fromkeys([n for n in main if n in names] + others):
            rank = 4 if name in others else 0 if split == "val" else 1 + main.index(name)
            label = "val " * (split == "val") + SHORT.get(name, name)
            parts.append((f"{label} {number_text(row[f'{split}_{name}'])}", rank))
    return parts


def _fit_width(parts: list[tuple[str, int]], width: int) -> list[str]:
    """Drops texts of the highest ranks until the others, joined by two blanks, fit."""
    for top in range(max(rank for _, rank in parts), -1, -1):
        texts = [text for text, rank in parts if rank <= top]
        if len("  ".join(texts)) <= width:
            break
    return texts


@contextlib.contextmanager
def announcement(line: str, log: Callable[[str], None] = print):
    """Logs the line if the context takes longer than SILENT_SECONDS."""
    timer = threading.Timer(SILENT_SECONDS, log, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_interactive() -> bool:
    """True if stdout is a terminal that can draw a bar."""
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
        console=Console(markup=False, emoji=False, highlight=False),
        transient=True,
    )


@contextlib.contextmanager
def progress_bar(description: str, total: int):
    """Context of a bar on a terminal, of nothing elsewhere; yields the function that advances it by
    a number."""
    if not total or not is_interactive():
        yield lambda count: None
        return
    with _bar() as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


class SweepProgress:
    """Context manager of a bar over trials on a terminal; elsewhere one plain line per population.
    done: number of the `trials` that are recorded already."""

    def __init__(self, trials: int, done: int = 0):
        self.trials, self._done, self._bar = trials, done, None

    def __enter__(self) -> "SweepProgress":
        if is_interactive():
            self._bar = _bar()
            self._task = self._bar.add_task("trials", total=self.trials, completed=self._done)
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, trials: float, stage: str) -> None:
        """Moves the bar to the number of finished trials, in fractions, at a stage."""
        if self._bar:
            self._bar.update(self._task, completed=trials, description=stage)

    def population_end(self, trials: int, line: str) -> None:
        """Prints the line of a population of `trials`."""
        self._done += trials
        self.update(self._done, "training")
        (self._bar.console.print if self._bar else functools.partial(print, flush=True))(line)
