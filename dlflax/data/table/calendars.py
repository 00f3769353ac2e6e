"""Calendars of series: steps of seconds, weekdays or months."""

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
MAX_MISSING = 0.5  # of all steps
ZONES = ("Europe/Berlin", "Europe/London", "Europe/Athens", "America/New_York", "Australia/Sydney",
         "America/Santiago", "Asia/Jerusalem")  # fmt: skip
COUNT = "count"  # the zone of numbered rows


@dataclasses.dataclass(frozen=True)
class Calendar:
    """The times of rows."""

    first: float
    """The first time, in seconds since 1970."""
    step: str
    """Seconds, or weekday, month, quarter, year, 6 months."""
    zone: str = ""
    """"", "UTC", an IANA zone such as Europe/Berlin, or "count"."""
    day: str = ""
    """The day of all months: "31" of 28 to 31, "end", "weekday begin", "weekday end"."""
    begin: int = 0
    """The row of the series' first value."""

    def stamps(self, rows: Iterable[int]) -> list[str]:
        """Returns the times of rows, counted from the series' first value: "2001-12-29"."""
        rows = np.array([*rows], np.int64) + self.begin
        date, month, *_ = _split_dates(self.first)
        length = step_months(self.step)
        if not length and self.step != "weekday":
            seconds, hours = self.first + rows * float(self.step), float(self.step) % DAY > 0
            return [_format_time(time, self.zone, hours) for time in seconds.tolist()]
        if self.step == "weekday":
            dates = np.busday_offset(date, rows)
        else:
            dates = _days_of_months(month + rows * length, self.day)
        seconds = dates.astype(int) * DAY + self.first % DAY
        return [_format_time(time, self.zone) for time in seconds.tolist()]


def align_rows(
    times: np.ndarray, values: np.ndarray, place: str, log: Callable[[str], None],
    zone: str = "", step: str = "",
) -> tuple[np.ndarray, Calendar]:  # fmt: skip
    """Returns the values, (n, ...), sorted by time, and the calendar of their rows.

    Values are NaN for a missing step; `log` gets the step and changes. times: seconds, float64
    (n,); zone, step: those of the training data, or "". Raises InputError for times that are
    irregular, repeated or of another step."""
    name = Path(place).name
    if zone not in ("UTC", COUNT) and len(times) > 1:
        times, zone = _remove_daylight_saving(times, zone, step)
    order = np.argsort(times, kind="stable")
    if (order != np.arange(len(order))).any():
        log(f"{name}: the rows are not in the order of their times: sorted.")
    times, values = times[order], values[order]
    steps = np.diff(times)
    if (steps == 0).any():
        repeated = _format_time(times[:-1][steps == 0][0], zone)
        raise InputError(f"{place} has two rows of {repeated}: a series has one value for a time.")
    if step and _count_gaps(times, "") < _count_gaps(times, step):
        raise InputError(
            f"{place} has a row every {_format_step(regular_rows(times)[1], zone)}, where the "
            f"training data have one every {_format_step(step, zone)}: give a file with their step."
        )
    if (rows_and_step := regular_rows(times, step)) is None:
        shortest, longest = (_format_step(str(s), zone) for s in (steps.min(), steps.max()))
        raise InputError(
            f"{place} has rows at irregular times, {shortest} to {longest} apart: give one row for "
            "each step of equal length."
        )
    rows, step = rows_and_step
    first, last = (_format_time(time, zone) for time in times[[0, -1]])
    log(f"{name}: one row every {_format_step(step, zone)}, from {first} to {last}.")
    if zone not in ("", "UTC", COUNT):
        log(f"{name}: its clock is set for daylight saving time, as in {zone}.")
    aligned = np.full((rows[-1] + 1, *values.shape[1:]), np.nan)
    aligned[rows] = values
    return aligned, Calendar(float(times[0]), step, zone, _day(times, step))


def regular_rows(times: np.ndarray, step: str = "") -> tuple[np.ndarray, str] | None:
    """Returns (the row of each time, int64 (n,), from 0; the step); None for irregular times.

    times: float64 (n,), increasing; step: the only step allowed, or ""."""
    for name, positions in _calendars(times, step) if len(times) else ():
        rows = np.round(positions).astype(np.int64)
        is_regular = np.abs(positions - rows).max() <= 0.01 and (np.diff(rows) > 0).all()
        if is_regular and (rows[-1] + 1) * (1 - MAX_MISSING) <= len(times):
            return rows, name
    return None


def _count_gaps(times: np.ndarray, step: str) -> float:
    """Returns the number of missing steps; infinity for irregular or repeated times."""
    times = np.sort(times)
    rows_and_step = regular_rows(times, step) if (np.diff(times) > 0).all() else None
    return np.inf if rows_and_step is None else rows_and_step[0][-1] + 1 - len(times)


def _calendars(times: np.ndarray, step: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (step, rows as float64 (n,)) of possible calendars."""
    if len(times) < 2:
        yield step or f"{DAY:g}", np.zeros(len(times))
        return
    seconds = _lower_median(np.diff(times))
    elapsed = times - times[0]
    if not step and np.ptp(np.diff(times)) == 0:
        yield f"{seconds:.12g}", elapsed / seconds
    dates, months, days_before, days_after = _split_dates(times)
    if np.ptp(times % DAY) == 0:
        # the last weekday of a month is at most three days before its end
        if min(np.ptp(days_before), np.ptp(days_after)) <= 3 and step != "weekday":
            count = (months - months[0]).astype(int)
            length = step_months(step) if step else max(_lower_median(np.diff(count)), 1)
            name = {1: "month", 3: "quarter", 12: "year"}.get(length, f"{length} months")
            if length:
                yield name, count / length
        may_skip_weekends = step == "weekday" or not step and seconds == DAY
        if may_skip_weekends and np.is_busday(dates).all():
            yield "weekday", np.busday_count(dates[0], dates).astype(float)
    if not step_months(step) and step != "weekday":
        yield step or f"{seconds:.12g}", elapsed / float(step or seconds)


def _lower_median(steps: np.ndarray):
    return np.quantile(steps, 0.5, method="lower").item()


def _split_dates(times):
    """Returns dates and months of times, and the days before and after them in their months."""
    dates = np.floor(np.asarray(times) / DAY).astype(np.int64).astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    days_before, days_after = (
        np.abs(dates - _days_of_months(months, day)).astype(int) for day in ("1", "end")
    )
    return dates, months, days_before, days_after


def _days_of_months(months: np.ndarray, day: str) -> np.ndarray:
    """Returns a day, as `Calendar.day`, of each month."""
    first, one_day = months.astype("datetime64[D]"), np.timedelta64(1, "D")
    last = (months + np.timedelta64(1, "M")).astype("datetime64[D]") - one_day
    if day == "weekday begin":
        return np.busday_offset(first, 0, roll="forward")
    if day == "weekday end":
        return np.busday_offset(last, 0, roll="backward")
    return last if day == "end" else np.minimum(first + (int(day) - 1) * one_day, last)


def _day(times: np.ndarray, step: str) -> str:
    """Returns `Calendar.day` of times."""
    dates, months, days_before, days_after = _split_dates(times)
    if not step_months(step):
        return ""
    if (days_after == 0).all():
        return "end"
    for name in ("weekday end", "weekday begin") if np.ptp(days_before) else ():
        if (_days_of_months(months, name) == dates).all():
            return name
    return str(days_before.max() + 1)


def step_months(step: str) -> int:
    """Returns the months of a step, 0 for another unit."""
    return MONTHS.get(step) or (int(step.split()[0]) if step.endswith("months") else 0)


def _remove_daylight_saving(times, zone: str, step: str) -> tuple[np.ndarray, str]:
    """Returns (times in UTC, zone whose clock explains missing and repeated hours), or (times, "")
    without such a zone. zone: that of the training data, or ""."""
    best, fewest = (times, ""), _count_gaps(times, step)
    if not fewest and not zone or np.median(np.abs(np.diff(times))) >= DAY:
        return best
    for name in (zone,) if zone else ZONES:
        for utc in _to_utc(times, name):
            if (gaps := _count_gaps(utc, step)) < fewest or zone and gaps == fewest:
                best, fewest = (utc, name), gaps
    return best


def _to_utc(times: np.ndarray, zone: str) -> Iterator[np.ndarray]:
    """Yields a zone's local times in UTC, by both readings of an ambiguous hour that is there
    once. Yields nothing for times that do not exist in the zone."""
    is_reversed = times[0] > times[-1]
    times = times[::-1] if is_reversed else times
    clock = pa.array(np.round(times * 1e6).astype(np.int64)).cast(pa.timestamp("us"))
    try:
        first, second = (
            pc.assume_timezone(clock, zone, ambiguous=side, nonexistent="raise")
            .cast(pa.int64()).to_numpy() / 1e6 for side in ("earliest", "latest")
        )  # fmt: skip
    except (pa.ArrowInvalid, pa.ArrowKeyError):  # no such hour; no time zone database
        return
    _, index, inverse, counts = np.unique(times, True, True, True)
    utc = np.where(np.isin(np.arange(len(times)), index), first, second)  # the later hour second
    for unique in (first, second):
        reading = np.where(counts[inverse] > 1, utc, unique)
        yield reading[::-1] if is_reversed else reading


def _format_step(step: str, zone: str = "") -> str:
    """Returns "7 days", for "one row every ..."."""
    if step == "weekday":
        return "day without weekends"
    if step_months(step):
        return step
    seconds = float(step)
    if zone == COUNT:
        return f"{seconds:g}"
    units = (("day", DAY), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))
    name, length = next((unit for unit in units if seconds >= unit[1]), units[-1])
    return name if seconds == length else f"{seconds / length:g} {name}s"


def _format_time(seconds: float, zone: str = "", hours: bool = False) -> str:
    """Returns a time in its zone; a date at midnight, unless hours is True."""
    if zone == COUNT:
        return f"{seconds:.12g}"
    if zone not in ("", "UTC"):
        clock = datetime.fromtimestamp(seconds, UTC).astimezone(zoneinfo.ZoneInfo(zone))
        return clock.replace(tzinfo=None).isoformat()
    time = np.datetime64(round(seconds * 1000), "ms")
    if seconds % DAY == 0 and not zone and not hours:
        return str(time.astype("datetime64[D]"))
    return str(time if seconds % 1 else time.astype("datetime64[s]")) + ("Z" if zone else "")
