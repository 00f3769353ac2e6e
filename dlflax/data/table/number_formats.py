"""Number formats of columns, inferred once from the cells and saved with the encoder.

A comma or a point may be the decimal mark or the thousands separator, so a cell may be ambiguous
("1,234"). All cells of the column decide, then the other columns of the file, then its delimiter;
a column that is still ambiguous is refused.
"""

import collections
import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data.table.raw_table import ENDINGS, RawTable, as_texts, is_text
from dlflax.errors import InputError

MISSING = (  # missing values, in lower case
    "", "na", "n/a", "nan", "null", "none", "?", "-", "--", "\u2013", "\u2014", ".", "<na>", "#n/a",
    "#na", "n.a.", "nat",
)  # fmt: skip
NO_NUMBER = (  # missing values of columns of numbers
    *MISSING, "#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!", "n.d.", "nd", "k.a.",
    "k. a.", "missing", "unknown", "nil",
    *(sign + word for sign in ("", "+", "-") for word in ("inf", "infinity", "\u221e")),
)  # fmt: skip
SAMPLE = 2_000  # cells that distinguish texts from numbers, in a longer column
MAX_ODD = 0.02  # share of cells that are no numbers in a column of numbers
DECIMALS = {".": ",", ",": "."}  # decimal mark -> thousands separator
_CODES = "EUR|USD|GBP|CHF|JPY|CNY|INR|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|RUB|TRY|KRW|MXN|ZAR"
_CURRENCY = rf"(?:[A-Z]{{0,2}}[$€£¥₹₽₩₺₫₪₴₦฿¢]|{_CODES}|Fr\.?|Rs\.?|kr\.?|zł|Kč)"
_POWER = r"[-+]?\d+e\d\d?"  # 1e3, which R's readr writes for 1000
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
        rf"|[1-9]\d?(?:[{other}]\d\d)+[{other}]\d{{3}})?"  # Indian: 12,34,567
        # 3E2 may be a code, unlike an exponent with a sign, or behind a fraction
        rf"(?:[{decimal}]\d*(?:[eE][-+]?\d+)?|[eE][-+]\d+)?"
    )
    for decimal, other in DECIMALS.items()
}
# fast paths for most cells: integers, thousands or a fraction, and other fractions
_INTEGER = r"^[-+]?[0-9]+([eE][-+][0-9]+)?$"
_UNCLEAR = {mark: rf"^[-+]?[1-9][0-9]{{0,2}}[{mark}][0-9]{{3}}$" for mark in DECIMALS}
_PLAIN = {
    mark: rf"^[-+]?([0-9]+([{mark}][0-9]*)?|[{mark}][0-9]+)([eE][-+][0-9]+)?$" for mark in DECIMALS
}


@dataclasses.dataclass(frozen=True)
class NumberFormat:
    """The number format of a column."""

    decimal: str = "."
    """Decimal mark, a point or a comma; the other, a blank or an apostrophe separates thousands."""
    unit: str = ""
    """A currency, % or unit such as kg, before or behind every number."""
    missing: tuple[str, ...] = NO_NUMBER
    """Missing values, in lower case."""

    def __post_init__(self):
        if self.decimal not in DECIMALS:
            raise InputError(f"the decimal mark of numbers must be . or , but is {self.decimal!r}.")

    def parse(self, cells: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns (float64 (n,), NaN for cells without a number; bool (n,), True for those that are
        not `missing`). cells: texts, (n,)."""
        cells = cells if isinstance(cells, pa.Array) else pa.array(list(cells), pa.string())
        cells = cells.fill_null("") if cells.null_count else cells
        values = np.full(len(cells), math.nan)
        is_plain = np.zeros(len(cells), bool)
        if not self.unit or re.fullmatch(_CURRENCY, self.unit):
            is_plain = np.asarray(pc.match_substring_regex(cells, _PLAIN[self.decimal]))
            texts = cells if is_plain.all() else cells.filter(is_plain)
            if self.decimal == ",":
                texts = pc.replace_substring(texts, ",", ".")
            values[is_plain] = pc.cast(texts, pa.float64())
        if not is_plain.all():
            codes = cells.filter(~is_plain).dictionary_encode()
            numbers = np.array([self._parse_cell(cell) for cell in codes.dictionary.to_pylist()])
            values[~is_plain] = numbers[codes.indices.to_numpy()]
        wrong = np.isinf(values)
        return np.where(wrong, math.nan, values), wrong

    def _parse_cell(self, cell: str) -> float:
        """Returns a number, NaN for a missing one, infinity for a cell that is none."""
        if cell.lower() in self.missing:
            return math.nan
        if re.fullmatch(_POWER, cell):
            return float(cell)
        is_negative, body, unit = _split(cell) or (False, "", "")
        if not body or not _BODY[self.decimal].fullmatch(body):
            return math.inf
        # prices may lack their currency, but 12 is neither 12 % nor 12 k
        if unit != self.unit and (unit or not re.fullmatch(_CURRENCY, self.unit)):
            return math.inf
        digits = re.sub(r"['’\s]", "", body).replace(DECIMALS[self.decimal], "")
        return float(f"{'-' if is_negative else ''}{digits.replace(self.decimal, '.')}")

    def describe(self) -> str:
        """Returns an example: "1.234,5 €"."""
        text = f"1{DECIMALS[self.decimal]}234{self.decimal}5"
        return f"{text} {self.unit}".strip()


def _split(cell: str) -> tuple[bool, str, str] | None:
    """Returns (is negative, digits with their marks, unit); None for a cell without a number."""
    if minus := _MINUS.fullmatch(cell):
        cell = f"-{minus[1] or ''}{minus[2] or minus[3]}"
    match = _CELL.fullmatch(cell)
    if match is None or match["sign"] and match["inner"] or match["before"] and match["after"]:
        return None
    if match["after"] and match["body"].strip()[-1] in ".,":  # an ordinal: 2. Bezirk
        return None
    negative = (match["sign"] or match["inner"]) in ("-", "−")
    return negative, match["body"].strip(), match["before"] or match["after"] or ""


class _Evidence:
    """Evidence of a column's format, from its cells (Arrow texts)."""

    def __init__(self, cells: pa.Array, likely: str = ""):
        """likely: the decimal mark of a sample of the cells."""
        self.decimals, self.units = set(DECIMALS), set()
        self.clash: tuple[str, ...] = ()  # two contradictory cells
        self.odd: list[str] = []  # cells that are no numbers
        clear, unclear = "", {}  # a cell with a decimal mark; mark -> a cell with either meaning
        has_integers = is_padded = False
        numbers = odd = 0
        for cell, count, decimals, body, unit in _levels(cells, likely):
            if not decimals:
                self.odd.append(cell)
                odd += count
                if odd > len(cells) / 2:  # a column of texts
                    break
                continue
            numbers += count
            self.units.add(unit)
            if self.decimals and not self.decimals & decimals:
                self.clash = clear, cell
            self.decimals &= decimals
            if len(decimals) == 1:
                clear = cell
            elif mark := re.search("[.,]", body):
                unclear[mark[0]] = cell
                is_padded |= body.endswith("0")
            else:
                has_integers = True
        self.unclear = ["", *unclear.values()][-1]
        if len(unclear) == 2 and len(self.decimals) == 2:  # 1,234 beside 1.234
            self.decimals, self.clash = set(), tuple(unclear.values())
        # one odd cell is allowed from 20 numbers on
        self.are_numbers = numbers > 0 and odd <= max(MAX_ODD * numbers, min(1, numbers // 20))
        self.are_texts = odd > len(cells) / 2
        self.num_odd = 0 if self.are_numbers or numbers < odd else odd
        self.likely = None
        if has_integers and is_padded:  # 1.050 and 980: else 1.05 and 980, or 980.000
            self.likely = "," if "." in self.unclear else "."
        unit, *others = sorted(self.units - {""}) or [""]
        has_bare = "" in self.units and not re.fullmatch(_CURRENCY, unit)
        self.unit = "" if others or has_bare else unit  # "" for none or several


def _levels(cells: pa.Array, likely: str) -> Iterator[tuple[str, int, set[str], str, str]]:
    """Yields (cell, count, decimal marks, digits with their marks, unit) of distinct cells.

    All cells in a plain form are one, the first of them, with the digits of one that ends with 0. A
    cell without decimal marks is no number."""
    forms = [(_INTEGER, set(DECIMALS))]
    for mark in DECIMALS:
        forms += [(_UNCLEAR[mark], set(DECIMALS)), (_PLAIN[mark], {mark})]
    for pattern, decimals in [(_PLAIN[likely], {likely}), *forms] if likely else forms:
        matches = pc.match_substring_regex(cells, pattern)
        level, cells = cells.filter(matches), cells.filter(pc.invert(matches))
        if len(level):
            padded = level.filter(pc.ends_with(level, "0"))
            body = (padded if len(padded) else level)[0].as_py()
            yield level[0].as_py(), len(level), decimals, body, ""
    for level in pc.value_counts(cells).to_pylist():
        cell = level["values"]
        if cell.lower() not in NO_NUMBER:
            _, body, unit = _split(cell) or (False, "", "")
            decimals = {d for d in DECIMALS if body and _BODY[d].fullmatch(body)}
            yield cell, level["counts"], decimals, body, unit


def _collect_evidence(column: pa.Array) -> _Evidence:
    """Returns the evidence of a column: of a sample, if that is enough."""
    cells = column.fill_null("") if column.null_count else column
    sample = np.unique(np.linspace(0, len(cells) - 1, SAMPLE).astype(int))
    evidence = _Evidence(cells.take(pa.array(sample)))
    if len(cells) <= SAMPLE or evidence.are_texts:
        return evidence
    mark = "".join(evidence.decimals)
    return _Evidence(cells, mark if len(mark) == 1 else "")


def infer_formats(
    table: RawTable, names: Iterable[str], decimal: str = "auto",
    advice: str = "name the decimal mark by --decimal",
    log: Callable[[str], None] = lambda sentence: None,
) -> dict[str, NumberFormat | None]:  # fmt: skip
    """Returns the format of these columns, None for a column without numbers.

    decimal: a decimal mark, or "auto"; advice: for messages; `log` gets columns with too many cells
    that are no numbers, and other formats than 1,234.5. Raises InputError for contradictory or
    ambiguous numbers."""
    formats: dict[str, NumberFormat | None] = {}
    texts = []
    for name in names:
        column = table.columns[name]
        if is_text(column):
            texts.append(name)
        else:
            are_numbers = isinstance(column, pa.Array) and is_numeric(column.type)
            formats[name] = NumberFormat() if are_numbers and not _are_ids(column) else None
    with ThreadPoolExecutor(2) as pool:  # Arrow releases the GIL
        results = pool.map(lambda name: _collect_evidence(table.columns[name]), texts)
        evidence_of = dict(zip(texts, results, strict=True))
    marks = {"".join(e.decimals) for e in evidence_of.values() if len(e.decimals) == 1}
    common = marks.pop() if len(marks) == 1 else None
    usual = {",": ".", "|": "."}.get(table.delimiter)  # semicolons and tabs are no evidence
    for name, evidence in evidence_of.items():
        if decimal == "auto" and evidence.are_numbers and not evidence.decimals:
            rows = [pc.index(table.columns[name], cell).as_py() for cell in evidence.clash]
            places = [table.row_name(max(row, 0)).removeprefix(f"{table.place}, ") for row in rows]
            cells = " and ".join(map("{!r} ({})".format, evidence.clash, places))
            raise InputError(
                f"{table.place}, column {name} has {cells}: write its numbers in one way, or "
                f"{advice}."
            )
        mark = "".join(evidence.decimals) if len(evidence.decimals) == 1 else None
        mark = mark or common or evidence.likely or usual
        if decimal != "auto":
            mark = decimal
        elif mark is None and evidence.are_numbers and evidence.unclear:
            raise InputError(
                f"{table.place}, column {name}: {evidence.unclear!r} may have thousands or a "
                f"fraction, and nothing in the file decides: {advice}."
            )
        formats[name] = None
        if evidence.num_odd:
            odd = ", ".join(sorted(set(evidence.odd))[:3])
            log(f"{name}: {evidence.num_odd:,} of {len(table):,} cells are no numbers ({odd:.60}): "
                "it is not read as numbers.")  # fmt: skip
        if evidence.are_numbers and not _are_ids(table.columns[name]):
            missing = sorted({c.lower() for c in evidence.odd if not re.fullmatch(_POWER, c)})
            form = NumberFormat(mark or ".", evidence.unit, (*NO_NUMBER, *missing))
            # units and --decimal may differ from the format
            if evidence.units != {""} or form.decimal not in evidence.decimals:
                values, wrong = form.parse(table.columns[name])
                form = form if wrong.sum() <= MAX_ODD * np.isfinite(values).sum() else None
            formats[name] = form
    columns = collections.defaultdict(list)
    for name, form in formats.items():
        if form and (form.decimal, form.unit) != (".", ""):
            columns[form.describe()].append(name)
    for example, names in columns.items():
        log(f"numbers are read as {example} in {', '.join(names)}.")
    return formats


def check_header(table: RawTable, log: Callable[[str], None]) -> None:
    """Raises InputError for a header of numbers alone. `log` gets a fraction in the header."""
    if (ending := ENDINGS.search(table.place)) and ending["arrow"]:  # its names are no line
        return
    numbers = [name for name in table.columns if not NumberFormat(missing=()).parse([name])[1][0]]
    if len(numbers) == len(table.columns):
        raise InputError(
            f"{table.place} has numbers in its first line ({', '.join(numbers)[:60]}): put a "
            "header with the names of the columns there."
        )
    if fractions := [name for name in numbers if re.search("[.,]", name)]:
        log(f"{table.place}: its first line is read as the header, though it has the number "
            f"{fractions[0]}: put a header there, if it has none.")  # fmt: skip


def _are_ids(column: pa.Array) -> bool:
    """True for integers so large that float64 makes some of them equal."""
    if is_text(column):
        column = column.filter(pc.greater_equal(pc.binary_length(column), 16))
        column = column.filter(pc.match_substring_regex(column, "^[-+]?[0-9]{16,}$"))
    elif not pa.types.is_integer(column.type):
        return False
    integers = pc.unique(column)
    return len(pc.unique(integers.cast(pa.float64(), safe=False))) < len(integers)


def require_numbers(table: RawTable, name: str, form: NumberFormat, prefix: str = "") -> np.ndarray:
    """Returns a column, float64 (n,), NaN for missing values. Raises InputError for other cells."""
    values, wrong = column_numbers(table.columns[name], form)
    if wrong.any():
        row = int(wrong.argmax())
        cell = as_texts(table.columns[name])[row].as_py()
        raise InputError(f"{prefix}{table.row_name(row)}, column {name}: {cell!r} is not a number.")
    return values


def is_numeric(kind: pa.DataType) -> bool:
    """True for Arrow's integers and floats, and for null, of columns without values."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)


def check_same_format(table: RawTable, formats: Mapping[str, NumberFormat], usual: str) -> None:
    """Raises InputError for a file whose delimiter is not `usual`, that of the training data, if
    its number formats differ, too, or are ambiguous."""
    names = [name for name in formats if name in table.columns]
    if not table.delimiter or table.delimiter == usual:
        return
    advice = "write the file as the training data were written"
    for name, form in infer_formats(table, names, "auto", advice).items():
        expected = formats[name]
        has_mark = pc.any(pc.match_substring_regex(table.columns[name], "[.,]")).as_py()
        if form and has_mark and form.decimal != expected.decimal:
            raise InputError(
                f"{table.place}, column {name} has numbers such as {form.describe()}, where the "
                f"training data have {expected.describe()}: {advice}."
            )


def column_numbers(column: Any, form: NumberFormat) -> tuple[np.ndarray, np.ndarray]:
    """Returns (float64 (n,), NaN for missing values; bool (n,), True for cells that are no number).
    column: texts in the format, or typed values."""
    if is_text(column):
        return form.parse(column)
    if isinstance(column, pa.Array):
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        if not is_numeric(column.type):
            return np.full(len(column), math.nan), np.asarray(column.is_valid())
        values = np.asarray(column.cast(pa.float64(), safe=False))
        return np.where(np.isinf(values), math.nan, values), np.zeros(len(values), bool)
    texts = [i for i, value in enumerate(column) if isinstance(value, str)]
    values, wrong = np.full(len(column), math.nan), np.zeros(len(column), bool)
    values[texts], wrong[texts] = form.parse([column[i].strip() for i in texts])
    for i, value in enumerate(column):
        if value is not None and not isinstance(value, str):
            wrong[i] = not isinstance(value, int | float | np.number)
            with contextlib.suppress(OverflowError):  # beyond float64, so missing
                values[i] = math.nan if wrong[i] or math.isinf(value) else value
    return values, wrong
