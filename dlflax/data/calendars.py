"""Calendars of series: steps of seconds, weekdays or months.

Rows are sorted by time; two rows of one time are refused; steps without a row become rows without a
value; anything else is irregular, and refused.
"""

import itertools
from calendar import monthrange
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import numpy as np

from dlflax.errors import InputError

MONTHS = {"month": 1, "quarter": 3, "year": 12}
DAY = 86_400.0
MOST_MISSING = 0.5  # of all steps


def places_of(times: np.ndarray, step: str | None = None) -> tuple[np.ndarray, str] | None:
    """Returns (the row of each time, int64 (n,), from 0 on; the step) of times that increase,
    float64 (n,); None where they are irregular. step: the one that they must have, if there is."""
    for wanted, places in _calendars(times, step):
        rows = np.round(places).astype(np.int64)
        if step not in (None, wanted) or np.abs(places - rows).max() > 0.01:
            continue
        if (np.diff(rows) > 0).all() and (rows[-1] + 1) * (1 - MOST_MISSING) <= len(times):
            return rows, wanted
    return None


def _calendars(times, step):
    """Yields (step, places float64 (n,)) of the calendars that times may be in."""
    if not len(times) or len(times) < 2 and step is None:
        return
    given = step is not None
    steps = np.diff(times)
    seconds = float(np.median(steps)) if len(steps) else 1.0
    even = len(steps) and np.ptp(steps) == 0
    if even and not given:
        yield f"{seconds:.12g}", (times - times[0]) / seconds
    dates = np.floor(times / DAY).astype(np.int64).astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    day = (dates - months).astype(int)
    left = ((months + 1).astype("datetime64[D]") - dates).astype(int)
    if np.ptp(times % DAY) == 0:
        if min(np.ptp(day), np.ptp(left)) <= 3:  # the last weekday of a month is one of these
            count = months.astype(int) - int(months[0].astype(int))
            length = _months(step) if given else max(int(np.median(np.diff(count))), 1)
            name = {1: "month", 3: "quarter", 12: "year"}.get(length, f"{length} months")
            if length:
                yield name, count / length
        if np.is_busday(dates).all() and (seconds == DAY or given):
            yield "weekday", np.busday_count(dates[0], dates).astype(float)
    if given and _months(step) or step == "weekday":
        return
    seconds = float(step) if given else seconds
    yield step or f"{seconds:.12g}", (times - times[0]) / seconds


def _months(step: str) -> int:
    """Returns the months of a step, 0 where it has another unit."""
    return MONTHS.get(step) or (int(step.split()[0]) if step.endswith("months") else 0)


FORMATS = (
    "%Y-%m-%d", "%Y%m%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y-%m",
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M",
    "%m/%d/%Y %H:%M", "%d.%m.%Y %H:%M",
)  # fmt: skip
CALENDAR = {"month": (28, 31), "quarter": (89, 92), "year": (365, 366)}  # days


def read_times(column: list[str]) -> np.ndarray | None:
    """Seconds, float64 (n,), of a column whose cells all are times in one of FORMATS, or years at
    equal distances; None for any other. Of several formats the first that fits all is taken."""
    cells = [cell.strip().removesuffix("Z").partition("+")[0] for cell in column]
    for form in FORMATS:
        try:
            times = [datetime.strptime(cell, form) for cell in cells]
        except ValueError:
            continue
        return np.array([(time - datetime(1970, 1, 1)).total_seconds() for time in times])
    if all(cell.isdecimal() and len(cell) == 4 for cell in cells):  # years: before 1970 too
        years = [datetime(int(cell), 1, 1) - datetime(1970, 1, 1) for cell in cells if int(cell)]
        steps = {abs(int(b) - int(a)) for a, b in itertools.pairwise(cells)}
        if len(steps) == 1:  # other numbers of four digits are no years
            return np.array([year.total_seconds() for year in years])
    return None


def in_time(
    times: np.ndarray, values: np.ndarray, path: Path, log: Callable[[str], None]
) -> tuple[np.ndarray, dict[str, str]]:
    """The values, (n, ...), in the order of their times, NaN where a step is missing, and the
    calendar of their rows, for `stamps`; `log` gets the interval and what was changed. InputError
    for times that are irregular or there twice."""
    order = np.argsort(times, kind="stable")
    if (order != np.arange(len(order))).any():
        log(f"{path.name}: the rows are not in the order of their times: sorted.")
    times, values = times[order], values[order]
    steps = np.diff(times)
    if (steps == 0).any():
        twice = _shown(times[:-1][steps == 0][0])
        raise InputError(f"{path} has two rows of {twice}: a series has one value for a time.")
    days = steps / DAY
    for name, (low, high) in CALENDAR.items():
        if ((days >= low) & (days <= high)).all() and len(set(days)) > 1:
            log(_interval_of(path, name, times))
            return values, {"first": _shown(times[0]), "step": name}
    step = float(np.median(steps))
    places, what, each = (times - times[0]) / step, _interval(step), f"{step:g}"
    weekdays = ((times // DAY + 3) % 7 < 5).all()  # 1970-01-01 was a Thursday
    if step == DAY and weekdays and (steps % DAY == 0).all():
        dates = (times // DAY).astype("datetime64[D]")
        places, what = np.busday_count(dates[0], dates).astype(float), "day without weekends"
        each = "weekday"
    at = np.round(places).astype(np.int64)
    count = at[-1] + 1
    if np.abs(places - at).max() > 0.01 or count * (1 - MOST_MISSING) > len(values):
        raise InputError(
            f"{path} has rows at irregular times, {_interval(steps.min())} to "
            f"{_interval(steps.max())} apart: give one row for each step of equal length."
        )
    log(_interval_of(path, what, times))
    spread = np.full((count, *values.shape[1:]), np.nan)
    spread[at] = values
    return spread, {"first": _shown(times[0]), "step": each}


def _interval_of(path, what: str, times) -> str:
    return f"{path.name}: one row every {what}, from {_shown(times[0])} to {_shown(times[-1])}."


def stamps(calendar: dict[str, str], rows: Iterable[int]) -> list[str]:
    """The times of rows, counted from 0, as `in_time` found their calendar: "2001-12-29"."""
    first, step = np.datetime64(calendar["first"]), calendar["step"]
    if step == "weekday":
        return [str(np.busday_offset(first, row)) for row in rows]
    if step not in CALENDAR:
        begin = (first - np.datetime64(0, "s")) / np.timedelta64(1, "s")
        return [_shown(begin + row * float(step)) for row in rows]
    begin, found = datetime.fromisoformat(calendar["first"]), []
    at_end = begin.day == monthrange(begin.year, begin.month)[1]
    for row in rows:
        months = 12 * begin.year + begin.month - 1 + row * MONTHS[step]
        year, month = months // 12, months % 12 + 1
        last = monthrange(year, month)[1]
        day = last if at_end else min(begin.day, last)
        found.append(f"{year:04}-{month:02}-{day:02}")
    return found


def _interval(seconds: float) -> str:
    """ "7 days", for "one row every ..."."""
    units = (("day", DAY), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))
    name, length = next((unit for unit in units if seconds >= unit[1]), units[-1])
    count = seconds / length
    return name if count == 1 else f"{count:g} {name}s"


def _shown(seconds: float) -> str:
    time = np.datetime64(int(seconds), "s")
    return str(time.astype("datetime64[D]") if seconds % DAY == 0 else time)
