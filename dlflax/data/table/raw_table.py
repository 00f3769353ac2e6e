"""Raw tables of files, data frames and rows of JSON: columns of cells in no inferred format.

pyarrow reads CSV, Parquet and Feather files and data frames, python-calamine Excel files. The cells
of a CSV file are texts.
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

from dlflax.data.encoder import TooMuch, Upload, is_frame, is_series, take_rows, unpack_hub
from dlflax.data.table import delimited
from dlflax.data.table.delimited import Log
from dlflax.data.target import level_key
from dlflax.errors import InputError
from dlflax.files import escape_controls, max_file_bytes, read_bytes

ENDINGS = re.compile(
    r"\.(?:(?P<arrow>parquet|pq|feather|arrow|ipc)|(?P<sheet>xlsx|xlsm|xlsb|xls|ods)"
    r"|(?P<json>jsonl|ndjson)(?:\.gz)?)$",
    re.IGNORECASE,
)


class RowNames(Sequence):
    """Names of rows for the user, formatted when they are indexed: "a.csv, line 7"."""

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
    """Arrow arrays of values or stripped texts; object (n,) of Python values for mixed types."""
    place: str
    """The file, or "the data frame", for messages."""
    delimiter: str = ""
    """Delimiter of a CSV file; "" for any other table."""
    names: Any = None
    """`RowNames`; by default "a.csv, row 1" and so on."""

    def __post_init__(self):
        if self.names is None:
            names = RowNames(f"{self.place}, row", np.arange(1, len(self) + 1))
            object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def row_name(self, row: int) -> str:
        """Returns the name of a row: "a.csv, line 7"."""
        return self.names[int(row)]

    def rename_like(self, names: Sequence[str], log: Log) -> "RawTable":
        """Returns the table with these names for columns that differ only in capitals, blanks or
        Unicode's form, unless several columns match a name. `log` gets the changes."""

        keys = {name: "".join(level_key(name).split()) for name in (*self.columns, *names)}
        counts = Counter(keys[name] for name in self.columns)
        missing = {keys[name]: name for name in names if name not in self.columns}
        columns = {}
        for name, column in self.columns.items():
            new_name = name
            if counts[keys[name]] == 1 and name not in names and keys[name] in missing:
                new_name = missing[keys[name]]
                log(f"{self.place}: the column {name} is read as {new_name}.")
            columns[new_name] = column
        return dataclasses.replace(self, columns=columns)

    def take(self, index: Any) -> "RawTable":
        """Returns the rows at index, int (n,) or bool (n,)."""
        columns = {name: take_rows(column, index) for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns, names=self.names[index])


def read_table(
    given: Any, usual: str = ",", most: int = sys.maxsize, log: Log = lambda sentence: None,
    noun: str = "a table",
) -> RawTable:  # fmt: skip
    """Reads a file (a Path or an Upload), a data frame, or rows {column: value}.

    usual: delimiter of a CSV file without evidence of another; noun: for messages; `log` gets
    assumptions. Raises InputError for anything else, TooMuch for more than `most` rows."""
    if isinstance(given, Path | Upload):
        table = _read_file(given, usual, log, noun)
    elif is_frame(given):
        table = _from_frame(given, log)
    else:
        given = [dict(given)] if is_series(given) else given
        if not isinstance(given, Sequence) or not all(isinstance(row, Mapping) for row in given):
            raise InputError(f"{noun} is a CSV file, a data frame, or rows {{column: value}}.")
        if len(given) > most:
            raise TooMuch(f"a request may have {most:,} rows.")
        table = _from_rows(given, None, "the list of rows", log)
    pa.default_memory_pool().release_unused()  # of text that became no column
    if not len(table):
        raise InputError(f"{table.place} has no rows below its header.")
    if len(table) > most:
        raise TooMuch(f"a request may have {most:,} rows.")
    return table


def _table(
    place: str, header: Sequence[str], columns: Sequence[Any], log: Log, delimiter: str = "",
    lines: np.ndarray | None = None,
) -> RawTable:  # fmt: skip
    """Returns the table, without empty columns that have no name. lines: of the rows in a file."""
    by_name: dict[str, Any] = {}
    for i, (name, column) in enumerate(zip(header, columns, strict=True), 1):
        name = escape_controls(name.strip())
        if not name:
            if not pc.any(pc.not_equal(as_texts(column), "")).as_py():
                log(f"{place}: column {i} has no name and no cells: dropped.")
                continue
            name = f"column {i}"
            log(f"{place}: column {i} has no name: it is called {name!r}.")
        if name in by_name:
            raise InputError(f"{place} has two columns {name!r}: give each a name of its own.")
        by_name[name] = column
    names = None if lines is None else RowNames(f"{place}, line", lines)
    return RawTable(by_name, place, delimiter, names)


def _check_size(size: int) -> None:
    if size > max_file_bytes():
        raise ValueError("unpacked, it is larger than a quarter of the memory")


def _read_file(given: Path | Upload, usual: str, log: Log, noun: str) -> RawTable:
    path = Path(given.name) if isinstance(given, Upload) else given
    if not isinstance(given, Upload) and not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {problem}: {noun} is a CSV file with a header.")
    ending = ENDINGS.search(path.name)
    kind = ending.lastgroup if ending else "csv"
    try:
        content = given.content if isinstance(given, Upload) else read_bytes(path)
        if path.suffix.lower() == ".gz":
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(max_file_bytes() + 1)
            _check_size(len(content))
        if kind == "arrow":
            return _from_arrow(_read_arrow(content), str(path), log)
        if kind == "sheet":
            return _from_sheet(content, path, log)
        content = delimited.to_utf8(content, path, log)
        if b"\0" in content:
            raise ValueError("it has the character NUL: save it as UTF-8")
        if kind == "json":
            return _from_rows(*delimited.read_json_lines(content, path), str(path), log)
        content, delimiter = delimited.detect_dialect(content, usual)
        header, columns, lines = delimited.parse_csv(content, path, delimiter)
        columns = list(map(pc.utf8_trim_whitespace, columns))
        return _table(str(path), header, columns, log, delimiter, lines)
    except InputError:  # a ValueError, too
        raise
    except (ValueError, OSError, EOFError, pa.ArrowException, csv.Error) as error:
        form = {"arrow": "Parquet or Feather file", "sheet": "Excel file",
                "json": "JSON Lines file", "csv": "CSV file with a header"}[kind]  # fmt: skip
        raise InputError(f"{path} is not a {form} ({' '.join(str(error).split())}).") from error


def _from_rows(
    rows: Sequence[Mapping[str, Any]], lines: list[int] | None, place: str, log: Log
) -> RawTable:
    if not rows:
        raise InputError(f"{place} has no rows: give one or more.")
    header = list(dict.fromkeys(name for row in rows for name in row))
    if lines is None and any(len(row) != len(header) for row in rows):
        raise InputError('give rows as {"column": value, ...}, all with the same columns.')
    columns = [as_column([row.get(name) for row in rows]) for name in header]
    numbers = None if lines is None else np.array(lines)
    return _table(place, list(map(str, header)), columns, log, lines=numbers)


def _from_frame(given: Any, log: Log) -> RawTable:
    arrow = None
    with contextlib.suppress(pa.ArrowException, TypeError, AttributeError, NotImplementedError,
                             OverflowError, ValueError):  # fmt: skip
        arrow = pa.table(unpack_hub(given))
    if arrow is not None:
        return _from_arrow(arrow, "the data frame", log)
    if not hasattr(given, "iloc"):
        raise InputError(f"a {type(given).__name__} is no table: give a data frame.")
    # a pandas frame whose columns have values of several types
    values = given.astype(object).where(given.notna(), None)
    columns = [as_column(values.iloc[:, i].tolist()) for i in range(values.shape[1])]
    return _table("the data frame", list(map(str, given.columns)), columns, log)


def _read_arrow(content: bytes) -> pa.Table:
    from pyarrow import feather, parquet

    buffer = pa.BufferReader(content)
    if content.startswith(b"PAR1"):
        metadata = parquet.read_metadata(buffer)
        _check_size(metadata.num_rows * metadata.num_columns)  # a byte per cell, at least
        return parquet.read_table(buffer, use_threads=False)
    if content.startswith(b"ARROW1"):
        return feather.read_table(buffer, use_threads=False)
    with pa.ipc.open_stream(buffer) as stream:
        return stream.read_all()


def _from_arrow(table: pa.Table, place: str, log: Log) -> RawTable:
    # the index of pandas is last, the default target: it goes first, or without a name is dropped
    index = set(map(str, (table.schema.pandas_metadata or {}).get("index_columns", ())))
    fields = [
        (name, column) for name, column in zip(table.column_names, table.columns, strict=True)
        if not (name in index and name.startswith("__index_level_"))
    ]  # fmt: skip
    fields.sort(key=lambda field: field[0] not in index)
    columns = [_simplify(column.combine_chunks()) for _, column in fields]
    return _table(place, [name for name, _ in fields], columns, log)


def _simplify(array: pa.Array) -> pa.Array:
    """Returns the column as numbers, booleans, dates or stripped texts. Durations become seconds;
    times of day, bytes and nested values become texts."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _simplify(array.dictionary_decode())
    if pa.types.is_duration(kind):
        unit = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        return pc.divide(array.cast(pa.int64()).cast(pa.float64(), safe=False), unit)
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return array.cast(pa.float64())
    is_odd = pa.types.is_time(kind) or pa.types.is_interval(kind)
    if pa.types.is_null(kind) or pa.types.is_primitive(kind) and not is_odd:
        return array
    if is_text(array) or "binary" in str(kind):
        with contextlib.suppress(pa.ArrowInvalid):  # bytes that are no text
            return pc.utf8_trim_whitespace(array.cast(pa.string()))
    return as_texts(array)


def _from_sheet(content: bytes, path: Path, log: Log) -> RawTable:
    try:
        import python_calamine
    except ImportError:
        raise InputError(
            f"{path}: Excel files need python-calamine: pip install 'dlflax[excel]', or save it as "
            "CSV."
        ) from None
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            _check_size(sum(part.file_size for part in parts.infolist()))
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(content))
        rows = book.get_sheet_by_index(0).to_python()
    except Exception as error:  # its errors have no common base class
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
        raise InputError(f"a cell has {character!r}, a lone surrogate: remove it.") from None
    with contextlib.suppress(pa.ArrowException, TypeError, OverflowError, ValueError):
        return _simplify(pa.array(values))
    column = np.empty(len(values), object)
    column[:] = values
    return column


def as_texts(column: Any) -> pa.Array:
    """Returns a column as Arrow texts: "" for missing values, 1.0 as "1"."""
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
    except TypeError:  # bool(NA)
        return True
    except ValueError:  # bool(array)
        return False


def as_text(value: Any) -> str:
    """Returns a value as the text of a category; "" for None and NaN."""
    if is_missing(value):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def is_text(column: Any) -> bool:
    """True for an Arrow column of texts."""
    types = ("string", "large_string", "string_view")
    return isinstance(column, pa.Array) and str(column.type) in types
