"""What pictures show by a CSV file: a file's name and its class, several labels, or numbers."""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.data.folder_files import File, Found, in_natural_order, listed, refused, shown, skipped
from dlflax.data.numbers import MISSING, NumberFormat, infer_formats
from dlflax.data.raw_table import RawTable, as_column, as_texts, read_table
from dlflax.data.target_kind import encode_classes, infer_numbers, normalize_classes
from dlflax.data.text_tables import LABEL_COLUMNS
from dlflax.errors import InputError
from dlflax.files import escape_controls

FEWEST = 3  # pictures that a class or a label needs: one to train, validate and test on each
SEPARATORS = "|;"  # a cell that has one of them has several labels


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a file of labels says."""

    kind: str
    """classes, labels (any number for each picture) or number (one or more)."""
    columns: list[str]
    """The columns that are predicted."""
    of: dict[str, Any]
    """A picture's name -> JSON value: its class, the list of its labels, or of its numbers."""
    groups: dict[str, str]
    """A picture's name -> the group that it belongs to; empty without groups."""
    report: list[list[str]]
    """Rows of files_skipped.csv."""

    def targets(self, values: list, log: Callable[[str], None]) -> tuple[Any, tuple, np.ndarray]:
        """(targets (n, ...), names of the classes or labels, bool: which of the values are kept) of
        pictures with such values. InputError where there is nothing to learn."""
        kept = np.ones(len(values), bool)
        if self.kind == "number":
            numbers = np.array(values, np.float64).reshape(len(values), len(self.columns))
            return numbers[:, 0] if len(self.columns) == 1 else numbers, (), kept
        if self.kind == "classes":
            names, targets, kept = encode_classes(np.array(values, object), FEWEST, "pictures", log)
            return targets, names, kept
        counts = collections.Counter(label for labels in values for label in labels)
        candidates = {*counts, *(self.columns if len(self.columns) > 1 else ())}
        names = sorted((n for n in candidates if counts[n] >= FEWEST), key=in_natural_order)
        if few := candidates - set(names):
            log(f"labels of fewer than {FEWEST} images, or of none, are dropped: {listed(few)}.")
        if empty := sum(not labels for labels in values):
            log(f"{empty:,} of {len(values):,} images have no label: they are kept, as examples "
                "of none of the labels.")  # fmt: skip
        if not names:
            raise InputError(f"no label is that of {FEWEST} pictures or more: nothing to learn.")
        have = [[label in set(labels) for label in names] for labels in values]
        return np.array(have, np.int32), tuple(names), kept


def read(
    path: Path, files: list[File], place: str, target: tuple[str, ...], kind: str, group: str, log
) -> Labels:
    """The labels of the files below a folder. target: the columns that are predicted, () where that
    is clear; kind: what they are taken for, auto or one of `Labels.kind`; group: a column, or "".
    InputError when it is no such file."""
    source = read_table(path, log=log, noun="a file of labels")
    header = list(source.columns)
    texts = [as_texts(column).to_pylist() for column in source.columns.values()]
    table = list(zip(*texts, strict=True))
    ends = [file.name.rpartition("/")[2] for file in files]
    several = collections.Counter([*ends, *(os.path.splitext(end)[0] for end in ends)])
    file_column, names = _match_files(path, header, table, files, several, place, log)
    columns = _columns(path, header, file_column, target, group)
    by_group = f", groups by {group}" if group else ""
    file_cells = [escape_controls(row[header.index(file_column)]) for row in table]
    cell, name = next((cell, name) for cell, name in zip(file_cells, names, strict=True) if name)
    example = "" if cell == name else f" ({cell} is {name})"
    log(f"{path.name}: {', '.join(columns)} of the pictures in {file_column}{example}{by_group}")
    places = [
        f"{path.name}, {source.row_name(i).removeprefix(f'{path}, ')}" for i in range(len(table))
    ]
    report = []
    for cell, name, line in zip(file_cells, names, places, strict=True):
        if name is None:
            many = "several pictures of this name" if several[cell] > 1 else "no such picture"
            report.append(skipped(cell, "no such picture", f"{many}: {line}"))
    rows = [row for row, name in enumerate(names) if name]
    cells = {
        c: as_column([escape_controls(row[header.index(c)]) for row in table]) for c in columns
    }
    labelled = dataclasses.replace(source, columns=cells).take(np.array(rows))
    if not any(any(as_texts(column).to_pylist()) for column in labelled.columns.values()):
        raise InputError(f"--labels {path}: no picture of {place} has a label in it.")
    formats = infer_formats(labelled, columns, "auto", "write 1234.5")
    kind, values = _values(labelled, kind, formats, log)
    by_name, reasons, of, groups = collections.defaultdict(list), {}, {}, {}
    for row, value in zip(rows, values, strict=True):
        name = names[row]
        if group:  # without one: a group of its own
            groups[name] = table[row][header.index(group)] or name
        if value is None:
            empty = not cells[columns[0]][row].as_py()
            where = places[row] if empty else f"no number in {path.name}"
            reasons[name] = "no label", f"no label: {where}"
        else:
            by_name[name].append(value)
    for name, each in by_name.items():
        if kind == "labels":
            of[name] = sorted(set().union(*each))
        elif other := [value for value in each if value != each[0]]:
            reasons[name] = "two labels", f"two labels: {each[0]} and {other[0]}"
        else:
            of[name] = each[0]
    for file in files:
        if file.name not in of and not refused(file):
            why = reasons.get(file.name, ("no label", f"no label: no row in {path.name}"))
            report.append(skipped(file.name, *why))
    return Labels(kind, columns, of, groups, report)


def found(labels: Labels, files: list[File], report: list[list[str]]) -> Found:
    """What is to be decoded: pictures with a label. Their `labels` number the different values,
    which are `class_names`, as JSON."""
    chosen, report = [], [*report, *labels.report]
    for file in files:
        if row := refused(file):
            report.append(row)
        elif file.name in labels.of:
            chosen.append(file)
    texts = [json.dumps(labels.of[file.name]) for file in chosen]
    different = sorted(set(texts))
    numbers = {text: number for number, text in enumerate(different)}
    return Found(
        different, [], [file.name for file in chosen], [numbers[text] for text in texts],
        [""] * len(chosen), [file.size for file in chosen],
        lambda index: open(chosen[index].path, "rb"), report, len(chosen) + len(report),
    )  # fmt: skip


def _match_files(path, header, table, files, several, place, log) -> tuple[str, list[str | None]]:
    """Returns the column that names the files, and the file of each of its cells, None without.
    several: the number of files with such a name, without folders. InputError where there is no
    such column; `log` gets names in another letter case."""
    exact, names_of = (_names_of(header, table, files, fold) for fold in (str, str.casefold))
    for column, names in exact.items():
        in_any_case = names_of.get(column, names)
        names_of[column] = [a or b for a, b in zip(names, in_any_case, strict=True)]
    if not any(names_of.values()):
        examples = listed([file.name for file in files][:2])
        same = next((cell for row in table for cell in row if several[cell] > 1), "")
        why = f" Several are called {same}: write its folder, too." if same else ""
        raise InputError(
            f"--labels {path}: no column names pictures of {place}, such as {examples}: one "
            f"should, with the same folders or none.{why}"
        )
    column = max(names_of, key=lambda column: sum(map(bool, names_of[column])))
    names, at = names_of[column], header.index(column)
    rows = zip(table, names, exact.get(column, [None] * len(table)), strict=True)
    if other_case := [(escape_controls(row[at]), a) for row, a, b in rows if a and not b]:
        log(f"{len(other_case):,} names in {path.name} differ from the files' in letter case, such "
            f"as {' for '.join(other_case[0])}.")  # fmt: skip
    return column, names


def _names_of(header, table, files, fold=str) -> dict[str, list[str | None]]:
    """Column -> the file that each of its cells names, None where it names none: by the end of its
    path, all folders that the cell has among it, with or without ending, where one file has it.
    fold: str, or str.casefold for names in any letter case."""
    names = {}
    whole, ends = {}, {}  # path below the folder, or an end of it -> its file, None for several
    for name in (file.name for file in files):
        names[fold(name)] = None if fold(name) in names else name
        for path in {fold(name), fold(os.path.splitext(name)[0])}:
            parts = path.split("/")
            for i in range(len(parts)):
                end = "/".join(parts[i:])
                ends[end] = None if end in ends else name
            whole[path] = None if path in whole else name
    root = Path(files[0].path).parents[files[0].name.count("/")] if files else Path()
    roots = [os.path.abspath(root), os.path.realpath(root)]
    roots = [fold(shown(path)).split("/") for path in roots]

    def find(cell):
        parts = fold(escape_controls(cell)).replace("\\", "/").split("/")
        absolute = parts[0] in ("", "~") or ":" in parts[0]
        elsewhere = absolute and not os.path.exists(cell)  # a path of another computer
        parts = [part for part in parts if part not in ("", ".", "..")]
        if (path := "/".join(parts)) in names:
            return names[path]
        same = {ends[path]} if path in ends else set()
        for i in range(1, len(parts)):  # the first i lead to the folder
            below = "/".join(parts[i:])
            moved = elsewhere and ("/" in below or any(r[-1:] == parts[i - 1 : i] for r in roots))
            if below in whole and (moved or any(r[-i:] == parts[:i] for r in roots)):
                same.add(whole[below])
        return same.pop() if len(same) == 1 else None

    return {
        name: [find(row[i]) for row in table] for i, name in enumerate(header)
        if any(find(row[i]) for row in table[:1000])
    }  # fmt: skip


def _columns(path, header, file_column, target, group) -> list[str]:
    """The columns that are predicted."""
    for flag, name in (*(("target", each) for each in target), ("group", group)):
        if name and (name not in header or header.count(name) > 1):
            raise InputError(f"--{flag} {name}: {path} has the columns {listed(header)}.")
    if target:
        if wrong := {file_column, group} & set(target):
            raise InputError(f"--target {wrong.pop()} is not what is predicted: name others.")
        return list(target)
    others = [name for name in header if name not in (file_column, group)]
    named = [name for name in others if name.lower() in LABEL_COLUMNS]
    chosen = others if len(others) == 1 else named
    if len(chosen) != 1:
        raise InputError(
            f"{path} has the columns {listed(header)}, and which is to be predicted is not clear: "
            "name it, or several, with --target."
        )
    return chosen


def _values(
    table: RawTable, kind: str, formats: dict[str, NumberFormat | None], log
) -> tuple[str, list]:
    """Returns (the kind of the columns, the value of each row, None without one)."""
    if len(table.columns) > 1:
        return _values_of_several(table, kind, formats)
    ((name, column),) = table.columns.items()
    texts = as_texts(column).to_pylist()
    mark = _separator(texts) if kind in ("auto", "labels") else ""
    if kind == "labels" or mark:
        how = f"separated by {mark!r}" if mark else "separated by blanks"
        log(f"{name}: several labels for a picture, {how} (--target-kind classes for one class).")
        parts = [text.split(mark or None) for text in texts]
        return "labels", [[p.strip() for p in some if p.strip()] for some in parts]
    numbers = infer_numbers(table, name, kind, log, formats[name])
    if numbers is not None:
        return "number", [None if math.isnan(v) else [v] for v in numbers.tolist()]
    if marks := sorted({text for text in texts if text and text.lower() in MISSING}):
        log(f"{name}: {listed(marks)} is a class: only an empty cell is no label.")
    return "classes", [text or None for text in normalize_classes(column).tolist()]


def _values_of_several(table: RawTable, kind: str, formats) -> tuple[str, list]:
    """As `_values`: a column of 0 and 1 for each label, or of a number each."""
    if kind == "classes":
        raise InputError("--target-kind classes needs one column as --target.")
    numbers = []
    for name, column in table.columns.items():
        values, wrong = (formats[name] or NumberFormat()).parse(column)
        if np.isnan(values).any():
            cell = column[int(wrong.argmax())].as_py() if wrong.any() else "a missing number"
            raise InputError(f"--target {name} has {cell}: each of several should be a number.")
        numbers.append(values)
    rows = np.stack(numbers, 1)
    binary = np.isin(rows, (0, 1)).all()
    if kind == "labels" and not binary:
        raise InputError("--target-kind labels needs 0 or 1 in each of several columns.")
    if kind == "number" or not binary:
        return "number", rows.tolist()
    return "labels", [np.array([*table.columns])[row > 0].tolist() for row in rows]


def _separator(texts: list[str]) -> str:
    """The mark between labels, "" where there is none: a comma only where what it separates comes
    again, as in "red, old" and "red, new", but not in "tench, a fish"."""
    for mark in SEPARATORS:
        if any(mark in text for text in texts):
            return mark
    parts = {part.strip() for text in texts for part in text.split(",")}
    return "," if any("," in text for text in texts) and len(parts) < len(set(texts)) else ""
