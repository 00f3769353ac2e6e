"""Tables: rows of numbers and categories, of which one column is to be predicted.

What is made of a column is decided by the training rows alone (`fit_columns`):

- a column whose cells are numbers becomes their piecewise-linear encoding (Gorishniy et al. 2022)
  over quantiles, and a missing one the median and a column that says so;
- any other column becomes one-hot: a level that is rare or new is "other", a missing cell a level
  of its own;
- a column that says nothing is dropped: constant, empty, or with almost as many levels as rows.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from dlflax.data import csv_files, numbers
from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples
from dlflax.data.numbers import MISSING, NumberFormat
from dlflax.data.splits import Share
from dlflax.data.table_encoder import CategoryColumn, Column, NumberColumn, TableEncoder
from dlflax.data.target import Classes, Numbers
from dlflax.data.target_kind import MOST_DROPPED, classes_of, numbers_or_classes
from dlflax.errors import InputError
from dlflax.files import printable

BUNDLED = ("breast_cancer", "diabetes", "wine")  # scikit-learn's
FEWEST = 3  # rows that a class needs: one to train, one to validate, one to test on
RARE = 2  # training rows below which a level is "other"
MOST_LEVELS = 200  # of a column that is one-hot


@dataclasses.dataclass(frozen=True)
class Table(Source):
    """Rows of a CSV file, as numbers that a network can read."""

    dataset: str = "breast_cancer"
    """breast_cancer, wine (classes) or diabetes (a number): scikit-learn's."""
    data_dir: Path | None = None
    """A CSV file with a header instead."""
    decimal: Literal["auto", ".", ","] = "auto"
    """The decimal mark of its numbers; auto: as the file shows, column by column."""
    target: str = ""
    """The column that is predicted (default: the last one)."""
    target_kind: Literal["auto", "classes", "number"] = "auto"
    """What the target is taken for; auto: a number where it has more than 20 different ones or
    fractions, else classes."""
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
        """Returns columns of cells, object (n,) of str, as the file has them, by name. `log` gets
        what was dropped. Raises InputError when it is no such table."""
        if not 0 < self.test < 1:
            raise InputError(f"--test {self.test:g} must be between 0 and 1.")
        header, rows, name, source, delimiter = self._read(log)
        target = self.target or header[-1]
        named = (("target", target), ("group", self.group), *(("ignore", c) for c in self.ignore))
        for flag, each in named:
            if each and each not in header:
                raise InputError(f"--{flag} {each}: {source} has {', '.join(header)}.")
        if self.group == target:
            raise InputError(f"--group {target} is the target: name another column.")
        left_out = {target, self.group, *self.ignore}
        kept = [i for i, heading in enumerate(header) if heading not in left_out]

        def column(heading):
            return cells[:, header.index(heading)].tolist()

        if not kept:
            raise InputError(f"{source} has no column besides the target {target}.")
        cells = np.array(rows, object).reshape(len(rows), len(header))
        cells = cells[_have_target(column(target), target, source, log)]
        written = {heading: column(heading) for heading in (*(header[i] for i in kept), target)}
        formats = numbers.infer_formats(written, delimiter, self.decimal, source)
        for note in numbers.describe_formats(written, formats):
            log(note)
        values, classes = numbers_or_classes(
            target, written[target], self.target_kind, log, formats[target]
        ), ()  # fmt: skip
        if values is None:
            found = np.array(written[target], object)
            classes, values, keep = classes_of(found, FEWEST, "rows", log)
            cells = cells[keep]
        groups = np.array(column(self.group), str) if self.group else None
        split, names = Share(self.test, self.split_seed, groups), [header[i] for i in kept]
        columns = {name: cells[:, i] for name, i in zip(names, kept, strict=True)}
        style = {"target": target, "delimiter": delimiter, "formats": formats}
        examples = Examples(
            columns, values, [f"row {i + 1}" for i in range(len(values))], classes, style
        )
        held = split.test(examples)
        if held.sum() < 2 or (~held).sum() < 4:
            raise InputError(
                f"{source} has {len(values)} rows: too few to hold some out with --test "
                f"{self.test:g}."
            )
        content = repr((names, cells[:, kept].tolist(), values.tolist(), classes)).encode()
        return Dataset(examples, split, name, source, hashlib.sha256(content).hexdigest())

    def _read(self, log):
        """(headings, rows of cells, name, source, delimiter)."""
        if self.data_dir is None:
            if self.decimal != "auto":
                raise InputError(f"--decimal {self.decimal} is for a file: pass --data-dir.")
            if self.dataset not in BUNDLED:
                raise InputError(
                    f"--dataset {self.dataset} is unknown here: choose {', '.join(BUNDLED)}, or "
                    "pass --data-dir FILE.csv."
                )
            header, rows = _bundled(self.dataset)
            return header, rows, self.dataset, f"scikit-learn's {self.dataset}", ","
        path = Path(self.data_dir).expanduser()
        header, rows, delimiter = csv_files.read(path, "a table")
        header = [printable(name.strip()) for name in header]
        if doubled := [name for name, count in Counter(header).items() if count > 1]:
            raise InputError(f"{path} has two columns {doubled[0]!r}: give each a name of its own.")
        if not rows:
            raise InputError(f"{path} has no rows below its header.")
        cells = [[cell.strip() for cell in row] for _, row in rows]
        twice = len(cells) - len(set(map(tuple, cells)))
        if twice:
            log(f"{path.name}: {twice:,} rows are copies of others; they stay, and may be in "
                "training and test data at once.")  # fmt: skip
        return header, cells, path.stem, str(path.resolve()), delimiter

    def encoder(self, train: Examples, log: Callable[[str], None]) -> TableEncoder:
        """Returns the encoder of these rows."""
        if self.bins < 0 or self.bins > 256:
            raise InputError(f"--bins {self.bins} must be from 0 to 256.")
        style, notes = train.style, []
        columns = fit_columns(train.columns, self.bins, style["formats"], notes.append)
        if not columns:
            raise InputError(
                f"no column says anything ({' '.join(notes)}): there is nothing to predict from."
            )
        for note in notes:
            log(note)
        name = style["target"]
        target = Classes(train.classes) if train.classes else Numbers.fit(train.target, (name,))
        return TableEncoder(
            target, tuple(columns), name, style["formats"][name], style["delimiter"]
        )


def _have_target(cells: list[str], target: str, source: str, log) -> np.ndarray:
    """bool (n,): which rows have a target. InputError where many have a word for none."""
    known = np.array([cell.lower() not in MISSING for cell in cells], bool)
    words = [cell for cell in cells if cell and cell.lower() in MISSING]
    if len(words) > MOST_DROPPED * len(cells):
        raise InputError(
            f"{source}: {len(words):,} of {len(cells):,} rows have {words[0]!r} as {target}, which "
            "stands for a missing value: give it another name if it is a class, or remove them."
        )
    if not known.all():
        log(f"{(~known).sum():,} rows have no {target}: left out.")
    return known


def fit_columns(
    columns: Mapping[str, np.ndarray], bins: int, formats: Mapping[str, NumberFormat],
    log: Callable[[str], None],
) -> list[Column]:  # fmt: skip
    """Returns the encodings of the columns, object (n,) of str, that say anything; `log` gets a
    sentence for each that does not."""
    encodings: list[Column] = []
    for name, array in columns.items():
        cells = array.tolist()
        known = [cell for cell in cells if cell.lower() not in MISSING]
        levels = Counter(known)
        values = formats[name].parse(cells)
        if len(levels) < 2 and len(known) in (0, len(cells)):
            log(f"{name} is the same in all training rows: left out.")
        elif not isinstance(values, str) and np.isfinite(values[~np.isnan(values)]).all():
            encodings.append(_fit_numbers(name, values, bins, formats[name]))
        elif len(levels) > min(max(MOST_LEVELS, len(cells) // 2), 0.9 * len(cells)):
            log(f"{name} has {len(levels):,} different texts in {len(cells):,} rows: left out.")
        else:
            kept = [level for level, count in levels.most_common(MOST_LEVELS) if count >= RARE]
            kept = sorted(kept) or sorted(levels)
            encodings.append(CategoryColumn(name, tuple(kept), len(known) < len(cells)))
    return encodings


def _fit_numbers(name, values, bins, how) -> NumberColumn:
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1))) if bins else known[:0]
    return NumberColumn(
        name, how, float(np.median(known)), float(known.mean()), float(known.std()) or 1.0,
        tuple(edges.tolist()) if len(edges) > 2 else (), len(known) < len(values),
    )  # fmt: skip


def _bundled(name):
    """(headings, rows of cells) of one of scikit-learn's tables."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    values = found.target.tolist()
    if name != "diabetes":
        values = [str(found.target_names[value]) for value in values]
    rows = [
        [*map(repr, row), str(value)]
        for row, value in zip(found.data.tolist(), values, strict=True)
    ]
    return [*map(str, found.feature_names), "target"], rows
