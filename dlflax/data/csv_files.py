"""CSV files with a header, and the numbers in them."""

import contextlib
import csv
import gzip
import io
import math
import re
from pathlib import Path

import numpy as np

from dlflax.errors import InputError
from dlflax.files import read_bytes

DELIMITERS = ",;\t|"
SNIFFED = 20_000  # characters that decide which of them it is
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")  # cells that say nothing, in small letters


def read(path: Path, what: str = "a series") -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(headings, [(line, cells)]) of a CSV file, maybe gzipped, whatever its `delimiter`. what:
    what the file is for, in messages. InputError where it is no such file, or a row has another
    length than the header."""
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}: {what} is a CSV file with a header.")
    try:
        content = read_bytes(path)
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter(text))
        (_, header), *rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a CSV file with a header ({error}).") from error
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {line} has {len(row)} cells under {len(header)} headings: put "
                "numbers that have a comma in quotes, or write them without."
            )
    return header, rows


def delimiter(text: str) -> str:
    """Of a comma, a semicolon, a tab and a bar the one that cuts each of the first lines into as
    many cells, two or more; of several, or of none, that which is most often in the first line."""
    first = text.partition("\n")[0]
    lines = io.StringIO(text[:SNIFFED], newline="").readlines()

    def even(mark):
        with contextlib.suppress(csv.Error):
            counts = [len(row) for row in csv.reader(lines, delimiter=mark) if row]
            if len(text) > SNIFFED:
                counts.pop()  # cut in the middle
            return len(set(counts)) == 1 and counts[0] > 1
        return False

    return max(DELIMITERS, key=lambda mark: (even(mark), first.count(mark)))


def numbers(cells: list[str]) -> np.ndarray | str:
    """float64 (n,), NaN where a cell is one of MISSING; or the first cell that is no number. The
    cells have one way to write numbers: 1234.5, 1,234.5, or 1.234,5."""
    texts = [cell for cell in cells if cell.lower() not in MISSING]
    grouped = all(re.fullmatch(r"[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?", cell) for cell in texts)
    comma = r"[-+]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?"
    decimal_comma = all(re.fullmatch(comma, cell) for cell in texts)
    values = []
    for cell in cells:
        if cell.lower() in MISSING:
            values.append(math.nan)
            continue
        plain = cell
        if "," in cell and grouped:
            plain = cell.replace(",", "")
        elif "," in cell and decimal_comma:
            plain = cell.replace(".", "").replace(",", ".")
        try:
            values.append(float(plain))
        except ValueError:
            return cell
    return np.array(values, np.float64)
