"""Progress while it trains: a bar on a terminal, plain lines elsewhere.

rich is imported where it is used: start-up time counts.
"""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

from dlflax.report.tables import number_text

SILENT_SECONDS = 2.0  # what takes longer is announced
MOST_LINES = 7  # epochs that have a line of their own, and the best
MEANINGS = {
    "*": "the best so far", "acc": "accuracy, the share that is right",
    "F1": "mean F1 of the classes", "val": "on the validation data, which it is not trained on",
}  # fmt: skip
SHORT = {"accuracy": "acc", "macro_f1": "F1"}  # names of scores in the line of an epoch


class Progress:
    """A bar on a terminal; elsewhere no more than one plain line an epoch. A context manager.

    epochs: of the whole run. first_epoch: how many of them an earlier run has done. score: the name
    of the one that is shown beside the loss. lines: the epochs that get one; of some the first, the
    last and the best are.
    """

    def __init__(
        self, epochs: int, steps_per_epoch: int, batch_size: int, first_epoch: int = 0,
        score: str = "accuracy",
        lines: Literal["all", "some", "none"] = "some",
    ):  # fmt: skip
        self.epochs, self.steps_per_epoch, self.batch_size = epochs, steps_per_epoch, batch_size
        self.score = score
        spread = {1 + i * (epochs - 1) // (MOST_LINES - 1) for i in range(MOST_LINES)}
        every = range(1, epochs + 1)
        self._lines = {"all": {*every}, "some": {first_epoch + 1, *spread}, "none": set()}[lines]
        self._printed: set[int] = set()
        self._first_epoch = first_epoch
        self.interactive = interactive()
        self._shown = (first_epoch, 0, {})
        self._run_mark = self._epoch_mark = None  # (clock, step) of the first update
        self._speed = self._ends = None  # examples a second, clock at the run's end

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
        """After `step_in_epoch` steps of `epoch`, counted from 0, with the scores of this epoch so
        far."""
        clock, step = time.monotonic(), epoch * self.steps_per_epoch + step_in_epoch
        self._shown = (epoch, step_in_epoch, scores)
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
        """Prints one line from a row of the History, with a star when it is the best so far, if
        this epoch has one. What the row lacks is left out; so is, on a narrow terminal, what
        matters least."""
        self._epoch_mark = None
        if int(row["epoch"]) in self._lines:
            self._print(row, best)

    def end(self, rows: list[dict], best: int, validated: bool) -> None:
        """Prints the lines of the best epoch, rows[best], and of the last one, if they have none,
        and what the marks mean. validated: whether there is a best one."""
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
            line = "  ".join(_fitting(parts, console.width))
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
        # The blanks stand for the bar, which gets what is left over.
        parts = [(f"epoch {epoch + 1}/{self.epochs}", 0), (" " * 10, 3), (step_text, 4)]
        for rank, name in enumerate(dict.fromkeys(("loss", self.score))):
            if name in scores:
                parts.append((f"{SHORT.get(name, name)} {number_text(scores[name])}", rank))
        parts += [] if self._speed is None else [(f"{self._speed:,.0f} examples/s", 5)]
        parts += [(f"{left} left", 2)]
        room = self._live.console.width - 1  # some terminals wrap after the last column
        texts = _fitting(parts, room)
        spare = room - len("  ".join(texts))
        bar = ProgressBar(self.steps_per_epoch, step, width=10 + max(0, min(30, spare)))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(*(Text(t, no_wrap=True) if t.strip() else bar for t in texts))
        return line


def _score_parts(row: dict, score: str) -> list[tuple[str, int]]:
    """(text, rank) of an epoch's scores: of training the loss and `score`, of validation all."""
    main, parts = ("loss", score), []
    for split in ("train", "val"):
        names = [name.removeprefix(f"{split}_") for name in row if name.startswith(f"{split}_")]
        others = [name for name in names if name not in main] if split == "val" else []
        for name in dict.fromkeys([n for n in main if n in names] + others):
            rank = 4 if name in others else 0 if split == "val" else 1 + main.index(name)
            value = row[f"{split}_{name}"]
            what = "val " * (split == "val") + SHORT.get(name, name)
            parts.append((f"{what} {number_text(value)}", rank))
    return parts


def _fitting(parts: list[tuple[str, int]], width: int) -> list[str]:
    """The texts without those of the highest ranks, so that joined by two blanks they fit."""
    for top in range(max(rank for _, rank in parts), -1, -1):
        texts = [text for text, rank in parts if rank <= top]
        if len("  ".join(texts)) <= width:
            break
    return texts


@contextlib.contextmanager
def announcement(line: str, log: Callable[[str], None] = print):
    """Logs the line once what is inside takes longer than SILENT_SECONDS."""
    timer = threading.Timer(SILENT_SECONDS, log, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def interactive() -> bool:
    """True if a person watches, on a terminal that can draw a bar."""
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
        """trials: how many of all are done, in fractions; what: their stage in words."""
        if self._bar:
            self._bar.update(self._task, completed=trials, description=what)

    def population_end(self, trials: int, line: str) -> None:
        """Prints what came of a population of `trials`."""
        self._done += trials
        self.update(self._done, "training")
        (self._bar.console.print if self._bar else functools.partial(print, flush=True))(line)
