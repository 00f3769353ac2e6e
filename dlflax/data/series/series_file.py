"""Series of files, rows and data frames: their style, times and values."""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dlflax.data.table import number_formats
from dlflax.data.table.calendars import COUNT, DAY, Calendar, align_rows
from dlflax.data.table.number_formats import MISSING, NumberFormat
from dlflax.data.table.raw_table import RawTable, as_texts, read_table
from dlflax.data.table.time_formats import EPOCHS, NUMBER, TimeFormat, infer_times, is_time_axis
from dlflax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Style:
    """The columns and formats of a training file: the series, then the covariates."""

    columns: tuple[str, ...]
    formats: tuple[NumberFormat, ...]
    delimiter: str
    times: tuple[str, ...] = ()
    """Columns of times, such as year and month; () for a file without times."""
    time: TimeFormat | None = None
    """Format of the cells of these columns, joined."""
    step: str = ""
    """`Calendar.step`."""
    zone: str = ""
    """`Calendar.zone`."""

    def __post_init__(self):
        if not self.columns or len(self.columns) != len(self.formats):
            raise InputError("a series needs a format for each of its columns.")


@dataclasses.dataclass(frozen=True)
class ParsedSeries:
    """A series, up to its last value, sorted by time, if there are times."""

    values: np.ndarray
    """float64 (n,), forward-filled."""
    observed: np.ndarray
    """bool (n,)."""
    covariates: np.ndarray
    """float64 (n + later, columns), forward-filled."""
    style: Style
    calendar: Calendar | None
    """Calendar of the rows; None without times."""

    def windows(self, first: np.ndarray, window: int, later: int) -> np.ndarray:
        """Returns the values of `window` steps before each step `first`, (n,), and the covariates
        of `later` more. float64 (n, window + later, 1 + covariates), NaN before the series."""
        rows = first[:, None] + np.arange(-window, later)[None]
        windows = np.zeros((*rows.shape, 1 + self.covariates.shape[1]))
        inside = np.maximum(rows, 0)
        windows[:, :window, 0] = self.values[inside[:, :window]]
        windows[:, :, 1:] = self.covariates[inside]
        windows[rows < 0] = np.nan
        return windows

    def last_window(self, window: int, later: int) -> np.ndarray:
        """Returns the window up to the last value, with at most `later` more steps."""
        end = len(self.values)
        return self.windows(np.array([end]), window, min(later, len(self.covariates) - end))[0]

    def times_after(self, horizon: int) -> list[str]:
        """Returns the times of the steps after the series; "" without a calendar."""
        end = len(self.values)
        return self.calendar.stamps(range(end, end + horizon)) if self.calendar else [""] * horizon


def read_file(
    path: Path, column: str | None = None, covariates: tuple[str, ...] = (),
    log: Callable[[str], None] = print, decimal: str = "auto",
) -> ParsedSeries:  # fmt: skip
    """Reads a column of a table file, by default the last one, and infers its style."""
    table = read_table(Path(str(path)), log=log, noun="a series")
    number_formats.check_header(table, log)
    names = (column or _default_column(table, covariates), *covariates)
    _check_columns(table, names)
    formats = number_formats.infer_formats(table, names, decimal, log=log)
    fallback = NumberFormat(missing=MISSING)  # reading the cells then raises for the first text
    formats = tuple(formats[name] or fallback for name in names)
    style = _infer_style(table, Style(names, formats, table.delimiter))
    file, times = Path(table.place).name, ", ".join(style.times)
    if style.time is None:
        log(f"no column of {file} has times: rows are taken in the order of the file.")
    elif style.zone == COUNT:
        log(f"{file}: rows are numbered by the column {times}.")
    else:
        log(f"{file}: times are read from {times}, written as {style.time.describe()}.")
    if column is None and len(table.columns) > 1 + len({*style.times, *covariates}):
        log(f"{file}: {style.columns[0]} is forecast (--target for another).")
    return read_cells(table, style, log)


def _default_column(table: RawTable, covariates) -> str:
    """Returns the last column of numbers that are no part of the times, or else the last column."""
    times = None
    for name in reversed(table.columns):
        column = table.columns[name]
        values, wrong = number_formats.column_numbers(column, NumberFormat())
        wrong_with_comma = number_formats.column_numbers(column, NumberFormat(","))[1]
        are_texts = min(wrong.mean(), wrong_with_comma.mean()) > 0.5
        if name in covariates or are_texts or infer_times(as_texts(column)):
            continue
        if times is None and (values == np.round(values)).all():  # maybe years or months
            times = ()
            with contextlib.suppress(InputError):
                style = _infer_style(table, Style(("",), (NumberFormat(),), ""))
                times = () if style.zone == COUNT else style.times
        if name not in (times or ()):
            return name
    return [*table.columns][-1]


def read_in_style(table: RawTable, style: Style, log: Callable[[str], None]) -> ParsedSeries:
    """Reads a series in the style of the training file. Raises InputError for a file with another
    delimiter and other number formats."""
    table = table.rename_like((*style.columns, *style.times), log)
    if style.columns[0] not in table.columns and (name := _only_numeric_column(table, style)):
        log(f"{table.place}: the column {name} is read as {style.columns[0]}.")
        style = dataclasses.replace(style, columns=(name, *style.columns[1:]))
    _check_columns(table, style.columns)
    formats = dict(zip(style.columns, style.formats, strict=True))
    number_formats.check_same_format(table, formats, style.delimiter)
    others = [cells for name, cells in table.columns.items() if name not in style.columns]
    if style.time is None and any(infer_times(as_texts(cells)) for cells in others):
        log(f"{table.place}: its rows are taken in their order, as the training data have no "
            "times.")  # fmt: skip
    return read_cells(table, style, log)


def _only_numeric_column(table, style) -> str | None:
    """Returns the only column of numbers beside covariates and times; None if there are several."""
    candidates = [
        name for name, column in table.columns.items()
        if name not in (*style.columns[1:], *style.times)
        and not number_formats.column_numbers(column, style.formats[0])[1].any()
        and infer_times(as_texts(column)) is None
    ]  # fmt: skip
    return candidates[0] if len(candidates) == 1 else None


def _check_columns(table: RawTable, names) -> None:
    for name in names:
        if name not in table.columns:
            raise InputError(
                f"{table.place} has no column {name!r}: it has {', '.join(table.columns)}."
            )
    if names[0] in names[1:]:
        raise InputError(f"{names[0]} is the column to forecast: it cannot be a covariate too.")


def read_cells(table: RawTable, style: Style, log: Callable[[str], None]) -> ParsedSeries:
    """Reads the columns of a style."""
    path = Path(table.place)
    columns = zip(style.columns, style.formats, strict=True)
    rows = np.stack([number_formats.require_numbers(table, *column) for column in columns], 1)
    if (count := (~np.isnan(rows[:, 0])).sum()) < 8:
        raise InputError(f"{path} has {count} numbers: a series needs more.")
    times, zone = _read_times(table, style, log)
    calendar = None
    if times is not None:
        rows, calendar = align_rows(times, rows, table.place, log, zone, style.step)
    missing = np.isnan(rows)
    if missing.all(0).any():
        raise InputError(f"{path}: the column {style.columns[missing.all(0).argmax()]} is empty.")
    if begin := int(np.argmin(missing, 0).max()):
        log(f"{path.name}: the first {begin} values are missing: dropped.")
    rows, missing, end = rows[begin:], missing[begin:], len(rows) - begin
    if calendar is not None:
        calendar = dataclasses.replace(calendar, begin=begin)
    latest = np.maximum.accumulate(np.where(missing, 0, np.arange(end)[:, None]))
    filled, observed = np.take_along_axis(rows, latest, 0), ~missing[:, 0]
    if len(style.columns) > 1:  # rows after the last value have future covariates
        end = int(np.flatnonzero(observed)[-1]) + 1
        if gaps := int(missing[:end, 1:].sum()):
            log(f"{path.name}: {gaps} covariates are missing: forward-filled.")
    if gaps := int((~observed[:end]).sum()):
        log(f"{path.name}: {gaps} of {end} values are missing: forward-filled in inputs, ignored "
            "as targets.")  # fmt: skip
    return ParsedSeries(filled[:end, 0], observed[:end], filled[:, 1:], style, calendar)


# columns of a part of a time: part -> pattern of the column's name, pattern of its cells
PARTS = {
    "year": ("", r"[12]\d{3}"),
    "month": ("mon|mth|mo$|mm?$|mes$|mois", r"\d\d?"),
    "quarter": ("quart|qu?a?r?te?r|q$", r"[1-4]"),
    "week": ("week|wk|w$|kw$|woche", r"\d\d?"),
    "day": ("day|d$|dd$|tag|jour", r"\d\d?"),
    "hour": ("hour|hr|h$|hh$|std|stunde", r"\d\d?"),
    "minute": ("min", r"\d\d?"),
    "words": ("", r"q[1-4]|[a-z]{3,9}"),
    "clock": ("", r"\d\d?[:.]\d\d([:.]\d\d)?( ?[ap]m)?"),
}
BEFORE = {"quarter": " Q", "week": " W", "minute": ":"}
CHAINS = (("month", "day", "hour", "minute"), ("words", "day", "hour", "minute"), ("quarter",),
          ("week",))  # fmt: skip


def _time_part(name: str) -> str:
    """Returns the part of a time that a column's name matches, or ""."""
    return next((k for k, (p, _) in PARTS.items() if p and re.match(p, name.lower())), "")


def _join(texts: Mapping[str, Sequence[str]], names: Sequence[str]) -> Sequence[str]:
    """Joins the cells of columns: "2024 W5", "2024 12 31 9:30"."""
    if len(names) == 1:
        return texts[names[0]]
    marks = [BEFORE.get(_time_part(name), " ") for name in names]

    def prefix(mark: str, cell: str) -> str:
        cell = cell.removesuffix(".0")
        return f"{mark if cell.isdecimal() else ' '}{cell.zfill(2) if mark == ':' else cell}"

    rows = zip(*(texts[name] for name in names), strict=True)
    return ["".join(map(prefix, marks, row)).strip() for row in rows]


def _texts(table: RawTable, names) -> dict[str, list[str]]:
    return {name: as_texts(table.columns[name]).to_pylist() for name in names}


def _read_times(table: RawTable, style: Style, log) -> tuple[np.ndarray | None, str]:
    """Returns the times of rows, seconds, float64 (n,), and their zone; (None, "") without times.

    The format is the training file's or, if that does not match, inferred. Raises InputError for a
    row without a time."""
    names, form, zone = ", ".join(style.times), style.time, style.zone
    absent = [name for name in style.times if name not in table.columns]
    if form is None or absent:
        if absent:
            log(f"{table.place} has no column {absent[0]}: its rows are taken in their order.")
        return None, ""
    cells = _join(_texts(table, style.times), style.times)
    times, wrong = form.parse(cells)
    if wrong.any() and (other := _infer(table.place, style.times, cells)):
        log(f"{table.place}, column {names}: times are read as {other.describe()}, where the "
            f"training data have {form.describe()}.")  # fmt: skip
        (times, wrong), zone = other.parse(cells), other.zone
    if np.isnan(times).any():
        row = int((wrong if wrong.any() else np.isnan(times)).argmax())
        raise InputError(
            f"{table.row_name(row)}, column {names}: {cells[row]!r} is not a time such as "
            f"{form.describe()}."
        )
    return times, zone


def _infer(place: str, names: Sequence[str], cells: Sequence[str]) -> TimeFormat | None:
    try:
        return infer_times(cells, regular=True)
    except InputError as error:
        raise InputError(f"{place}, column {', '.join(names)}: {error}") from None


def _candidates(texts: Mapping[str, Sequence[str]], infer) -> Iterator[tuple[tuple, TimeFormat]]:
    """Yields (columns, format): single columns, then several, then columns of row numbers."""
    parts = {
        kind: [name for name, cells in texts.items() if re.match(prefix, name.lower())
               and all(re.fullmatch(rf"({pattern})(\.0)?", cell, re.I) for cell in set(cells))]
        for kind, (prefix, pattern) in PARTS.items()
    }  # fmt: skip
    groups = [(name,) for name in texts]
    for year, chain in itertools.product(parts["year"], CHAINS):
        group = (year,)
        for kind in chain:
            if not (others := [name for name in parts[kind] if name not in group]):
                break
            groups.append(group := (*group, others[0]))
    for group in groups:  # which grows in the loop
        if form := infer(group):
            yield group, form
            if len(group) == 1 and form.date not in EPOCHS:
                groups += [(*group, name) for name in parts["clock"] + parts["hour"]]
    for name, cells in texts.items():
        count, _ = TimeFormat(COUNT).parse(cells)
        if not np.isnan(count).any() and is_time_axis(count):
            yield (name,), TimeFormat(COUNT)


def _infer_style(table: RawTable, style: Style) -> Style:
    """Returns the style with times, if there are some. Raises InputError for irregular times."""
    texts = _texts(table, [name for name in table.columns if name not in style.columns])
    errors, irregular = [], []

    def infer(group):
        try:
            return _infer(table.place, group, _join(texts, group))
        except InputError as error:
            errors.append(error)

    for group, form in _candidates(texts, infer):
        cells = _join(texts, group)
        for zone in _zones(form, cells):
            time = dataclasses.replace(form, zone=zone)
            clock = COUNT if form.date == COUNT else zone.replace("local", "")
            style = dataclasses.replace(style, times=group, time=time, zone=clock)
            try:
                times, _ = _read_times(table, style, None)
                _, calendar = align_rows(times, times, table.place, lambda _: None, clock)
                return dataclasses.replace(style, step=calendar.step, zone=calendar.zone)
            except InputError as error:
                irregular.append((time.parse(cells)[0], form))
                if not all(re.fullmatch(NUMBER, cell) for cell in cells[:9]):
                    errors.append(error)  # irregular numbers may be no times
    _check_panel(table.place, texts, irregular)
    for name, cells in texts.items():  # raises for times with a few other cells
        if not errors and (form := infer_times(cells[:8])):
            _read_times(table, dataclasses.replace(style, times=(name,), time=form), None)
    if errors:
        raise errors[0]
    return dataclasses.replace(style, times=(), time=None, zone="")


def _zones(form: TimeFormat, cells: Sequence[str]) -> tuple[str, ...]:
    """Returns the zones to try, local time first if all times are midnights in local time."""
    if not form.zone:
        return ("",)
    is_midnight = dataclasses.replace(form, zone="local").parse(cells)[0] % DAY == 0
    return ("local", "UTC") if is_midnight.all() else ("UTC", "local")


def _check_panel(place: str, texts: Mapping[str, Sequence[str]], irregular) -> None:
    """Raises InputError for a file with several series. A column identifies them if every pair of
    its value and a time is unique or, without times, if its values have runs of equal length."""
    count = len(next(iter(texts.values()), ()))
    levels = {name: sorted(set(cells)) for name, cells in texts.items()}
    names = sorted((name for name in levels if 1 < len(levels[name]) <= count / 3),
                   key=lambda name: len(levels[name]))[:9]  # fmt: skip
    groups = []
    for times, form in sorted(irregular, key=lambda pair: -len(set(pair[0])))[:3]:
        unique = len(set(times))
        if form.date == COUNT:  # excludes the hours of days, and the days of weeks
            names = [name for name in names if len(levels[name]) < unique and unique >= 8
                     and not _time_part(name)]  # fmt: skip
        for group in (*((name,) for name in names), *itertools.combinations(names, 2)):
            keys = set(zip(times, *(texts[name] for name in group), strict=True))
            groups += [group] if unique < count / 1.5 and len(keys) == count else []
    for name in names if not groups else ():
        runs = [len([*run]) for _, run in itertools.groupby(texts[name])]
        has_words = NumberFormat().parse(texts[name])[1].any()
        if has_words and len(runs) == len(levels[name]) and len(set(runs)) == 1 and runs[0] >= 8:
            groups.append((name,))
    if groups:
        num_series = len(set(zip(*(texts[name] for name in groups[0]), strict=True)))
        raise InputError(
            f"{place} has {num_series} series, told apart by {' and '.join(groups[0])} "
            f"({', '.join(levels[groups[0][0]][:3])}): give a file with the rows of one of them."
        )
