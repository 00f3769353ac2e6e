"""Series as files, rows and data frames have them."""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dlflax.data import numbers
from dlflax.data.calendars import COUNT, DAY, Calendar, align_rows
from dlflax.data.numbers import MISSING, NumberFormat
from dlflax.data.raw_table import RawTable, as_texts, read_table
from dlflax.data.times import EPOCHS, NUMBER, TimeFormat, infer_times, is_time_axis
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
    """Format of the cells of these columns, joined."""
    step: str = ""
    zone: str = ""
    """Both as a `Calendar` has them."""

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
    """Times of the rows, where they have some."""

    def windows(self, first: np.ndarray, window: int, later: int) -> np.ndarray:
        """Returns the values before the steps `first`, (n,), and the covariates, which reach
        `later` steps beyond: float64 (n, window + later, 1 + covariates)."""
        rows = first[:, None] + np.arange(-window, later)[None]
        windows = np.zeros((*rows.shape, 1 + self.covariates.shape[1]))
        windows[:, :window, 0] = self.values[rows[:, :window]]
        windows[:, :, 1:] = self.covariates[rows]
        return windows

    def last_window(self, window: int, later: int) -> np.ndarray:
        """Returns the window behind the last value, with as many later steps as there are."""
        end = len(self.values)
        return self.windows(np.array([end]), window, min(later, len(self.covariates) - end))[0]

    def times_after(self, horizon: int) -> list[str]:
        """Returns the times of the steps after the series; empty where its file has none."""
        end = len(self.values)
        return self.calendar.stamps(range(end, end + horizon)) if self.calendar else [""] * horizon


def read_file(
    path: Path, column: str | None = None, covariates: tuple[str, ...] = (),
    log: Callable[[str], None] = print, decimal: str = "auto",
) -> Found:  # fmt: skip
    """Reads a column, by default the last, of a table file, and infers its style."""
    table = read_table(Path(str(path)), log=log, noun="a series")
    numbers.check_header(table, log)
    names = (column or _last_values(table, covariates), *covariates)
    _check_columns(table, names)
    formats = numbers.infer_formats(table, names, decimal)
    for sentence in numbers.describe_formats(formats):
        log(sentence)
    plain = NumberFormat(missing=MISSING)  # says which cell is none
    formats = tuple(formats[name] or plain for name in names)
    style = _find_times(table, Style(names, formats, table.delimiter))
    file = Path(table.place).name
    if style.time is None:
        log(f"no column of {file} has times: rows are taken in the order of the file.")
    elif style.zone == COUNT:
        log(f"{file}: rows are numbered by the column {style.times[0]}.")
    else:
        names = ", ".join(style.times)
        log(f"{file}: times are read from {names}, written as {style.time.describe()}.")
    if column is None and len(table.columns) > 1 + len({*style.times, *covariates}):
        log(f"{file}: {style.columns[0]} is forecast (--column for another).")
    return read_cells(table, style, log)


def _last_values(table: RawTable, covariates) -> str:
    """Returns the last column that has numbers, and is no part of the times; if there is none, the
    last one."""
    times = None
    for name in reversed(table.columns):
        column = table.columns[name]
        values, wrong = numbers.column_numbers(column, NumberFormat())
        texts = min(wrong.mean(), numbers.column_numbers(column, NumberFormat(","))[1].mean()) > 0.5
        if name in covariates or texts or infer_times(as_texts(column)):
            continue
        if times is None and (values == np.round(values)).all():  # maybe years or months
            times = ()
            with contextlib.suppress(InputError):
                style = _find_times(table, Style(("",), (NumberFormat(),), ""))
                times = () if style.zone == COUNT else style.times
        if name not in (times or ()):
            return name
    return [*table.columns][-1]


def read_in_style(table: RawTable, style: Style, log: Callable[[str], None]) -> Found:
    """Reads a series that is written as the training file was. Raises InputError where another
    delimiter shows that another program wrote it, and its numbers are not of that style."""
    table = table.rename_like((*style.columns, *style.times), log)
    if style.columns[0] not in table.columns and (name := _only_numbers(table, style)):
        log(f"{table.place}: the column {name} is read as {style.columns[0]}.")
        style = dataclasses.replace(style, columns=(name, *style.columns[1:]))
    _check_columns(table, style.columns)
    formats = dict(zip(style.columns, style.formats, strict=True))
    numbers.check_same_format(table, formats, style.delimiter)
    others = [table.columns[name] for name in table.columns if name not in style.columns]
    if style.time is None and any(infer_times(as_texts(cells)) for cells in others):
        log(
            f"{table.place}: its rows are taken in their order, as the training data have no times."
        )
    return read_cells(table, style, log)


def _only_numbers(table, style) -> str | None:
    """The one column that has numbers, and is neither a covariate nor times; None of several."""
    others = []
    for name, column in table.columns.items():
        numeric = not numbers.column_numbers(column, style.formats[0])[1].any()
        if name not in (*style.columns[1:], *style.times) and numeric:
            others += [name] if infer_times(as_texts(column)) is None else []
    return others[0] if len(others) == 1 else None


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
    times, zone = _read_times(source, style, log)
    calendar = None
    if times is not None:
        table, calendar = align_rows(times, table, source.place, log, zone, style.step)
    missing = np.isnan(table)
    if missing.all(0).any():
        raise InputError(f"{path}: the column {style.columns[missing.all(0).argmax()]} is empty.")
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


def _numbers(table, name, form) -> np.ndarray:
    """float64 (n,) of a column, NaN where a cell is empty."""
    values, wrong = numbers.column_numbers(table.columns[name], form)
    if wrong.any():
        row = int(wrong.argmax())
        cell = as_texts(table.columns[name])[row].as_py()
        raise InputError(f"{table.row_name(row)}, column {name}: {cell!r} is not a number.")
    return values


# columns that are a part of a time: kind -> pattern of its name, pattern of its cells
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


def _is_part(name: str, kinds=tuple(PARTS)) -> str:
    """Returns the kind that a column's name says; "" for none."""
    return next((k for k in kinds if PARTS[k][0] and re.match(PARTS[k][0], name.lower())), "")


def _join(texts: Mapping[str, Sequence[str]], names: Sequence[str]) -> Sequence[str]:
    """Returns the cells of some columns as those of one: "2024 W5", "2024 12 31 9:30"."""
    if len(names) == 1:
        return texts[names[0]]
    marks = [BEFORE.get(_is_part(name), " ") for name in names]
    rows = zip(*(texts[name] for name in names), strict=True)
    return ["".join(map(_piece, marks, row)).strip() for row in rows]


def _piece(mark: str, cell: str) -> str:
    cell = cell.removesuffix(".0")
    return f"{mark if cell.isdecimal() else ' '}{cell.zfill(2) if mark == ':' else cell}"


def _texts(table: RawTable, names) -> dict[str, list[str]]:
    return {name: as_texts(table.columns[name]).to_pylist() for name in names}


def _read_times(table: RawTable, style: Style, log) -> tuple[np.ndarray | None, str]:
    """Returns the times of rows, seconds, float64 (n,), and their zone; (None, "") without times.

    Their format is the training file's, else their own. Raises InputError for a row without."""
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
    """Yields (columns, their format): single ones, then such as year and month or date and hour,
    then one that numbers the rows."""
    parts = {
        kind: [name for name, cells in texts.items() if re.match(PARTS[kind][0], name.lower())
               and all(re.fullmatch(rf"({pattern})(\.0)?", cell, re.I) for cell in set(cells))]
        for kind, (_, pattern) in PARTS.items()
    }  # fmt: skip
    groups = [(name,) for name in texts]
    for year, chain in itertools.product(parts["year"], CHAINS):
        group = (year,)
        for kind in chain:
            if not (more := [name for name in parts[kind] if name not in group]):
                break
            groups.append(group := (*group, more[0]))
    for group in groups:  # it grows
        if form := infer(group):
            yield group, form
            if len(group) == 1 and form.date not in EPOCHS:
                groups += [(*group, name) for kind in ("clock", "hour") for name in parts[kind]]
    for name, cells in texts.items():
        count, wrong = TimeFormat(COUNT).parse(cells)
        if not np.isnan(count).any() and is_time_axis(count):
            yield (name,), TimeFormat(COUNT)


def _find_times(table: RawTable, style: Style) -> Style:
    """Returns the style with the times of a training file, if it has some. Raises InputError where
    these are irregular, or those of several series."""
    texts = _texts(table, [name for name in table.columns if name not in style.columns])
    refused, repeated = [], []

    def infer(group):
        try:
            return _infer(table.place, group, _join(texts, group))
        except InputError as error:
            refused.append(error)

    for group, form in _candidates(texts, infer):
        cells = _join(texts, group)
        for zone in _zones(form, cells):
            time = dataclasses.replace(form, zone=zone)
            place = COUNT if form.date == COUNT else zone.replace("local", "")
            style = dataclasses.replace(style, times=group, time=time, zone=place)
            try:
                times, _ = _read_times(table, style, None)
                _, calendar = align_rows(times, times, table.place, lambda _: None, place)
                return dataclasses.replace(style, step=calendar.step, zone=calendar.zone)
            except InputError as error:
                repeated.append((time.parse(cells)[0], form))
                if not all(re.fullmatch(NUMBER, cell) for cell in cells[:9]):
                    refused.append(error)  # else it need not be a time
    _check_panel(table.place, texts, repeated)
    for name, cells in texts.items():  # times, but for a few cells
        if not refused and (form := infer_times(cells[:8])):
            _read_times(table, dataclasses.replace(style, times=(name,), time=form), None)
    if refused:
        raise refused[0]
    return dataclasses.replace(style, times=(), time=None, zone="")


def _zones(form: TimeFormat, cells: Sequence[str]) -> tuple[str, ...]:
    """Returns the zones to read in: midnights of summer and winter are days of a local clock."""
    if not form.zone:
        return ("",)
    midnights = dataclasses.replace(form, zone="local").parse(cells)[0] % DAY == 0
    return ("local", "UTC") if midnights.all() else ("UTC", "local")


def _check_panel(place: str, texts: Mapping[str, Sequence[str]], repeated) -> None:
    """Raises InputError for a file with several series. A column tells them apart if each time is
    there once for each of its values, or, without times, if each has as many rows, together."""
    count = len(next(iter(texts.values()), ()))
    levels = {name: sorted(set(cells)) for name, cells in texts.items()}
    few = sorted((name for name in levels if 1 < len(levels[name]) <= count / 3),
                 key=lambda name: len(levels[name]))[:9]  # fmt: skip
    groups = []
    for times, form in sorted(repeated, key=lambda pair: -len(set(pair[0])))[:3]:
        moments = len(set(times))
        if form.date == COUNT:  # not the hours of days, or the days of weeks
            few = [name for name in few if len(levels[name]) < moments and moments >= 8
                   and not _is_part(name)]  # fmt: skip
        for group in (*((name,) for name in few), *itertools.combinations(few, 2)):
            keys = set(zip(times, *(texts[name] for name in group), strict=True))
            groups += [group] if moments < count / 1.5 and len(keys) == count else []
    for name in few if not groups else ():
        runs = [len([*run]) for _, run in itertools.groupby(texts[name])]
        words = NumberFormat().parse(texts[name])[1].any()
        if words and len(runs) == len(levels[name]) and len(set(runs)) == 1 and runs[0] >= 8:
            groups.append((name,))
    if groups:
        several = len(set(zip(*(texts[name] for name in groups[0]), strict=True)))
        raise InputError(
            f"{place} has {several} series, told apart by {' and '.join(groups[0])} "
            f"({', '.join(levels[groups[0][0]][:3])}): give a file with the rows of one of them."
        )
