"""Series as files, rows and data frames have them."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.data import csv_files, numbers
from dlflax.data.calendars import COUNT, DAY, Calendar, in_time
from dlflax.data.numbers import NumberFormat
from dlflax.data.times import EPOCHS, NUMBER, TimeFormat, infer_times, is_clock
from dlflax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Style:
    """The way a training file writes its columns: the series, then the covariates."""

    columns: tuple[str, ...]
    formats: tuple[NumberFormat, ...]
    delimiter: str
    times: tuple[str, ...] = ()
    """Columns of its times, such as year and month; none where its rows are in order."""
    time: TimeFormat | None = None
    """Format of these columns, with a blank between them."""
    step: str = ""
    zone: str = ""

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
    calendar: Calendar | None
    """Times of the rows; None where they have none."""


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
    if column is None:
        inputs = [name for name in header[::-1] if name not in covariates]
        cells = {name: _column(header, rows, name) for name in inputs}
        column = next((name for name in inputs if infer_times(cells[name]) is None), header[-1])
    cells = _cells(path, header, rows, (column, *covariates))
    formats = numbers.infer_formats(cells, delimiter, decimal, path)
    for note in numbers.describe_formats(cells, formats):
        log(note)
    style = Style((column, *covariates), tuple(formats[name] for name in cells), delimiter)
    others = {name: _column(header, rows, name) for name in header if name not in cells}
    style, notes = _find_times(Path(path), others, rows, style)
    for note in notes:
        log(note)
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
        others = (*style.columns[1:], *style.times)
        if name not in others and numeric and infer_times(cells) is None:
            found.append(name)
    return found[0] if len(found) == 1 else None


def _cells(place, header, rows, columns) -> dict[str, list[str]]:
    for name in columns:
        if name not in header:
            raise InputError(f"{place} has no column {name!r}: it has {', '.join(header)}.")
    if columns[0] in columns[1:]:
        raise InputError(f"{columns[0]} is what is forecast: it cannot be a covariate too.")
    return {name: _column(header, rows, name) for name in columns}


def _column(header, rows, name) -> list[str]:
    """Returns the cells of a column."""
    i = header.index(name)
    return [row[i].strip() for _, row in rows]


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
    times, calendar = _times(path, header, rows, style, log), None
    if times is not None:
        table, calendar = in_time(times, table, str(path), log, style.zone, style.step)
        style = dataclasses.replace(style, step=calendar.step, zone=calendar.zone)
    missing = np.isnan(table)
    if missing.all(0).any():
        raise InputError(f"{path}: the column {header[places[missing.all(0).argmax()]]} is empty.")
    if begin := int(np.argmin(missing, 0).max()):
        log(f"{file}: the first {begin} values are missing: left out.")
    table, missing = table[begin:], missing[begin:]
    if calendar is not None:
        calendar = dataclasses.replace(calendar, begin=begin)
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
    return found.calendar.stamps(range(rows, rows + horizon))


def _numbers(path, name, cells, formats, rows) -> np.ndarray:
    """float64 (n,) of a column, NaN where a cell is empty."""
    values = formats[name].parse(cells)
    if isinstance(values, str):
        line = rows[cells.index(values)][0]
        raise InputError(f"{path}, line {line}, column {name}: {values!r} is not a number.")
    if np.isinf(values).any():
        raise InputError(f"{path}, column {name} has an infinite value: give numbers.")
    return values


# columns that are a part of a time: kind -> pattern of its name, pattern of its cells
PARTS = {
    "year": (r"", r"[12]\d{3}"),
    "month": (r"mon|mth|mo$|mm?$|mes$|mois", r"\d\d?"),
    "quarter": (r"quart|qu?a?r?te?r|q$", r"[1-4]"),
    "week": (r"week|wk|w$|kw$|woche", r"\d\d?"),
    "day": (r"day|d$|dd$|tag|jour", r"\d\d?"),
    "hour": (r"hour|hr|h$|hh$|std|stunde", r"\d\d?"),
    "minute": (r"min", r"\d\d?"),
    "words": (r"", r"q[1-4]|[a-z]{3,9}"),
    "clock": (r"", r"\d\d?[:.]\d\d([:.]\d\d)?( ?[ap]m)?"),
}
BEFORE = {"quarter": " Q", "week": " W", "minute": ":"}
CHAINS = (("year", "month", "day", "hour", "minute"), ("year", "quarter"), ("year", "week"),
          ("year", "words", "day", "hour", "minute"))  # fmt: skip


def _has_name(name: str, kind: str) -> bool:
    return re.match(PARTS[kind][0], name.lower()) is not None


def _join(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the cells of the columns of a time as one: "2024 W5", "2024 12 31 9:30"."""
    names = list(columns)
    marks = [
        next((BEFORE[kind] for kind in BEFORE if _has_name(name, kind)), " ") for name in names
    ]
    times = []
    for row in zip(*columns.values(), strict=True):
        time = row[0]
        for mark, cell in zip(marks[1:], row[1:], strict=True):
            cell = cell.removesuffix(".0")  # as data frames have it
            time += f"{mark if cell.isdecimal() else ' '}{cell.zfill(2) if mark == ':' else cell}"
        times.append(time)
    return times


def _times(path, header, rows, style, log) -> np.ndarray | None:
    """Returns the times of rows by the style of the training file, seconds, float64 (n,); None
    where it had none. Raises InputError for a row without a time."""
    if style.time is None:
        return None
    names = ", ".join(style.times)
    if absent := [name for name in style.times if name not in header]:
        log(f"{path} has no column {absent[0]}, as the training data have: its rows are in order.")
        return None
    cells = _join({name: _column(header, rows, name) for name in style.times})
    times = style.time.parse(cells)
    if isinstance(times, str) and (other := _infer(f"{path}, column {names}", cells)):
        log(
            f"{path}, column {names}: times are read as {other.describe()}, where the training "
            f"data have {style.time.describe()}."
        )
        times = other.parse(cells)
    wrong = cells.index(times) if isinstance(times, str) else int(np.isnan(times).argmax())
    if isinstance(times, str) or np.isnan(times).any():
        raise InputError(
            f"{path}, line {rows[wrong][0]}, column {names}: {cells[wrong]!r} is not a time such "
            f"as {style.time.describe()}."
        )
    return times


def _infer(place: str, cells: Sequence[str]) -> TimeFormat | None:
    """Returns the format of times of a series. Raises InputError, with the place, for two."""
    try:
        return infer_times(cells, regular=True)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _candidates(
    path: Path, columns: Mapping[str, Sequence[str]]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields (columns, their one format, or the InputError of two that fit): single ones, then such
    as year and month or date and hour, then numbers of rows."""
    parts = {
        kind: [name for name, cells in columns.items() if _has_name(name, kind) and cells
               and all(re.fullmatch(rf"({pattern})(\.0)?", cell, re.I) for cell in set(cells))]
        for kind, (_, pattern) in PARTS.items()
    }  # fmt: skip
    groups = [(name,) for name in columns]
    for year in parts["year"]:
        for chain in CHAINS:
            group = (year,)
            for kind in chain[1:]:
                if not (more := [name for name in parts[kind] if name not in group]):
                    break
                group = (*group, more[0])
                groups.append(group)
    for group in groups:  # it grows
        try:
            cells = _join({name: columns[name] for name in group})
            form = _infer(f"{path}, column {', '.join(group)}", cells)
        except InputError as error:
            yield group, error
            continue
        if form is not None:
            yield group, form
            if len(group) == 1 and form.date not in EPOCHS:
                groups += [(*group, name) for kind in ("clock", "hour") for name in parts[kind]]
    for name, cells in columns.items():
        numbers_of_rows = TimeFormat(COUNT).parse(cells)
        if not isinstance(numbers_of_rows, str) and is_clock(numbers_of_rows):
            yield (name,), TimeFormat(COUNT)


def _find_times(path, columns, rows, style) -> tuple[Style, list[str]]:
    """Returns the style with the columns and the format of the times of a training file, and what
    to log. Raises InputError where its times are irregular, or there in several series."""
    refused, repeated = [], []
    for group, form in _candidates(path, columns):
        if isinstance(form, InputError):
            refused.append(form)
            continue
        cells = _join({name: columns[name] for name in group})
        number = all(re.fullmatch(NUMBER, cell) for cell in cells[:9])  # it need not be a time
        for zone in _zones(form, cells):
            form = dataclasses.replace(form, zone=zone)
            times = form.parse(cells)
            place = COUNT if form.date == COUNT else zone if zone == "UTC" else ""
            try:
                if np.isnan(times).any():
                    line = rows[int(np.isnan(times).argmax())][0]
                    raise InputError(
                        f"{path}, line {line} has no {group[0]}: give each row a time."
                    )
                _, calendar = in_time(times, times, str(path), lambda _: None, place)
            except InputError as error:
                refused += [] if number else [error]
                repeated.append((times, form))
                continue
            style = dataclasses.replace(
                style, times=group, time=form, step=calendar.step, zone=calendar.zone
            )
            note = f"times are read from {', '.join(group)}, written as {form.describe()}."
            if form.date == COUNT:
                note = f"rows are numbered by the column {group[0]}."
            return style, [f"{path.name}: {note}"]
    _check_panel(path, columns, repeated)
    for name, cells in columns.items():
        first = infer_times(cells[:8])
        if first and isinstance(wrong := first.parse(cells), str):
            line = rows[cells.index(wrong)][0]
            refused.append(
                InputError(
                    f"{path}, line {line}, column {name}: {wrong!r} is not a time such as "
                    f"{first.describe()}."
                )
            )
    if refused:
        raise refused[0]
    note = f"no column of {path.name} has times: rows are taken in the order of the file."
    return style, [note]


def _zones(form, cells) -> tuple[str, ...]:
    """Returns the zones that a format with offsets may be read in: midnights of summer and winter
    are days of a local clock."""
    if not form.zone:
        return ("",)
    midnights = dataclasses.replace(form, zone="local").parse(cells) % DAY == 0
    return ("local", "UTC") if midnights.all() else ("UTC", "local")


def _check_panel(path, columns, repeated) -> None:
    """Raises InputError for a file with several series: each time is there for several values of a
    column; or, without times, the rows of each value of a column are together, and equally many."""
    count = len(next(iter(columns.values()), ()))
    levels = {name: sorted(set(cells)) for name, cells in columns.items()}
    few = sorted((name for name in levels if 1 < len(levels[name]) <= count / 3),
                 key=lambda name: len(levels[name]))[:20]  # fmt: skip
    groups = []
    for times, form in sorted(repeated, key=lambda each: -len(set(each[0]))):
        moments = len(set(times))
        if form.date == COUNT:  # not the hours of days, or the days of weeks
            few = [name for name in few if len(levels[name]) < moments and moments >= 8
                   and not any(pattern and _has_name(name, kind)
                               for kind, (pattern, _) in PARTS.items())]  # fmt: skip
        if moments < count / 1.5:
            groups += [
                group for group in (*((name,) for name in few), *itertools.combinations(few, 2))
                if len(set(zip(times, *(columns[name] for name in group), strict=True))) == count
            ]  # fmt: skip
    for name in few if not groups else ():
        runs = [len([*run]) for _, run in itertools.groupby(columns[name])]
        words = isinstance(NumberFormat().parse(columns[name]), str)
        if words and len(runs) == len(levels[name]) and len(set(runs)) == 1 and runs[0] >= 8:
            groups.append((name,))
    if groups:
        several = len(set(zip(*(columns[name] for name in groups[0]), strict=True)))
        raise InputError(
            f"{path} has {several} series, told apart by {' and '.join(groups[0])} "
            f"({', '.join(levels[groups[0][0]][:3])}): give a file with the rows of one of them."
        )
