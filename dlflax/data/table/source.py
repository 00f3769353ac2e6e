"""Tables: columns of numbers, categories, times and texts; one of them is the target.

Formats are inferred from all rows, encodings are fitted on the training rows.
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

from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples, take_rows
from dlflax.data.splits import Share
from dlflax.data.table import columns as table_columns
from dlflax.data.table import leaks, number_formats, target_type
from dlflax.data.table.columns import CategoryColumn, Column, NumberColumn, TextColumn, TimeColumn
from dlflax.data.table.encoder import Dropped, TableEncoder
from dlflax.data.table.number_formats import MAX_ODD, MISSING, NumberFormat, column_numbers
from dlflax.data.table.raw_table import RawTable, RowNames, as_texts, is_text, read_table
from dlflax.data.table.time_formats import DATES, TimeFormat, infer_times
from dlflax.data.target import Classes, Numbers, level_key
from dlflax.errors import InputError
from dlflax.files import pluralize

BUNDLED = ("breast_cancer", "diabetes", "wine")  # scikit-learn's
MIN_CLASS_ROWS = 3  # one to train, one to validate, one to test on
MIN_LEVEL_ROWS = 2  # training rows below which a level is "other"
MAX_LEVELS = 200  # of a one-hot column
MIN_WORDS = 2.5  # of free text, on average
Format = NumberFormat | TimeFormat


@dataclasses.dataclass(frozen=True)
class Table(Source):
    """A table file with a header, whose rows are examples."""

    dataset: str = dataclasses.field(default="breast_cancer", metadata={"resume": "free"})
    """breast_cancer, wine (classes) or diabetes (a number): scikit-learn's."""
    data: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """A CSV, Parquet, Feather, JSON Lines or Excel file with a header instead."""
    decimal: Literal["auto", ".", ","] = "auto"
    """Decimal mark of the file's numbers; auto: inferred for each column."""
    target: str = ""
    """Column to predict (default: the last one)."""
    target_type: Literal["auto", "classes", "number"] = "auto"
    """Kind of the target. auto: a number if it has more than 20 different values, fractions, or
    rare values in a tenth of the rows, else classes."""
    drop_columns: tuple[str, ...] = ()
    """Columns to drop."""
    group: str = ""
    """Column, such as a patient's number, that is no input: rows of one value are in one split."""
    num_bins: int = 16
    """Maximum number of bins in the encoding of a number; 0: its standardized value alone."""
    test_split: float = 0.2
    """Share of the rows in the test split."""
    split_seed: int = 0
    """Seed that draws the test split."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Returns the columns of the file by name. `log` gets inferred formats and dropped columns.
        Raises InputError for a file that is no such table."""
        if not 0 < self.test_split < 1:
            raise InputError(f"--test-split {self.test_split:g} must be between 0 and 1.")
        table, name, source, checksum = self._read(log)
        target, inputs = self._choose_columns(table, source)
        columns = {
            n: c if isinstance(c, pa.Array) else as_texts(c) for n, c in table.columns.items()
        }
        table = dataclasses.replace(table, columns=columns)
        formats = number_formats.infer_formats(table, (*inputs, target), self.decimal, log=log)
        target_format = formats.pop(target)
        formats = {c: _infer_times(table, c, formats[c]) for c in inputs}
        for column, form in formats.items():
            if isinstance(form, TimeFormat) and form.assumed:
                log(f"{column}: its dates are read as {form.describe()}, though {form.assumed} is "
                    "possible, too: write them as 2024-12-31.")  # fmt: skip
        # parsed once: takes less memory than texts, and is not parsed again by the encoder
        columns |= {c: _as_arrow(columns[c], formats[c]) for c in inputs}
        none = np.zeros(0)
        counters = leaks.find_row_counters({
            c: np.asarray(columns[c]) if isinstance(formats[c], NumberFormat) else none
            for c in inputs
        })  # fmt: skip
        inputs = [c for c in inputs if c not in counters]
        table = dataclasses.replace(table, columns=columns)
        table, values, classes = self._parse_target(table, target, target_format, log)
        style = {
            "target": target, "delimiter": table.delimiter, "counters": tuple(counters),
            "formats": formats | {target: target_format}, "header": tuple(formats),
        }  # fmt: skip
        groups = np.array(as_texts(table.columns[self.group]).to_pylist()) if self.group else None
        split = Share(self.test_split, self.split_seed, groups)
        inputs = {c: table.columns[c] for c in inputs}
        examples = Examples(inputs, values, table.names, classes, style)
        in_test = split.test(examples)
        if in_test.sum() < 2 or (~in_test).sum() < 4:
            raise InputError(
                f"{source} has {len(values)} rows: too few to hold some out with --test-split "
                f"{self.test_split:g}."
            )
        rows = leaks.sample_rows(len(values), len(inputs))
        sample = {c: _as_numbers(take_rows(inputs[c], rows), formats[c]) for c in inputs}
        sample_groups = None if groups is None else groups[rows]
        findings = (
            *counters.values(),
            *leaks.find_leaks(sample, values[rows], in_test[rows], sample_groups, classes),
        )
        for sentence in findings:
            log(sentence)
        return Dataset(examples, split, name, source, checksum, findings=findings)

    def _choose_columns(self, table: RawTable, source: str) -> tuple[str, list[str]]:
        """Returns (the target, the inputs). Raises InputError for a flag with another column."""
        header = list(table.columns)
        target = self.target or header[-1]
        dropped = (("drop-columns", column) for column in self.drop_columns)
        for flag, column in (("target", target), ("group", self.group), *dropped):
            if column and column not in header:
                raise InputError(f"--{flag} {column}: {source} has {', '.join(header)}.")
        if self.group == target:
            raise InputError(f"--group {target} is the target: name another column.")
        inputs = [c for c in header if c not in {target, self.group, *self.drop_columns}]
        if not inputs:
            raise InputError(f"{source} has no column besides the target {target}.")
        return target, inputs

    def _read(self, log) -> tuple[RawTable, str, str, str]:
        """Returns (table, name, source, SHA-256 of the source)."""
        if self.data is None:
            if self.decimal != "auto":
                raise InputError(f"--decimal {self.decimal} is for a file: pass --data.")
            if self.dataset not in BUNDLED:
                raise InputError(
                    f"--dataset {self.dataset} is unknown here: choose {', '.join(BUNDLED)}, or "
                    "pass --data FILE.csv."
                )
            table = _load_sklearn(self.dataset)
            content = repr([column.to_pylist() for column in table.columns.values()]).encode()
            return table, self.dataset, table.place, hashlib.sha256(content).hexdigest()
        path = Path(self.data).expanduser()
        table = read_table(path, log=log)
        number_formats.check_header(table, log)
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        return table, path.stem, str(path.resolve()), checksum

    def _parse_target(self, table, target, form, log):
        """Returns (the rows with a target, its values, the names of its classes)."""
        kind = self.target_type
        values = target_type.infer_numbers(table, target, kind, log, form, MIN_CLASS_ROWS)
        if values is not None:
            keep = ~np.isnan(values)
            words = [w for w in as_texts(take_rows(table.columns[target], ~keep)).to_pylist() if w]
            odd = [word for word in words if word.lower() not in MISSING]
            if len(odd) > target_type.MAX_DROPPED * len(table):
                raise InputError(
                    f"{table.place}: {len(odd):,} of {len(table):,} rows have {odd[0]!r} as "
                    f"{target}, which is no number: remove them, or use --target-type classes."
                )
            if not keep.any():
                raise InputError(f"{table.place}: no row has a {target}: name another --target.")
            if not keep.all():
                shown = f" ({', '.join(sorted(set(words))[:5])})" if words else ""
                log(f"{pluralize((~keep).sum(), 'rows', 'have')} no {target}{shown}: dropped.")
            return table.take(keep), values[keep], ()
        cells = target_type.normalize_classes(table.columns[target])
        if (empty := cells == "").any():
            log(f"{pluralize(empty.sum(), 'rows', 'have')} no {target}: dropped.")
            table, cells = table.take(~empty), cells[~empty]
        for name in sorted(cell for cell in set(cells.tolist()) if cell.lower() in MISSING):
            rows = pluralize((cells == name).sum(), "rows", "have")
            log(f"{target}: {rows} {name!r}, which is a class here: empty these cells if {name!r} "
                "means that the value is missing.")  # fmt: skip
        classes, values, keep = target_type.encode_classes(cells, MIN_CLASS_ROWS, "rows", log)
        return table.take(keep), values, classes

    def encoder(self, train: Examples, log: Callable[[str], None]) -> TableEncoder:
        """Returns the encoder fitted on training rows."""
        if self.num_bins < 0 or self.num_bins > 256:
            raise InputError(f"--num-bins {self.num_bins} must be from 0 to 256.")
        style = train.style
        columns, missing, dropped = fit_columns(train.columns, self.num_bins, style["formats"])
        counters = [Dropped(name, "counts the rows") for name in style["counters"]]
        shown = "; ".join(f"{column.name} {column.reason}" for column in dropped[:10])
        shown += f"; and {len(dropped) - 10} others" if len(dropped) > 10 else ""
        if not columns:
            raise InputError(f"all columns were dropped ({shown}): there is nothing to learn from.")
        if dropped:
            log(f"{pluralize(len(dropped), 'columns', 'are')} dropped: {shown}.")
        name = style["target"]
        target = Classes(train.classes) if train.classes else Numbers.fit(train.target, (name,))
        return TableEncoder(
            target, tuple(columns), name, style["formats"][name], style["delimiter"],
            tuple(missing), (*dropped, *counters), style["header"],
        )  # fmt: skip


def _as_arrow(cells: Any, form: Format | None) -> pa.Array:
    """Returns numbers as float64, times as timestamps, texts dictionary-encoded if repeated."""
    if form is None:
        codes = as_texts(cells).dictionary_encode()
        return codes if len(codes.dictionary) < len(codes) / 4 else cells
    values = _as_numbers(cells, form)
    if isinstance(form, NumberFormat):
        return pa.array(values)
    stamps = np.where(np.isnan(values), np.nan, np.round(values * 1e6)).astype("datetime64[us]")
    return pa.array(stamps, pa.timestamp("us", "UTC" if form.zone == "UTC" else None))


def _as_numbers(cells: Any, form: Format | None) -> np.ndarray:
    """Returns numbers or seconds, float64 (n,); for texts their codes, int (n,)."""
    if form is None:
        return as_texts(cells).dictionary_encode().indices.to_numpy()
    parse = table_columns.column_times if isinstance(form, TimeFormat) else column_numbers
    return parse(cells, form)[0]


def _infer_times(table: RawTable, name: str, form: NumberFormat | None) -> Format | None:
    """Returns a time format, for numbers if all are dates such as 20241231; else `form`."""
    column = table.columns[name]
    if isinstance(column, pa.Array) and pa.types.is_temporal(column.type):
        return TimeFormat("2024-12-31", zone="UTC" if getattr(column.type, "tz", None) else "")
    if form is None:
        return infer_times(column) or _infer_most_times(column) if is_text(column) else None
    if len(table) and re.fullmatch(r"(19|20)\d{6}", as_texts(column[:1])[0].as_py()):
        date = TimeFormat("20241231")
        return form if date.parse(as_texts(column))[1].any() else date
    return form


def _infer_most_times(column: pa.Array) -> TimeFormat | None:
    """Returns the format of a column of times with a few other cells, which are missing."""
    sample = column.take(pa.array(np.unique(np.linspace(0, len(column) - 1, 200).astype(int))))
    digits = pc.sum(pc.match_substring_regex(sample, r"\d.*\d")).as_py() or 0
    for date, zone in itertools.product(DATES, ("", "UTC")) if digits > 0.8 * len(sample) else ():
        form = TimeFormat(date, zone=zone)
        if form.parse(sample)[1].mean() > 0.1:
            continue
        seconds, wrong = form.parse(column)
        if wrong.sum() <= MAX_ODD * np.isfinite(seconds).sum():
            odd = {cell.lower() for cell in column.filter(pa.array(wrong)).to_pylist()}
            form = infer_times(column.filter(pa.array(~wrong)))
            return form and dataclasses.replace(form, missing=(*MISSING, *sorted(odd)))
    return None


def fit_columns(
    columns: Mapping[str, Any], bins: int, formats: Mapping[str, Format | None]
) -> tuple[list[Column], list[int], list[Dropped]]:
    """Returns (fitted columns, numbers of missing values in each, dropped columns).

    columns: the training rows, as in a `RawTable`; formats: None for texts."""
    fits, missing, dropped = [], [], []
    for name, cells in columns.items():
        if form := formats[name]:
            values = _as_numbers(cells, form)
            kind = TimeColumn if isinstance(form, TimeFormat) else NumberColumn
            empty = np.isnan(values)
            levels = set() if empty.all() else {np.nanmin(values), np.nanmax(values)}
        else:
            texts = as_texts(cells)
            empty = np.asarray(pc.is_in(pc.utf8_lower(texts), pa.array(MISSING)))
            levels = pc.value_counts(texts.filter(pa.array(~empty)))
        if not len(levels) or len(levels) == 1 and not empty.any():
            fit = "is the same in all training rows"
        else:
            fit = kind.fit(name, values, bins, form) if form else _fit_texts(name, empty, levels)
        if isinstance(fit, str):
            dropped.append(Dropped(name, fit))
        else:
            fits.append(fit)
            missing.append(int(empty.sum()))
    return fits, missing, dropped


def _fit_texts(name: str, empty: np.ndarray, counts: pa.Array) -> Column | str:
    """Returns a column, or the reason why it is dropped. counts: Arrow's `value_counts`."""
    rows = len(empty)
    if len(counts) > min(max(MAX_LEVELS, rows // 2), 0.9 * rows):
        words = pc.mean(pc.count_substring_regex(counts.field("values"), r"\w+")).as_py()
        if words >= MIN_WORDS:
            return TextColumn(name)
        return f"has {len(counts):,} different names in {rows:,} rows"
    merged: dict[str, tuple[str, int]] = {}  # 1 and 1.0 are one level
    for level in counts.to_pylist():
        text = level["values"]
        key = level_key(text) if level_key(text) != text.casefold() or text.isdecimal() else text
        first, count = merged.get(key, (text, 0))
        merged[key] = min(first, text, key=len), count + level["counts"]
    ranked = sorted(merged.values(), key=lambda level: -level[1])[:MAX_LEVELS]
    frequent = [text for text, count in ranked if count >= MIN_LEVEL_ROWS]
    levels = sorted(frequent or (text for text, _ in merged.values()), key=target_type.class_key)
    return CategoryColumn(name, tuple(levels), bool(empty.any()), rare=len(merged) - len(levels))


def _load_sklearn(name: str) -> RawTable:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    target = bunch.target.tolist()
    if name != "diabetes":
        target = [str(bunch.target_names[value]) for value in target]
    columns = {str(n): pa.array(bunch.data[:, i]) for i, n in enumerate(bunch.feature_names)}
    names = RowNames("row", np.arange(1, len(target) + 1))
    return RawTable({**columns, "target": pa.array(target)}, f"scikit-learn's {name}", ",", names)
