"""Tables: rows of numbers and categories, of which one column is to be predicted.

What is made of a column is decided by the training rows alone, and kept as `info["columns"]`:

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
from typing import Any, Literal

import numpy as np

from dlflax.data import csv_files, numbers
from dlflax.data.dataset import Dataset, Raw, Splits
from dlflax.data.numbers import MISSING, NumberFormat
from dlflax.data.order import check_fraction, held_out
from dlflax.data.targets import (
    MOST_DROPPED,
    classes_of,
    numbers_or_classes,
    standardized,
    unit_of,
)
from dlflax.errors import InputError
from dlflax.files import printable

BUNDLED = ("breast_cancer", "diabetes", "wine")  # scikit-learn's
FEWEST = 3  # rows that a class needs: one to train, one to validate, one to test on
RARE = 2  # training rows below which a level is "other"
MOST_LEVELS = 200  # of a column that is one-hot
OTHER = "(other)"


@dataclasses.dataclass(frozen=True)
class Table:
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
        """train and test: {"inputs": object (n, columns) of str, "targets": object (n,)}, cells as
        the file has them. `log` gets what was dropped. InputError when it is no such table."""
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
        inputs, groups = cells[:, kept], np.array(column(self.group), str) if self.group else None
        held = held_out(values, self.test, self.split_seed, 3, left=2, groups=groups)
        if held.sum() < 2 or (~held).sum() < 4:
            raise InputError(
                f"{source} has {len(values)} rows: too few to hold some out with --test "
                f"{self.test:g}."
            )
        names = [header[i] for i in kept]
        content = repr((names, inputs.tolist(), values.tolist(), classes)).encode()
        columns = {"inputs": inputs, "targets": values, "rows": np.arange(len(values))}
        columns |= {"groups": groups} if self.group else {}
        train, test = (
            {name: array[part] for name, array in columns.items()} for part in (~held, held)
        )
        return Dataset(
            name, source, train, test, class_names=classes,
            checksum=hashlib.sha256(content).hexdigest(), info={
                "names": names, "target": target, "delimiter": delimiter,
                "formats": numbers.to_json(formats),
            },
        )  # fmt: skip

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

    def split(self, dataset: Dataset, validation: float, seed: int) -> Splits:
        """The share `validation` of the training rows, drawn by `seed`, is held out: of classes
        that share of each. "inputs" float32 (n, d), "targets" int32 (n,), or float32 (n,) with the
        training rows' mean 0 and deviation 1."""
        check_fraction(validation)
        if self.bins < 0 or self.bins > 256:
            raise InputError(f"--bins {self.bins} must be from 0 to 256.")
        cells, targets = dataset.train["inputs"], dataset.train["targets"]
        groups = dataset.train.get("groups")
        held = held_out(targets, validation, seed, 0, groups=groups)
        names = dataset.info["names"]
        formats = numbers.from_json(dataset.info["formats"])
        columns, notes = fitted(names, cells[~held], self.bins, formats)
        if not columns:
            raise InputError(
                f"{dataset.source}: no column says anything ({' '.join(notes)}): there is nothing "
                "to predict from."
            )
        unit = {} if dataset.class_names else unit_of(targets[~held])
        parts = {"train": (cells[~held], targets[~held]),
                 "val": (cells[held], targets[held]),
                 "test": (dataset.test["inputs"], dataset.test["targets"])}  # fmt: skip
        if not held.any():
            del parts["val"]
        made, plain = {}, {}
        for part, (rows, values) in parts.items():
            values = standardized(values, unit) if unit else values
            plain[part] = numbered(columns, names, rows, formats)
            made[part] = {"inputs": encoded(columns, plain[part]), "targets": values}
        info = {name: dataset.info[name] for name in ("target", "delimiter", "formats")}
        info |= {"columns": columns, **unit}
        categories = np.array([column["kind"] == "categories" for column in columns])
        return Splits(
            made["train"], made.get("val"), made["test"], class_names=dataset.class_names,
            kind="table", unit="row", test_names=[f"row {i + 1}" for i in dataset.test["rows"]],
            info=info, notes=tuple(notes),
            plain={"columns": plain, "categories": {"all": categories}},
        )  # fmt: skip

    def raw(self, data: Mapping[str, Any]) -> Raw:
        """Rows as `numbered` gives them."""
        import jax.numpy as jnp

        columns = data["columns"]
        return Raw(
            (len(columns),), "float32",
            "a row of the table: its numbers, NaN where one is missing; of a text its place in the "
            "column's levels, counted from 1, or 0 for any other",
            lambda numbers: {"inputs": encoded(columns, numbers, jnp)},
            lambda splits: np.float32(splits.plain["columns"]["test"]),
        )  # fmt: skip

    def read(
        self, inputs: list[str], data: Mapping[str, Any], folder: Path
    ) -> tuple[list[str], str, dict[str, np.ndarray]]:
        """Rows of CSV files with the same columns; the target's may be there or not."""
        if not inputs:
            raise InputError("name one or more CSV files after the run folder.")
        names, batches = [], []
        for each in inputs:
            header, cells = _rows_like(data, Path(each))
            rows = numbered(data["columns"], header, cells, _formats(data))
            batches.append(encoded(data["columns"], rows))
            names += [f"{each}, row {i + 1}" for i in range(len(rows))]
        return names, "row", {"inputs": np.concatenate(batches)}

    def read_targets(self, path: Path, data: Mapping[str, Any]) -> np.ndarray:
        """Returns the targets of all rows of a CSV file, as in training: class numbers, int32 (n,),
        or numbers in their unit, float64 (n,). Raises InputError for a class that the run had
        not."""
        header, cells = _rows_like(data, path)
        target = data["target"]
        if target not in header:
            raise InputError(f"{path} lacks the column {target}, which the model predicts.")
        texts = cells[:, header.index(target)].tolist()
        classes = {name: number for number, name in enumerate(data["class_names"])}
        if not classes:
            how = _formats(data).get(target, NumberFormat())
            values = how.parse(texts)
            if isinstance(values, str) or not np.isfinite(values).all():
                wrong = values if isinstance(values, str) else "a missing or infinite value"
                raise InputError(f"{path}, column {target} has {wrong}: give numbers.")
            return values
        if unknown := [text for text in texts if text not in classes]:
            raise InputError(
                f"{path} has the class {unknown[0]!r} in {target}, and the model knows "
                f"{', '.join(classes)[:200]}."
            )
        return np.array([classes[text] for text in texts], np.int32)


def _formats(data) -> dict[str, NumberFormat]:
    """The formats of the training columns, by name."""
    return numbers.from_json(data.get("formats", {}))


def _rows_like(data, path: Path) -> tuple[list[str], np.ndarray]:
    """(headings, object (n, columns) of cells) of a CSV file with the columns of the run."""
    usual = data.get("delimiter", ",")  # an older run has none
    header, rows, delimiter = csv_files.read(path, "a table", usual)
    header = [printable(name.strip()) for name in header]
    check_columns(data["columns"], header, path)
    if not rows:
        raise InputError(f"{path} has no rows below its header.")
    cells = np.array([[cell.strip() for cell in row] for _, row in rows], object)
    cells = cells.reshape(len(rows), len(header))
    if delimiter != usual:  # another program wrote it, maybe by another rule
        at = {c["name"]: header.index(c["name"]) for c in data["columns"] if c["kind"] == "numbers"}
        columns = {name: cells[:, place].tolist() for name, place in at.items()}
        numbers.check_like(columns, _formats(data), delimiter, path)
    return header, cells


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


def fitted(
    names: list[str], cells: np.ndarray, bins: int, formats: Mapping[str, NumberFormat]
) -> tuple[list[dict], list[str]]:
    """(what is made of each column, as JSON values; sentences on what is dropped). cells: object
    (n, columns) of the training rows."""
    columns, notes = [], []
    for name, column in zip(names, cells.T.tolist(), strict=True):
        known = [cell for cell in column if cell.lower() not in MISSING]
        levels = Counter(known)
        values = formats[name].parse(column)
        if len(levels) < 2 and len(known) in (0, len(column)):
            notes.append(f"{name} is the same in all training rows: left out.")
        elif not isinstance(values, str) and np.isfinite(values[~np.isnan(values)]).all():
            columns.append(_of_numbers(name, values, bins))
        elif len(levels) > min(max(MOST_LEVELS, len(column) // 2), 0.9 * len(column)):
            counts = f"{len(levels):,} different texts in {len(column):,} rows"
            notes.append(f"{name} has {counts}: left out.")
        else:
            kept = [level for level, count in levels.most_common(MOST_LEVELS) if count >= RARE]
            kept = sorted(kept) or sorted(levels)
            missing = len(known) < len(column)
            columns.append({"name": name, "kind": "categories", "levels": kept, "missing": missing})
    return columns, notes


def _of_numbers(name, values, bins):
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1))) if bins else known[:0]
    return {
        "name": name, "kind": "numbers", "median": float(np.median(known)),
        "mean": float(known.mean()), "scale": float(known.std()) or 1.0,
        "edges": edges.tolist() if len(edges) > 2 else [], "missing": len(known) < len(values),
    }  # fmt: skip


def width(column: dict) -> int:
    """How many of the inputs a column becomes."""
    if column["kind"] == "categories":
        return len(column["levels"]) + 1 + column["missing"]
    return 1 + max(0, len(column["edges"]) - 1) + column["missing"]


def numbered(
    columns: list[dict], names: list[str], cells: np.ndarray,
    formats: Mapping[str, NumberFormat],
) -> np.ndarray:  # fmt: skip
    """float64 (n, columns): numbers, NaN where one is missing, and the number of each level."""
    found = np.empty((len(cells), len(columns)))
    for i, column in enumerate(columns):
        texts = cells[:, names.index(column["name"])].tolist()
        if column["kind"] == "categories":
            place = {level: k + 1.0 for k, level in enumerate(column["levels"])}
            found[:, i] = [
                np.nan if text.lower() in MISSING else place.get(text, 0.0) for text in texts
            ]
        else:
            found[:, i] = _numbers(column["name"], texts, formats.get(column["name"]))
    return found


def _numbers(name, texts, how) -> np.ndarray:
    how = how or NumberFormat()
    values = how.parse(texts)
    if isinstance(values, str):
        raise InputError(
            f"the column {name} has {values!r}, where training rows have numbers such as "
            f"{how.describe()}."
        )
    if np.isinf(values).any():
        raise InputError(f"the column {name} has an infinite value: give numbers.")
    return values


def check_columns(columns: list[dict], names: list[str], place) -> None:
    """InputError where what is at `place`, with these headings, lacks a column."""
    if missing := [column["name"] for column in columns if column["name"] not in names]:
        raise InputError(f"{place} lacks the column {missing[0]}, which the model reads.")


def encoded(columns: list[dict], numbers, xp=np):
    """float32 (n, d) of rows as `numbered` gives them. xp: jax.numpy for traced ones."""
    parts = [
        (_categories if column["kind"] == "categories" else _piecewise)(column, numbers[:, i], xp)
        for i, column in enumerate(columns)
    ]
    return xp.concatenate(parts, 1).astype(np.float32)


def _piecewise(column, values, xp):
    """(n, width): the standardized value, how far each piece is filled, and whether it is
    missing."""
    missing = xp.isnan(values)
    values = xp.where(missing, column["median"], values)
    parts = [xp.clip((values - column["mean"]) / column["scale"], -10, 10)[:, None]]
    if edges := column["edges"]:
        low, high = np.array([edges[:-1]]), np.array([edges[1:]])
        parts.append(xp.clip((values[:, None] - low) / (high - low), 0, 1))
    if column["missing"]:
        parts.append(missing[:, None].astype(values.dtype))
    return xp.concatenate(parts, 1)


def _categories(column, numbers, xp):
    """(n, width): one-hot over the levels, other, and whether it is missing."""
    levels = len(column["levels"])
    # other is 0 there and behind the levels here; a missing one is nothing where none was known
    place = xp.where(xp.isnan(numbers), levels + 1, xp.where(numbers == 0, levels, numbers - 1))
    return (place[:, None] == np.arange(width(column))[None]).astype(numbers.dtype)


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
