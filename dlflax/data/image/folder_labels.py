"""Targets of image files from a CSV file: classes, several labels each, or numbers."""

import collections
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.data.image import folder_files
from dlflax.data.image.folder_files import File, Listing, quote_names, skip_row
from dlflax.data.table.number_formats import MISSING, NumberFormat, infer_formats
from dlflax.data.table.raw_table import RawTable, as_column, as_texts, read_table
from dlflax.data.table.target_type import encode_classes, infer_numbers, normalize_classes
from dlflax.data.table.text_tables import LABEL_COLUMNS
from dlflax.errors import InputError
from dlflax.files import escape_controls

FEWEST = 3  # images of a class or a label: one to train, validate and test on each


@dataclasses.dataclass(frozen=True)
class FileLabels:
    """Targets of image files by name."""

    kind: str
    """classes, labels (any number for each image) or number (one or more)."""
    columns: list[str]
    """The target columns."""
    values: dict[str, Any]
    """JSON values by image name: a class, a list of labels, or a list of numbers."""
    groups: dict[str, str]
    """Groups by image name; empty without a group column."""
    report: list[list[str]]
    """Rows of files_skipped.csv."""

    def targets(self, values: list, log: Callable[[str], None]) -> tuple[Any, tuple, np.ndarray]:
        """Returns targets (n, ...), the names of classes or labels, and bool (the values with a
        target) of some `values`. InputError if all are dropped."""
        if self.kind == "number":
            numbers = np.array(values, np.float64).reshape(len(values), len(self.columns))
            numbers = numbers[:, 0] if len(self.columns) == 1 else numbers
            return numbers, (), np.ones(len(values), bool)
        if self.kind == "classes":
            names, targets, keep = encode_classes(np.array(values, object), FEWEST, "images", log)
            return targets, names, keep
        counts = collections.Counter(label for labels in values for label in labels)
        candidates = {*counts, *(self.columns if len(self.columns) > 1 else ())}
        names = [name for name in candidates if counts[name] >= FEWEST]
        names = sorted(names, key=folder_files.natural_key)
        if few := candidates - set(names):
            log(f"labels of fewer than {FEWEST} images are dropped: {quote_names(few)}.")
        if empty := sum(not labels for labels in values):
            log(f"{empty:,} of {len(values):,} images have no label: they are negative examples of "
                "every label.")  # fmt: skip
        if not names:
            raise InputError(f"every label has fewer than {FEWEST} images: add images.")
        targets = [[label in set(labels) for label in names] for labels in values]
        return np.array(targets, np.int32), tuple(names), np.ones(len(values), bool)


def read_labels(
    path: Path, files: list[File], origin: str, target: tuple[str, ...], kind: str, group: str, log
) -> FileLabels:
    """Reads the labels of the files below a folder, or raises InputError. target: its columns, ()
    to infer; kind: auto or one of `FileLabels.kind`; group: a column, or ""."""
    source = read_table(path, log=log, noun="a file of labels")
    texts = {name: as_texts(column).to_pylist() for name, column in source.columns.items()}
    ends = [file.name.rpartition("/")[2] for file in files]
    counts = collections.Counter([*ends, *(os.path.splitext(end)[0] for end in ends)])
    file_column, names = _match_files(path, texts, files, counts, origin, log)
    columns = _target_columns(path, list(texts), file_column, target, group)
    file_cells = list(map(escape_controls, texts[file_column]))
    rows = [row for row, name in enumerate(names) if name]
    cell, name = file_cells[rows[0]], names[rows[0]]
    example = "" if cell == name else f" ({cell} is {name})"
    by_group = f", groups by {group}" if group else ""
    log(f"{path.name}: {', '.join(columns)} of the images in {file_column}{example}{by_group}")
    lines = [source.row_name(i).removeprefix(f"{path}, ") for i in range(len(source))]
    report = []
    for cell, name, line in zip(file_cells, names, lines, strict=True):
        if name is None:
            reason = "several images of this name" if counts[cell] > 1 else "no such image"
            report.append(skip_row(cell, "no such image", f"{reason}: {path.name}, {line}"))
    cells = {c: as_column([escape_controls(texts[c][row]) for row in rows]) for c in columns}
    targets = dataclasses.replace(source, columns=cells, names=source.names[np.array(rows)])
    if not any(any(as_texts(column).to_pylist()) for column in cells.values()):
        raise InputError(f"--labels-csv {path}: no image of {origin} has a label.")
    formats = infer_formats(targets, columns, "auto", "write 1234.5")
    kind, row_values = _parse_targets(targets, kind, formats, log)
    by_name, reasons, groups = collections.defaultdict(list), {}, {}
    for row, value in zip(rows, row_values, strict=True):
        name = names[row]
        if group:  # an empty cell is a group of one
            groups[name] = texts[group][row] or name
        if value is None:
            empty = not texts[columns[0]][row]
            reason = f"{path.name}, {lines[row]}" if empty else f"no number in {path.name}"
            reasons[name] = "no label", f"no label: {reason}"
        else:
            by_name[name].append(value)
    values = {}
    for name, (first, *others) in by_name.items():
        if kind == "labels":
            values[name] = sorted({*first}.union(*others))
        elif conflicts := [value for value in others if value != first]:
            reasons[name] = "two labels", f"two labels: {first} and {conflicts[0]}"
        else:
            values[name] = first
    for file in files:
        if file.name not in values and not folder_files.rejection(file):
            reason = reasons.get(file.name, ("no label", f"no label: no row in {path.name}"))
            report.append(skip_row(file.name, *reason))
    return FileLabels(kind, columns, values, groups, report)


def list_files(labels: FileLabels, files: list[File], report: list[list[str]]) -> Listing:
    """Lists the images with a label. `class_names` of the Listing are the distinct values as JSON,
    its `labels` their indices."""
    chosen, report = [], [*report, *labels.report]
    for file in files:
        if row := folder_files.rejection(file):
            report.append(row)
        elif file.name in labels.values:
            chosen.append(file)
    texts = [json.dumps(labels.values[file.name]) for file in chosen]
    distinct, indices = np.unique(np.array(texts, object), return_inverse=True)
    splits, names = [""] * len(chosen), distinct.tolist()
    count = len(chosen) + len(report)
    return Listing.of_files(chosen, indices.tolist(), splits, names, [], report, count)


def _match_files(path, texts, files, counts, origin, log) -> tuple[str, list[str | None]]:
    """Returns the column of file names, and the file of each cell, or None. counts: the files of a
    name without folders. Logs names in another letter case. InputError without such a column."""
    exact, matches = (_find_files(texts, files, fold) for fold in (str, str.casefold))
    for column, names in exact.items():
        any_case = matches.get(column, names)
        matches[column] = [a or b for a, b in zip(names, any_case, strict=True)]
    if not any(matches.values()):
        examples = quote_names([file.name for file in files][:2])
        cells = itertools.chain(*zip(*texts.values(), strict=True))
        ambiguous = next((cell for cell in cells if counts[cell] > 1), "")
        hint = f" Several are named {ambiguous}: write its folder, too." if ambiguous else ""
        raise InputError(
            f"--labels-csv {path}: no column names images of {origin}, such as {examples}: one "
            f"should, with the same folders or none.{hint}"
        )
    column = max(matches, key=lambda column: sum(map(bool, matches[column])))
    names = matches[column]
    rows = zip(texts[column], names, exact.get(column, [None] * len(names)), strict=True)
    if other_case := [(escape_controls(cell), a) for cell, a, b in rows if a and not b]:
        log(f"{len(other_case):,} names in {path.name} differ from the files' in letter case, such "
            f"as {' for '.join(other_case[0])}.")  # fmt: skip
    return column, names


def _find_files(texts, files, fold=str) -> dict[str, list[str | None]]:
    """Returns the unique file of each cell, or None, for each column that names files. A cell names
    one by its path or the end of it, with or without the ending. fold: str, or str.casefold to
    ignore letter case."""
    names, paths, ends = {}, {}, {}  # path, path without ending, end of a path -> file or None

    def add(index: dict, key: str, name: str) -> None:
        index[key] = None if key in index else name  # None: ambiguous

    for name in (file.name for file in files):
        add(names, fold(name), name)
        for path in {fold(name), fold(os.path.splitext(name)[0])}:
            parts = path.split("/")
            for i in range(len(parts)):
                add(ends, "/".join(parts[i:]), name)
            add(paths, path, name)
    root = Path(files[0].path).parents[files[0].name.count("/")] if files else Path()
    roots = [os.path.abspath(root), os.path.realpath(root)]
    roots = [fold(folder_files.printable_name(path)).split("/") for path in roots]

    def find(cell: str) -> str | None:
        parts = fold(escape_controls(cell)).replace("\\", "/").split("/")
        absolute = parts[0] in ("", "~") or ":" in parts[0]
        foreign = absolute and not os.path.exists(cell)  # a path of another computer
        parts = [part for part in parts if part not in ("", ".", "..")]
        if (path := "/".join(parts)) in names:
            return names[path]
        matches = {ends[path]} if path in ends else set()
        for i in range(1, len(parts)):  # the first i parts are the root folder, or its end
            inner = "/".join(parts[i:])
            moved = foreign and ("/" in inner or any(r[-1:] == parts[i - 1 : i] for r in roots))
            if inner in paths and (moved or any(r[-i:] == parts[:i] for r in roots)):
                matches.add(paths[inner])
        return matches.pop() if len(matches) == 1 else None

    return {
        name: [find(cell) for cell in cells] for name, cells in texts.items()
        if any(map(find, cells[:1000]))
    }  # fmt: skip


def _target_columns(path, header, file_column, target, group) -> list[str]:
    """Returns --target, or infers it from the header. InputError for an invalid column."""
    for flag, name in (*(("target", column) for column in target), ("group", group)):
        if name and name not in header:
            raise InputError(f"--{flag} {name}: {path} has the columns {quote_names(header)}.")
    if target:
        if invalid := {file_column, group} & set(target):
            raise InputError(f"--target {invalid.pop()} names files or groups: name other columns.")
        return list(target)
    columns = [name for name in header if name not in (file_column, group)]
    if len(columns) > 1:
        columns = [name for name in columns if name.lower() in LABEL_COLUMNS]
    if len(columns) != 1:
        raise InputError(f"{path} has the columns {quote_names(header)}: choose with --target.")
    return columns


def _parse_targets(
    table: RawTable, kind: str, formats: dict[str, NumberFormat | None], log
) -> tuple[str, list]:
    """Returns the kind of the columns, and the value of each row, None for a missing one."""
    if len(table.columns) > 1:
        return _parse_several(table, kind, formats)
    ((name, column),) = table.columns.items()
    texts = as_texts(column).to_pylist()
    separator = _separator(texts) if kind in ("auto", "labels") else ""
    if kind == "labels" or separator:
        by = repr(separator) if separator else "blanks"
        log(f"{name}: several labels, separated by {by} (otherwise: --target-type classes).")
        cells = [text.split(separator or None) for text in texts]
        return "labels", [[label.strip() for label in cell if label.strip()] for cell in cells]
    numbers = infer_numbers(table, name, kind, log, formats[name])
    if numbers is not None:
        return "number", [None if math.isnan(v) else [v] for v in numbers.tolist()]
    if markers := sorted({text for text in texts if text and text.lower() in MISSING}):
        log(f"{name}: {quote_names(markers)} is a class: only an empty cell is missing.")
    return "classes", [text or None for text in normalize_classes(column).tolist()]


def _parse_several(table: RawTable, kind: str, formats) -> tuple[str, list]:
    """Parses a column of 0 and 1 for each label, or several columns of numbers."""
    if kind == "classes":
        raise InputError("--target-type classes requires one column as --target.")
    numbers = []
    for name, column in table.columns.items():
        values, invalid = (formats[name] or NumberFormat()).parse(column)
        if np.isnan(values).any():
            cell = column[int(invalid.argmax())].as_py() if invalid.any() else "a missing number"
            raise InputError(f"--target {name} has {cell}: each of several should be a number.")
        numbers.append(values)
    rows = np.stack(numbers, 1)
    binary = np.isin(rows, (0, 1)).all()
    if kind == "labels" and not binary:
        raise InputError("--target-type labels requires 0 or 1 in each of several columns.")
    if kind == "number" or not binary:
        return "number", rows.tolist()
    return "labels", [np.array([*table.columns])[row > 0].tolist() for row in rows]


def _separator(texts: list[str]) -> str:
    """Infers the separator of labels, or "". A comma only separates repeated labels, as in "red,
    old" and "red, new", but not in "tench, a fish"."""
    for separator in "|;":
        if any(separator in text for text in texts):
            return separator
    labels = {label.strip() for text in texts for label in text.split(",")}
    return "," if any("," in text for text in texts) and len(labels) < len(set(texts)) else ""
