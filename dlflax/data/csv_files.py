"""CSV files with a header."""

import contextlib
import csv
import gzip
import io
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

from dlflax.data.encoder import TooMuch, Upload
from dlflax.data.numbers import NumberFormat, check_like
from dlflax.errors import InputError
from dlflax.files import read_bytes

DELIMITERS = ",;\t|"
SNIFFED = 20_000  # characters that decide which of them it is


def read(
    path: Path, what: str = "a series", usual: str = ","
) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """Returns (headings, [(line, cells)], the delimiter) of a CSV file, maybe gzipped. what: the
    purpose of the file, in messages; usual: the delimiter, where the file does not show another.
    Raises InputError where it is no such file, or a row has another length than the header."""
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}: {what} is a CSV file with a header.")
    try:
        content = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} is not a CSV file with a header ({error}).") from error
    return parse(content, path, usual)


def parse(
    content: bytes, path: Path, usual: str = ",", most: int = sys.maxsize
) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """Reads the bytes of a file of that name, as `read` does. Raises TooMuch for more than `most`
    rows."""
    try:
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
        if "\0" in text:  # UTF-16 without its mark, or no text at all; NumPy's strings drop it
            raise ValueError("it has the character NUL: save it as UTF-8")
        mark = delimiter(text, usual)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
        lines = ((reader.line_num, row) for row in reader if row)
        _, header = next(lines, (0, None))
        if header is None:
            raise ValueError("it is empty")
        rows = list(itertools.islice(lines, most))
        if next(lines, None) is not None:
            raise TooMuch(f"a request may have {most:,} rows.")
    except TooMuch:
        raise
    except (UnicodeDecodeError, csv.Error, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a CSV file with a header ({error}).") from error
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {line} has {len(row)} cells under {len(header)} headings: put "
                "numbers that have a comma in quotes, or write them without."
            )
    return header, rows, mark


def read_like(
    given: Path | Upload, usual: str, formats: Mapping[str, NumberFormat], most: int = sys.maxsize
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Returns (headings, [(line, cells)]) of a CSV file, written as a training file with that
    delimiter and those formats of its columns was. Raises InputError where another delimiter shows
    that another program wrote it, and its numbers do not have these formats."""
    if isinstance(given, Upload):
        path = Path(given.name)
        header, rows, mark = parse(given.content, path, usual, most)
    else:
        path = given
        header, rows, mark = read(given, "a table", usual)
    if mark != usual:
        at = {name: header.index(name) for name in formats if name in header}
        columns = {name: [row[i].strip() for _, row in rows] for name, i in at.items()}
        check_like(columns, formats, mark, path)
    return header, rows


def delimiter(text: str, usual: str = ",") -> str:
    """Returns the mark, a comma, a semicolon, a tab or a bar, that cuts each of the first lines
    into as many cells, two or more; of several, or of none, that which is most often in the first
    line, or the usual one."""
    first = text.partition("\n")[0]
    lines = io.StringIO(text[:SNIFFED], newline="").readlines()

    def even(mark):
        with contextlib.suppress(csv.Error):
            counts = [len(row) for row in csv.reader(lines, delimiter=mark) if row]
            if len(text) > SNIFFED:
                counts.pop()  # cut in the middle
            return len(set(counts)) == 1 and counts[0] > 1
        return False

    return max(DELIMITERS, key=lambda mark: (even(mark), first.count(mark), mark == usual))
