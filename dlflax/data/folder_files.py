"""Pictures in one folder a class, found on the disk or in TensorFlow Datasets, not decoded.

The rules for odd files are those of `folder.py`. tensorflow_datasets is imported only where it is
needed.
"""

import dataclasses
import io
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dlflax.data import download
from dlflax.errors import InputError
from dlflax.files import escape_controls

MAX_BYTES = 2**30  # of one file

_SYSTEM_FILES = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle",
    "@recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__",
}  # fmt: skip
PARTS = {
    "test": "test", "validation": "validation", "val": "validation", "valid": "validation",
    "train": "train", "training": "train", "testing": "test", "dev": "validation",
    "development": "validation",
}  # fmt: skip
WANTED = (
    "a folder with one folder of pictures a class, or with such folders in train/, and in "
    "validation/ and test/ where there are any"
)


@dataclasses.dataclass
class File:
    """A file below the folder; `name` is for people, and its part of the cache's stamp."""

    path: str
    name: str
    size: int
    mtime: int
    regular: bool


@dataclasses.dataclass
class Found:
    """What is to be decoded: n names, labels, parts ("train", "validation", "test", those `given`
    by folders; else ""), sizes in bytes, and `open` for the bytes of each; besides them the
    `report`, a list of [file, "skipped" or "converted", kind, reason], and the number of all
    files."""

    class_names: list[str]
    given: list[str]
    names: list[str]
    labels: list[int]
    parts: list[str]
    sizes: list[int]
    open: Callable[[int], BinaryIO]
    report: list[list[str]]
    count: int


def is_hidden(name: str) -> bool:
    """True if a file or folder of this name is hidden, or one that a system makes by itself."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def in_natural_order(name: str) -> tuple:
    """Returns a key that sorts names as people do: 2 before 10, class2 before class10."""
    texts = re.split("([0-9]+)", name)
    return [int(text) if i % 2 else text for i, text in enumerate(texts)], name


def part_of(folder: str) -> str | None:
    """What a folder's name says that it is for: train, validation, test, or nothing."""
    return PARTS.get(folder.casefold())


def walk(root: Path, place: str) -> tuple[list[File], list[str], list[list[str]]]:
    """(files, folders, report) of all that is below `root`, by name.

    Links to folders, and to files below `root`, are followed; below each of its folders every
    folder is read once, however many links lead to it, so loops end.
    """
    inside = os.path.realpath(root)
    files, folders, report = [], [], []
    waiting = [(str(root), "", {inside})]
    while waiting:
        folder, prefix, seen = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            if not prefix:
                raise InputError(f"{place} cannot be read: {error.strerror}.") from None
            report.append(skipped(prefix, "unreadable", f"unreadable: {error.strerror}"))
            continue
        for entry in entries:
            if is_hidden(entry.name):
                continue
            name = prefix + shown(entry.name)
            try:
                real = os.path.realpath(entry.path)
                if entry.is_symlink():
                    status = os.stat(real)
                    common = os.path.commonpath([inside, real])
                    folder_outside = stat.S_ISDIR(status.st_mode) and common != real
                    if common != inside and not folder_outside:
                        report.append(skipped(name, "link", "link that leads out of the folder"))
                        continue
                else:
                    status = entry.stat()
            except OSError as error:
                if entry.is_symlink():
                    report.append(skipped(name, "link", "link that leads nowhere"))
                else:
                    report.append(skipped(name, "unreadable", f"unreadable: {error.strerror}"))
                continue
            if not stat.S_ISDIR(status.st_mode):
                regular = stat.S_ISREG(status.st_mode)
                files.append(File(entry.path, name, status.st_size, status.st_mtime_ns, regular))
            elif real in seen:
                report.append(skipped(f"{name}/", "link", "link to a folder that is read already"))
            else:
                folders.append(name)
                below = seen if prefix else {inside}
                below.add(real)
                waiting.append((entry.path, f"{name}/", below))
    files.sort(key=lambda file: in_natural_order(file.name))
    return files, sorted(folders, key=in_natural_order), sorted(report)


def by_class(files: list[File], folders: list[str], report: list[list[str]], place: str) -> Found:
    """What `walk` found, by part, class and name; what is clearly not a picture is left out.

    Raises InputError when the folders are neither classes nor train/ and so on with classes.
    """
    top = {name.partition("/")[0] for name in folders}
    classes = {name: set() for name in top}
    for name in folders:
        folder, _, below = name.partition("/")
        if below:
            classes[folder].add(below.partition("/")[0])
    named = {name: part for name in sorted(top) if (part := part_of(name))}
    given = {}  # part -> its folder
    if any(part == "train" and classes[name] for name, part in named.items()):
        for name, part in named.items():
            if part in given:
                raise InputError(f"{place} has both {given[part]}/ and {name}/: keep one of them.")
            given[part] = name
        ours = classes[given["train"]]
        for name in given.values():
            if classes[name] != ours:
                raise InputError(
                    f"{place} has the classes {listed(ours)} in {given['train']}/ and "
                    f"{listed(classes[name])} in {name}/, but they should be the same."
                )
        class_names = sorted(ours, key=in_natural_order)
    elif top and top <= set(named) and any(classes.values()):
        raise InputError(f"{place} has {listed(top)} but no train/: it should be {WANTED}.")
    else:
        class_names = sorted(top, key=in_natural_order)

    chosen, report = [], list(report)
    count = len(files) + len(report)
    numbers = {name: number for number, name in enumerate(class_names)}
    order = {part: number for number, part in enumerate(("test", "validation", "train", ""))}
    for file in files:
        part, folder = "", file.name
        if given:
            folder, _, folder_below = file.name.partition("/")
            part = part_of(folder) if given.get(part_of(folder)) == folder else None
            folder = folder_below
        class_name, inner, _ = folder.partition("/")
        row = refused(file)
        if row is None and (part is None or not inner):
            row = skipped(file.name, "outside the classes")
        if row:
            report.append(row)
        else:
            chosen.append((order[part], numbers[class_name], file.name, part, file))
    chosen.sort(key=lambda row: row[:2])  # stable: by name within
    found = [row[4] for row in chosen]
    return Found(
        class_names, list(given), [file.name for file in found], [row[1] for row in chosen],
        [row[3] for row in chosen], [file.size for file in found],
        lambda index: open(found[index].path, "rb"), report, count,
    )  # fmt: skip


def refused(file: File) -> list[str] | None:
    """The report's row of a file that is clearly no picture; None of any other."""
    from dlflax.data import picture

    suffix = os.path.splitext(file.name)[1].lower()
    if not any(suffix in known for known in picture.FORMATS.values()):
        reason = f"no picture: named {suffix}" if suffix else "no picture: named without ending"
        return skipped(file.name, "no picture", reason)
    if not file.regular:
        return skipped(file.name, "unreadable", "unreadable: no regular file")
    if file.size == 0:
        return skipped(file.name, "empty")
    if file.size > MAX_BYTES:
        return skipped(file.name, "too large", "too large: more than 1 GiB")
    return None


def open_tfds(folder: Path) -> Found:
    """The pictures of a prepared TFDS data set, not decoded; array_record without TensorFlow."""
    import tensorflow_datasets as tfds

    names, labels, parts, sizes, places, report = [], [], [], [], [], []
    with download.builder_of(folder, "pictures") as builder:
        image, label = builder.info.supervised_keys or ("image", "label")
        class_names = list(builder.info.features[label].names)
        decoders = {image: tfds.decode.SkipDecoding()}
        splits = [part for part in ("test", "validation", "train") if part in builder.info.splits]
        for part in splits:
            place = f"The {part} split in {folder}"
            examples = download.prepared_examples(builder, part, place, decoders)
            if not hasattr(examples, "__getitem__"):  # TensorFlow's, which only come in turn
                examples = list(examples)
            rows = []
            for index, example in enumerate(examples):
                name = example.get(f"{image}/filename", f"{part}/{index}.jpg".encode()).decode()
                rows.append((name, int(example[label]), len(example[image]), (examples, index)))
            rows.sort(key=lambda row: (row[1], row[0]))  # TFDS shuffles
            for column, values in zip(
                (names, labels, sizes, places), zip(*rows, strict=True), strict=False
            ):
                column.extend(values)
            parts.extend([part if len(splits) > 1 else ""] * len(rows))

    def opened(index: int) -> BinaryIO:
        examples, place = places[index]
        return io.BytesIO(examples[place][image])

    given = splits if len(splits) > 1 else []
    return Found(class_names, given, names, labels, parts, sizes, opened, report, len(names))


def shown(name: str) -> str:
    """A file's name, `/` between folders, as text that is valid Unicode and printable."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return escape_controls(text.replace(os.sep, "/"))


def listed(names) -> str:
    names = sorted(names, key=in_natural_order)
    shown = ", ".join(f'"{name}"' for name in names[:8]) or "none"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def skipped(name: str, kind: str, reason: str = "") -> list[str]:
    return [name, "skipped", kind, reason or kind]
