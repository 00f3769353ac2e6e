"""How the numbers of a column are written: inferred once from its cells, then applied for ever.

A comma or a point may be the decimal mark or part the thousands, so one cell alone may mean two
numbers ("1,234"). The cells of the column decide together, then the other columns of the file, then
its delimiter; what stays undecided is refused.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dlflax.errors import InputError

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")  # cells without a value, in small letters
MARKS = {".": ",", ",": "."}  # a decimal mark: the other one, which then parts thousands
_CODES = "EUR|USD|GBP|CHF|JPY|CNY|INR|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|RUB|TRY|KRW|MXN|ZAR"
_CURRENCY = rf"(?:[A-Z]{{0,2}}[$€£¥₹₽₩₺₫₪₴₦฿¢]|{_CODES}|Fr\.?|Rs\.?|kr\.?|zł|Kč)"
_WORD = r"°?[^\W\d_]{1,12}[23²³]?"
_CELL = re.compile(
    rf"(?P<sign>[-+−]?)\s?(?P<before>{_CURRENCY})?\s?(?P<inner>[-+−]?)"
    r"(?P<body>[.,]?\d[\d.,'’\s]*(?:[eE][-+]?\d+)?)"
    rf"(?P<after>%|‰|{_CURRENCY}|{_WORD}(?:[ /]{_WORD})?)?"
)
_BODY = {
    decimal: re.compile(
        rf"(?:\d+|(?:[1-9]\d{{0,2}}|\d(?=.*[{decimal}]))(?:[{other}]\d{{3}})+"
        r"|[1-9]\d{0,2}(['’\s])\d{3}(?:\1\d{3})*"
        rf"|[1-9]\d?(?:[{other}]\d\d)+[{other}]\d{{3}})?"  # as in India: 12,34,567
        rf"(?:[{decimal}]\d*)?(?:[eE][-+]?\d+)?"
    )
    for decimal, other in MARKS.items()
}
_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
# integers, thousands or a fraction, and what can only be a fraction: most cells, told apart fast
_COMMON = re.compile(
    r"[-+]?(?:(\d+)|([1-9]\d{0,2}\.\d{3})|(?:\d{4,}|0?)\.\d+|\d{1,3}\.(?:\d{1,2}|\d{4,}))"
)


@dataclasses.dataclass(frozen=True)
class NumberFormat:
    """The way that a column writes its numbers."""

    decimal: str = "."
    """A point or a comma; the other one may part thousands, as a blank or an apostrophe may."""
    unit: str = ""
    """A currency, %, kg or the like, before or behind every number."""
    missing: tuple[str, ...] = MISSING
    """Cells without a value, in small letters."""

    def __post_init__(self):
        if self.decimal not in MARKS:
            raise InputError(f"the decimal mark of numbers must be . or , but is {self.decimal!r}.")

    def parse(self, cells: Sequence[str]) -> np.ndarray | str:
        """Returns float64 (n,), NaN where a cell is one of `missing`; or the first cell that is no
        number of this format."""
        values = {cell: self._number(cell) for cell in set(cells)}
        if None in values.values():
            return next(cell for cell in cells if values[cell] is None)
        return np.array([values[cell] for cell in cells], np.float64)

    def _number(self, cell: str) -> float | None:
        if self.decimal == "." and not self.unit and _PLAIN.fullmatch(cell):
            return float(cell)
        if cell.lower() in self.missing:
            return math.nan
        parts = _split(cell)
        if parts is None or not _BODY[self.decimal].fullmatch(parts[1]):
            return None
        sign, body, unit = parts
        # a price may stand there without its currency; 12 is not 12 %, nor 12 k
        if unit != self.unit and (unit or not re.fullmatch(_CURRENCY, self.unit)):
            return None
        digits = re.sub(r"['’\s]", "", body).replace(MARKS[self.decimal], "")
        return float(f"{'-' if sign else ''}{digits.replace(self.decimal, '.')}")

    def write(self, value: float) -> str:
        """Returns a text that `parse` reads back as the same number."""
        text = str(value).replace(".", self.decimal)
        return f"{text} {self.unit}" if self.unit else text

    def describe(self) -> str:
        """Returns an example: "1.234,5 €"."""
        text = f"1{MARKS[self.decimal]}234{self.decimal}5"
        return f"{text} {self.unit}".strip()


def _split(cell: str) -> tuple[bool, str, str] | None:
    """Returns (is negative, the digits with their marks, the unit); None for what is no number."""
    match = _CELL.fullmatch(cell)
    if match is None or match["sign"] and match["inner"] or match["before"] and match["after"]:
        return None
    negative = (match["sign"] or match["inner"]) in ("-", "−")
    return negative, match["body"].strip(), match["before"] or match["after"] or ""


class _Evidence:
    """What the cells of one column say about their format."""

    def __init__(self, cells: Iterable[str]):
        self.decimals, self.units, self.all_numbers = set(MARKS), set(), True
        self.unclear = self.clash = ""  # cells
        integer = clear = ""
        others, padded = [], False
        for cell in dict.fromkeys(cells):
            if match := _COMMON.fullmatch(cell):
                if match[1]:
                    integer = cell
                elif match[2]:
                    self.unclear, padded = cell, padded or cell[-1] == "0"
                else:
                    clear = cell
            elif cell.lower() not in MISSING:
                others.append(cell)
        if clear:
            self.decimals = {"."}
        if clear or integer or self.unclear:
            self.units.add("")
        for cell in others:
            parts = _split(cell)
            readable = {d for d in MARKS if parts and _BODY[d].fullmatch(parts[1])}
            if not readable:
                self.all_numbers = False
                continue
            self.units.add(parts[2])
            if self.decimals and not self.decimals & readable:
                self.clash = f"{clear!r} and {cell!r}"
            self.decimals &= readable
            if len(readable) == 1:
                clear = cell
            elif "." in parts[1] or "," in parts[1]:
                self.unclear = cell
                padded |= parts[1].endswith("0")
            else:
                integer = cell
        self.likely = None
        if integer and padded:  # 1.050 beside 980: a fraction would be 1.05, or beside 980.000
            self.likely = "," if "." in self.unclear else "."

    def unit(self) -> str:
        """Returns the one unit of the column, "" where it has none or several."""
        units = self.units - {""}
        bare = "" in self.units
        unit = units.pop() if len(units) == 1 else ""
        return unit if not bare or re.fullmatch(_CURRENCY, unit) else ""


def infer_formats(
    columns: Mapping[str, Sequence[str]], delimiter: str, decimal: str, file: Any,
    advice: str = "name the decimal mark by --decimal",
) -> dict[str, NumberFormat]:  # fmt: skip
    """Infers the format of every column of a file from its cells, then from the other columns, then
    from the delimiter. decimal: a mark that the user states, or "auto"; advice: what the user can
    do. Raises InputError where the numbers of a column contradict each other, or may be others."""
    evidence = {name: _Evidence(cells) for name, cells in columns.items()}
    marks = {"".join(each.decimals) for each in evidence.values() if len(each.decimals) == 1}
    common = marks.pop() if len(marks) == 1 else None
    usual = {",": ".", "|": "."}.get(delimiter)  # a semicolon or a tab tells nothing
    formats = {}
    for name, each in evidence.items():
        mark = decimal if decimal != "auto" else None
        if mark is None and each.all_numbers and not each.decimals:
            raise InputError(
                f"{file}, column {name} has {each.clash}: write its numbers in one way, or "
                f"{advice}."
            )
        if mark is None and len(each.decimals) == 1:
            (mark,) = each.decimals
        mark = mark or common or each.likely or usual
        if mark is None and each.all_numbers and each.unclear:
            raise InputError(
                f"{file}, column {name}: {each.unclear!r} may have thousands or a fraction, and "
                f"nothing in the file tells: {advice}."
            )
        formats[name] = NumberFormat(mark or ".", each.unit())
    return formats


def check_like(
    columns: Mapping[str, Sequence[str]], formats: Mapping[str, NumberFormat], delimiter: str,
    file: Any,
) -> None:  # fmt: skip
    """Raises InputError where a file with another delimiter than the training data writes numbers
    by another rule, too, or does not show its rule."""
    advice = "write the file as the training data were written"
    for name, how in infer_formats(columns, delimiter, "auto", file, advice).items():
        marked = any("." in cell or "," in cell for cell in columns[name])
        right = formats.get(name, NumberFormat())
        if marked and how.decimal != right.decimal:
            raise InputError(
                f"{file}, column {name} has numbers such as {how.describe()}, where the training "
                f"data have {right.describe()}: {advice}."
            )


def describe_formats(columns: Mapping[str, Sequence[str]], formats) -> list[str]:
    """Returns a sentence for each format other than 1234.5 with its columns of numbers."""
    names: dict[str, list[str]] = {}
    for name, cells in columns.items():
        marked = any("," in cell for cell in cells) or formats[name] != NumberFormat()
        if marked and not isinstance(formats[name].parse(cells), str):
            names.setdefault(formats[name].describe(), []).append(name)
    return [f"numbers are read as {how} in {', '.join(some)}." for how, some in names.items()]


def write_cell(value: Any, how: NumberFormat | None) -> str:
    """Returns a typed value, as JSON and data frames have them, as its column writes it; "" for
    None and NaN. how: None for a column without numbers."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return str(value)
    return (how or NumberFormat()).write(value)
