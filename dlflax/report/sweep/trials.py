"""The trials of a sweep: ranked, printed, and written to trials.csv."""

import csv
import math
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from dlflax.files import atomic_write
from dlflax.report.tables import number_text, print_table

COSTS = ("parameters", "flops", "milliseconds")  # possible second objectives


def outcome(trial: FrozenTrial) -> str:
    """Returns complete, pruned, diverged, failed or, before the end, running."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return "failed" if trial.state.is_finished() else "running"
    value = math.nan if trial.value is None else trial.value
    if "diverged_at" in trial.user_attrs or not math.isfinite(value):
        return "diverged"
    return trial.state.name.lower()


def best_epoch_number(trial: FrozenTrial, direction: str) -> int | None:
    """Returns the best epoch, counted from 1, the first on a tie; None without epochs."""
    best = min if direction == "minimize" else max
    return best(trial.intermediate_values, key=trial.intermediate_values.get, default=None)


def rank_trials(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """Returns complete trials by value, the best first, then pruned ones by epochs and value, then
    diverged ones; ties by number. Failed and running trials are dropped."""
    sign = 1 if direction == "minimize" else -1
    states = ["complete", "pruned", "diverged"]

    def key(trial):
        state = outcome(trial)
        epochs = max(trial.intermediate_values, default=0) if state == "pruned" else 0
        value = 0 if state == "diverged" else sign * trial.value
        return states.index(state), -epochs, value, trial.number

    return sorted((trial for trial in trials if outcome(trial) in states), key=key)


def write_trials_csv(
    path: str | Path, trials: list[FrozenTrial], direction: str, objective: str
) -> None:
    """Writes a row per finished trial, by number. The same trials give the same bytes."""
    trials = [t for t in sorted(trials, key=lambda t: t.number) if outcome(t) != "running"]
    names, extras = param_names(trials), extra_columns(trials)
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", "state", objective, *extras, "best_epoch", *names])
        for trial in trials:
            row = [trial.number, outcome(trial), trial.value]
            row += [*map(trial.user_attrs.get, extras), best_epoch_number(trial, direction)]
            writer.writerow(row + [*map(trial.params.get, names)])


def print_trials(trials, direction: str, objective: str, limit: int = 10) -> None:
    """Prints the best `limit` trials, without the last hyperparameters on a narrow terminal."""
    from rich.console import Console

    best = rank_trials(trials, direction)[:limit]
    if not best:
        return
    costs = [name for name in extra_columns(best) if name in COSTS]
    columns = [["trial", *(str(trial.number) for trial in best)]]
    columns += [[objective, *(value_text(t) + " pruned" * (outcome(t) == "pruned") for t in best)]]
    columns += [[n, *(cost_text(t.user_attrs.get(n)) for t in best)] for n in costs]
    columns += [[n, *(short_text(t.params.get(n)) for t in best)] for n in param_names(best)]

    def count_fitting():
        widths = [max(len(line) for cell in c for line in cell.split("\n")) for c in columns]
        space = Console().width - np.cumsum(widths) - 3 * np.arange(len(widths))  # 3 as margins
        return max(2, int(np.sum(space >= 4)))

    if count_fitting() < len(columns):
        for column in columns[2:]:
            column[0] = wrap_name(column[0])
    count = count_fitting()
    title = f"best of {len(trials):,} trials" + " (the rest: trials.csv)" * (count < len(columns))
    header, *rows = zip(*columns[:count], strict=True)
    print_table(title, header, rows)


def print_findings(findings: list[str]) -> None:
    """Prints the sentences as a list."""
    for sentence in findings:
        print(f"- {sentence}")


def extra_columns(trials) -> list[str]:
    """Returns the columns beside the value: standard deviation over seeds, costs."""
    return [n for n in ("std", *COSTS) if any(n in trial.user_attrs for trial in trials)]


def param_names(trials) -> list[str]:
    """Returns the names of the hyperparameters in declared order."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def wrap_name(name: str) -> str:
    """Returns the name on several lines."""
    return name.replace(".", ".\n").replace("_", "_\n")


def short_text(value) -> str:
    """Returns a number with four digits, or a name with at most 24 characters."""
    if isinstance(value, float):
        return digits(value) if abs(value) >= 1000 else f"{value:.4g}"
    text = "" if value is None else str(value)
    return text if len(text) <= 24 else text[:23] + "…"


def cost_text(value: float | None) -> str:
    """Returns a whole number with thousands separators, another with four digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) else digits(value)


def value_text(trial) -> str:
    """Returns the value of a trial with its standard deviation over seeds, or its outcome."""
    if outcome(trial) not in ("complete", "pruned"):
        return outcome(trial)
    if (std := trial.user_attrs.get("std")) is None:
        return digits(trial.value)
    # the value of --rank pessimistic is not the mean
    mean = float(np.mean(trial.user_attrs.get("values", trial.value)))
    return f"{digits(mean)} ± {digits(std) if std >= 100 else f'{std:.2g}'}"


def digits(value: float | None) -> str:
    """Returns four digits, with trailing zeros, which align in a column; thousands are whole."""
    if value is not None and math.isfinite(value) and abs(value) >= 1000:
        return number_text(value)
    return "" if value is None else f"{value:#.4g}".rstrip(".")
