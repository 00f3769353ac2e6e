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


def _list(values: Any, name: str) -> list[Any]:
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, list) else []


def leaderboard(predictor: Predictor) -> Rows:
    """Returns a row of test scores per model, the best first: the run's; its members, with their
    weights; and the baselines."""
    results, metric = read_results(predictor.folder), predictor.config.recipe.task.metric()
    models = {f"this model ({type(predictor.config.recipe.model).__name__})": results.get("test")}
    weights, members = {}, set()
    for member in _list(results, "members"):
        if isinstance(member, dict):
            name = f"{member.get('models')} x {member.get('name')}"
            models[name], weights[name] = member.get("test"), member.get("weight")
            members.add(f"{member.get('name')} alone")  # a baseline of the ensemble
    baselines = _dict(results, "baselines")
    models |= {name: scores for name, scores in baselines.items() if name not in members}
    rows = [
        {"model": name, **_numbers(scores)}
        | ({"weight": weights[name]} if name in weights else {})
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
    numbers = _numbers(results)
    if {"epochs_run", "best_epoch"} <= set(numbers) and not _list(results, "members"):
        lines.append(f"trained for {pluralize(numbers['epochs_run'], 'epochs')}; epoch "
                     f"{numbers['best_epoch']} is the best by the validation split")  # fmt: skip
    lines += _time_limit_lines(predictor.folder)
    for name in ("train", "val", "test"):
        if scores := _numbers(_dict(results, name)):
            shown = ", ".join(f"{k.replace('_', ' ')} {number_text(v)}" for k, v in scores.items())
            lines.append(f"{name}: {shown}")
    if temperature := _numbers(_dict(results, "calibration")).get("temperature"):
        lines.append(f"probabilities are calibrated: temperature {number_text(temperature)}")
    for sentence in (*_list(data, "notes"), *_list(results, "findings")):
        lines.append(f"note: {sentence}")
    return "\n".join(escape_controls(line) for line in lines)


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _time_limit_lines(folder: Path) -> list[str]:
    """Returns a line if the time limit permitted fewer epochs than were requested."""
    try:
        planned = read_json(folder / "plan.json")["epochs"]
        saved = read_json(folder / "config.json")
        requested = saved.get("requested", saved["config"])
        if planned < requested["epochs"]:
            return [f"time limit of {requested['time_limit']:g} s: {planned:,} of "
                    f"{requested['epochs']:,} epochs"]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # without a limit, or damaged
    return []


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
