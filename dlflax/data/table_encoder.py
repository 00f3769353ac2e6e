"""The encoder of tables."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlflax.data import csv_files
from dlflax.data.encoder import (
    Encoder,
    Examples,
    Form,
    Limits,
    Plain,
    Spec,
    Upload,
    as_path,
    is_frame,
    is_series,
    table_cells,
)
from dlflax.data.numbers import MISSING, NumberFormat
from dlflax.data.target import Classes, Numbers
from dlflax.errors import InputError
from dlflax.files import printable


@dataclasses.dataclass(frozen=True)
class NumberColumn:
    """A column of numbers: standardized, and how far each piece between quantiles is filled."""

    name: str
    format: NumberFormat
    median: float
    mean: float
    scale: float
    edges: tuple[float, ...]
    """Quantiles, ascending; () without pieces."""
    missing: bool
    """True if training rows had missing values."""

    def width(self) -> int:
        """Returns how many of the inputs it becomes."""
        return 1 + max(0, len(self.edges) - 1) + self.missing

    def numbers(self, cells: Sequence[Any]) -> np.ndarray:
        """Returns float64 (n,), NaN where a value is missing, of cells: texts as the training file
        wrote them, or typed values."""
        texts = [cell for cell in cells if isinstance(cell, str)]
        parsed = self.format.parse(texts)
        if isinstance(parsed, str):
            raise InputError(
                f"the column {self.name} has {parsed!r}, where training rows have numbers such as "
                f"{self.format.describe()}."
            )
        values, rest = parsed, iter(parsed.tolist())
        if len(texts) < len(cells):
            values = np.array([
                next(rest) if isinstance(cell, str) else _float(cell, self.name) for cell in cells
            ], np.float64)  # fmt: skip
        if np.isinf(values).any():
            raise InputError(f"the column {self.name} has an infinite value: give numbers.")
        return values

    def encode(self, values: Any, xp: Any) -> Any:
        """Returns (n, width): the standardized value, the filled share of each piece, and 1 where
        it is missing."""
        missing = xp.isnan(values)
        values = xp.where(missing, self.median, values)
        parts = [xp.clip((values - self.mean) / self.scale, -10, 10)[:, None]]
        if self.edges:
            low, high = np.array([self.edges[:-1]]), np.array([self.edges[1:]])
            parts.append(xp.clip((values[:, None] - low) / (high - low), 0, 1))
        if self.missing:
            parts.append(missing[:, None].astype(values.dtype))
        return xp.concatenate(parts, 1)


@dataclasses.dataclass(frozen=True)
class CategoryColumn:
    """A column of categories: one-hot over its levels, any other, and a missing one."""

    name: str
    levels: tuple[str, ...]
    missing: bool
    """True if training rows had missing values."""
    missing_marks: tuple[str, ...] = MISSING
    """Cells without a value, in small letters."""

    def width(self) -> int:
        """Returns how many of the inputs it becomes."""
        return len(self.levels) + 1 + self.missing

    def numbers(self, cells: Sequence[Any]) -> np.ndarray:
        """Returns float64 (n,): the place of each cell's level, counted from 1, 0 for any other,
        NaN where it is missing."""
        place = {level: k + 1.0 for k, level in enumerate(self.levels)}
        return np.array([
            np.nan if (text := _text(cell)).lower() in self.missing_marks else place.get(text, 0.0)
            for cell in cells
        ], np.float64)  # fmt: skip

    def encode(self, numbers: Any, xp: Any) -> Any:
        """Returns (n, width): one-hot over the levels, other, and missing."""
        levels = len(self.levels)
        # other is 0 there and behind the levels here; a missing one is nothing where none was known
        place = xp.where(xp.isnan(numbers), levels + 1, xp.where(numbers == 0, levels, numbers - 1))
        return (place[:, None] == np.arange(self.width())[None]).astype(numbers.dtype)


Column = NumberColumn | CategoryColumn


@dataclasses.dataclass(frozen=True)
class TableEncoder(Encoder):
    """Rows of a table, as numbers that a network can read."""

    form: ClassVar = Form(
        "row", "rows", {"type": "object"}, ("text/csv",), widget="row", upload="table",
        experiment=("tabular", "a CSV file"),
    )  # fmt: skip

    target: Classes | Numbers
    columns: tuple[Column, ...]
    """The columns that are read, in the order of the inputs."""
    target_column: str
    """The name of the column that is predicted."""
    target_format: NumberFormat
    """The way it writes numbers."""
    delimiter: str = ","
    """Between the cells of the training file."""

    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Reads a CSV file, rows {column: value}, a data frame, or an array in the order of the
        columns, if these are all numbers. Other columns may be there."""
        if isinstance(given, np.ndarray):
            return self._of_array(given)
        examples = self._of_cells(*self._cells(given, limits))
        # the rows of a data frame are known by their numbers
        return dataclasses.replace(examples, names=()) if is_frame(given) else examples

    def parse_with_targets(self, given: Any) -> Examples:
        """Reads a CSV file or a data frame with the column of the target."""
        header, rows, place = self._cells(given, None)
        examples = self._of_cells(header, rows, place)
        if self.target_column not in header:
            raise InputError(
                f"{place} lacks the column {self.target_column}, which the model predicts."
            )
        at = header.index(self.target_column)
        target = self._targets([row[at] for row in rows], place)
        return dataclasses.replace(examples, target=target)

    def _cells(self, given, limits) -> tuple[list[str], list[list[Any]], Any]:
        """(headings, rows of cells, what they are, in messages)."""
        place = Path(given.name) if isinstance(given, Upload) else as_path(given)
        most = limits.rows if limits else sys.maxsize
        if place is not None:
            file = given if isinstance(given, Upload) else place
            header, lines = csv_files.read_like(file, self.delimiter, self.formats(), most)
            rows = [row for _, row in lines]
        else:
            given = [dict(given)] if is_series(given) else given  # a row
            otherwise = "name one or more CSV files after the run folder."
            header, rows, place = table_cells(given, most, otherwise)
        header = [printable(name.strip()) for name in header]
        if not rows:
            raise InputError(f"{place} has no rows below its header.")
        rows = [[cell.strip() if isinstance(cell, str) else cell for cell in row] for row in rows]
        return header, rows, place

    def formats(self) -> dict[str, NumberFormat]:
        """Returns the formats of the columns of numbers, by name."""
        return {c.name: c.format for c in self.columns if isinstance(c, NumberColumn)}

    def _of_cells(self, header, rows, place) -> Examples:
        if missing := [column.name for column in self.columns if column.name not in header]:
            raise InputError(f"{place} lacks the column {missing[0]}, which the model reads.")
        cells = np.empty((len(rows), len(header)), object)
        for i, row in enumerate(rows):
            cells[i] = row
        columns = {c.name: cells[:, header.index(c.name)] for c in self.columns}
        names = [f"{place}, row {i + 1}" for i in range(len(rows))]
        return Examples(columns, None, names)

    def _targets(self, cells: list[Any], place: Any) -> np.ndarray:
        """Class numbers, UNKNOWN for others than the model's, or numbers in their unit."""
        if any(_text(cell).lower() in self.target_format.missing for cell in cells):
            raise InputError(f"{place}, column {self.target_column} has a missing value: fill it.")
        if isinstance(self.target, Classes):
            return self.target.numbers([_text(cell) for cell in cells])
        column = NumberColumn(self.target_column, self.target_format, 0, 0, 1, (), False)
        return column.numbers(cells)

    def _of_array(self, array: np.ndarray) -> Examples:
        names = [column.name for column in self.columns]
        array = array[None] if array.shape == (len(names),) else array
        if array.dtype.kind not in "fiu" or array.shape[1:] != (len(names),):
            raise InputError(
                f"predict takes arrays in shape ('n', {len(names)}) ({', '.join(names)[:200]}), "
                f"paths or a data frame, no {array.dtype} in shape {array.shape}."
            )
        if texts := [c.name for c in self.columns if isinstance(c, CategoryColumn)]:
            raise InputError(
                f"predict takes no array for a table with texts ({texts[0]}): give a data frame or "
                "a CSV file."
            )
        rows = np.float64(array)
        if np.isinf(rows).any():
            raise InputError("predict takes finite numbers, or NaN for a missing one.")
        columns = {name: rows[:, i].astype(object) for i, name in enumerate(names)}
        return Examples(columns, None, [str(i) for i in range(len(rows))])

    def raw(self, examples: Examples) -> np.ndarray:
        """Returns float64 (n, columns): numbers, and the places of levels."""
        rows = np.empty((len(examples), len(self.columns)))
        for i, column in enumerate(self.columns):
            rows[:, i] = column.numbers(examples.columns[column.name].tolist())
        return rows

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        parts = [column.encode(raw[:, i], xp) for i, column in enumerate(self.columns)]
        return {"inputs": xp.concatenate(parts, 1).astype(np.float32)}

    def spec(self) -> Spec:
        return Spec(
            (len(self.columns),), "float64",
            "a row of the table: its numbers, NaN where one is missing; of a text its place in the "
            "column's levels, counted from 1, or 0 for any other",
        )  # fmt: skip

    def describe(self) -> str:
        return f"rows of {sum(column.width() for column in self.columns)} numbers"

    def plain(self, examples: Examples) -> Plain:
        categories = tuple(isinstance(column, CategoryColumn) for column in self.columns)
        return Plain(self.raw(examples), categories)

    def groups(self) -> dict[str, slice]:
        ends = np.cumsum([column.width() for column in self.columns]).tolist()
        columns = zip(self.columns, ends, strict=True)
        return {c.name: slice(end - c.width(), end) for c, end in columns}

    def outlook(self) -> dict[str, Any]:
        return {"columns": [
            {"name": c.name, "median": c.median} if isinstance(c, NumberColumn)
            else {"name": c.name, "levels": list(c.levels)} for c in self.columns
        ]}  # fmt: skip


def _float(value: Any, name: str) -> float:
    """A typed value as a number, NaN for None."""
    if value is None:
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"the column {name} has {value!r:.60}, which is no number.") from None


def _text(value: Any) -> str:
    """A cell as the text of a category: a whole float, as data frames have it where a value is
    missing, as the integer."""
    if value is None or value != value:
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
