"""CSV files with a header."""

import contextlib
import csv
import gzip
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dlflax.data.numbers import from_json, write_cell
from dlflax.errors import InputError
from dlflax.files import read_bytes

DELIMITERS = ",;\t|"
SNIFFED = 20_000  # characters that decide which of them it is


def read(
    path: Path, what: str = "a series", usual: str = ","
) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """(headings, [(line, cells)], the delimiter) of a CSV file, maybe gzipped. what: what the file
    is for, in messages; usual: the delimiter, where the file does not show another. InputError
    where it is no such file, or a row has another length than the header."""
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}: {what} is a CSV file with a header.")
    try:
        content = read_bytes(path)
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
        if "\0" in text:  # UTF-16 without its mark, or no text at all; NumPy's strings drop it
            raise ValueError("it has the character NUL: save it as UTF-8")
        mark = delimiter(text, usual)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
        (_, header), *rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a CSV file with a header ({error}).") from error
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {line} has {len(row)} cells under {len(header)} headings: put "
                "numbers that have a comma in quotes, or write them without."
            )
    return header, rows, mark


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


def write(path: Path, header: list[str], rows: Iterable[Iterable[Any]], data) -> None:
    """Writes typed rows, as JSON and data frames have them, in the style of a run's training file.
    data: what config.json says of the data."""
    formats = from_json(data.get("formats", {}))
    with open(path, "w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file, delimiter=data.get("delimiter", ","))
        writer.writerow(header)
        for row in rows:
            cells = zip(header, row, strict=True)
            writer.writerow([write_cell(value, formats.get(name)) for name, value in cells])
