"""The columns of a table, fitted on its training rows: each turns cells into inputs of a model.

A number becomes its piecewise-linear encoding (Gorishniy et al. 2022) over quantiles, and a missing
one the median and an input that says so; a category becomes one-hot, a level that is rare or new
"other", a missing one a level of its own; a time its parts of the calendar and the time elapsed;
free text the words in it, hashed (Weinberger et al. 2009).
"""

import abc
import dataclasses
import re
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data.numbers import MISSING, NO_NUMBER, NumberFormat, column_numbers
from dlflax.data.raw_table import as_texts
from dlflax.data.target import match_levels
from dlflax.data.times import CLOCK, TimeFormat

HASHES = 64  # inputs of a column of free text
DAY = 86_400.0  # seconds


class Column(abc.ABC):
    """A column that the model reads. A frozen dataclass, saved as JSON."""

    name: str

    @abc.abstractmethod
    def parse(self, cells: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns (float64 (n, raw_width), NaN where a value is missing; bool (n,), True for cells
        of another kind). cells: a column of a `RawTable`."""

    @abc.abstractmethod
    def raw_width(self) -> int:
        """Returns how many numbers `parse` makes of a cell."""

    @abc.abstractmethod
    def width(self) -> int:
        """Returns how many inputs `encode` makes of a cell."""

    @abc.abstractmethod
    def encode(self, raw: Any, xp: Any) -> Any:
        """Returns the inputs (n, width) of what `parse` made."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the type, the format, an example or levels, for the table of columns."""


@dataclasses.dataclass(frozen=True)
class NumberColumn(Column):
    """A column of numbers: standardized, and how far each piece between quantiles is filled."""

    name: str
    format: NumberFormat
    median: float
    mean: float
    scale: float
    edges: tuple[float, ...]
    """Quantiles, ascending; () without pieces."""
    missing: bool
    """True if training rows had missing values."""

    @classmethod
    def fit(cls, name: str, values: np.ndarray, bins: int, form: NumberFormat) -> "NumberColumn":
        """Returns the column of these training values, float64 (n,), NaN where one is missing."""
        known = values[~np.isnan(values)]
        shares = np.linspace(0, 1, bins + 1)
        *edges, median = np.quantile(known, [*shares, 0.5]) if bins else (np.median(known),)
        edges, mean = np.unique(edges), float(known.mean())
        scale = float(known.std())
        if scale <= 1e-9 * abs(mean):  # of nothing but rounding
            scale = 1.0
        edges = tuple(edges.tolist()) if len(edges) > 2 else ()
        return cls(name, form, float(median), mean, scale, edges, len(known) < len(values))

    def parse(self, cells):
        values, wrong = column_numbers(cells, self.format)
        return values[:, None], wrong

    def raw_width(self):
        return 1

    def width(self):
        return 1 + max(0, len(self.edges) - 1) + self.missing

    def encode(self, raw, xp):
        """Returns (n, width): the standardized value, the filled share of each piece, and 1 where
        it is missing."""
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
        return {
            "type": "number", "format": self.format.describe(), "median": self.median,
            "note": _note("numbers", self.format.missing),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CategoryColumn(Column):
    """A column of categories: one-hot over its levels, any other, and a missing one."""

    name: str
    levels: tuple[str, ...]
    missing: bool
    """True if training rows had missing values."""
    missing_marks: tuple[str, ...] = MISSING
    """Cells without a value, in small letters."""
    rare: int = 0
    """Other texts of the training rows, which are read as "other"."""

    def parse(self, cells):
        """Returns the place of each cell's level, counted from 1, 0 for any other."""
        coded = isinstance(cells, pa.DictionaryArray)
        texts = cells if coded else as_texts(cells).dictionary_encode()
        names = texts.dictionary.to_pylist()
        places = match_levels(names, self.levels) + 1.0
        places[[name.lower() in self.missing_marks for name in names]] = np.nan
        return places[texts.indices.to_numpy()][:, None], np.zeros(len(texts), bool)

    def raw_width(self):
        return 1

    def width(self):
        return len(self.levels) + 1 + self.missing

    def encode(self, raw, xp):
        """Returns (n, width): one-hot over the levels, other, and missing."""
        numbers, levels = raw[:, 0], len(self.levels)
        # other is 0 there and behind the levels here; a missing one is nothing where none was known
        place = xp.where(xp.isnan(numbers), levels + 1, xp.where(numbers == 0, levels, numbers - 1))
        return (place[:, None] == np.arange(self.width())[None]).astype(numbers.dtype)

    def describe(self):
        return {
            "type": "category", "format": "", "levels": list(self.levels),
            "missing_marks": list(self.missing_marks),
            "note": ", ".join(self.levels[:4])
            + (f"; other: {self.rare:,} rarer" if self.rare else ""),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TimeColumn(Column):
    """A column of times: the time elapsed, the year, month, day of the week, and time of day."""

    name: str
    format: TimeFormat
    elapsed: NumberColumn
    """In days since 1970."""
    year: NumberColumn

    @classmethod
    def fit(cls, name: str, seconds: np.ndarray, bins: int, form: TimeFormat) -> "TimeColumn":
        """Returns the column of these training times, as `column_times` has them."""
        raw = _calendar(seconds)
        plain = NumberFormat()
        elapsed = NumberColumn.fit(f"{name}: elapsed", raw[:, 0], bins, plain)
        return cls(name, form, elapsed, NumberColumn.fit(f"{name}: year", raw[:, 1], 0, plain))

    def parse(self, cells):
        """Returns days since 1970, the year, month 1 to 12, day of the week 0 (Monday) to 6, and
        the share of the day."""
        seconds, wrong = column_times(cells, self.format)
        return _calendar(seconds), wrong

    def raw_width(self):
        return 5

    def width(self):
        return self.elapsed.width() + self.year.width() + 12 + 7 + 1

    def encode(self, raw, xp):
        months = (raw[:, 2:3] == np.arange(1.0, 13.0)[None]).astype(raw.dtype)
        days = (raw[:, 3:4] == np.arange(7.0)[None]).astype(raw.dtype)
        times = xp.where(xp.isnan(raw[:, 4:5]), 0, raw[:, 4:5])
        elapsed = self.elapsed.encode(raw[:, :1], xp)
        return xp.concatenate([elapsed, self.year.encode(raw[:, 1:2], xp), months, days, times], 1)

    def describe(self):
        note = _note("times", self.format.missing)
        return {"type": "time", "format": self.format.describe(), "note": note}


@dataclasses.dataclass(frozen=True)
class TextColumn(Column):
    """A column of free text: its words, counted on HASHES numbers. The CRC-32 of a word decides on
    which of them, and with what sign."""

    name: str

    def parse(self, cells):
        raw = np.zeros((len(cells), HASHES))
        places: dict[str, tuple[int, float]] = {}
        for i, text in enumerate(as_texts(cells).to_pylist()):
            for word in re.findall(r"\w+", text.lower()):
                if word not in places:
                    code = zlib.crc32(word.encode(errors="replace"))
                    places[word] = code % HASHES, 1.0 if code >> 31 else -1.0
                place, sign = places[word]
                raw[i, place] += sign
        length = np.sqrt((raw**2).sum(1, keepdims=True))
        return raw / np.maximum(length, 1.0), np.zeros(len(raw), bool)

    def raw_width(self):
        return HASHES

    def width(self):
        return HASHES

    def encode(self, raw, xp):
        return raw

    def describe(self):
        return {"type": "text", "format": "", "note": "its words, hashed"}


def _note(what: str, missing: tuple[str, ...]) -> str:
    odd = [cell for cell in missing if cell not in NO_NUMBER]
    return f"no {what}: {', '.join(odd)}" if odd else ""


def column_times(cells: Any, form: TimeFormat) -> tuple[np.ndarray, np.ndarray]:
    """Returns (seconds since 1970 in UTC, float64 (n,), NaN where one is missing; bool (n,), True
    where it is no time). cells: texts in this format, or typed values."""
    if isinstance(cells, pa.Array) and pa.types.is_temporal(cells.type):
        zone = getattr(cells.type, "tz", None)
        micro = cells.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
        seconds = pc.divide(pc.cast(micro, pa.float64()), 1e6).to_numpy(zero_copy_only=False)
        # of a clock whose zone is known, or is not, where it was the other way round in training
        wrong = np.isfinite(seconds) & (zone is None if form.zone else zone not in (None, "UTC"))
        return np.where(wrong, np.nan, seconds), wrong
    texts = as_texts(cells)
    seconds, wrong = form.parse(texts)
    if wrong.any() and form.date != CLOCK:  # ISO 8601, as JSON has it, is one thing in every file
        iso, other = dataclasses.replace(form, date="2024-12-31", clock="").parse(texts)
        seconds, wrong = np.where(wrong, iso, seconds), wrong & other
    return seconds, wrong


def _calendar(seconds: np.ndarray) -> np.ndarray:
    """float64 (n, 5), as `TimeColumn.parse` has it."""
    known = np.isfinite(seconds)
    whole = np.where(known, seconds, 0).astype("datetime64[s]")
    days = whole.astype("datetime64[D]")
    months = days.astype("datetime64[M]").astype(int)
    raw = np.stack([
        seconds / DAY, 1970 + months // 12, months % 12 + 1, (days.astype(int) + 3) % 7,
        (whole - days) / np.timedelta64(86_400, "s"),
    ], 1).astype(np.float64)  # fmt: skip
    raw[~known] = np.nan
    return raw
