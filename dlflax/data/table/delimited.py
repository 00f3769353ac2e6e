"""CSV, in any encoding and dialect, and JSON Lines.

pyarrow parses CSV; this module detects the encoding, the delimiter and the lines of rows.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlflax.errors import InputError, first_line
from dlflax.files import pluralize

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
    marks = (name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark))
    if encoding := next(marks, None) or _utf16_without_mark(content):
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


def _utf16_without_mark(content: bytes) -> str | None:
    """Returns the encoding of UTF-16 with much ASCII, of which every second byte is 0, or None."""
    low, high = content[1:1000:2].count(0), content[:1000:2].count(0)
    encoding, line_end = ("utf-16-le", b"\n\0") if low > high else ("utf-16-be", b"\0\n")
    is_likely = 2 * min(low, high) < max(low, high) > 2 and line_end in content
    return encoding if is_likely and len(content) % 2 == 0 else None


def detect_dialect(content: bytes, usual: str) -> tuple[bytes, str]:
    """Returns (the file, its delimiter). Removes Excel's line sep=; and blanks before quotes, and
    replaces runs of blanks between cells by tabs."""
    if match := re.match(rb"sep=([,;\t|])\r?\n", content):
        return content[match.start(1) :].replace(match[1], b"", 1), match[1].decode()
    if _has_blank_delimiter(content[:SNIFF_BYTES].decode(errors="ignore")):
        text = io.StringIO(newline="")
        rows = csv.reader(_merge_blanks(content.decode()), delimiter=" ")
        csv.writer(text, delimiter="\t").writerows(rows)
        return text.getvalue().encode(), "\t"
    delimiter = sniff_delimiter(content, usual)
    if b' "' in content and f'{delimiter}"'.encode() not in content:
        content = re.sub(rf'(?<=[{delimiter}]) +"(?!")'.encode(), b'"', content)
    return content, delimiter


def sniff_delimiter(content: bytes, usual: str = ",") -> str:
    """Returns the delimiter that splits the first lines into an equal number of cells, two or more.
    Ties are decided by the number of delimiters in the first line, then by the usual one."""
    text = content[:SNIFF_BYTES].decode(errors="ignore")
    first = text.partition("\n")[0]
    return max(DELIMITERS, key=lambda d: (_is_rectangular(text, d), first.count(d), d == usual))


def _is_rectangular(text: str, delimiter: str) -> bool:
    widths = set(map(len, _first_rows(text, delimiter)))
    return len(widths) == 1 and widths != {1}


def _has_blank_delimiter(text: str) -> bool:
    """True if blanks alone split the first lines, into three or more cells, with numbers."""
    first = text.partition("\n")[0]
    if re.search("[,;|]", first) or " " not in first or _is_rectangular(text, "\t"):
        return False
    rows = _first_rows(text, " ")
    number = re.compile(r"[-+]?[\d.,]*\d[\d.,]*")
    return len(rows) > 2 and {len(row) for row in rows} == {max(len(rows[0]), 3)} and all(
        any(map(number.fullmatch, row)) for row in rows[1:]
    )  # fmt: skip


def _merge_blanks(text: str) -> list[str]:
    """Returns the lines, with one blank between cells."""
    return [" ".join(line.split()) for line in text.splitlines()]


def _first_rows(text: str, delimiter: str) -> list[list[str]]:
    """Returns the rows of a file's first lines, without a truncated one; [] if they are no CSV."""
    lines = _merge_blanks(text) if delimiter == " " else io.StringIO(text, newline="")
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:
        return []
    return rows[:-1] if len(text) >= SNIFF_BYTES - 4 else rows


def parse_csv(
    content: bytes, path: Path, delimiter: str, quote: str | bool = '"'
) -> tuple[list[str], list[pa.Array], np.ndarray]:
    """Returns (header, columns of texts, the line of each row, int (n,)).

    Raises InputError for an unclosed quote or a row of another width than the header, csv.Error,
    pa.ArrowInvalid or ValueError for a file that is no CSV."""
    from pyarrow import csv as arrow_csv

    text = io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="")
    quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    header = next(filter(None, csv.reader(text, delimiter=delimiter, quoting=quoting)), None)
    if header is None:
        raise ValueError("it is empty")
    if quote and content.count(b'"') % 2:  # Arrow drops the text behind an unclosed quote
        _check_quotes(content, path, delimiter)
    ragged: list[arrow_csv.InvalidRow] = []

    def on_wrong_width(row):
        ragged.append(row)
        return "skip"

    names = [f"f{i}" for i in range(len(header))]  # those that Arrow gives
    # without Arrow's thread pool, with which a process aborted at its end
    reading = arrow_csv.ReadOptions(
        use_threads=False, block_size=min(max(len(content), 1), 2**30), column_names=names
    )
    parsing = arrow_csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_wrong_width,
        quote_char=quote,
    )  # fmt: skip
    converting = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    table = arrow_csv.read_csv(pa.BufferReader(content), reading, parsing, converting)
    lines = _line_numbers(content, len(table) + len(ragged), bool(quote))
    if ragged:
        row = ragged[0].number - 1
        has_preamble = row > 1 and len(ragged) > len(table)
        raise InputError(
            f"{path}, line {lines[row]} has {pluralize(ragged[0].actual_columns, 'cells')} for "
            f"{pluralize(len(header), 'columns')}: "
            + ("remove the lines above the header." if has_preamble else
               f"put numbers and texts that have a {delimiter!r} in quotes, or write them without.")
        )  # fmt: skip
    return header, [column.combine_chunks()[1:] for column in table.columns], lines[1:]


def _check_quotes(content: bytes, path: Path, delimiter: str) -> None:
    reader = csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter, strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not valid csv: {error}.") from None


def _line_numbers(content: bytes, rows: int, quoted: bool) -> np.ndarray:
    """Returns the line, int (rows,), at which each row of a CSV file begins; empty lines have no
    row. quoted: cells in quotes may have line breaks."""
    array = np.frombuffer(content, np.uint8)
    end = "\n" if b"\n" in content else "\r"
    starts = np.concatenate([[0], np.flatnonzero(array == ord(end)) + 1])
    starts = starts[starts < len(array)]
    has_row = ~np.isin(array[starts], (ord("\n"), ord("\r")))
    if quoted:  # a line that begins within quotes belongs to the row before
        has_row &= np.searchsorted(np.flatnonzero(array == ord('"')), starts) % 2 == 0
    lines = np.flatnonzero(has_row) + 1
    # a literal quotation mark makes the lines unknown
    return lines if len(lines) == rows else np.arange(1, rows + 1)


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
            raise InputError(
                f"{path}, line {number} is not a JSON object in valid Unicode "
                f"({first_line(error)})."
            ) from None
        rows.append(values)
        lines.append(number)
    return rows, lines
