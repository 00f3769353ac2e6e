"""Time formats of columns, inferred once from the cells and saved with the encoder.

Valid dates decide between day first and month first, in a series also regular steps. An ambiguous
series is refused; an ambiguous column of a table has the first of the possible formats in DATES.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data.table.calendars import COUNT, DAY, regular_rows
from dlflax.data.table.number_formats import MISSING
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
CLOCK = "14:30"  # a time of day, in a table
# the last day of 2024 -> pattern
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
    """The time format of a column."""

    date: str
    """Example: a key of DATES or EPOCHS, one of DECIMAL_YEARS, or COUNT for row numbers."""
    clock: str = ""
    """"12" or "24" where there are hours: all with AM or PM, or none; "" allows both."""
    zone: str = ""
    """"": without offsets, or UTC; "UTC": with offsets, applied; "local": with offsets, ignored."""
    missing: tuple[str, ...] = MISSING
    """Missing values, in lower case."""
    assumed: str = ""
    """Another format that the training data have, too, if they are ambiguous."""

    def __post_init__(self):
        if self.date not in (*DATES, *EPOCHS, *DECIMAL_YEARS, COUNT):
            raise InputError(f"{self.date!r} is not a format of times.")

    def parse(self, cells: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (seconds since 1970 in UTC, float64 (n,), NaN for cells without a time; bool
        (n,), True for those that are not `missing`). cells: strings or Arrow texts."""
        texts = _as_texts(cells)
        is_missing = _is_missing(texts, self.missing)
        if self.date == "2024-12-31" and self.clock != "12" and not self.zone:
            with contextlib.suppress(pa.ArrowInvalid):  # Arrow parses most of ISO 8601, faster
                known = pc.if_else(pa.array(is_missing), None, texts)
                times = known.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64())
                return np.asarray(times) / 1e6, np.zeros(len(texts), bool)
        seconds = self._parse_numbers(texts) if self.date not in DATES else self._parse_dates(texts)
        return seconds, np.isnan(seconds) & ~is_missing

    def describe(self) -> str:
        """Returns an example: "31/12/2024 14:30"."""
        clock = {"": "", "24": " 14:30", "12": " 02:30 PM"}[self.clock]
        text = clock.strip() if self.date == CLOCK else self.date + clock
        return text + ("+01:00" if self.zone else "")

    def _parse_numbers(self, texts) -> np.ndarray:
        """Returns seconds, float64 (n,), of epochs and decimal years; NaN for other cells."""
        texts = pc.if_else(pc.match_substring_regex(texts, NUMBER), texts, None)
        texts = pc.replace_substring(texts, ",", ".")
        numbers = np.asarray(texts.cast(pa.float64()))
        if self.date == COUNT:
            return numbers
        if self.date in EPOCHS:
            numbers = numbers / EPOCHS[self.date]
            return np.where((numbers > 3e8) & (numbers < 4.2e9), numbers, np.nan)  # 1979 to 2103
        numbers = np.where((numbers >= 1000) & (numbers < 3000), numbers, np.nan)
        if self.date == DECIMAL_YEARS[0]:  # .083 is February, as is .125, its middle
            return _start_of_month(0.0, np.floor(12 * numbers + 0.07) + 1)
        year = np.floor(numbers)
        begin, end = _start_of_month(year, 1.0), _start_of_month(year + 1, 1.0)
        return begin + DAY * np.floor((numbers - year) * (end - begin) / DAY + 0.05)

    def _parse_dates(self, texts) -> np.ndarray:
        """Returns seconds, float64 (n,), of dates; NaN for other cells."""
        fields = pc.extract_regex(texts, pattern=f"(?i)^{DATES[self.date]}$")
        if fields.null_count == len(texts):  # most formats, when one is inferred
            return np.full(len(texts), math.nan)
        names = {field.name for field in fields.type}

        def part(name, default, convert=float):
            if name not in names:
                return np.full(len(texts), default)
            codes = pc.fill_null(pc.struct_field(fields, name), "").dictionary_encode()
            values = [convert(text) if text else default for text in codes.dictionary.to_pylist()]
            return np.array([*values, math.nan])[codes.indices.to_numpy()]

        year = part("Y", math.nan) if "Y" in names else part("y", math.nan, _year)
        if self.date == CLOCK:
            year = np.where(np.isnan(part("H", math.nan)), math.nan, 1970)
        month = part("b", math.nan, _month) if "b" in names else part("m", 1.0)
        month = 3 * part("q", 1.0) - 2 if "q" in names else month
        month = np.where((month >= 1) & (month <= 12), month, np.nan)
        day, begin, end = part("d", 1.0), _start_of_month(year, month), None
        if "j" in names:
            day, end = part("j", math.nan), _start_of_month(year + 1, month)
        elif "w" in names:
            day = 7 * (part("w", math.nan) - 1) + part("u", 1.0)
            begin, end = (_start_of_iso_year(_start_of_month(y, month)) for y in (year, year + 1))
        else:
            end = _start_of_month(year, month + 1)
        date = begin + DAY * (day - 1)
        date[~((date < end) & (day >= 1))] = np.nan
        return date + self._parse_clock(part)

    def _parse_clock(self, part) -> np.ndarray:
        """Returns seconds after midnight in UTC, float64 (n,); NaN for invalid cells, and for cells
        with another clock or zone."""
        hour, minute, second = part("H", -1.0), part("M", 0.0), part("S", 0.0)
        half_day = part("p", -1.0, lambda text: 12.0 * (text[0] in "pP"))
        offset = part("z", math.nan, _offset)
        has_half_day, is_bare = half_day >= 0, np.isnan(offset)
        wrong = has_half_day & ((hour < 1) | (hour > 12)) | (minute > 59) | (second > 60)
        wrong |= (hour > 24) | (hour == 24) & (minute + second > 0)
        if self.clock:
            wrong |= (hour >= 0) & (has_half_day != (self.clock == "12"))
        wrong |= is_bare if self.zone else ~is_bare & (offset != 0)
        hour = np.where(has_half_day, hour % 12 + half_day, np.maximum(hour, 0))
        fraction = part("f", 0.0, lambda text: float(f"0.{text}"))
        seconds = 3600 * hour + 60 * minute + second + fraction
        if self.zone == "UTC":
            seconds -= np.nan_to_num(offset)
        return np.where(wrong, np.nan, seconds)


def infer_times(cells: Sequence[str], regular: bool = False) -> TimeFormat | None:
    """Returns the format of all cells that are not missing; None without a common one.

    regular: True for a series, of which plain numbers may be times. Raises InputError for a series
    with several possible formats, of which not one alone is regular."""
    texts = _as_texts(cells)
    texts = texts.filter(pa.array(~_is_missing(texts, MISSING)))
    if not len(texts):
        return None
    sample = texts.take(pa.array(np.unique(np.linspace(0, len(texts) - 1, 200).astype(int))))
    plain = all(pc.all(pc.match_substring_regex(t, NUMBER)).as_py() for t in (sample, texts))
    if plain and not regular:
        return None
    candidates: list[tuple[TimeFormat, np.ndarray]] = []
    for date in (*DATES, *((*EPOCHS, *DECIMAL_YEARS) if plain else ())):
        if date == (CLOCK if regular else "2024-366"):
            continue  # in a table 2024-001 may be an invoice number
        form = _infer_clock(date, sample)
        seconds, wrong = form.parse(texts) if form else (None, None)
        if form and wrong.any():
            form = _infer_clock(date, texts)
            seconds = form.parse(texts)[0] if form else None
        if form and not any(np.array_equal(seconds, other) for _, other in candidates):
            candidates.append((form, seconds))
    if plain:  # irregular numbers are counts or measurements
        candidates = [c for c in candidates if c[0].date == "20241231" or is_time_axis(c[1])]
        candidates = sorted(candidates, key=lambda c: -len(np.unique(c[1])))[:1]
    for is_likely in (_is_regular, _is_monotone) if regular else ():
        if len(candidates) > 1:
            candidates = [c for c in candidates if is_likely(c[1])] or candidates
    if any(form.date == "2024 12" for form, _ in candidates):  # months are likelier than weeks
        candidates = [c for c in candidates if c[0].date not in ("2024 4", "2024 52")]
    if len(candidates) < 2:
        return candidates[0][0] if candidates else None
    first, other = candidates[0][0], candidates[1][0]
    if regular:
        raise InputError(
            f"times such as {texts[0].as_py()!r} may be written as {first.describe()} or as "
            f"{other.describe()}, and nothing decides: write them as 2024-12-31."
        )
    return dataclasses.replace(first, assumed=other.describe())


def _infer_clock(date: str, texts) -> TimeFormat | None:
    """Returns a format with this date, and the clock and zone of the texts; None if any differs."""
    form = TimeFormat(date)
    if date in DATES:
        if not re.fullmatch(DATES[date], texts[0].as_py(), re.IGNORECASE):  # fast, for most dates
            return None
        fields = pc.extract_regex(texts, pattern=f"(?i)^{DATES[date]}$")
        names = {field.name for field in fields.type} & set("Hpz")
        parts = {name: pc.unique(pc.struct_field(fields, name)).to_pylist() for name in names}
        clock = "12" if any(parts.get("p", ())) else "24" if any(parts.get("H", ())) else ""
        zone = "UTC" if any(text and _offset(text) for text in parts.get("z", ())) else ""
        form = TimeFormat(date, clock, zone)
    return None if form.parse(texts)[1].any() else form


def _as_texts(cells):
    if isinstance(cells, pa.ChunkedArray):
        cells = cells.combine_chunks()
    texts = cells if isinstance(cells, pa.Array) else pa.array(cells, pa.string())
    return pc.utf8_trim_whitespace(pc.fill_null(texts.cast(pa.string()), ""))


def _is_missing(texts, missing) -> np.ndarray:
    return np.asarray(pc.is_in(pc.utf8_lower(texts), pa.array(missing, pa.string())))


def _year(text: str) -> float:
    """Returns the year of two digits, 1969 to 2068, as POSIX does."""
    return float(text) + (1900 if int(text) > 68 else 2000)


def _month(text: str) -> float:
    """Returns the number of an English month or its abbreviation; NaN for other words."""
    month = text.lower()
    numbers = (i for i, name in enumerate(NAMES, 1) if month in (name, name[:3], name[:4]))
    return float(next(numbers, math.nan))


def _offset(text: str) -> float:
    """Returns the offset from UTC in seconds."""
    if text[0] not in "+-":
        return 0.0
    digits = text[1:].replace(":", "").ljust(4, "0")
    return float(f"{text[0]}1") * (3600 * int(digits[:2]) + 60 * int(digits[2:]))


def _start_of_month(year, month) -> np.ndarray:
    """Returns seconds, float64 (n,), NaN for a year or month that is NaN; month 13 is January."""
    count = 12.0 * (np.asarray(year) - 1970) + month - 1
    months = np.where(np.isnan(count), 0, count).astype(np.int64).astype("datetime64[M]")
    seconds = months.astype("datetime64[s]").astype(np.int64).astype(np.float64)
    return np.where(np.isnan(count), np.nan, seconds)


def _start_of_iso_year(january) -> np.ndarray:
    """Returns the start of the week with January 4, float64 (n,). january: January 1."""
    fourth = january + 3 * DAY
    return fourth - (fourth // DAY + 3) % 7 * DAY


def _is_regular(seconds) -> bool:
    return regular_rows(np.unique(seconds[~np.isnan(seconds)])) is not None


def _is_monotone(seconds) -> bool:
    steps = np.diff(seconds[~np.isnan(seconds)])
    return bool((steps >= 0).all() or (steps <= 0).all())


def is_time_axis(seconds: np.ndarray) -> bool:
    """True if times, float64 (n,), are regular, and unique or mostly sorted."""
    steps = np.diff(seconds)
    reversals = min((steps < 0).sum(), (steps > 0).sum())
    is_unique = len(np.unique(seconds)) == len(seconds)
    return len(seconds) > 2 and (is_unique or reversals < len(steps) / 4) and _is_regular(seconds)
