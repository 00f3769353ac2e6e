"""Series as files, rows and data frames have them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlflax.data import numbers
from dlflax.data.calendars import in_time, read_times, stamps
from dlflax.data.numbers import MISSING, NumberFormat
from dlflax.data.raw_table import RawTable, as_texts, read_table
from dlflax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Style:
    """The way a training file writes its columns: the series, then the covariates."""

    columns: tuple[str, ...]
    formats: tuple[NumberFormat, ...]
    delimiter: str

    def __post_init__(self):
        if not self.columns or len(self.columns) != len(self.formats):
            raise InputError("a series needs a format for each of its columns.")


@dataclasses.dataclass(frozen=True)
class Found:
    """A series, up to its last value, in the order of the column with times, if there is one."""

    values: np.ndarray
    """float64 (n,): what is missing has the value before it."""
    observed: np.ndarray
    """bool (n,)."""
    covariates: np.ndarray
    """float64 (n + more, columns): beside the series, and in the rows after it."""
    style: Style
    calendar: dict[str, str] | None
    """Calendar of the rows, for `times.stamps`."""


def read(
    path: Path, column: str | None = None, log: Callable[[str], None] = print
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (values, observed) of a file without covariates."""
    found = read_file(Path(path), column, (), log)
    return found.values, found.observed


def read_file(
    path: Path, column: str | None, covariates: tuple[str, ...], log: Callable[[str], None],
    decimal: str = "auto",
) -> Found:  # fmt: skip
    """Reads a column, by default the last, of a table file, and infers its style."""
    table = read_table(Path(str(path)), log=log, what="a series")
    header = list(table.columns)
    column = column or next((name for name in header[::-1] if name not in covariates), header[-1])
    names = (column, *covariates)
    _check_columns(table, names)
    formats = numbers.infer_formats(table, names, decimal)
    for sentence in numbers.describe_formats(formats):
        log(sentence)
    plain = NumberFormat(missing=MISSING)  # says which cell is none
    formats = tuple(formats[name] or plain for name in names)
    return read_cells(table, Style(names, formats, table.delimiter), log)


def read_like(table: RawTable, style: Style, log: Callable[[str], None]) -> Found:
    """Reads a series that is written as the training file was. Raises InputError where another
    delimiter shows that another program wrote it, and its numbers are not of that style."""
    if style.columns[0] not in table.columns and (name := _only_numbers(table, style)):
        log(f"{table.place}: the column {name} is read as {style.columns[0]}.")
        style = dataclasses.replace(style, columns=(name, *style.columns[1:]))
    _check_columns(table, style.columns)
    formats = dict(zip(style.columns, style.formats, strict=True))
    numbers.check_like(table, formats, style.delimiter)
    return read_cells(table, style, log)


def _only_numbers(table, style) -> str | None:
    """The one column that has numbers, and is neither a covariate nor times; None of several."""
    others = []
    for name, column in table.columns.items():
        numeric = not numbers.column_numbers(column, style.formats[0])[1].any()
        if name not in style.columns[1:] and numeric and _times(column) is None:
            others.append(name)
    return others[0] if len(others) == 1 else None


def _times(column):
    return read_times(as_texts(column).to_pylist())


def _check_columns(table: RawTable, names) -> None:
    for name in names:
        if name not in table.columns:
            raise InputError(
                f"{table.place} has no column {name!r}: it has {', '.join(table.columns)}."
            )
    if names[0] in names[1:]:
        raise InputError(f"{names[0]} is what is forecast: it cannot be a covariate too.")


def read_cells(source: RawTable, style: Style, log: Callable[[str], None]) -> Found:
    """Reads the columns of a style."""
    covariates, path = style.columns[1:], Path(source.place)
    file = path.name
    columns = [
        _numbers(source, *column) for column in zip(style.columns, style.formats, strict=True)
    ]
    table = np.stack(columns, 1)
    if (known := (~np.isnan(table[:, 0])).sum()) < 8:
        raise InputError(f"{path} has {known} numbers: a series needs more.")
    calendar = None
    for name, column in source.columns.items():
        if name in style.columns:
            continue
        times = _times(column)
        if times is not None:
            table, calendar = in_time(times, table, path, log)
            break
    missing = np.isnan(table)
    if missing.all(0).any():
        raise InputError(f"{path}: the column {style.columns[missing.all(0).argmax()]} is empty.")
    if begin := int(np.argmin(missing, 0).max()):
        log(f"{file}: the first {begin} values are missing: left out.")
    table, missing = table[begin:], missing[begin:]
    if calendar is not None:
        calendar = {**calendar, "first": stamps(calendar, [begin])[0]}
    latest = np.maximum.accumulate(np.where(missing, 0, np.arange(len(table))[:, None]))
    filled, observed = np.take_along_axis(table, latest, 0), ~missing[:, 0]
    end = len(table)
    if covariates:  # rows after the last value say what is known of the future
        end = int(np.flatnonzero(observed)[-1]) + 1
        if gaps := int(missing[:end, 1:].sum()):
            log(f"{file}: {gaps} covariates are missing: the value before stands in for them.")
    if not observed[:end].all():
        log(
            f"{file}: {(~observed[:end]).sum()} of {end} values are missing: the value "
            "before stands in for them, and no forecast is judged by them."
        )
    return Found(filled[:end, 0], observed[:end], filled[:, 1:], style, calendar)


def times_after(found: Found, horizon: int) -> list[str]:
    """Returns the times of the steps after the series; empty where its file has none."""
    if found.calendar is None:
        return [""] * horizon
    rows = len(found.values)
    return stamps(found.calendar, range(rows, rows + horizon))


def _numbers(table, name, form) -> np.ndarray:
    """float64 (n,) of a column, NaN where a cell is empty."""
    values, wrong = numbers.column_numbers(table.columns[name], form)
    if wrong.any():
        row = int(wrong.argmax())
        cell = as_texts(table.columns[name])[row].as_py()
        raise InputError(f"{table.row_name(row)}, column {name}: {cell!r} is not a number.")
    return values
