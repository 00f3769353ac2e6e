"""Calendars of series: steps of seconds, weekdays or months.

Rows are sorted by time; two rows of one time are refused; steps without a row become rows without a
value; anything else is irregular, and refused.
"""

import dataclasses
import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.errors import InputError

MONTHS = {"month": 1, "quarter": 3, "year": 12}
DAY = 86_400.0
ONE_DAY, MONTH = np.timedelta64(1, "D"), np.timedelta64(1, "M")
MOST_MISSING = 0.5  # of all steps
ZONES = ("Europe/Berlin", "Europe/London", "Europe/Athens", "America/New_York", "Australia/Sydney",
         "America/Santiago", "Asia/Jerusalem")  # fmt: skip
COUNT = "count"  # the zone of rows that are counted


@dataclasses.dataclass(frozen=True)
class Calendar:
    """The times of rows."""

    first: float
    """Seconds since 1970 of the first time."""
    step: str
    """Seconds, or weekday, month, quarter, year, 6 months."""
    zone: str = ""
    """"", "UTC", a place such as Europe/Berlin, or "count"."""
    day: str = ""
    """The day of all months: "31" of 28 to 31, "end", "weekday end"."""
    begin: int = 0
    """The row of the series' first value."""

    def stamps(self, rows: Iterable[int]) -> list[str]:
        """Returns the times of rows, counted from the series' first value: "2001-12-29"."""
        rows = np.array([*rows], np.int64) + self.begin
        (date,), (month,) = _dates([self.first])[:2]
        clock, length = self.first % DAY, _months(self.step)
        if not length and self.step != "weekday":
            seconds, hours = self.first + rows * float(self.step), float(self.step) % DAY > 0
            return [_show(time, self.zone, hours) for time in seconds.tolist()]
        months = month + rows * length * MONTH
        first, last = _first_and_last(months)
        if self.step == "weekday":
            dates = np.busday_offset(date, rows)
        elif self.day.startswith("weekday"):
            dates = _weekday_of(months, self.day)
        else:
            dates = (
                last
                if self.day == "end"
                else np.minimum(first + (int(self.day) - 1) * ONE_DAY, last)
            )
        return [_show(day * DAY + clock, self.zone) for day in dates.astype(int).tolist()]


def align_rows(
    times: np.ndarray, values: np.ndarray, place: str, log: Callable[[str], None],
    zone: str = "", step: str = "",
) -> tuple[np.ndarray, Calendar]:  # fmt: skip
    """Returns the values, (n, ...), in the order of their times, and the calendar of their rows.

    Values are NaN where a step is missing; `log` gets the step and what was changed. times:
    seconds, float64 (n,). zone: "", "UTC" or that of the training data, such as
    "Europe/Berlin"; step: that of the training data. Raises InputError for times that are
    irregular, there twice or of another step."""
    name = Path(place).name
    if zone not in ("UTC", COUNT) and len(times) > 1:
        times, zone = _without_daylight_saving(times, zone, step)
    order = np.argsort(times, kind="stable")
    if (order != np.arange(len(order))).any():
        log(f"{name}: the rows are not in the order of their times: sorted.")
    times, values = times[order], values[order]
    steps = np.diff(times)
    if (steps == 0).any():
        twice = _show(times[:-1][steps == 0][0], zone)
        raise InputError(f"{place} has two rows of {twice}: a series has one value for a time.")
    if step and _gaps(times, "") < _gaps(times, step):
        other = regular_rows(times)[1]
        raise InputError(
            f"{place} has a row every {_interval(other, zone)}, where the training data have one "
            f"every {_interval(step, zone)}: give a file with their step."
        )
    if (rows_and_step := regular_rows(times, step)) is None:
        shortest, longest = (_interval(f"{s}", zone) for s in (steps.min(), steps.max()))
        raise InputError(
            f"{place} has rows at irregular times, {shortest} to {longest} apart: give one row for "
            "each step of equal length."
        )
    rows, step = rows_and_step
    first, last = (_show(time, zone) for time in times[[0, -1]])
    log(f"{name}: one row every {_interval(step, zone)}, from {first} to {last}.")
    if zone not in ("", "UTC", COUNT):
        log(f"{name}: its clock is set for daylight saving time, as in {zone}.")
    spread = np.full((rows[-1] + 1, *values.shape[1:]), np.nan)
    spread[rows] = values
    return spread, Calendar(float(times[0]), step, zone, _day(times, step))


def regular_rows(times: np.ndarray, step: str = "") -> tuple[np.ndarray, str] | None:
    """Returns (the row of each time, int64 (n,), from 0 on; the step) of times that increase,
    float64 (n,); None where they are irregular. step: the one that they must have, if any."""
    for name, places in _calendars(times, step) if len(times) else ():
        rows = np.round(places).astype(np.int64)
        even = np.abs(places - rows).max() <= 0.01 and (np.diff(rows) > 0).all()
        if even and (rows[-1] + 1) * (1 - MOST_MISSING) <= len(times):
            return rows, name
    return None


def _gaps(times: np.ndarray, step: str) -> float:
    """Returns the number of steps without a row; infinity of times that are there twice, too."""
    times = np.sort(times)
    rows_and_step = regular_rows(times, step) if (np.diff(times) > 0).all() else None
    return np.inf if rows_and_step is None else rows_and_step[0][-1] + 1 - len(times)


def _calendars(times: np.ndarray, step: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (step, rows as float64 (n,)) of the calendars that times may be in."""
    if len(times) < 2:
        yield step or f"{DAY:g}", np.zeros(len(times))
        return
    steps = np.diff(times)
    seconds = float(_middle(steps))
    if not step and np.ptp(steps) == 0:
        yield f"{seconds:.12g}", (times - times[0]) / seconds
    dates, months, day, left = _dates(times)
    if np.ptp(times % DAY) == 0:
        # the last weekday of a month is at most three days before its end
        if min(np.ptp(day), np.ptp(left)) <= 3 and step != "weekday":
            count = months.astype(int) - int(months[0].astype(int))
            length = _months(step) if step else max(_middle(np.diff(count)), 1)
            name = {1: "month", 3: "quarter", 12: "year"}.get(length, f"{length} months")
            if length:
                yield name, count / length
        weekdays = step == "weekday" or not step and seconds == DAY
        if weekdays and np.is_busday(dates).all():
            yield "weekday", np.busday_count(dates[0], dates).astype(float)
    if not _months(step) and step != "weekday":
        seconds = float(step or seconds)
        yield step or f"{seconds:.12g}", (times - times[0]) / seconds


def _middle(steps: np.ndarray):
    """Returns the median, or the lower of the two in the middle."""
    return np.sort(steps)[(len(steps) - 1) // 2]


def _dates(times):
    """Returns the dates of times, their months, and the days before and after them in these."""
    dates = np.floor(np.asarray(times) / DAY).astype(np.int64).astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    first, last = _first_and_last(months)
    return dates, months, (dates - first).astype(int), (last - dates).astype(int)


def _first_and_last(months):
    """Returns the first and the last days of months, datetime64[D] (n,)."""
    first = months.astype("datetime64[D]")
    return first, (months + MONTH).astype("datetime64[D]") - ONE_DAY


def _day(times: np.ndarray, step: str) -> str:
    """Returns `Calendar.day` of times."""
    dates, months, day, left = _dates(times)
    if not _months(step):
        return ""
    if (left == 0).all():
        return "end"
    for name in ("weekday end", "weekday begin") if np.ptp(day) else ():
        if (_weekday_of(months, name) == dates).all():
            return name
    return str(day.max() + 1)


def _weekday_of(months: np.ndarray, day: str) -> np.ndarray:
    """Returns the first or the last weekday of months."""
    first, last = _first_and_last(months)
    if day == "weekday begin":
        return np.busday_offset(first, 0, roll="forward")
    return np.busday_offset(last, 0, roll="backward")


def _months(step: str) -> int:
    """Returns the months of a step, 0 where it has another unit."""
    return MONTHS.get(step) or (int(step.split()[0]) if step.endswith("months") else 0)


def _without_daylight_saving(times, zone: str, step: str) -> tuple[np.ndarray, str]:
    """Returns the times in UTC and the zone that explains missing hours in spring and double ones
    in autumn. Without one: the times, and "". zone: that of the training data, if there is one."""
    fewest = _gaps(times, step)
    if not fewest and not zone or np.median(np.abs(np.diff(times))) >= DAY:
        return times, ""
    best = times, ""
    for name in (zone,) if zone else ZONES:
        for utc in _to_utc(times, name):
            if (gaps := _gaps(utc, step)) < fewest or zone and gaps == fewest:
                best, fewest = (utc, name), gaps
    return best


def _to_utc(times: np.ndarray, zone: str) -> Iterator[np.ndarray]:
    """Yields the times of a zone's clock in UTC, none where its clock never shows them. Of an hour
    in autumn that is there once both readings are tried."""
    back = times[0] > times[-1]
    times = times[::-1] if back else times
    clock = pa.array(np.round(times * 1e6).astype(np.int64)).cast(pa.timestamp("us"))
    try:
        first, second = (
            pc.assume_timezone(clock, zone, ambiguous=side, nonexistent="raise")
            .cast(pa.int64()).to_numpy() / 1e6 for side in ("earliest", "latest")
        )  # fmt: skip
    except (pa.ArrowInvalid, pa.ArrowKeyError):  # no such hour; no data of zones on this machine
        return
    _, index, inverse, counts = np.unique(times, True, True, True)
    again = np.ones(len(times), bool)
    again[index] = False
    for once in (first, second):
        utc = np.where(again, second, np.where(counts[inverse] > 1, first, once))
        yield utc[::-1] if back else utc


def _interval(step: str, zone: str = "") -> str:
    """Returns "7 days", for "one row every ..."."""
    if step == "weekday":
        return "day without weekends"
    if _months(step):
        return step
    seconds = float(step)
    if zone == COUNT:
        return f"{seconds:g}"
    units = (("day", DAY), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))
    name, length = next((unit for unit in units if seconds >= unit[1]), units[-1])
    count = seconds / length
    return name if count == 1 else f"{count:g} {name}s"


def _show(seconds: float, zone: str = "", hours: bool = False) -> str:
    """Returns a time in its zone, without hours a date where it is midnight."""
    if zone == COUNT:
        return f"{seconds:.12g}"
    if zone not in ("", "UTC"):
        clock = datetime.fromtimestamp(seconds, UTC).astimezone(zoneinfo.ZoneInfo(zone))
        return clock.replace(tzinfo=None).isoformat()
    time = np.datetime64(round(seconds * 1000), "ms")
    if seconds % DAY == 0 and not zone and not hours:
        return str(time.astype("datetime64[D]"))
    return str(time if seconds % 1 else time.astype("datetime64[s]")) + ("Z" if zone else "")
