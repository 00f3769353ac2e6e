"""Tables as files, data frames and rows of JSON have them: columns of cells without a meaning yet.

pyarrow reads CSV, Parquet and Feather files and data frames, python-calamine Excel's. The cells of
a CSV file are texts; what they mean is inferred by an encoder, once, and kept.
"""

import contextlib
import csv
import dataclasses
import gzip
import io
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data.delimited import (
    Log,
    decode,
    first_row,
    line_numbers,
    parse_csv,
    read_json_lines,
    without_hint,
)
from dlflax.data.encoder import TooMuch, Upload, is_frame, is_series, take_rows, unpack_hub
from dlflax.data.target import level_key
from dlflax.errors import InputError
from dlflax.files import escape_controls, max_file_bytes, read_bytes

ENDINGS = re.compile(
    r"\.(?:(?P<arrow>parquet|pq|feather|arrow|ipc)|(?P<sheet>xlsx|xlsm|xlsb|xls|ods)"
    r"|(?P<json>jsonl|ndjson)(?:\.gz)?)$",
    re.IGNORECASE,
)


class RowNames(Sequence):
    """Names of rows for the user, made when they are asked for: "a.csv, line 7"."""

    def __init__(self, prefix: str, numbers: np.ndarray):
        self.prefix, self.numbers = prefix, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        numbers = self.numbers[index]
        return RowNames(self.prefix, numbers) if np.ndim(numbers) else f"{self.prefix} {numbers}"


@dataclasses.dataclass(frozen=True)
class RawTable:
    """The columns of a table, by name, all of one length."""

    columns: Mapping[str, Any]
    """Arrow arrays: of texts, stripped, as a CSV file has them, or of typed values. A column of
    several types is object (n,), of Python values."""
    place: str
    """The file or what else it was, for messages."""
    delimiter: str = ""
    """Between the cells of a CSV file; "" for any other table."""
    names: Any = None
    """`RowNames`; by default "a.csv, row 1" and so on."""

    def __post_init__(self):
        if self.names is None:
            names = RowNames(f"{self.place}, row", np.arange(1, len(self) + 1))
            object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def row_name(self, row: int) -> str:
        """Returns the row's name: "a.csv, line 7"."""
        return self.names[int(row)]

    def rename_like(self, names: Sequence[str], log: Log) -> "RawTable":
        """Returns the table with these names for columns that differ in capitals, blanks or
        Unicode's form; `log` gets which. Where several do, they stay as they are."""

        def key(name):
            return "".join(level_key(name).split())

        places = Counter(map(key, self.columns))
        plain = {key(name): name for name in names if name not in self.columns}
        columns = {}
        for name, column in self.columns.items():
            alone = places[key(name)] == 1 and name not in names
            other = plain.get(key(name), name) if alone else name
            if other != name:
                log(f"{self.place}: the column {name} is read as {other}.")
            columns[other] = column
        return dataclasses.replace(self, columns=columns)

    def take(self, index: Any) -> "RawTable":
        """Returns the rows at index, int (n,) or bool (n,)."""
        columns = {name: take_rows(column, index) for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns, names=self.names[index])


def read_table(
    given: Any, usual: str = ",", most: int = sys.maxsize, log: Log = lambda sentence: None,
    what: str = "a table",
) -> RawTable:  # fmt: skip
    """Reads a file (a Path or an Upload), a data frame, or rows {column: value}. usual: the
    delimiter of a CSV file that does not show another; what: the purpose of the table, in messages;
    `log` gets what was assumed. Raises InputError for anything else, TooMuch for more than `most`
    rows."""
    if isinstance(given, Path | Upload):
        table = _read_file(given, usual, log, what)
    elif is_frame(given):
        table = _of_frame(given, log)
    else:
        given = [dict(given)] if is_series(given) else given
        if not isinstance(given, Sequence) or not all(isinstance(row, Mapping) for row in given):
            raise InputError(f"{what} is a CSV file, a data frame, or rows {{column: value}}.")
        if len(given) > most:
            raise TooMuch(f"a request may have {most:,} rows.")
        table = _of_rows(given, None, "the list of rows", log)
    pa.default_memory_pool().release_unused()  # of what was read, but is no column
    if not len(table):
        raise InputError(f"{table.place} has no rows below its header.")
    if len(table) > most:
        raise TooMuch(f"a request may have {most:,} rows.")
    return table


def _table(
    place: str, headings: Sequence[str], columns: Sequence[Any], log: Log, mark: str = "",
    lines: np.ndarray | None = None,
) -> RawTable:  # fmt: skip
    """Returns the table. A column without a heading is named by its place, if it has cells; lines:
    the line of each row in its file."""
    named: dict[str, Any] = {}
    for i, (heading, column) in enumerate(zip(headings, columns, strict=True), 1):
        name = escape_controls(heading.strip())
        if not name:
            if not pc.any(pc.not_equal(as_texts(column), "")).as_py():
                log(f"{place}: column {i} has no name and no cells: dropped.")
                continue
            name = f"column {i}"
            log(f"{place}: column {i} has no name: it is called {name!r}.")
        if name in named:
            raise InputError(f"{place} has two columns {name!r}: give each a name of its own.")
        named[name] = column
    names = None if lines is None else RowNames(f"{place}, line", lines)
    return RawTable(named, place, mark, names)


def _read_file(given: Path | Upload, usual: str, log: Log, what: str) -> RawTable:
    path = Path(given.name) if isinstance(given, Upload) else given
    if not isinstance(given, Upload) and not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}: {what} is a CSV file with a header.")
    ending = ENDINGS.search(path.name)
    kind = ending and ending.lastgroup or "CSV"
    try:
        content = given.content if isinstance(given, Upload) else read_bytes(path)
        if path.suffix.lower() == ".gz":
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(max_file_bytes() + 1)
            if len(content) > max_file_bytes():
                raise ValueError("unpacked, it is larger than a quarter of the memory")
        if kind == "arrow":
            return _of_arrow(_read_arrow(content), str(path), log)
        if kind == "sheet":
            return _of_sheet(content, path, log)
        content = decode(content, path, log)
        if b"\0" in content:
            raise ValueError("it has the character NUL: save it as UTF-8")
        if kind == "json":
            return _of_rows(*read_json_lines(content, path), str(path), log)
        return _of_csv(content, path, usual, log)
    except InputError:  # which is a ValueError
        raise
    except (ValueError, OSError, EOFError, pa.ArrowException, csv.Error) as error:
        name = {"arrow": "Parquet or Feather", "sheet": "Excel", "json": "JSON Lines"}.get(kind)
        form = f"{name} file" if name else "CSV file with a header"
        raise InputError(f"{path} is not a {form} ({' '.join(str(error).split())}).") from error


def _of_csv(content: bytes, path: Path, usual: str, log: Log) -> RawTable:
    content, mark = without_hint(content, usual)
    header = first_row(content, mark)
    table, ragged = parse_csv(content, mark, len(header))
    lines = line_numbers(content, len(table) + len(ragged))
    if ragged:
        row, cells = ragged[0]
        above = row > 1 and len(ragged) > len(table)  # lines of something else begin the file
        raise InputError(
            f"{path}, line {lines[row]} has {cells} cells under {len(header)} headings: "
            + ("remove the lines above the header." if above else
               "put numbers that have a comma in quotes, or write them without.")
        )  # fmt: skip
    columns = [pc.utf8_trim_whitespace(column.combine_chunks())[1:] for column in table.columns]
    return _table(str(path), header, columns, log, mark, lines[1:])


def _of_rows(
    rows: Sequence[Mapping[str, Any]], lines: list[int] | None, place: str, log: Log
) -> RawTable:
    if not rows:
        raise InputError(f"{place} has no rows: give one or more.")
    headings = list(dict.fromkeys(name for row in rows for name in row))
    if lines is None and any(len(row) != len(headings) for row in rows):
        raise InputError('give rows as {"column": value, ...}, all with the same columns.')
    columns = [as_column([row.get(name) for row in rows]) for name in headings]
    numbers = None if lines is None else np.array(lines)
    return _table(place, list(map(str, headings)), columns, log, lines=numbers)


def _of_frame(given: Any, log: Log) -> RawTable:
    arrow = None
    with contextlib.suppress(pa.ArrowException, TypeError, AttributeError, NotImplementedError,
                             OverflowError, ValueError):  # fmt: skip
        arrow = pa.table(unpack_hub(given))
    if arrow is not None:
        return _of_arrow(arrow, "the data frame", log)
    if not hasattr(given, "iloc"):
        raise InputError(f"a {type(given).__name__} is no table: give a data frame.")
    # one of pandas whose columns have values of several types
    values = given.astype(object).where(given.notna(), None)
    columns = [as_column(values.iloc[:, i].tolist()) for i in range(values.shape[1])]
    return _table("the data frame", list(map(str, given.columns)), columns, log)


def _read_arrow(content: bytes) -> pa.Table:
    from pyarrow import feather, parquet

    buffer = pa.BufferReader(content)
    if content.startswith(b"PAR1"):
        about = parquet.read_metadata(buffer)
        if about.num_rows * about.num_columns > max_file_bytes():  # a byte a cell, at least
            raise ValueError("unpacked, it is larger than a quarter of the memory")
        return parquet.read_table(buffer, use_threads=False)
    if content.startswith(b"ARROW1"):
        return feather.read_table(buffer, use_threads=False)
    with pa.ipc.open_stream(buffer) as stream:
        return stream.read_all()


def _of_arrow(table: pa.Table, place: str, log: Log) -> RawTable:
    # the index of pandas stands last, where the target is looked for; without a name it is none
    index = [str(name) for name in (table.schema.pandas_metadata or {}).get("index_columns", ())]
    named = [(str(name), column) for name, column in zip(table.column_names, table.columns,
             strict=True) if not (name in index and name.startswith("__index_level_"))]  # fmt: skip
    named.sort(key=lambda pair: pair[0] not in index)
    columns = [
        _simplify(pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks())
        for _, column in named
    ]
    return _table(place, [name for name, _ in named], columns, log)


def _simplify(array: pa.Array) -> pa.Array:
    """Returns the column as numbers, booleans, dates or texts, stripped. A duration becomes its
    seconds; a time of day, bytes and what has parts become texts."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _simplify(array.dictionary_decode())
    if pa.types.is_duration(kind):
        unit = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        return pc.divide(array.cast(pa.int64()).cast(pa.float64(), safe=False), unit)
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return array.cast(pa.float64())
    odd = pa.types.is_time(kind) or pa.types.is_interval(kind)
    if pa.types.is_primitive(kind) and not odd or pa.types.is_null(kind):
        return array
    if is_text(array) or "binary" in str(kind):
        with contextlib.suppress(pa.ArrowInvalid):  # bytes that are no text
            return pc.utf8_trim_whitespace(array.cast(pa.string()))
    return as_texts(array)


def _of_sheet(content: bytes, path: Path, log: Log) -> RawTable:
    try:
        import python_calamine
    except ImportError:
        raise InputError(
            f"{path}: Excel files need python-calamine: pip install 'dlflax[excel]', or save it as "
            "CSV."
        ) from None
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            if sum(part.file_size for part in parts.infolist()) > max_file_bytes():
                raise ValueError("unpacked, it is larger than a quarter of the memory")
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(content))
        rows = book.get_sheet_by_index(0).to_python()
    except Exception as error:  # of the library's own kinds
        raise ValueError(str(error)) from error
    if len(book.sheet_names) > 1:
        log(f"{path}: the sheet {book.sheet_names[0]!r} is read, the first of "
            f"{len(book.sheet_names)}.")  # fmt: skip
    numbers = [i for i, row in enumerate(rows, 1) if any(cell != "" for cell in row)]
    if not numbers:
        raise ValueError("its first sheet is empty")
    header, *body = ([None if cell == "" else cell for cell in rows[i - 1]] for i in numbers)
    columns = zip(*body, strict=True) if body else [()] * len(header)
    columns = [as_column(list(cells)) for cells in columns]
    return _table(str(path), list(map(as_text, header)), columns, log, lines=np.array(numbers[1:]))


def as_column(values: Sequence[Any]) -> Any:
    """Returns an Arrow array of Python values; object (n,) where they have several types."""
    values = [None if is_missing(value) else value for value in values]
    try:
        "".join(value for value in values if isinstance(value, str)).encode()
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        raise InputError(f"a cell has {character!r}, half of a character: repair it.") from None
    with contextlib.suppress(pa.ArrowException, TypeError, OverflowError, ValueError):
        return _simplify(pa.array(values))
    column = np.empty(len(values), object)
    column[:] = values
    return column


def as_texts(column: Any) -> pa.Array:
    """Returns a column as Arrow's texts, "" where it has no value: a whole float as the integer."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if is_text(column):
        return column.fill_null("") if column.null_count else column
    if not isinstance(column, pa.Array) or not pa.types.is_primitive(column.type):
        return pa.array([as_text(value) for value in column.tolist()], pa.string())
    if pa.types.is_boolean(column.type):
        return pc.if_else(column, "True", "False").fill_null("")
    if pa.types.is_integer(column.type):
        return column.cast(pa.string()).fill_null("")
    codes = column.dictionary_encode()
    texts = pa.array([as_text(value) for value in codes.dictionary.to_pylist()], pa.string())
    return texts.take(codes.indices).fill_null("")


def is_missing(value: Any) -> bool:
    """True for None, NaN, NaT, and pandas' NA."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # NA is neither
        return True
    except ValueError:  # an array
        return False


def as_text(value: Any) -> str:
    """Returns a value as the text of a category; "" for None and NaN."""
    if is_missing(value):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def is_text(column: Any) -> bool:
    """True if all values of a column are texts."""
    return isinstance(column, pa.Array) and str(column.type) in (
        "string",
        "large_string",
        "string_view",
    )
