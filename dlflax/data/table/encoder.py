"""The encoder of tables."""

import dataclasses
import itertools
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dlflax.data import encoder
from dlflax.data.encoder import Encoder, Examples, Form, Limits, Plain, RowsRefused, Spec
from dlflax.data.table import columns as table_columns
from dlflax.data.table import number_formats
from dlflax.data.table.columns import CategoryColumn, Column, NumberColumn, TextColumn, TimeColumn
from dlflax.data.table.number_formats import MISSING, NumberFormat
from dlflax.data.table.raw_table import RawTable, as_texts, read_table
from dlflax.data.target import Classes, Numbers
from dlflax.errors import InputError

PARSED_ROWS, ENCODED_ROWS = 16_384, 1_024  # at a time, to save memory


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A column of the training file that is no input."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class TableEncoder(Encoder):
    """The encoder of the rows of a table."""

    form: ClassVar = Form(
        "row", "rows", {"type": "object"}, ("text/csv",), widget="row", upload="table",
        experiment=("tabular", "a CSV file"),
    )  # fmt: skip

    target: Classes | Numbers
    columns: tuple[NumberColumn | CategoryColumn | TimeColumn | TextColumn, ...]
    """Columns of the inputs, in their order."""
    target_column: str
    """Column of the target."""
    target_format: NumberFormat | None
    """Number format of the target; None for classes."""
    delimiter: str = ","
    """Delimiter of the training file; "" if it was no CSV file."""
    missing: tuple[int, ...] = ()
    """Numbers of missing values in the training rows of each column."""
    dropped: tuple[Dropped, ...] = ()
    """Other columns of the training file."""
    header: tuple[str, ...] = ()
    """Names of `columns` and `dropped`, in the order of the training file."""

    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Reads a table file, rows {column: value}, a data frame, or an array of numbers in the
        order of the training file's columns. Other columns are ignored. Raises RowsRefused for rows
        with invalid cells."""
        if isinstance(given, np.ndarray):
            return self._from_array(given)
        return self._read(given, limits.rows if limits else sys.maxsize)[0]

    def parse_with_targets(self, given: Any) -> Examples:
        """Reads a table file or a data frame with the target column."""
        examples, table = self._read(given, sys.maxsize)
        if self.target_column not in table.columns:
            raise InputError(
                f"{table.place} lacks the column {self.target_column}, which the model predicts."
            )
        return dataclasses.replace(examples, target=self._parse_target(table))

    def _read(self, given: Any, most: int) -> tuple[Examples, RawTable]:
        if given is None:
            raise InputError("name one or more table files, such as CSV, after the run folder.")
        delimiter = self.delimiter or ","
        table = read_table(encoder.as_path(given) or given, delimiter, most, encoder.note)
        names = [column.name for column in self.columns]
        table = table.rename_like([*names, self.target_column], encoder.note)
        if missing := [name for name in names if name not in table.columns]:
            raise InputError(f"{table.place} lacks the column {missing[0]}, which the model reads.")
        formats = {c.name: c.format for c in self.columns if isinstance(c, NumberColumn)}
        number_formats.check_same_format(table, formats, self.delimiter)
        # rows of a data frame have numbers, no names
        row_names = () if table.place == "the data frame" else table.names
        examples = Examples({name: table.columns[name] for name in names}, None, row_names)
        self._check_rows(examples, table)
        return examples, table

    def _check_rows(self, examples: Examples, table: RawTable) -> None:
        wrong = np.zeros(len(examples), bool)
        errors: dict[int, str] = {}
        for column in self.columns:
            cells = examples.columns[column.name]
            raw, wrong_cells = column.parse(cells)
            about = column.describe()
            for row in np.flatnonzero(wrong_cells & ~wrong).tolist():
                cell = cells[row].as_py() if isinstance(cells, pa.Array) else cells[row]
                errors[row] = (
                    f"{table.row_name(row)}: the column {column.name} has {cell!r:.60}, where "
                    f"training rows have a {about['type']} such as {about['format']}."
                )
            wrong |= wrong_cells
            unknown = np.flatnonzero(raw[:, 0] == 0) if isinstance(column, CategoryColumn) else ()
            if len(unknown):
                # rare levels of the training rows are not saved, so they count as new
                texts = as_texts(cells).take(pa.array(unknown)).unique().to_pylist()
                encoder.note(
                    f"{table.place}: {len(unknown):,} of {len(raw):,} rows have a {column.name} "
                    f"that is no level of the training rows ({', '.join(texts[:5])}): other."
                )
        if errors:
            raise RowsRefused([errors[row] for row in sorted(errors)], examples.take(~wrong))

    def _parse_target(self, table: RawTable) -> np.ndarray:
        """Returns class numbers, UNKNOWN for new classes, or numbers in their unit."""
        name, cells = self.target_column, table.columns[self.target_column]
        if isinstance(self.target, Classes):
            texts = as_texts(cells).to_pylist()
            empty, target = np.array([not text for text in texts]), self.target.numbers(texts)
        else:
            form = self.target_format or NumberFormat()
            target = number_formats.require_numbers(table, name, form)
            empty = np.isnan(target)
        if empty.any():
            raise InputError(
                f"{table.row_name(int(empty.argmax()))}, column {name} has a missing value: fill it"
                + (", or read the file with keep_default_na=False, as it may be a class."
                   if {*map(str.lower, self.target.classes)} & {*MISSING} else ".")
            )  # fmt: skip
        return target

    def _from_array(self, array: np.ndarray) -> Examples:
        names = [column.name for column in self.columns]
        if array.shape[-1:] == (len(self.header),):
            array = array[..., [self.header.index(name) for name in names]]
        array = array[None] if array.shape == (len(names),) else array
        if array.dtype.kind not in "fiu" or array.shape[1:] != (len(names),):
            raise InputError(
                f"predict takes arrays in shape ('n', {len(names)}) ({', '.join(names)[:200]}), "
                f"paths or a data frame, no {array.dtype} in shape {array.shape}."
            )
        if others := [c.name for c in self.columns if not isinstance(c, NumberColumn)]:
            raise InputError(
                f"predict takes no array for a table with texts or times ({others[0]}): give a "
                "data frame or a CSV file."
            )
        rows = np.float64(array)  # NaN and infinity are missing values
        columns = {name: pa.array(rows[:, i]) for i, name in enumerate(names)}
        return Examples(columns, None, [str(i) for i in range(len(rows))])

    def raw(self, examples: Examples) -> np.ndarray:
        """Returns float64 (n, columns): numbers, level numbers, parts of times, hashed words."""
        rows = np.empty((len(examples), self.spec().shape[0]))
        for column, index in self._raw_slices():
            rows[:, index] = column.parse(examples.columns[column.name])[0]
        return rows

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        parts = [column.encode(raw[:, index], xp) for column, index in self._raw_slices()]
        # float64 until here: an exported program has one dtype
        return {"inputs": xp.concatenate(parts, 1).astype(np.float32)}

    def encode(self, examples: Examples) -> dict[str, Any]:
        """Returns the arrays for training, encoded block by block in two threads."""
        widths = [column.width() for column in self.columns]
        slices, inputs = self._slices(widths), np.empty((len(examples), sum(widths)), np.float32)

        def fill(start: int) -> None:
            rows = inputs[start : start + PARSED_ROWS]
            for column, index in slices:
                raw = column.parse(examples.columns[column.name][start : start + len(rows)])[0]
                for i in range(0, len(raw), ENCODED_ROWS):
                    block = slice(i, i + ENCODED_ROWS)
                    rows[block, index] = column.encode(raw[block], np)

        with ThreadPoolExecutor(2) as pool:  # NumPy and Arrow release the GIL
            list(pool.map(fill, range(0, len(examples), PARSED_ROWS)))
        arrays = {"inputs": inputs}
        if examples.target is not None:
            arrays["targets"] = self.target.encode(examples.target)
        return arrays

    def _slices(self, widths: Iterable[int]) -> list[tuple[Column, slice]]:
        """Returns each column and its indices, in arrays with so many values of each."""
        bounds = itertools.pairwise(itertools.accumulate(widths, initial=0))
        return [(c, slice(*bound)) for c, bound in zip(self.columns, bounds, strict=True)]

    def _raw_slices(self) -> list[tuple[Column, slice]]:
        return self._slices(column.raw_width for column in self.columns)

    def spec(self) -> Spec:
        return Spec(
            (sum(column.raw_width for column in self.columns),), "float64",
            "a row of the table: its numbers, NaN where one is missing; for a category the number "
            "of its level, from 1, or 0 for any other; for a time the days since 1970, year, "
            "month, day of the week from 0, Monday, and share of the day; for free text "
            f"{table_columns.HASHES} numbers for its words",
        )  # fmt: skip

    def describe(self) -> str:
        return f"rows of {sum(column.width() for column in self.columns)} numbers"

    def plain(self, examples: Examples) -> Plain:
        categories = tuple(
            isinstance(c, CategoryColumn) for c in self.columns for _ in range(c.raw_width)
        )
        return Plain(self.raw(examples), categories)

    def groups(self) -> dict[str, slice]:
        slices = self._slices(column.width() for column in self.columns)
        return {column.name: index for column, index in slices}

    def columns_table(self) -> list[dict[str, Any]]:
        about = [(c.name, missing, c.describe())
                 for c, missing in zip(self.columns, self.missing, strict=True)]  # fmt: skip
        about += [(d.name, "", {"type": "dropped", "format": "", "note": d.reason})
                  for d in self.dropped]  # fmt: skip
        return [
            {"column": name, "type": a["type"], "format": a["format"], "missing": missing,
             "levels": len(a.get("levels", ())) or "", "note": a["note"]}
            for name, missing, a in about
        ]  # fmt: skip

    def outlook(self) -> dict[str, Any]:
        return {"columns": [{"name": c.name, **c.describe()} for c in self.columns]}
