"""Column encoders of a table, fitted on its training rows.

Numbers have a piecewise-linear encoding (Gorishniy et al. 2022) over quantiles; a missing number is
the median, with an indicator. Categories are one-hot; rare and new levels are "other", missing is a
level. Times are elapsed time and calendar features; free text is hashed words (Weinberger et al.
2009).
"""

import abc
import dataclasses
import functools
import re
import zlib
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data.table.calendars import DAY
from dlflax.data.table.number_formats import MISSING, NO_NUMBER, NumberFormat, column_numbers
from dlflax.data.table.raw_table import as_texts
from dlflax.data.table.time_formats import CLOCK, TimeFormat
from dlflax.data.target import match_levels

HASHES = 64  # inputs of a column of free text


class Column(abc.ABC):
    """A column of the model's inputs. A frozen dataclass, saved as JSON."""

    name: str
    raw_width: ClassVar[int] = 1
    """Raw values per cell."""

    @abc.abstractmethod
    def parse(self, cells: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns (float64 (n, raw_width), NaN for missing values; bool (n,), True for invalid
        cells). cells: a column of a `RawTable`."""

    def width(self) -> int:
        """Returns the number of inputs per cell."""
        return self.encode(np.full((1, self.raw_width), np.nan), np).shape[1]

    @abc.abstractmethod
    def encode(self, raw: Any, xp: Any) -> Any:
        """Returns the inputs (n, width) of raw values, as `parse` returns them."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns type, format, note, and an example or levels, for columns.csv."""


@dataclasses.dataclass(frozen=True)
class NumberColumn(Column):
    """A column of numbers: standardized, with a piecewise-linear encoding over quantiles."""

    name: str
    format: NumberFormat
    median: float
    mean: float
    scale: float
    edges: tuple[float, ...]
    """Quantiles, ascending; () without bins."""
    missing: bool
    """True if training rows had missing values."""

    @classmethod
    def fit(cls, name: str, values: np.ndarray, bins: int, form: NumberFormat) -> "NumberColumn":
        """Fits a column to training values, float64 (n,), NaN for missing ones."""
        known = values[~np.isnan(values)]
        shares = np.linspace(0, 1, bins + 1)
        *edges, median = np.quantile(known, [*shares, 0.5]) if bins else (np.median(known),)
        edges = tuple(np.unique(edges).tolist()) if len(set(edges)) > 2 else ()
        median, mean, scale = float(median), float(known.mean()), float(known.std())
        scale = 1.0 if scale <= 1e-9 * abs(mean) else scale  # rounding errors
        return cls(name, form, median, mean, scale, edges, len(known) < len(values))

    def parse(self, cells):
        values, wrong = column_numbers(cells, self.format)
        return values[:, None], wrong

    def encode(self, raw, xp):
        """Returns (n, width): standardized value, filled share of each bin, missing indicator."""
        values = raw[:, 0]
        missing = xp.isnan(values)
        values = xp.where(missing, self.median, values)
        parts = [xp.clip((values - self.mean) / self.scale, -10, 10)[:, None]]
        if self.edges:
            low, high = np.array([self.edges[:-1]]), np.array([self.edges[1:]])
            parts.append(xp.clip((values[:, None] - low) / (high - low), 0, 1))
        if self.missing:
            parts.append(missing[:, None].astype(values.dtype))
        return xp.concatenate(parts, 1)

    def describe(self):
        return {**_describe("number", self.format), "median": self.median}


@dataclasses.dataclass(frozen=True)
class CategoryColumn(Column):
    """A column of categories: one-hot over its levels, other, and missing."""

    name: str
    levels: tuple[str, ...]
    missing: bool
    """True if training rows had missing values."""
    missing_marks: tuple[str, ...] = MISSING
    """Missing values, in lower case."""
    rare: int = 0
    """Number of levels in the training rows that are "other"."""

    def parse(self, cells):
        """Returns the number of each cell's level, from 1; 0 is other."""
        if not isinstance(codes := cells, pa.DictionaryArray):
            codes = as_texts(cells).dictionary_encode()
        texts = codes.dictionary.to_pylist()
        numbers = match_levels(texts, self.levels) + 1.0
        numbers[[text.lower() in self.missing_marks for text in texts]] = np.nan
        return numbers[codes.indices.to_numpy()][:, None], np.zeros(len(codes), bool)

    def encode(self, raw, xp):
        """Returns (n, width): one-hot over the levels, other, and missing."""
        numbers, levels = raw[:, 0], len(self.levels)
        # "other" is behind the levels; missing is all zeros if training rows had no missing value
        index = xp.where(xp.isnan(numbers), levels + 1, xp.where(numbers == 0, levels, numbers - 1))
        inputs = np.arange(levels + 1 + self.missing)
        return (index[:, None] == inputs[None]).astype(numbers.dtype)

    def describe(self):
        rare = f"; other: {self.rare:,} rarer" if self.rare else ""
        return {
            "type": "category", "format": "", "levels": list(self.levels),
            "missing_marks": list(self.missing_marks), "note": ", ".join(self.levels[:4]) + rare,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TimeColumn(Column):
    """A column of times: elapsed time, year, month, day of the week, and time of day."""

    name: str
    format: TimeFormat
    elapsed: NumberColumn
    """Days since 1970."""
    year: NumberColumn
    raw_width: ClassVar[int] = 5

    @classmethod
    def fit(cls, name: str, seconds: np.ndarray, bins: int, form: TimeFormat) -> "TimeColumn":
        """Fits a column to training times, seconds as `column_times` returns them."""
        days, years = _calendar(seconds)[:, :2].T
        elapsed = NumberColumn.fit(f"{name}: elapsed", days, bins, NumberFormat())
        year = NumberColumn.fit(f"{name}: year", years, 0, NumberFormat())
        return cls(name, form, elapsed, year)

    def parse(self, cells):
        """Returns days since 1970, year, month from 1, weekday from 0, Monday, and share of day."""
        seconds, wrong = column_times(cells, self.format)
        return _calendar(seconds), wrong

    def encode(self, raw, xp):
        elapsed, year, month, day, time = (raw[:, i : i + 1] for i in range(5))
        return xp.concatenate([
            self.elapsed.encode(elapsed, xp),
            self.year.encode(year, xp),
            (month == np.arange(1.0, 13.0)[None]).astype(raw.dtype),
            (day == np.arange(7.0)[None]).astype(raw.dtype),
            xp.where(xp.isnan(time), 0, time),
        ], 1)  # fmt: skip

    def describe(self):
        return _describe("time", self.format)


@dataclasses.dataclass(frozen=True)
class TextColumn(Column):
    """A column of free text: counts of words, hashed into HASHES numbers with a sign by CRC-32."""

    name: str
    raw_width: ClassVar[int] = HASHES

    def parse(self, cells):
        @functools.cache
        def hash_word(word: str) -> tuple[int, float]:
            code = zlib.crc32(word.encode(errors="replace"))
            return code % HASHES, 1.0 if code >> 31 else -1.0

        raw = np.zeros((len(cells), HASHES))
        for i, text in enumerate(as_texts(cells).to_pylist()):
            for word in re.findall(r"\w+", text.lower()):
                index, sign = hash_word(word)
                raw[i, index] += sign
        norm = np.sqrt((raw**2).sum(1, keepdims=True))
        return raw / np.maximum(norm, 1.0), np.zeros(len(raw), bool)

    def encode(self, raw, xp):
        return raw

    def describe(self):
        return {"type": "text", "format": "", "note": "its words, hashed"}


def _describe(kind: str, form: NumberFormat | TimeFormat) -> dict[str, Any]:
    odd = [cell for cell in form.missing if cell not in NO_NUMBER]
    note = f"no {kind}s: {', '.join(odd)}" if odd else ""
    return {"type": kind, "format": form.describe(), "note": note}


def column_times(cells: Any, form: TimeFormat) -> tuple[np.ndarray, np.ndarray]:
    """Returns (seconds since 1970 in UTC, float64 (n,), NaN for missing times; bool (n,), True for
    cells that are no times). cells: texts in this format, or typed values."""
    if isinstance(cells, pa.Array) and pa.types.is_temporal(cells.type):
        zone = getattr(cells.type, "tz", None)
        micro = cells.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
        seconds = np.asarray(pc.divide(pc.cast(micro, pa.float64()), 1e6))
        # training times had a zone and these have none, or the other way round
        wrong = np.isfinite(seconds) & (zone is None if form.zone else zone not in (None, "UTC"))
        return np.where(wrong, np.nan, seconds), wrong
    texts = as_texts(cells)
    seconds, wrong = form.parse(texts)
    if wrong.any() and form.date != CLOCK:  # ISO 8601, as in JSON, is unambiguous
        iso, iso_wrong = dataclasses.replace(form, date="2024-12-31", clock="").parse(texts)
        seconds, wrong = np.where(wrong, iso, seconds), wrong & iso_wrong
    return seconds, wrong


def _calendar(seconds: np.ndarray) -> np.ndarray:
    """Returns float64 (n, 5), the raw values of `TimeColumn.parse`."""
    known = np.isfinite(seconds)
    times = np.where(known, seconds, 0).astype("datetime64[s]")
    days = times.astype("datetime64[D]")
    months = days.astype("datetime64[M]").astype(int)
    raw = np.stack([
        seconds / DAY, 1970 + months // 12, months % 12 + 1, (days.astype(int) + 3) % 7,
        (times - days) / np.timedelta64(86_400, "s"),
    ], 1).astype(np.float64)  # fmt: skip
    raw[~known] = np.nan
    return raw
