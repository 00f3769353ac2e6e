"""Formats of times: the way that a column writes them, inferred once from its cells.

Day first or month first is decided by the reading that is valid in all cells, in a series also by
the one with regular steps. In a series nothing else may decide: it is refused. In a table the usual
order is assumed (month first with a slash, else day first), which `TimeFormat.assumed` states.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data.calendars import COUNT, DAY, regular_rows
from dlflax.data.numbers import MISSING
from dlflax.errors import InputError

NAMES = ("january", "february", "march", "april", "may", "june", "july", "august", "september",
         "october", "november", "december")  # fmt: skip
_Y, _YY, _M, _D = r"(?P<Y>\d{4})", r"(?P<y>\d\d)", r"(?P<m>\d\d?)", r"(?P<d>\d\d?)"
_B, _Q, _ = r"(?P<b>[a-z]{3,9})\.?", r"(?P<q>[1-4])", r"[ .,/-]{0,2}"
_OF_MONTH, _WEEKDAY = r"(?P<d>\d\d?)(?:st|nd|rd|th)?", r"(?:[a-z]{3,9},? )?"
_CLOCK = (
    r"(?:[t ,:]+(?P<H>\d\d?)(?:[:.]?(?P<M>\d\d)(?:[:.]?(?P<S>\d\d)(?:[.,](?P<f>\d{1,9}))?)?)?"
    r" ?(?P<p>[ap]\.?m\.?)?(?: ?(?P<z>z|utc|gmt|[+-]\d\d(?::?\d\d)?))?)?"
)
CLOCK = "14:30"  # a time of any day, in a table
# an example of the last day of 2024 -> its pattern; of two that fit a table the first is assumed
DATES = {
    **{f"2024{s}12{s}31": f"{_Y}[{s}]{_M}[{s}]{_D}{_CLOCK}" for s in "-/. "},
    "12/31/2024": f"{_M}/{_D}/{_Y}{_CLOCK}",
    **{f"31{s}12{s}2024": f"{_D}[{s}]{_M}[{s}]{_Y}{_CLOCK}" for s in "-/. "},
    "12-31-2024": f"{_M}-{_D}-{_Y}{_CLOCK}",
    "12/31/24": f"{_M}/{_D}/{_YY}{_CLOCK}",
    **{f"31{s}12{s}24": f"{_D}[{s}]{_M}[{s}]{_YY}{_CLOCK}" for s in "-/."},
    "12-31-24": f"{_M}-{_D}-{_YY}{_CLOCK}",
    **{f"24{s}12{s}31": f"{_YY}[{s}]{_M}[{s}]{_D}{_CLOCK}" for s in "-/"},
    "20241231": rf"{_Y}(?P<m>\d\d)(?P<d>\d\d){_CLOCK}",
    "20241231235959": rf"{_Y}(?P<m>\d\d)(?P<d>\d\d)(?P<H>\d\d)(?P<M>\d\d)(?P<S>\d\d)?",
    "31 Dec 2024": f"{_WEEKDAY}{_OF_MONTH}{_}{_B}{_}{_Y}{_CLOCK}",
    "Dec 31, 2024": f"{_WEEKDAY}{_B}{_}{_OF_MONTH}[ .,/-]+{_Y}{_CLOCK}",
    "2024 Dec 31": f"{_Y}{_}{_B}{_}{_D}{_CLOCK}",
    "31-Dec-24": f"{_OF_MONTH}{_}{_B}{_}'?{_YY}{_CLOCK}",
    "2024-W52-2": rf"{_Y}-?w(?P<w>\d\d)-?(?P<u>[1-7]){_CLOCK}",
    "2024-366": rf"{_Y}-(?P<j>\d{{3}}){_CLOCK}",
    **{f"2024{s}12": f"{_Y}[{s}]{_M}" for s in "-/. "},
    **{f"12{s}2024": f"{_M}[{s}]{_Y}" for s in "-/. "},
    "2024M12": f"{_Y}[ -]?m{_M}",
    "202412": rf"{_Y}(?P<m>\d\d)",
    "Dec 2024": f"{_B}{_}{_Y}",
    "2024 Dec": f"{_Y}{_}{_B}",
    "Dec-24": f"{_B}[./'-]{{1,2}}{_YY}",
    "2024Q4": f"{_Y}[ /-]?q{_Q}",
    "Q4 2024": f"q{_Q}[ /-]?{_Y}",
    "4Q2024": f"{_Q} ?q[ /-]?{_Y}",
    "Q4 24": f"q{_Q}[ /'-]*{_YY}",
    "4Q24": f"{_Q} ?q[ /'-]*{_YY}",
    "2024 4": f"{_Y} {_Q}",
    "2024-W52": rf"{_Y}-?w(?P<w>\d\d)",
    "2024 52": rf"{_Y} w?(?P<w>\d\d?)",
    "2024": r"(?P<Y>[12]\d{3})(?:[.,]0+)?",
    CLOCK: r"(?P<H>\d\d?):(?P<M>\d\d)(?::(?P<S>\d\d)(?:[.,](?P<f>\d{1,9}))?)?"
    r" ?(?P<p>[ap]\.?m\.?)?",
}
DECIMAL_YEARS = ("2024.917", "2024.9986")  # by months, by days
EPOCHS = {f"1735603200{zeros}": 10.0 ** len(zeros) for zeros in ("", "0" * 3, "0" * 6, "0" * 9)}
NUMBER = r"^[-+]?\d+(?:[.,]\d+)?$"


@dataclasses.dataclass(frozen=True)
class TimeFormat:
    """The way that a column writes its times."""

    date: str
    """An example: a key of DATES or EPOCHS, one of DECIMAL_YEARS, or COUNT for numbers of rows."""
    clock: str = ""
    """"12" or "24" where there are hours: all with AM or PM, or none; "" allows both."""
    zone: str = ""
    """"": without offsets, or UTC; "UTC": with offsets, applied; "local": with offsets, cut."""
    missing: tuple[str, ...] = MISSING
    """Cells without a time, in small letters."""
    assumed: str = ""
    """The other reading of the training data, where nothing in them decides."""

    def __post_init__(self):
        if self.date not in (*DATES, *EPOCHS, *DECIMAL_YEARS, COUNT):
            raise InputError(f"{self.date!r} is not a format of times.")

    def parse(self, cells: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (seconds since 1970 in UTC, float64 (n,), NaN where a cell has no time; bool
        (n,), True where it is none of `missing` either). cells: strings or Arrow's."""
        texts = _as_texts(cells)
        if self.date == "2024-12-31" and self.clock != "12" and not self.zone:
            with contextlib.suppress(pa.ArrowInvalid):  # Arrow reads most of ISO 8601 at once
                known = pa.array(~_is_missing(texts, self.missing))
                times = pc.if_else(known, texts, None).cast(pa.timestamp("us")).cast(pa.int64())
                seconds = times.cast(pa.float64()).to_numpy(zero_copy_only=False) / 1e6
                return seconds, np.zeros(len(texts), bool)
        seconds = self._numbers(texts) if self.date not in DATES else self._seconds(texts)
        return seconds, np.isnan(seconds) & ~_is_missing(texts, self.missing)

    def describe(self) -> str:
        """Returns an example: "31/12/2024 14:30"."""
        clock = {"": "", "24": " 14:30", "12": " 02:30 PM"}[self.clock]
        return (clock.strip() if self.date == CLOCK else self.date + clock) + (
            "+01:00" if self.zone else ""
        )

    def _numbers(self, texts) -> np.ndarray:
        """Returns seconds, float64 (n,), of epochs and decimal years; NaN for other cells."""
        number = pc.if_else(pc.match_substring_regex(texts, NUMBER), texts, None)
        number = pc.replace_substring(number, ",", ".").cast(pa.float64())
        number = number.to_numpy(zero_copy_only=False)
        if self.date == COUNT:
            return number
        if self.date in EPOCHS:
            number = number / EPOCHS[self.date]
            return np.where((number > 3e8) & (number < 4.2e9), number, np.nan)  # 1979 to 2103
        number = np.where((number >= 1000) & (number < 3000), number, np.nan)
        if self.date == DECIMAL_YEARS[0]:  # .083 is February, so is .125, its middle
            return _start_of_month(0.0, np.floor(12 * number + 0.07) + 1)
        year = np.floor(number)
        begin, end = _start_of_month(year, 1.0), _start_of_month(year + 1, 1.0)
        return begin + DAY * np.floor((number - year) * (end - begin) / DAY + 0.05)

    def _seconds(self, texts) -> np.ndarray:
        """Returns seconds, float64 (n,), of dates; NaN for other cells."""
        fields = pc.extract_regex(texts, pattern=f"(?i)^{DATES[self.date]}$")
        names = {field.name for field in fields.type}

        def part(name, default, convert=float):
            if name not in names:
                return np.full(len(texts), default)
            column = pc.fill_null(pc.struct_field(fields, name), "").dictionary_encode()
            table = [convert(text) if text else default for text in column.dictionary.to_pylist()]
            return np.array([*table, math.nan])[column.indices.to_numpy()]

        year = part("Y", math.nan) if "Y" in names else part("y", math.nan, _year)
        year = 1970 + 0 * part("H", math.nan) if self.date == CLOCK else year
        month = part("b", math.nan, _month) if "b" in names else part("m", 1.0)
        month = 3 * part("q", 1.0) - 2 if "q" in names else month
        month = np.where((month >= 1) & (month <= 12), month, np.nan)
        begin, day = _start_of_month(year, month), part("d", 1.0) - 1
        end = _start_of_month(year, month + 1)
        if "j" in names:
            day, end = part("j", math.nan) - 1, _start_of_month(year + 1, month)
        if "w" in names:  # the week with the year's fourth day is its first
            fourth = begin + 3 * DAY
            day = (part("w", math.nan) - 1) * 7 + part("u", 1.0) - 1
            begin = fourth - (fourth // DAY + 3) % 7 * DAY
            fourth = _start_of_month(year + 1, month) + 3 * DAY
            end = fourth - (fourth // DAY + 3) % 7 * DAY
        date = begin + DAY * day
        date[~((date < end) & (day >= 0))] = np.nan
        return date + self._clock(part)

    def _clock(self, part) -> np.ndarray:
        """Returns the seconds after midnight in UTC, float64 (n,); NaN for cells that are wrong or
        do not show what those of this format show."""
        hour, minute, second = part("H", -1.0), part("M", 0.0), part("S", 0.0)
        half = part("p", -1.0, lambda text: 12.0 * (text[0] in "pP"))
        offset = part("z", math.nan, _offset)
        bare = np.isnan(offset)
        clock = np.where(half >= 0, hour % 12 + half, hour)
        wrong = (half >= 0) & ((hour < 1) | (hour > 12)) | (minute > 59) | (second > 60)
        wrong |= (hour > 24) | (hour == 24) & (minute + second > 0)
        if self.clock:
            wrong |= (hour >= 0) & ((half < 0) == (self.clock == "12"))
        wrong |= bare if self.zone else ~bare & (offset != 0)
        fraction = part("f", 0.0, lambda text: float(f"0.{text}"))
        seconds = 3600 * np.maximum(clock, 0) + 60 * minute + second + fraction
        if self.zone == "UTC":
            seconds -= np.where(bare, 0, offset)
        return np.where(wrong, np.nan, seconds)


def infer_times(cells: Sequence[str], regular: bool = False) -> TimeFormat | None:
    """Returns the one format of times that all cells have, but for those without a value; None
    where they have none. regular: the cells are those of a series; else plain numbers are no times.
    Raises InputError where the cells of a series have two readings, and no one is regular."""
    texts = _as_texts(cells)
    texts = texts.filter(pa.array(~_is_missing(texts, MISSING)))
    if not len(texts):
        return None
    sample = texts.take(pa.array(np.unique(np.linspace(0, len(texts) - 1, 200).astype(int))))
    plain = all(pc.all(pc.match_substring_regex(t, NUMBER)).as_py() for t in (sample, texts))
    if plain and not regular:
        return None
    readings: list[tuple[TimeFormat, np.ndarray]] = []
    for date in (*DATES, *((*EPOCHS, *DECIMAL_YEARS) if plain else ())):
        if date == (CLOCK if regular else "2024-366"):
            continue  # in a table 2024-001 may be the number of an invoice
        form = _format_of(date, sample)
        seconds, wrong = form.parse(texts) if form else (None, None)
        if form and wrong.any():
            form = _format_of(date, texts)
            seconds = form.parse(texts)[0] if form else None
        if form and not any(np.array_equal(seconds, other) for _, other in readings):
            readings.append((form, seconds))
    if plain:  # counts of something, unless they are regular
        readings = [
            pair for pair in readings if pair[0].date == "20241231" or is_time_axis(pair[1])
        ]
        readings = sorted(readings, key=lambda pair: -len(np.unique(pair[1])))[:1]
    for likely in (_is_regular, _is_monotone) if regular else ():
        if len(readings) > 1:
            readings = [pair for pair in readings if likely(pair[1])] or readings
    if any(pair[0].date == "2024 12" for pair in readings):  # a month, rather than a week
        readings = [pair for pair in readings if pair[0].date not in ("2024 4", "2024 52")]
    if len(readings) < 2:
        return readings[0][0] if readings else None
    first, other = readings[0][0], readings[1][0]
    if regular:
        raise InputError(
            f"times such as {texts[0].as_py()!r} may be written as {first.describe()} or as "
            f"{other.describe()}, and nothing decides: write them as 2024-12-31."
        )
    return dataclasses.replace(first, assumed=other.describe())


def _format_of(date: str, texts) -> TimeFormat | None:
    """Returns the format with that date of all texts; None where they have another."""
    if date not in DATES:
        form = TimeFormat(date)
        return None if form.parse(texts)[1].any() else form
    if not re.fullmatch(DATES[date], texts[0].as_py(), re.IGNORECASE):  # most of them end here
        return None
    fields = pc.extract_regex(texts, pattern=f"(?i)^{DATES[date]}$")
    if fields.null_count:
        return None
    names = {field.name for field in fields.type}
    some = {name: pc.unique(pc.struct_field(fields, name)).to_pylist() if name in names else []
            for name in "Hpz"}  # fmt: skip
    clock = "12" if any(some["p"]) else "24" if any(some["H"]) else ""
    zone = "UTC" if any(text and _offset(text) for text in some["z"]) else ""
    form = TimeFormat(date, clock, zone)
    return None if form.parse(texts)[1].any() else form


def _as_texts(cells):
    """Returns the cells as one Arrow array of strings, without blanks around them."""
    if isinstance(cells, pa.ChunkedArray):
        cells = cells.combine_chunks()
    texts = cells if isinstance(cells, pa.Array) else pa.array(cells, pa.string())
    return pc.utf8_trim_whitespace(pc.fill_null(texts.cast(pa.string()), ""))


def _is_missing(texts, missing) -> np.ndarray:
    marks = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(missing, pa.string()))
    return marks.to_numpy(zero_copy_only=False)


def _year(text: str) -> float:
    """Returns the year of two digits, 1969 to 2068, as POSIX has it."""
    return float(text) + (1900 if int(text) > 68 else 2000)


def _month(text: str) -> float:
    """Returns the number of an English month, maybe shortened; NaN for other words."""
    short = text.lower()
    fit = [i for i, name in enumerate(NAMES, 1) if short in (name, name[:3], name[:4])]
    return float(fit[0]) if fit else math.nan


def _offset(text: str) -> float:
    """Returns the seconds that a clock is ahead of UTC."""
    if text[0] not in "+-":
        return 0.0
    digits = text[1:].replace(":", "").ljust(4, "0")
    seconds = 3600.0 * int(digits[:2]) + 60.0 * int(digits[2:])
    return -seconds if text[0] == "-" else seconds


def _start_of_month(year, month) -> np.ndarray:
    """Returns seconds, float64 (n,), NaN where the year or the month is; months count on."""
    count = 12.0 * (np.asarray(year) - 1970) + month - 1
    months = np.where(np.isnan(count), 0, count).astype(np.int64).astype("datetime64[M]")
    seconds = months.astype("datetime64[s]").astype(np.int64).astype(np.float64)
    return np.where(np.isnan(count), np.nan, seconds)


def _is_regular(seconds) -> bool:
    return regular_rows(np.unique(seconds[~np.isnan(seconds)])) is not None


def _is_monotone(seconds) -> bool:
    steps = np.diff(seconds[~np.isnan(seconds)])
    return bool((steps >= 0).all() or (steps <= 0).all())


def is_time_axis(seconds: np.ndarray) -> bool:
    """True if times, float64 (n,), are regular, and there once each or, but for few, in order."""
    steps = np.diff(seconds)
    turns = min((steps < 0).sum(), (steps > 0).sum())
    unique = len(np.unique(seconds)) == len(seconds)
    return len(seconds) > 2 and (unique or turns < len(steps) / 4) and _is_regular(seconds)
