"""The encoder of tables."""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dlflax.data import numbers
from dlflax.data.encoder import (
    Encoder,
    Examples,
    Form,
    Limits,
    Plain,
    RowsRefused,
    Spec,
    as_path,
    note,
)
from dlflax.data.numbers import MISSING, NumberFormat, column_numbers
from dlflax.data.raw_table import RawTable, as_texts, read_table
from dlflax.data.table_columns import (
    HASHES,
    CategoryColumn,
    Column,
    NumberColumn,
    TextColumn,
    TimeColumn,
)
from dlflax.data.target import Classes, Numbers
from dlflax.errors import InputError

BLOCK, CACHED = 16_384, 1_024  # rows that are parsed, and encoded, at a time: little memory


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A column of the training file that the model does not read."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class TableEncoder(Encoder):
    """Rows of a table, as numbers that a network can read."""

    form: ClassVar = Form(
        "row", "rows", {"type": "object"}, ("text/csv",), widget="row", upload="table",
        experiment=("tabular", "a CSV file"),
    )  # fmt: skip

    target: Classes | Numbers
    columns: tuple[NumberColumn | CategoryColumn | TimeColumn | TextColumn, ...]
    """The columns that are read, in the order of the inputs."""
    target_column: str
    """The name of the column that is predicted."""
    target_format: NumberFormat | None
    """The way it writes numbers; None for classes."""
    delimiter: str = ","
    """Between the cells of the training file; "" of one that is no CSV file."""
    missing: tuple[int, ...] = ()
    """Training rows without a value of each column."""
    dropped: tuple[Dropped, ...] = ()
    """The other columns of the training file."""

    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Reads a table file, rows {column: value}, a data frame, or an array in the order of the
        columns, if these are all numbers. Columns are found by their names; others may be there.
        Raises RowsRefused for rows with cells that are of another kind than their column."""
        if isinstance(given, np.ndarray):
            return self._of_array(given)
        table = self._read(given, limits.rows if limits else sys.maxsize)
        examples = self._examples(table)
        self._check_rows(examples, table)
        return examples

    def parse_with_targets(self, given: Any) -> Examples:
        """Reads a table file or a data frame with the column of the target."""
        table = self._read(given, sys.maxsize)
        examples = self._examples(table)
        self._check_rows(examples, table)
        if self.target_column not in table.columns:
            raise InputError(
                f"{table.place} lacks the column {self.target_column}, which the model predicts."
            )
        target = self._targets(table, self.target_column)
        return dataclasses.replace(examples, target=target)

    def _read(self, given: Any, most: int) -> RawTable:
        path = as_path(given)
        if path is None and given is None:
            raise InputError("name one or more table files, such as CSV, after the run folder.")
        table = read_table(given if path is None else path, self.delimiter or ",", most, note)
        names = [column.name for column in self.columns]
        table = table.rename_like([*names, self.target_column], note)
        if missing := [name for name in names if name not in table.columns]:
            raise InputError(f"{table.place} lacks the column {missing[0]}, which the model reads.")
        formats = {c.name: c.format for c in self.columns if isinstance(c, NumberColumn)}
        numbers.check_same_format(table, formats, self.delimiter)
        return table

    def _examples(self, table: RawTable) -> Examples:
        columns = {column.name: table.columns[column.name] for column in self.columns}
        if table.place == "the data frame":  # whose rows are known by their numbers
            return Examples(columns)
        return Examples(columns, None, table.names)

    def _check_rows(self, examples: Examples, table: RawTable) -> None:
        wrong = np.zeros(len(examples), bool)
        errors: dict[int, str] = {}
        for column in self.columns:
            cells = examples.columns[column.name]
            raw, bad = column.parse(cells)
            for row in np.flatnonzero(bad & ~wrong).tolist():
                errors[row] = (
                    f"{table.row_name(row)}: the column {column.name} has {_cell(cells, row)!r:.60}"
                    f", where training rows have a {column.describe()['type']} such as "
                    f"{column.describe()['format']}."
                )
            wrong |= bad
            self._note_unknown(column, cells, raw, table)
        if errors:
            raise RowsRefused([errors[row] for row in sorted(errors)], examples.take(~wrong))

    @staticmethod
    def _note_unknown(column: Column, cells: Any, raw: np.ndarray, table: RawTable) -> None:
        unknown = np.flatnonzero(raw[:, 0] == 0) if isinstance(column, CategoryColumn) else []
        if not len(unknown):
            return
        texts = as_texts(cells).take(pa.array(unknown)).unique().to_pylist()
        # rare ones of the training rows are not kept, so they are new as well
        note(
            f"{table.place}: {len(unknown):,} of {len(raw):,} rows have a {column.name} that is no "
            f"level of the training rows ({', '.join(texts[:5])}): other."
        )

    def _targets(self, table: RawTable, name: str) -> np.ndarray:
        """Class numbers, UNKNOWN for others than the model's, or numbers in their unit."""
        cells = table.columns[name]
        if isinstance(self.target, Classes):
            texts = as_texts(cells).to_pylist()
            empty, target = np.array([not text for text in texts]), self.target.numbers(texts)
        else:
            target, wrong = column_numbers(cells, self.target_format or NumberFormat())
            empty = np.isnan(target) & ~wrong
            if wrong.any():
                row = int(wrong.argmax())
                raise InputError(
                    f"{table.row_name(row)}: {name} is {_cell(cells, row)!r}, which is no number."
                )
        if empty.any():
            raise InputError(
                f"{table.row_name(int(empty.argmax()))}, column {name} has a missing value: fill it"
                + (", or read the file with keep_default_na=False, as it may be a class."
                   if {*map(str.lower, self.target.classes)} & {*MISSING} else ".")
            )  # fmt: skip
        return target

    def _of_array(self, array: np.ndarray) -> Examples:
        names = [column.name for column in self.columns]
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
        rows = np.float64(array)  # NaN, and infinite, where a value is missing
        columns = {name: pa.array(rows[:, i]) for i, name in enumerate(names)}
        return Examples(columns, None, [str(i) for i in range(len(rows))])

    def raw(self, examples: Examples) -> np.ndarray:
        """Returns float64 (n, columns): numbers, places of levels, parts of times, hashed words."""
        rows = np.empty((len(examples), self.spec().shape[0]))
        for column, at in zip(self.columns, self._slices("raw_width"), strict=True):
            rows[:, at] = column.parse(examples.columns[column.name])[0]
        return rows

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        parts = [
            column.encode(raw[:, at], xp)
            for column, at in zip(self.columns, self._slices("raw_width"), strict=True)
        ]
        # float64 to its end, as a program of one type is exported
        return {"inputs": xp.concatenate(parts, 1).astype(np.float32)}

    def encode(self, examples: Examples) -> dict[str, Any]:
        """Returns what training takes; blocks of rows at a time, in two threads."""
        width = sum(column.width() for column in self.columns)
        inputs = np.empty((len(examples), width), np.float32)

        def fill(start: int) -> None:
            block = slice(start, start + BLOCK)
            columns = {c.name: examples.columns[c.name][block] for c in self.columns}
            for column, at in zip(self.columns, self._slices("width"), strict=True):
                raw = column.parse(columns[column.name])[0]
                for row in range(0, len(raw), CACHED):
                    rows = slice(start + row, start + min(row + CACHED, len(raw)))
                    inputs[rows, at] = column.encode(raw[row : row + CACHED], np)

        with ThreadPoolExecutor(2) as pool:  # NumPy and Arrow let the other go on
            list(pool.map(fill, range(0, len(examples), BLOCK)))
        arrays = {"inputs": inputs}
        if examples.target is not None:
            arrays["targets"] = self.target.encode(examples.target)
        return arrays

    def _slices(self, width: str) -> list[slice]:
        """Returns the places of each column in arrays with so many numbers of each."""
        widths = [getattr(column, width)() for column in self.columns]
        ends = np.cumsum(widths).tolist()
        return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]

    def spec(self) -> Spec:
        return Spec(
(sum(column.raw_width() for column in self.columns),), "float64",
            "a row of the table: its numbers, NaN where one is missing; of a category its place in "
            "the column's levels, counted from 1, or 0 for any other; of a time the days since "
            "1970, year, month, day of the week from 0, Monday, and share of the day; of free text "
            f"{HASHES} numbers for its words",
        )  # fmt: skip

    def describe(self) -> str:
        return f"rows of {sum(column.width() for column in self.columns)} numbers"

    def plain(self, examples: Examples) -> Plain:
        categories = tuple(
            isinstance(c, CategoryColumn) for c in self.columns for _ in range(c.raw_width())
        )
        return Plain(self.raw(examples), categories)

    def groups(self) -> dict[str, slice]:
        return {c.name: at for c, at in zip(self.columns, self._slices("width"), strict=True)}

    def columns_table(self) -> list[dict[str, Any]]:
        rows = []
        for column, missing in zip(self.columns, self.missing, strict=True):
            about = column.describe()
            levels = about.get("levels", ())
            rows.append({
                "column": column.name, "type": about["type"], "format": about["format"],
                "missing": missing, "levels": len(levels) or "",
                "note": about.get("note", ""),
            })  # fmt: skip
        blank = {"format": "", "missing": "", "levels": ""}
        return rows + [
            {"column": d.name, "type": "dropped", **blank, "note": d.reason} for d in self.dropped
        ]

    def outlook(self) -> dict[str, Any]:
        return {"columns": [
            {"name": column.name, **column.describe()} for column in self.columns
        ]}  # fmt: skip


def _cell(column: Any, row: int) -> Any:
    cell = column[row]
    return cell.as_py() if isinstance(cell, pa.Scalar) else cell
