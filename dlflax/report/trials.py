"""The trials of a sweep: in order, as a table on the screen, as trials.csv."""

import csv
import math
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from dlflax.files import atomic_write
from dlflax.report.tables import number_text, print_table

COSTS = ("parameters", "flops", "milliseconds")  # what may be a second objective


def outcome(trial: FrozenTrial) -> str:
    """complete, pruned, diverged, failed, or running for what is not finished."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return "failed" if trial.state.is_finished() else "running"
    value = math.nan if trial.value is None else trial.value
    if "diverged_at" in trial.user_attrs or not math.isfinite(value):
        return "diverged"
    return trial.state.name.lower()


def best_epoch(trial: FrozenTrial, direction: str) -> int | None:
    """From 1, the first on a tie; None where no epoch was finished."""
    best = min if direction == "minimize" else max
    return best(trial.intermediate_values, key=trial.intermediate_values.get, default=None)


def ranked(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """The best first: complete ones by value, then pruned ones by how far they came and value,
    then those that diverged; ties by number. Failed and unfinished ones are left out."""
    sign = 1 if direction == "minimize" else -1
    kinds = ["complete", "pruned", "diverged"]

    def key(trial):
        kind = outcome(trial)
        epochs = max(trial.intermediate_values, default=0) if kind == "pruned" else 0
        value = 0 if kind == "diverged" else sign * trial.value
        return kinds.index(kind), -epochs, value, trial.number

    return sorted((trial for trial in trials if outcome(trial) in kinds), key=key)


def write_trials_csv(
    path: str | Path, trials: list[FrozenTrial], direction: str, objective: str
) -> None:
    """One row a finished trial, by number. The same trials give the same bytes: no clock."""
    trials = [t for t in sorted(trials, key=lambda t: t.number) if outcome(t) != "running"]
    names, beside = names_of(trials), beside_value(trials)
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", "state", objective, *beside, "best_epoch", *names])
        for trial in trials:
            row = [trial.number, outcome(trial), trial.value]
            row += [*map(trial.user_attrs.get, beside), best_epoch(trial, direction)]
            writer.writerow(row + [*map(trial.params.get, names)])


def print_trials(trials, direction: str, objective: str, limit: int = 10) -> None:
    """Prints the best trials, `limit` of them, without the last hyperparameters where the terminal
    is too narrow."""
    from rich.console import Console

    best = ranked(trials, direction)[:limit]
    if not best:
        return
    pruned = [" pruned" * (outcome(trial) == "pruned") for trial in best]
    columns = [["trial", *(str(trial.number) for trial in best)]]
    columns += [[objective, *(value_text(t) + p for t, p in zip(best, pruned, strict=True))]]
    columns += [
        [n, *(cost_text(t.user_attrs.get(n)) for t in best)]
        for n in beside_value(best) if n in COSTS
    ]  # fmt: skip
    columns += [[n, *(short_text(t.params.get(n)) for t in best)] for n in names_of(best)]

    def fitting():
        lines = [[line for cell in column for line in cell.split("\n")] for column in columns]
        widths = [max(map(len, column)) for column in lines]
        room = Console().width - np.cumsum(widths) - 3 * np.arange(len(widths))  # blanks between
        return max(2, int(np.sum(room >= 4)))

    if fitting() < len(columns):
        for column in columns[2:]:
            column[0] = folded(column[0])
    fits = fitting()
    title = f"best of {len(trials):,} trials" + " (the rest: trials.csv)" * (fits < len(columns))
    heads, *lines = zip(*columns[:fits], strict=True)
    print_table(title, heads, lines)


def print_findings(findings: list[str]) -> None:
    """Prints each sentence as an item."""
    for sentence in findings:
        print(f"- {sentence}")


def beside_value(trials) -> list[str]:
    """What is known of a trial beside its value: its deviation between seeds, its cost."""
    return [n for n in ("std", *COSTS) if any(n in trial.user_attrs for trial in trials)]


def names_of(trials) -> list[str]:
    """All hyperparameters, in declared order."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def folded(name: str) -> str:
    """On several lines, where there is little room."""
    return name.replace(".", ".\n").replace("_", "_\n")


def short_text(value) -> str:
    """A number to four digits; a name as far as it fits in a column."""
    if isinstance(value, float):
        return digits(value) if abs(value) >= 1000 else f"{value:.4g}"
    text = "" if value is None else str(value)
    return text if len(text) <= 24 else text[:23] + "…"


def cost_text(value: float | None) -> str:
    """A whole number with its thousands, another to four digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) else digits(value)


def value_text(trial) -> str:
    """The trial's value with its spread over seeds, or why there is none."""
    if outcome(trial) not in ("complete", "pruned"):
        return outcome(trial)
    if (std := trial.user_attrs.get("std")) is None:
        return digits(trial.value)
    # --rank cautious counts another value than the mean
    mean = float(np.mean(trial.user_attrs.get("values", trial.value)))
    return f"{digits(mean)} ± {digits(std) if std >= 100 else f'{std:.2g}'}"


def digits(value: float | None) -> str:
    """Four digits, zeros too, so that values under each other compare at sight; thousands whole."""
    if value is not None and math.isfinite(value) and abs(value) >= 1000:
        return number_text(value)
    return "" if value is None else f"{value:#.4g}".rstrip(".")
