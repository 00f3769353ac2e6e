"""Tables: rows of numbers, categories, times and texts, of which one column is to be predicted.

The meaning of cells is inferred over the whole file (`infer_formats`, `_times`); how a column
is encoded is decided by the training rows alone (`fit_columns`), and one that tells nothing is
dropped: constant, empty, or with a name of its own for almost every row.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data import leaks, numbers
from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples, take_rows
from dlflax.data.numbers import MISSING, NumberFormat
from dlflax.data.raw_table import RawTable, RowNames, as_texts, is_text, read_table
from dlflax.data.splits import Share
from dlflax.data.table_columns import (
    CategoryColumn,
    Column,
    NumberColumn,
    TextColumn,
    TimeColumn,
    column_times,
)
from dlflax.data.table_encoder import Dropped, TableEncoder
from dlflax.data.target import Classes, Numbers, level_key
from dlflax.data.target_kind import (
    MOST_DROPPED,
    class_texts,
    classes_of,
    in_order,
    numbers_or_classes,
)
from dlflax.data.times import DATES, TimeFormat, infer_times
from dlflax.errors import InputError
from dlflax.files import pluralize

BUNDLED = ("breast_cancer", "diabetes", "wine")  # scikit-learn's
FEWEST = 3  # rows that a class needs: one to train, one to validate, one to test on
RARE = 2  # training rows below which a level is "other"
MOST_LEVELS = 200  # of a column that is one-hot
WORDS = 2.5  # of free text, on average


@dataclasses.dataclass(frozen=True)
class Table(Source):
    """Rows of a CSV file, as numbers that a network can read."""

    dataset: str = dataclasses.field(default="breast_cancer", metadata={"resume": "free"})
    """breast_cancer, wine (classes) or diabetes (a number): scikit-learn's."""
    data_dir: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """A CSV, Parquet, Feather, JSON Lines or Excel file with a header instead."""
    decimal: Literal["auto", ".", ","] = "auto"
    """The decimal mark of its numbers; auto: as the file shows, column by column."""
    target: str = ""
    """The column that is predicted (default: the last one)."""
    target_kind: Literal["auto", "classes", "number"] = "auto"
    """The kind of the target. auto: a number where it has more than 20 different ones, fractions,
    or rare ones in a tenth of the rows, else classes."""
    ignore: tuple[str, ...] = ()
    """Columns that are left out."""
    group: str = ""
    """A column, such as a patient's number: rows with the same value are all in the training, the
    validation or the test data. It is no input."""
    bins: int = 16
    """Pieces of the encoding of a number, at most; 0: its standardized value alone."""
    test: float = 0.2
    """Share of the rows, drawn by --split-seed, that is the test data."""
    split_seed: int = 0
    """Decides which rows these are."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Returns the columns of the file by name, as `RawTable` has them. `log` gets what was
        inferred and dropped. Raises InputError when it is no such table."""
        if not 0 < self.test < 1:
            raise InputError(f"--test {self.test:g} must be between 0 and 1.")
        table, name, source, checksum = self._read(log)
        header = list(table.columns)
        target = self.target or header[-1]
        named = (("target", target), ("group", self.group), *(("ignore", c) for c in self.ignore))
        for flag, column in named:
            if column and column not in header:
                raise InputError(f"--{flag} {column}: {source} has {', '.join(header)}.")
        if self.group == target:
            raise InputError(f"--group {target} is the target: name another column.")
        inputs = [c for c in header if c not in {target, self.group, *self.ignore}]
        if not inputs:
            raise InputError(f"{source} has no column besides the target {target}.")
        columns = {
            n: c if isinstance(c, pa.Array) else as_texts(c) for n, c in table.columns.items()
        }
        table = dataclasses.replace(table, columns=columns)
        formats = numbers.infer_formats(table, (*inputs, target), self.decimal, log=log)
        for sentence in numbers.describe_formats(formats):
            log(sentence)
        counters = _row_counters(table, inputs, formats)
        inputs = [c for c in inputs if c not in counters]
        table, values, classes = self._target(table, target, formats[target], log)
        times = {c: _times(table, c, formats[c] is not None) for c in inputs}
        formats |= {c: None for c in inputs if times[c]}
        style = {
            "target": target, "delimiter": table.delimiter, "formats": formats, "times": times,
            "counters": tuple(counters),
        }  # fmt: skip
        groups = np.array(as_texts(table.columns[self.group]).to_pylist()) if self.group else None
        split = Share(self.test, self.split_seed, groups)
        # read once: less memory than texts, and nothing to parse when they are split and encoded
        columns = {c: _as_arrow(table.columns[c], formats[c], times[c]) for c in inputs}
        names = table.names
        del table  # its texts
        examples = Examples(columns, values, names, classes, style)
        held = split.test(examples)
        if held.sum() < 2 or (~held).sum() < 4:
            raise InputError(
                f"{source} has {len(values)} rows: too few to hold some out with --test "
                f"{self.test:g}."
            )
        rows = leaks.rows_to_look_at(len(values), len(inputs))
        some = examples.take(rows).columns
        columns = {c: _as_numbers(some[c], formats[c], times[c]) for c in inputs}
        some_groups = None if groups is None else groups[rows]
        found = leaks.find_leaks(columns, values[rows], held[rows], some_groups, classes)
        findings = (*counters.values(), *found)
        for sentence in findings:
            log(sentence)
        return Dataset(examples, split, name, source, checksum, findings=findings)

    def _read(self, log) -> tuple[RawTable, str, str, str]:
        """Returns (table, name, source, SHA-256 of what it was read from)."""
        if self.data_dir is None:
            if self.decimal != "auto":
                raise InputError(f"--decimal {self.decimal} is for a file: pass --data-dir.")
            if self.dataset not in BUNDLED:
                raise InputError(
                    f"--dataset {self.dataset} is unknown here: choose {', '.join(BUNDLED)}, or "
                    "pass --data-dir FILE.csv."
                )
            table = _bundled(self.dataset)
            content = repr([column.to_pylist() for column in table.columns.values()]).encode()
            return table, self.dataset, table.place, hashlib.sha256(content).hexdigest()
        path = Path(self.data_dir).expanduser()
        table = read_table(path, log=log)
        numbers.check_header(table, log)
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        return table, path.stem, str(path.resolve()), checksum

    def _target(self, table, target, form, log):
        """Returns (the rows that have a target, its values, the names of its classes)."""
        values = numbers_or_classes(table, target, self.target_kind, log, form, FEWEST)
        if values is not None:
            keep = ~np.isnan(values)
            texts = as_texts(take_rows(table.columns[target], ~keep))
            words = texts.filter(pc.not_equal(texts, "")).to_pylist()
            odd = [word for word in words if word.lower() not in numbers.MISSING]
            if len(odd) > MOST_DROPPED * len(table):
                raise InputError(
                    f"{table.place}: {len(odd):,} of {len(table):,} rows have {odd[0]!r} as "
                    f"{target}, which is no number: remove them, or use --target-kind classes."
                )
            if not keep.all():
                shown = f" ({', '.join(sorted(set(words))[:5])})" if words else ""
                log(f"{pluralize((~keep).sum(), 'rows', 'have')} no {target}{shown}: dropped.")
            if not keep.any():
                raise InputError(f"{table.place}: no row has a {target}: name another --target.")
            return table.take(keep), values[keep], ()
        cells = class_texts(table.columns[target])
        if (empty := cells == "").any():
            log(f"{pluralize(empty.sum(), 'rows', 'have')} no {target}: dropped.")
            table, cells = table.take(~empty), cells[~empty]
        for name in sorted(
            {cell for cell in set(cells.tolist()) if cell.lower() in numbers.MISSING}
        ):
            rows = pluralize((cells == name).sum(), "rows", "have")
            log(f"{target}: {rows} {name!r}, which is a class here: empty these cells, if it says "
                "that there is none.")  # fmt: skip
        classes, values, keep = classes_of(cells, FEWEST, "rows", log)
        return table.take(keep), values, classes

    def encoder(self, train: Examples, log: Callable[[str], None]) -> TableEncoder:
        """Returns the encoder of these rows."""
        if self.bins < 0 or self.bins > 256:
            raise InputError(f"--bins {self.bins} must be from 0 to 256.")
        style = train.style
        columns, missing, dropped = fit_columns(
            train.columns, self.bins, style["formats"], style["times"]
        )
        if not columns:
            reasons = " ".join(f"{column.name} {column.reason}." for column in dropped)
            raise InputError(
                f"all columns were dropped ({reasons}): there is nothing to learn from."
            )
        counters = [Dropped(name, "counts the rows") for name in style["counters"]]
        if dropped:
            shown = "; ".join(f"{column.name} {column.reason}" for column in dropped[:10])
            more = f"; and {len(dropped) - 10} others" if len(dropped) > 10 else ""
            log(f"{pluralize(len(dropped), 'columns', 'are')} dropped: {shown}{more}.")
        name = style["target"]
        target = Classes(train.classes) if train.classes else Numbers.fit(train.target, (name,))
        return TableEncoder(
            target, tuple(columns), name, style["formats"][name], style["delimiter"],
            tuple(missing), (*dropped, *counters),
        )  # fmt: skip


def _row_counters(table: RawTable, names: list[str], formats) -> dict[str, str]:
    """Returns `leaks.row_counters`, of which few need all of their cells read."""
    ends = table.take(np.array([0, min(1, len(table) - 1), len(table) - 1]))
    columns = {}
    for name in names:
        if (form := formats[name]) is None:
            columns[name] = np.zeros(len(table), int)
            continue
        first, second, last = numbers.column_numbers(ends.columns[name], form)[0]
        counts = second == first + 1 and last == first + len(table) - 1
        cells = table.columns[name]
        columns[name] = numbers.column_numbers(cells, form)[0] if counts else np.zeros(1)
    return leaks.row_counters(columns)


def _as_arrow(cells: Any, form: NumberFormat | None, times: TimeFormat | None) -> pa.Array:
    """Numbers, float64, times, or codes of the texts that come again, as Arrow's."""
    if form is not None:
        return pa.array(numbers.column_numbers(cells, form)[0])
    if times is None:
        codes = as_texts(cells).dictionary_encode()
        return codes if len(codes.dictionary) < len(codes) / 4 else cells
    seconds = column_times(cells, times)[0]
    moments = np.where(np.isnan(seconds), np.nan, np.round(seconds * 1e6)).astype("datetime64[us]")
    return pa.array(moments, pa.timestamp("us", "UTC" if times.zone == "UTC" else None))


def _as_numbers(cells: Any, form: NumberFormat | None, times: TimeFormat | None) -> np.ndarray:
    """Numbers or seconds, float64 (n,); of any other column the codes of its texts, int (n,)."""
    if form is not None:
        return numbers.column_numbers(cells, form)[0]
    if times is not None:
        return column_times(cells, times)[0]
    return as_texts(cells).dictionary_encode().indices.to_numpy()


def _times(table: RawTable, name: str, are_numbers: bool) -> TimeFormat | None:
    """Returns the format of the times in a column; None if it has none. Of numbers those like
    20241231 are times, if all of them are."""
    column = table.columns[name]
    if isinstance(column, pa.Array) and pa.types.is_temporal(column.type):
        return TimeFormat("2024-12-31", zone="UTC" if getattr(column.type, "tz", None) else "")
    if not are_numbers:
        return infer_times(column) or _likely_times(column) if is_text(column) else None
    if len(table) and re.fullmatch(r"(19|20)\d{6}", as_texts(column[:1])[0].as_py()):
        form = TimeFormat("20241231")
        return None if form.parse(as_texts(column))[1].any() else form
    return None


def _likely_times(column: pa.Array) -> TimeFormat | None:
    """Returns the format of times that a column has but for a few odd cells, which are missing."""
    some = column.take(pa.array(np.unique(np.linspace(0, len(column) - 1, 200).astype(int))))
    digits = pc.sum(pc.match_substring_regex(some, r"\d.*\d")).as_py() or 0
    for date, zone in itertools.product(DATES, ("", "UTC")) if digits > 0.8 * len(some) else ():
        form = TimeFormat(date, zone=zone)
        if form.parse(some)[1].mean() > 0.1:
            continue
        seconds, wrong = form.parse(column)
        if wrong.sum() <= numbers.MOST_ODD * np.isfinite(seconds).sum():
            odd = {cell.lower() for cell in column.filter(pa.array(wrong)).to_pylist()}
            form = infer_times(column.filter(pa.array(~wrong)))
            return form and dataclasses.replace(form, missing=(*MISSING, *sorted(odd)))
    return None


def fit_columns(
    columns: Mapping[str, Any], bins: int, formats: Mapping[str, NumberFormat | None],
    times: Mapping[str, TimeFormat | None],
) -> tuple[list[Column], list[int], list[Dropped]]:  # fmt: skip
    """Returns (the columns that tell something, how many rows have no value in each, the others).
    columns: as a `RawTable` has them, of the training rows; formats, times: of those of numbers and
    of times."""
    fits, missing, dropped = [], [], []
    for name, cells in columns.items():
        if (time := times.get(name)) is not None:
            values, _ = column_times(cells, time)
            fit = TimeColumn.fit(name, values, bins, time) if _varies(values) else None
            empty = np.isnan(values)
        elif (form := formats[name]) is not None:
            values, _ = numbers.column_numbers(cells, form)
            fit = NumberColumn.fit(name, values, bins, form) if _varies(values) else None
            empty = np.isnan(values)
        else:
            texts = as_texts(cells)
            empty = numbers.as_mask(pc.is_in(pc.utf8_lower(texts), pa.array(MISSING)))
            levels = pc.value_counts(texts.filter(pa.array(~empty)))
            varies = len(levels) > 1 or len(levels) == 1 and empty.any()
            fit = _fit_texts(name, empty, levels) if varies else None
        if isinstance(fit, Column):
            fits.append(fit)
            missing.append(int(empty.sum()))
        else:
            dropped.append(Dropped(name, fit or "is the same in all training rows"))
    return fits, missing, dropped


def _varies(values: np.ndarray) -> bool:
    """True if a column tells something: several values, or one beside rows that have none."""
    known = values[~np.isnan(values)]
    return len(known) > 0 and (len(known) < len(values) or known.min() < known.max())


def _fit_texts(name, empty, counts) -> Column | str:
    """Returns the column of categories or free text; or why it is dropped. counts: how often each
    of its texts is there, as Arrow has it."""
    rows = len(empty)
    different = len(counts)
    if different > min(max(MOST_LEVELS, rows // 2), 0.9 * rows):
        texts = counts.field("values")
        words = pc.mean(pc.count_substring_regex(texts, r"\w+")).as_py()
        if words >= WORDS:
            return TextColumn(name)
        return f"has {different:,} different names in {rows:,} rows"
    same: dict[str, tuple[str, int]] = {}  # 1 and 1.0 are one level
    for count in counts.to_pylist():
        text, many = count["values"], count["counts"]
        key = level_key(text) if level_key(text) != text.casefold() or text.isdecimal() else text
        first, before = same.get(key, (text, 0))
        same[key] = min(first, text, key=len), before + many
    ranked = sorted(same.values(), key=lambda level: -level[1])[:MOST_LEVELS]
    levels = sorted((t for t, many in ranked if many >= RARE), key=in_order)
    levels = levels or sorted((text for text, _ in same.values()), key=in_order)
    return CategoryColumn(name, tuple(levels), bool(empty.any()), rare=len(same) - len(levels))


def _bundled(name: str) -> RawTable:
    """One of scikit-learn's tables."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    target = bunch.target.tolist()
    if name != "diabetes":
        target = [str(bunch.target_names[value]) for value in target]
    columns = {str(n): pa.array(bunch.data[:, i]) for i, n in enumerate(bunch.feature_names)}
    names = RowNames("row", np.arange(1, len(target) + 1))
    return RawTable({**columns, "target": pa.array(target)}, f"scikit-learn's {name}", ",", names)
