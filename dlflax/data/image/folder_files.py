"""Listings of image files by class, on disk or in TensorFlow Datasets, without decoding them."""

import dataclasses
import io
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dlflax.data import published
from dlflax.errors import InputError
from dlflax.files import escape_controls

MAX_BYTES = 2**30  # of one file

_SYSTEM_FILES = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle",
    "@recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__",
}  # fmt: skip
SPLITS = {
    "test": "test", "validation": "validation", "val": "validation", "valid": "validation",
    "train": "train", "training": "train", "testing": "test", "dev": "validation",
    "development": "validation",
}  # fmt: skip
EXPECTED = (
    "a folder with one folder of images a class, or with such folders in train/, and in "
    "validation/ and test/ if present"
)


@dataclasses.dataclass
class File:
    """A file below the folder, with a printable name."""

    path: str
    name: str
    size: int
    mtime: int
    regular: bool


@dataclasses.dataclass
class Listing:
    """Files to decode: n names, labels, splits, sizes in bytes, and a function that opens one."""

    class_names: list[str]
    given: list[str]
    """Splits that have folders; without any, `splits` are ""."""
    names: list[str]
    labels: list[int]
    splits: list[str]
    sizes: list[int]
    open: Callable[[int], BinaryIO]
    report: list[list[str]]
    """Rows of [file, "skipped", "converted" or "listed", kind, reason]."""
    count: int
    """Number of all files, with skipped ones."""

    @classmethod
    def of_files(cls, files: list[File], labels, splits, class_names, given, report, count):
        """Lists files on disk."""
        return cls(
            class_names, given, [file.name for file in files], labels, splits,
            [file.size for file in files], lambda index: open(files[index].path, "rb"),
            report, count,
        )  # fmt: skip


def is_hidden(name: str) -> bool:
    """True if a file or folder of this name is hidden, or created by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def natural_key(name: str) -> tuple:
    """Returns a sort key of natural order: 2 before 10, class2 before class10."""
    texts = re.split("([0-9]+)", name)
    return [int(text) if i % 2 else text for i, text in enumerate(texts)], name


def split_of(folder: str) -> str | None:
    """Returns the split that a folder's name stands for: train, validation, test, or None."""
    return SPLITS.get(folder.casefold())


def walk(root: Path, origin: str) -> tuple[list[File], list[str], list[list[str]]]:
    """Returns (files, folders, report) of all entries below `root`, by name. origin: for messages.

    Links to folders, and to files below `root`, are followed; below each top folder every folder
    is read once, however many links lead to it, so loops end.
    """
    inside = os.path.realpath(root)
    files, folders, report = [], [], []
    stack = [(str(root), "", {inside})]
    while stack:
        folder, prefix, visited = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            if not prefix:
                raise InputError(f"{origin} cannot be read: {error.strerror}.") from None
            report.append(skip_row(prefix, "unreadable", f"unreadable: {error.strerror}"))
            continue
        for entry in entries:
            if is_hidden(entry.name):
                continue
            name = prefix + printable_name(entry.name)
            is_link, real = entry.is_symlink(), os.path.realpath(entry.path)
            try:
                status = os.stat(real)
                common = os.path.commonpath([inside, real])
            except OSError as error:
                row = ("unreadable", f"unreadable: {error.strerror}")
                report.append(skip_row(name, *(("link", "broken link") if is_link else row)))
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            if is_link and common != inside and not (is_folder and common != real):
                report.append(skip_row(name, "link", "link out of the folder"))
            elif not is_folder:
                regular = stat.S_ISREG(status.st_mode)
                files.append(File(entry.path, name, status.st_size, status.st_mtime_ns, regular))
            elif real in visited:
                report.append(skip_row(f"{name}/", "link", "link to a folder that is read already"))
            else:
                folders.append(name)
                branch = visited if prefix else {inside}
                branch.add(real)
                stack.append((entry.path, f"{name}/", branch))
    files.sort(key=lambda file: natural_key(file.name))
    return files, sorted(folders, key=natural_key), sorted(report)


def group_by_class(
    files: list[File], folders: list[str], report: list[list[str]], origin: str
) -> Listing:
    """Returns the image files of `walk` by split, class and name, or raises InputError."""
    given, class_names = _infer_classes(folders, origin)
    chosen, report, count = [], list(report), len(files) + len(report)
    labels = {name: label for label, name in enumerate(class_names)}
    order = ("test", "validation", "train", "")
    for file in files:
        split, path = "", file.name
        if given:
            folder, _, path = file.name.partition("/")
            split = split_of(folder) if given.get(split_of(folder)) == folder else None
        class_name, inner, _ = path.partition("/")
        if row := rejection(file):
            report.append(row)
        elif split is None or not inner:
            report.append(skip_row(file.name, "outside the classes"))
        else:
            chosen.append((split, labels[class_name], file))
    chosen.sort(key=lambda row: (order.index(row[0]), row[1]))  # stable, so by name, too
    splits, labels, files = map(list, zip(*chosen, strict=True)) if chosen else ([], [], [])
    return Listing.of_files(files, labels, splits, class_names, list(given), report, count)


def _infer_classes(folders: list[str], origin: str) -> tuple[dict[str, str], list[str]]:
    """Returns (split -> folder, class names)."""
    classes: dict[str, set[str]] = {}
    for name in folders:
        folder, *inner = name.split("/")[:2]
        classes.setdefault(folder, set()).update(inner)
    splits = {name: split for name in sorted(classes) if (split := split_of(name))}
    if any(split == "train" and classes[name] for name, split in splits.items()):
        given: dict[str, str] = {}
        for name, split in splits.items():
            if split in given:
                raise InputError(f"{origin} has both {given[split]}/ and {name}/: keep one.")
            given[split] = name
        train_classes = classes[given["train"]]
        for name in given.values():
            if classes[name] != train_classes:
                raise InputError(
                    f"{origin} has the classes {quote_names(train_classes)} in {given['train']}/ "
                    f"and {quote_names(classes[name])} in {name}/, but they should be the same."
                )
        return given, sorted(train_classes, key=natural_key)
    if classes and set(classes) <= set(splits) and any(classes.values()):
        names = quote_names(classes)
        raise InputError(f"{origin} has {names} but no train/: it should be {EXPECTED}.")
    return {}, sorted(classes, key=natural_key)


def rejection(file: File) -> list[str] | None:
    """Returns the report row of a file that cannot be an image, or None."""
    from dlflax.data.image import image_file

    suffix = os.path.splitext(file.name)[1].lower()
    if not any(suffix in suffixes for suffixes in image_file.FORMATS.values()):
        suffix = suffix or "without ending"
        return skip_row(file.name, "not an image", f"not an image: named {suffix}")
    if not file.regular:
        return skip_row(file.name, "unreadable", "unreadable: no regular file")
    if file.size == 0:
        return skip_row(file.name, "empty")
    if file.size > MAX_BYTES:
        return skip_row(file.name, "too large", "too large: more than 1 GiB")
    return None


def list_tfds(folder: Path) -> Listing:
    """Lists the images of a prepared TFDS data set; array_record without TensorFlow."""
    import tensorflow_datasets as tfds

    rows = []
    with published.open_tfds(folder, "images") as builder:
        image, label = builder.info.supervised_keys or ("image", "label")
        class_names = list(builder.info.features[label].names)
        decoders = {image: tfds.decode.SkipDecoding()}
        given = [s for s in ("test", "validation", "train") if s in builder.info.splits]
        for split in given:
            examples = published.tfds_examples(builder, split, decoders)
            split_rows = []
            for index, example in enumerate(examples):
                name = example.get(f"{image}/filename", f"{split}/{index}.jpg".encode()).decode()
                row = int(example[label]), name, split, len(example[image]), examples, index
                split_rows.append(row)
            rows += sorted(split_rows, key=lambda row: row[:2])  # TFDS shuffles

    def open_image(row: int) -> BinaryIO:
        *_, examples, index = rows[row]
        return io.BytesIO(examples[index][image])

    labels, names, splits, sizes, *_ = map(list, zip(*rows, strict=True)) if rows else ([],) * 4
    if len(given) < 2:
        given, splits = [], [""] * len(rows)
    return Listing(class_names, given, names, labels, splits, sizes, open_image, [], len(rows))


def printable_name(name: str) -> str:
    """Returns a path as valid, printable Unicode with `/` between folders."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return escape_controls(text.replace(os.sep, "/"))


def quote_names(names) -> str:
    """Returns up to eight names, quoted and in natural order."""
    names = [f'"{name}"' for name in sorted(names, key=natural_key)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more


def skip_row(name: str, kind: str, reason: str = "") -> list[str]:
    """Returns the report row of a skipped file."""
    return [name, "skipped", kind, reason or kind]
