"""Series as files, rows and data frames have them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.data import csv_files, numbers
from dlflax.data.calendars import in_time, read_times, stamps
from dlflax.data.numbers import NumberFormat
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
    """Reads a column, by default the last, of a CSV file with a header, and infers its style."""
    header, rows, delimiter = csv_files.read(Path(path))
    column = column or next((name for name in header[::-1] if name not in covariates), header[-1])
    cells = _cells(path, header, rows, (column, *covariates))
    formats = numbers.infer_formats(cells, delimiter, decimal, path)
    for note in numbers.describe_formats(cells, formats):
        log(note)
    style = Style((column, *covariates), tuple(formats[name] for name in cells), delimiter)
    return read_cells(path, header, rows, style, log)


def read_like(
    place: Any, header: list[str], rows: list[tuple[int, list[str]]], delimiter: str, style: Style,
    log: Callable[[str], None],
) -> Found:  # fmt: skip
    """Reads a series that is written as the training file was. Raises InputError where another
    delimiter shows that another program wrote it, and its numbers are not of that style."""
    if style.columns[0] not in header and (name := _only_numbers(header, rows, style)):
        log(f"{place}: the column {name} is read as {style.columns[0]}.")
        style = dataclasses.replace(style, columns=(name, *style.columns[1:]))
    if delimiter != style.delimiter:
        cells = _cells(place, header, rows, style.columns)
        formats = dict(zip(style.columns, style.formats, strict=True))
        numbers.check_like(cells, formats, delimiter, place)
    return read_cells(place, header, rows, style, log)


def _only_numbers(header, rows, style) -> str | None:
    """The one column that has numbers, and is neither a covariate nor times; None of several."""
    found = []
    for i, name in enumerate(header):
        cells = [row[i].strip() for _, row in rows]
        numeric = not isinstance(style.formats[0].parse(cells), str)
        if name not in style.columns[1:] and numeric and read_times(cells) is None:
            found.append(name)
    return found[0] if len(found) == 1 else None


def _cells(place, header, rows, columns) -> dict[str, list[str]]:
    for name in columns:
        if name not in header:
            raise InputError(f"{place} has no column {name!r}: it has {', '.join(header)}.")
    if columns[0] in columns[1:]:
        raise InputError(f"{columns[0]} is what is forecast: it cannot be a covariate too.")
    return {name: [row[header.index(name)].strip() for _, row in rows] for name in columns}


def read_cells(
    place: Any, header: list[str], rows: Sequence[tuple[int, list[str]]], style: Style,
    log: Callable[[str], None],
) -> Found:  # fmt: skip
    """Reads the columns of a style from (line, cells)."""
    cells, covariates = _cells(place, header, rows, style.columns), style.columns[1:]
    formats = dict(zip(style.columns, style.formats, strict=True))
    places = [header.index(name) for name in style.columns]
    path = Path(str(place))
    file = path.name
    table = np.stack([_numbers(path, name, cells[name], formats, rows) for name in cells], 1)
    if (known := (~np.isnan(table[:, 0])).sum()) < 8:
        raise InputError(f"{path} has {known} numbers: a series needs more.")
    calendar = None
    for other in range(len(header)):
        if other in places:
            continue
        times = read_times([row[other] for _, row in rows])
        if times is not None:
            table, calendar = in_time(times, table, path, log)
            break
    missing = np.isnan(table)
    if missing.all(0).any():
        raise InputError(f"{path}: the column {header[places[missing.all(0).argmax()]]} is empty.")
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


def _numbers(path, name, cells, formats, rows) -> np.ndarray:
    """float64 (n,) of a column, NaN where a cell is empty."""
    values = formats[name].parse(cells)
    if isinstance(values, str):
        line = rows[cells.index(values)][0]
        raise InputError(f"{path}, line {line}, column {name}: {values!r} is not a number.")
    if np.isinf(values).any():
        raise InputError(f"{path}, column {name} has an infinite value: give numbers.")
    return values
