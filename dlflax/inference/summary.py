"""Summary and leaderboard of a run folder, from its results.json."""

import csv
import html
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dlflax.files import escape_controls, pluralize, read_bytes, read_json
from dlflax.inference.predict import Predictor
from dlflax.report.tables import data_text, number_text

SHOWN_COLUMNS = 20  # of a table, in a summary


class Rows(list):
    """Rows {column: value} that print as a table; `pandas.DataFrame(rows)` is a data frame."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        super().__init__(map(dict, rows))

    def _cells(self) -> list[list[str]]:
        """Returns the header and the texts of all rows."""
        names = list(dict.fromkeys(name for row in self for name in row))
        return [names] + [[_cell(row.get(name)) for name in names] for row in self]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for line in cells:
            first, *others = (
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ) if line else ("",)  # fmt: skip
            lines.append("  ".join([first, *others]).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Returns an HTML table, for notebooks."""
        header, *rows = self._cells()
        lines = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in header)}</tr>"]
        lines += [
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        ]
        return f"<table>{''.join(lines)}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number_text(value) if isinstance(value, int | float) else escape_controls(str(value))


def read_results(folder: Path) -> dict[str, Any]:
    """Returns results.json of a run folder; {} if the run is unfinished or the file damaged."""
    try:
        results = read_json(folder / "results.json")
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def _dict(values: Any, name: str) -> dict[str, Any]:
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, dict) else {}


def leaderboard(predictor: Predictor) -> Rows:
    """Returns a row of test scores per model, the best first: the run's, its members and the
    baselines."""
    results, metric = read_results(predictor.folder), predictor.config.recipe.task.metric()
    models = {f"this model ({type(predictor.config.recipe.model).__name__})": results.get("test")}
    models |= _dict(results, "members") | _dict(results, "baselines")
    rows = [
        {"model": name} | {k: v for k, v in scores.items() if isinstance(v, int | float)}
        for name, scores in models.items() if isinstance(scores, dict)
    ]  # fmt: skip
    sign = 1 if metric.direction == "min" else -1
    first = ["model", metric.name]

    def rank(row):
        value = row.get(metric.name, math.nan)
        return math.inf if math.isnan(value) else sign * value

    rows = [{n: row[n] for n in dict.fromkeys([*first, *row]) if n in row} for row in rows]
    return Rows(sorted(rows, key=rank))


def summary(predictor: Predictor) -> str:
    """Returns a text: data, columns, sizes of the splits, scores, calibration, findings."""
    results, info = read_results(predictor.folder), predictor.data
    config, encoder = predictor.config, predictor.encoder
    model, task = type(config.recipe.model).__name__, type(config.recipe.task).__name__
    data = _dict(results, "data")
    lines = [f"{task} by {model}" + (
        f", {results['parameters']:,} parameters" if isinstance(results.get("parameters"), int)
        else ""
    )]  # fmt: skip
    lines.append(
        f"data: {info['name']}, {info['train']:,} train, {info['validation']:,} validation, "
        f"{info['test']:,} test; {data_text(data) if 'examples' in data else encoder.describe()}"
    )
    lines += _column_lines(encoder.columns_table())
    if epochs := results.get("epochs_run"):
        lines.append(f"trained for {pluralize(epochs, 'epochs')}; epoch {results['best_epoch']} is "
                     "the best by the validation split")  # fmt: skip
    for name in ("train", "val", "test"):
        scores = {k: v for k, v in _dict(results, name).items() if isinstance(v, int | float)}
        if scores:
            shown = ", ".join(f"{k.replace('_', ' ')} {number_text(v)}" for k, v in scores.items())
            lines.append(f"{name}: {shown}")
    if "temperature" in (calibration := _dict(results, "calibration")):
        lines.append(f"probabilities are calibrated by the temperature "
                     f"{number_text(calibration['temperature'])}")  # fmt: skip
    notes, findings = data.get("notes"), results.get("findings")
    for sentence in (*(notes or ()), *(findings or ())):
        lines.append(f"note: {sentence}")
    return "\n".join(escape_controls(line) for line in lines)


def _column_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"  {row['column']}: {row['type']}"
        + (f", {row['missing']:,} missing" if row["missing"] else "")
        + (f", {row['levels']:,} levels" if row["levels"] else "")
        + (f" ({row['note']})" if row["note"] else "")
        for row in rows[:SHOWN_COLUMNS]
    ]
    if len(rows) > SHOWN_COLUMNS:
        lines.append(f"  and {len(rows) - SHOWN_COLUMNS:,} others: columns.csv")
    return lines


def importance(folder: Path) -> Rows | None:
    """Returns the rows of importance.csv, the most important column first; None without one."""
    try:
        text = read_bytes(folder / "importance.csv").decode("utf-8")
        return Rows(
            {name: value if name == "column" else float(value) for name, value in row.items()}
            for row in csv.DictReader(text.splitlines())
        )
    except (OSError, ValueError, TypeError):
        return None
