"""How the numbers of a column are written: inferred once from its cells, then applied for ever.

A comma or a point may be the decimal mark or part the thousands, so one cell alone may mean two
numbers ("1,234"). The cells of the column decide together, then the other columns of the file, then
its delimiter; what stays undecided is refused.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data.raw_table import RawTable, is_text
from dlflax.errors import InputError

MISSING = (  # cells without a value, in small letters
    "", "na", "n/a", "nan", "null", "none", "?", "-", "--", "\u2013", "\u2014", ".", "<na>", "#n/a",
    "#na", "n.a.", "nat",
)  # fmt: skip
NO_NUMBER = (  # and those that are none in a column of numbers
    *MISSING, "#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!", "n.d.", "nd", "k.a.",
    "k. a.", "missing", "unknown", "nil",
    *(sign + word for sign in ("", "+", "-") for word in ("inf", "infinity", "\u221e")),
)  # fmt: skip
SAMPLE = 2_000  # cells that tell texts from numbers, in a longer column
MAX_ODD = 0.02  # share of other cells that are no numbers in a column of numbers
DECIMALS = {".": ",", ",": "."}  # a decimal mark: the other one, which then parts thousands
_CODES = "EUR|USD|GBP|CHF|JPY|CNY|INR|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|RUB|TRY|KRW|MXN|ZAR"
_CURRENCY = rf"(?:[A-Z]{{0,2}}[$€£¥₹₽₩₺₫₪₴₦฿¢]|{_CODES}|Fr\.?|Rs\.?|kr\.?|zł|Kč)"
_POWER = r"[-+]?\d+e\d\d?"  # 1e3: what R's readr writes for 1000
_WORD = r"°?[^\W\d_]{1,12}[23²³]?"
_CELL = re.compile(
    rf"(?P<sign>[-+−]?)\s?(?P<before>{_CURRENCY})?\s?(?P<inner>[-+−]?)"
    r"(?P<body>[.,]?\d[\d.,'’\s]*(?:[eE][-+]?\d+)?)"
    rf"(?P<after>%|‰|{_CURRENCY}|{_WORD}(?:[ /]{_WORD})?)?"
)
_MINUS = re.compile(rf"({_CURRENCY})?\s?\((.+)\)|([\d.,'’\s]+)[-−]")  # of accountants
_BODY = {
    decimal: re.compile(
        rf"(?:\d+|(?:[1-9]\d{{0,2}}|\d(?=.*[{decimal}]))(?:[{other}]\d{{3}})+"
        r"|[1-9]\d{0,2}(['’\s])\d{3}(?:\1\d{3})*"
        rf"|[1-9]\d?(?:[{other}]\d\d)+[{other}]\d{{3}})?"  # as in India: 12,34,567
        # 3E2 may be a code; an exponent with a sign, or behind a fraction, is one
        rf"(?:[{decimal}]\d*(?:[eE][-+]?\d+)?|[eE][-+]\d+)?"
    )
    for decimal, other in DECIMALS.items()
}
# most cells, in columns of millions: integers, thousands or a fraction, and other fractions
_INTEGER = r"^[-+]?[0-9]+([eE][-+][0-9]+)?$"
_UNCLEAR = {mark: rf"^[-+]?[1-9][0-9]{{0,2}}[{mark}][0-9]{{3}}$" for mark in DECIMALS}
_PLAIN = {
    mark: rf"^[-+]?([0-9]+([{mark}][0-9]*)?|[{mark}][0-9]+)([eE][-+][0-9]+)?$" for mark in DECIMALS
}


@dataclasses.dataclass(frozen=True)
class NumberFormat:
    """The way that a column writes its numbers."""

    decimal: str = "."
    """A point or a comma; the other one may part thousands, as a blank or an apostrophe may."""
    unit: str = ""
    """A currency, %, kg or the like, before or behind every number."""
    missing: tuple[str, ...] = NO_NUMBER
    """Cells without a value, in small letters."""

    def __post_init__(self):
        if self.decimal not in DECIMALS:
            raise InputError(f"the decimal mark of numbers must be . or , but is {self.decimal!r}.")

    def parse(self, cells: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns (float64 (n,), NaN where a cell has no number; bool (n,), True where it is none
        of `missing` either). cells: texts, (n,)."""
        cells = cells if isinstance(cells, pa.Array) else pa.array(list(cells), pa.string())
        cells = cells.fill_null("") if cells.null_count else cells
        values = np.full(len(cells), math.nan)
        common = np.zeros(len(cells), bool)
        if not self.unit or re.fullmatch(_CURRENCY, self.unit):
            common = as_mask(pc.match_substring_regex(cells, _PLAIN[self.decimal]))
            texts = cells if common.all() else cells.filter(common)
            if self.decimal == ",":
                texts = pc.replace_substring(texts, ",", ".")
            values[common] = pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
        wrong = np.isinf(values)
        if not common.all():
            codes = cells.filter(~common).dictionary_encode()
            numbers = [self._number(cell) for cell in codes.dictionary.to_pylist()]
            at = codes.indices.to_numpy()
            values[~common] = np.array([math.nan if n is None else n for n in numbers])[at]
            wrong[~common] = np.array([n is None or math.isinf(n) for n in numbers])[at]
        return np.where(wrong, math.nan, values), wrong

    def _number(self, cell: str) -> float | None:
        if cell.lower() in self.missing:
            return math.nan
        if re.fullmatch(_POWER, cell):
            return float(cell)
        parts = _split(cell)
        if parts is None or not _BODY[self.decimal].fullmatch(parts[1]):
            return None
        sign, body, unit = parts
        # a price may stand there without its currency; 12 is not 12 %, nor 12 k
        if unit != self.unit and (unit or not re.fullmatch(_CURRENCY, self.unit)):
            return None
        digits = re.sub(r"['’\s]", "", body).replace(DECIMALS[self.decimal], "")
        return float(f"{'-' if sign else ''}{digits.replace(self.decimal, '.')}")

    def describe(self) -> str:
        """Returns an example: "1.234,5 €"."""
        text = f"1{DECIMALS[self.decimal]}234{self.decimal}5"
        return f"{text} {self.unit}".strip()


def as_mask(array: pa.Array) -> np.ndarray:
    """Returns an Arrow array of booleans as bool (n,)."""
    return array.to_numpy(zero_copy_only=False)


def _split(cell: str) -> tuple[bool, str, str] | None:
    """Returns (is negative, the digits with their marks, the unit); None for what is no number."""
    if minus := _MINUS.fullmatch(cell):
        cell = f"-{minus[1] or ''}{minus[2] or minus[3]}"
    match = _CELL.fullmatch(cell)
    if match is None or match["sign"] and match["inner"] or match["before"] and match["after"]:
        return None
    if match["after"] and match["body"].strip()[-1] in ".,":  # 2. Bezirk counts, and is no amount
        return None
    negative = (match["sign"] or match["inner"]) in ("-", "−")
    return negative, match["body"].strip(), match["before"] or match["after"] or ""


class _Evidence:
    """What the cells of one column, Arrow's texts, say about their format."""

    def __init__(self, cells: pa.Array, likely: str = ""):
        """likely: the mark that some of the cells show, if they do."""
        self.decimals, self.units = set(DECIMALS), set()
        self.clash: tuple[str, ...] = ()  # two cells
        self.odd: list[str] = []
        self.unclear = integer = clear = ""  # cells
        unclear: dict[str, str] = {}  # their mark -> a cell
        padded, rest = False, cells

        def pick(pattern):
            """Takes what fits out of the rest, and returns it."""
            nonlocal rest
            fits = pc.match_substring_regex(rest, pattern)
            if pc.all(fits).as_py():
                picked, rest = rest, rest[:0]
            else:
                picked, rest = rest.filter(fits), rest.filter(pc.invert(fits))
            return picked

        if likely and len(picked := pick(_PLAIN[likely])):
            clear = picked[0].as_py()
            self.decimals = {likely}
        if len(rest) and len(picked := pick(_INTEGER)):
            integer = picked[0].as_py()
        for mark in DECIMALS:
            if len(rest) and len(picked := pick(_UNCLEAR[mark])):
                self.unclear = unclear[mark] = picked[0].as_py()
                padded |= pc.any(pc.ends_with(picked, "0")).as_py()
            if len(rest) and len(picked := pick(_PLAIN[mark])):
                self._meet({mark}, picked[0].as_py(), clear)
                clear = picked[0].as_py()
        self.bare = bool(clear or integer or self.unclear)
        numbers, odd = len(cells) - len(rest), 0
        counts = pc.value_counts(rest)
        texts, counts = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
        for cell, count in zip(texts, counts, strict=True):
            if cell.lower() in NO_NUMBER:
                continue
            parts = _split(cell)
            readable = {d for d in DECIMALS if parts and _BODY[d].fullmatch(parts[1])}
            if not readable:
                self.odd.append(cell)
                odd += count
                if odd > len(cells) / 2:  # of texts no more is looked at
                    break
                continue
            numbers += count
            self.units.add(parts[2])
            self._meet(readable, cell, clear)
            if len(readable) == 1:
                clear = cell
            elif "." in parts[1] or "," in parts[1]:
                self.unclear = unclear["." if "." in parts[1] else ","] = cell
                padded |= parts[1].endswith("0")
            else:
                integer = cell
        if len(unclear) == 2 and len(self.decimals) == 2:  # 1,234 beside 1.234
            self.decimals, self.clash = set(), tuple(unclear.values())
        # one odd cell is allowed from 20 numbers on
        self.are_numbers = numbers > 0 and odd <= max(MAX_ODD * numbers, min(1, numbers // 20))
        self.are_texts = odd > len(cells) / 2
        self.mixed = 0 if self.are_numbers or numbers < odd else odd  # cells
        self.likely = None
        if integer and padded:  # 1.050 beside 980: a fraction would be 1.05, or beside 980.000
            self.likely = "," if "." in self.unclear else "."

    def _meet(self, readable: set[str], cell: str, clear: str) -> None:
        if self.decimals and not self.decimals & readable:
            self.clash = (clear, cell)
        self.decimals &= readable

    def unit(self) -> str:
        """Returns the one unit of the column, "" where it has none or several."""
        units = self.units - {""}
        unit = units.pop() if len(units) == 1 else ""
        bare = self.bare or "" in self.units
        return unit if not bare or re.fullmatch(_CURRENCY, unit) else ""


def _look(column: pa.Array) -> _Evidence:
    """The evidence of a column; of one of a million texts some cells are enough."""
    cells = column.fill_null("") if column.null_count else column
    some = np.unique(np.linspace(0, len(cells) - 1, SAMPLE).astype(int))
    seen = _Evidence(cells.take(pa.array(some)))
    if len(cells) <= SAMPLE or seen.are_texts:
        return seen
    mark = "".join(seen.decimals)
    return _Evidence(cells, mark if len(mark) == 1 else "")


def infer_formats(
    table: RawTable, names: Iterable[str], decimal: str = "auto",
    advice: str = "name the decimal mark by --decimal",
    log: Callable[[str], None] = lambda sentence: None,
) -> dict[str, NumberFormat | None]:  # fmt: skip
    """Infers the format of these columns, None for one without numbers.

    The cells of a column decide, then the other columns, then the delimiter. decimal: a mark that
    the user states, or "auto"; advice: what the user can do; `log` gets which columns have too many
    cells beside numbers. Raises InputError where the numbers of a column contradict each other, or
    may be others."""
    formats: dict[str, NumberFormat | None] = {}
    texts = []
    for name in names:
        column = table.columns[name]
        if is_text(column):
            texts.append(name)
        else:
            typed = isinstance(column, pa.Array) and is_numeric(column.type)
            typed = typed and not _are_names(column)
            formats[name] = NumberFormat() if typed else None
    with ThreadPoolExecutor(2) as pool:  # Arrow lets the other go on
        evidence = dict(zip(texts, pool.map(lambda n: _look(table.columns[n]), texts), strict=True))
    marks = {"".join(e.decimals) for e in evidence.values() if len(e.decimals) == 1}
    common = marks.pop() if len(marks) == 1 else None
    usual = {",": ".", "|": "."}.get(table.delimiter)  # a semicolon or a tab tells nothing
    for name, seen in evidence.items():
        mark = decimal if decimal != "auto" else None
        if mark is None and seen.are_numbers and not seen.decimals:
            where = " and ".join(f"{cell!r} ({_where(table, name, cell)})" for cell in seen.clash)
            raise InputError(
                f"{table.place}, column {name} has {where}: write its numbers in one way, or "
                f"{advice}."
            )
        if mark is None and len(seen.decimals) == 1:
            (mark,) = seen.decimals
        mark = mark or common or seen.likely or usual
        if mark is None and seen.are_numbers and seen.unclear:
            raise InputError(
                f"{table.place}, column {name}: {seen.unclear!r} may have thousands or a fraction, "
                f"and nothing in the file tells: {advice}."
            )
        formats[name] = None
        if seen.mixed:
            some = ", ".join(sorted(set(seen.odd))[:3])
            log(f"{name}: {seen.mixed:,} of {len(table):,} cells are no numbers ({some:.60}): it "
                "is not read as numbers.")  # fmt: skip
        if seen.are_numbers and not _are_names(table.columns[name]):
            missing = sorted({c.lower() for c in seen.odd if not re.fullmatch(_POWER, c)})
            form = NumberFormat(mark or ".", seen.unit(), (*NO_NUMBER, *missing))
            certain = not seen.units and form.decimal in seen.decimals
            if certain or _fits(form, table.columns[name]):
                formats[name] = form
    return formats


def check_header(table: RawTable, log: Callable[[str], None]) -> None:
    """Raises InputError where the first line of a file has numbers alone. `log` gets a fraction
    among other headings."""
    numbers = [h for h in table.columns if not NumberFormat(missing=()).parse([h])[1][0]]
    if len(numbers) == len(table.columns):
        raise InputError(
            f"{table.place} has numbers in its first line ({', '.join(numbers)[:60]}): put a "
            "header with the names of the columns there."
        )
    if fractions := [heading for heading in numbers if re.search("[.,]", heading)]:
        log(f"{table.place}: its first line is read as the header, though it has the number "
            f"{fractions[0]}: put a header there, if it has none.")  # fmt: skip


def describe_formats(formats: Mapping[str, NumberFormat | None]) -> list[str]:
    """Returns a sentence for each way of writing numbers other than 1,234.5, with its columns."""
    names: dict[str, list[str]] = {}
    for name, form in formats.items():
        if form and (form.decimal, form.unit) != (".", ""):
            names.setdefault(form.describe(), []).append(name)
    return [f"numbers are read as {form} in {', '.join(some)}." for form, some in names.items()]


def _fits(form: NumberFormat, cells: pa.Array) -> bool:
    """True if the cells are of one format: units may differ, and a stated mark be wrong."""
    values, wrong = form.parse(cells)
    return wrong.sum() <= MAX_ODD * np.isfinite(values).sum()


def _are_names(column: pa.Array) -> bool:
    """True for integers of which float64 cannot tell all apart."""
    if is_text(column):
        if (pc.max(pc.binary_length(column)).as_py() or 0) < 16:
            return False
        column = column.filter(pc.match_substring_regex(column, "^[-+]?[0-9]{16,}$"))
    elif pa.types.is_integer(column.type):
        if max(abs(end or 0) for end in pc.min_max(column).as_py().values()) <= 2**53:
            return False
    else:
        return False
    integers = pc.unique(column)
    return len(pc.unique(integers.cast(pa.float64(), safe=False))) < len(integers)


def _where(table: RawTable, name: str, cell: str) -> str:
    row = pc.index(table.columns[name], cell).as_py()
    return table.row_name(max(row, 0)).removeprefix(f"{table.place}, ")


def is_numeric(kind: pa.DataType) -> bool:
    """True for Arrow's integers and floats, and for a column of nothing but missing values."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)


def check_same_format(table: RawTable, formats: Mapping[str, NumberFormat], usual: str) -> None:
    """Raises InputError where a file with another delimiter than the training data, `usual`, writes
    numbers by another rule, too, or does not show its rule."""
    names = [name for name in formats if name in table.columns]
    if not table.delimiter or table.delimiter == usual:
        return
    advice = "write the file as the training data were written"
    for name, form in infer_formats(table, names, "auto", advice).items():
        right = formats[name]
        marked = pc.any(pc.match_substring_regex(table.columns[name], "[.,]")).as_py()
        if form and marked and form.decimal != right.decimal:
            raise InputError(
                f"{table.place}, column {name} has numbers such as {form.describe()}, where the "
                f"training data have {right.describe()}: {advice}."
            )


def column_numbers(column: Any, form: NumberFormat) -> tuple[np.ndarray, np.ndarray]:
    """Returns (float64 (n,), NaN where a value is missing; bool (n,), True where it is no number).
    column: texts in its format, or typed values."""
    if is_text(column):
        return form.parse(column)
    if isinstance(column, pa.Array):
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        if not is_numeric(column.type):
            return np.full(len(column), math.nan), as_mask(column.is_valid())
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return np.where(np.isinf(values), math.nan, values), np.zeros(len(values), bool)
    texts = [i for i, value in enumerate(column) if isinstance(value, str)]
    values, wrong = np.full(len(column), math.nan), np.zeros(len(column), bool)
    values[texts], wrong[texts] = form.parse([column[i].strip() for i in texts])
    for i, value in enumerate(column):
        if value is not None and not isinstance(value, str):
            wrong[i] = not isinstance(value, int | float | np.number)
            with contextlib.suppress(OverflowError):  # beyond float64: infinite, so missing
                values[i] = math.nan if wrong[i] or math.isinf(value) else value
    return values, wrong
