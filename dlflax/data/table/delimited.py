"""CSV, in any encoding and dialect, and JSON Lines.

pyarrow parses CSV; this module detects the encoding, the delimiter and the lines of rows.
"""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlflax.errors import InputError

DELIMITERS = ",;\t|"
SNIFF_BYTES = 20_000  # from which the delimiter is inferred
BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
COMPRESSED = b"PK\x03\x04", b"\x1f\x8b", b"BZh91AY", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"
Log = Callable[[str], None]


def to_utf8(content: bytes, path: Path, log: Log) -> bytes:
    """Converts a text file to UTF-8, from cp1252 if it is neither UTF-8 nor UTF-16. Raises
    ValueError for a file that is no text."""
    if content.startswith(COMPRESSED):
        raise ValueError("it is compressed, as ZIP and Excel files are: unpack it, or save it anew")
    encoding = next(
        (name for bom, name in BYTE_ORDER_MARKS.items() if content.startswith(bom)), None
    )
    head = content[:1000]
    if encoding is None and b"\0" in head and len(content) % 2 == 0:  # no byte order mark
        low, high = head[1::2].count(0), head[::2].count(0)  # every second byte of ASCII is 0
        likely, line_end = ("utf-16-le", b"\n\0") if low > high else ("utf-16-be", b"\0\n")
        if 2 * min(low, high) < max(low, high) > 2 and line_end in content:
            encoding = likely
    if encoding:
        content = content.decode(encoding).encode()
    is_marked = content.startswith(b"\xef\xbb\xbf")
    content = content[3 * is_marked :]
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"line {line} has the byte {content[error.start]:02x}, which is not UTF-8"
        # control characters, and characters that cp1252 lacks
        if is_marked or re.search(rb"[\x00-\x08\x0e-\x1f\x7f\x81\x8d\x8f\x90\x9d]", content):
            raise ValueError(f"{problem}: save it as UTF-8") from None
        log(f"{path}: {problem}, so the file is read as Windows' cp1252.")
        content = content.decode("cp1252").encode()
    return content


def detect_dialect(content: bytes, usual: str) -> tuple[bytes, str]:
    """Returns (the file, its delimiter). Removes Excel's line sep=; and blanks before quotes, and
    replaces runs of blanks between cells by tabs."""
    if match := re.match(rb"sep=([,;\t|])\r?\n", content):
        return content[match.start(1) :].replace(match[1], b"", 1), match[1].decode()
    start = content[:SNIFF_BYTES].decode(errors="ignore")
    if _has_blank_delimiter(start):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter="\t").writerows(_split_blanks(content.decode()))
        return text.getvalue().encode(), "\t"
    delimiter = sniff_delimiter(start, usual)
    if b' "' in content and f'{delimiter}"'.encode() not in content:
        content = re.sub(rf'(?<=[{delimiter}]) +"(?!")'.encode(), b'"', content)
    return content, delimiter


def _split_blanks(text: str) -> list[list[str]]:
    """Returns the cells of each line, with any number of blanks between them."""
    lines = (re.sub(r"\s+", " ", line.strip()) for line in text.splitlines())
    return list(csv.reader(lines, delimiter=" "))


def _has_blank_delimiter(text: str) -> bool:
    """True if blanks alone split the first lines, into three or more cells, with numbers."""
    first = text.partition("\n")[0]
    if re.search("[,;|]", first) or " " not in first or _is_rectangular(text, "\t"):
        return False
    rows = [row for row in _split_blanks(text) if row]
    if len(text) >= SNIFF_BYTES - 4:
        rows = rows[:-1]  # without a truncated line
    number = re.compile(r"[-+]?[\d.,]*\d[\d.,]*")
    return len(rows) > 2 and {len(row) for row in rows} == {max(len(rows[0]), 3)} and all(
        any(map(number.fullmatch, row)) for row in rows[1:]
    )  # fmt: skip


def parse_csv(
    content: bytes, delimiter: str, width: int, quote: str | bool = '"'
) -> tuple[pa.Table, list[tuple[int, int]]]:
    """Returns (the rows of the file as columns of texts, [(row, number of cells)] of rows that have
    not `width` cells). Raises pa.ArrowInvalid, and csv.Error with the line."""
    from pyarrow import csv as arrow_csv

    if quote and content.count(b'"') % 2:  # Arrow drops the text behind an unclosed quote
        _check_quotes(content, delimiter)
    ragged: list[tuple[int, int]] = []

    def on_wrong_width(row):
        ragged.append((row.number - 1, row.actual_columns))
        return "skip"

    names = [f"f{i}" for i in range(width)]  # those that Arrow gives
    size = min(max(len(content), 1), 2**30)
    # without Arrow's thread pool, with which a process aborted at its end
    reading = arrow_csv.ReadOptions(use_threads=False, block_size=size, column_names=names)
    parsing = arrow_csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_wrong_width,
        quote_char=quote,
    )  # fmt: skip
    types = dict.fromkeys(names, pa.string())
    converting = arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    return arrow_csv.read_csv(pa.BufferReader(content), reading, parsing, converting), ragged


def _check_quotes(content: bytes, delimiter: str) -> None:
    reader = csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter, strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num} is not valid csv: {error}") from None


def read_header(content: bytes, delimiter: str, **settings: Any) -> list[str]:
    """Returns the cells of the first row that is not empty. Raises ValueError without one."""
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="")
    for row in csv.reader(text, delimiter=delimiter, **settings):
        if row:
            return row
    raise ValueError("it is empty")


def line_numbers(content: bytes, rows: int, quoted: bool = True) -> np.ndarray:
    """Returns the line, int (rows,), at which each row of a CSV file begins; empty lines have no
    row. quoted: cells in quotes may have line breaks."""
    array = np.frombuffer(content, np.uint8)
    end = b"\n" if b"\n" in content else b"\r"
    ends = np.flatnonzero(array == ord(end))
    starts = np.concatenate([[0], ends + 1])
    if quoted and b'"' in content:  # a line that begins within quotes belongs to the row before
        within = np.searchsorted(np.flatnonzero(array == ord('"')), starts) % 2 == 1
    else:
        within = np.zeros(len(starts), bool)
    first = array[np.minimum(starts, max(len(array) - 1, 0))] if len(array) else array
    blank = (starts >= len(array)) | np.isin(first, (ord("\n"), ord("\r")))
    lines = np.flatnonzero(~blank & ~within) + 1
    # a literal quotation mark makes the lines unknown
    return lines if len(lines) == rows else np.arange(1, rows + 1)


def sniff_delimiter(text: str, usual: str = ",") -> str:
    """Returns the delimiter that splits the first lines into an equal number of cells, two or more.
    Ties are decided by the number of delimiters in the first line, then by the usual one."""
    first = text.partition("\n")[0]
    return max(DELIMITERS, key=lambda d: (_is_rectangular(text, d), first.count(d), d == usual))


def _is_rectangular(text: str, delimiter: str) -> bool:
    lines = io.StringIO(text[:SNIFF_BYTES], newline="").readlines()
    with contextlib.suppress(csv.Error):
        counts = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        if len(text) >= SNIFF_BYTES - 4:
            counts = counts[:-1]  # without a truncated line
        return len(set(counts)) == 1 and counts[0] > 1
    return False


def read_json_lines(content: bytes, path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns (the objects of a JSON Lines file, their line numbers). Raises InputError."""
    rows, lines = [], []
    for number, line in enumerate(content.decode().split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("it is not an object")
            if "\\u" in line:
                json.dumps(values, ensure_ascii=False).encode()  # raises for a lone surrogate
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path}, line {number} is not a JSON object in valid Unicode ({reason})."
            ) from None
        rows.append(values)
        lines.append(number)
    return rows, lines
