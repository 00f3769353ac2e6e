"""Source of images in one folder a class, of any size and format, decoded once.

Irregular files are counted, and listed in files_skipped.csv as skipped, converted, or to be
reviewed. Files are read in the order test, validation, train, so a test image is the earlier
duplicate. PIL, grain and tensorflow_datasets are imported only where they are needed.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from dlflax.data import published
from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import DiskArray, Examples
from dlflax.data.image import decode, folder_files, folder_labels
from dlflax.data.image.encoder import ImageEncoder, fit_scale
from dlflax.data.splits import ByContent, Given
from dlflax.data.target import Classes, Labels, Numbers
from dlflax.errors import InputError

REPORT = "files_skipped.csv"
EXPECTED = f"it should be {folder_files.EXPECTED}."


@dataclasses.dataclass(frozen=True)
class ImageFolder(Source):
    """Images of any size and format, in one folder a class or with a CSV file of labels."""

    dataset: str = dataclasses.field(default="cats_vs_dogs", metadata={"resume": "free"})
    """Data set to download without --data: cats_vs_dogs."""
    data: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """Folder with one folder of images a class, or with such folders in train/, val/ and test/."""
    image_size: int = 224
    """Pixels a side: every image is resized and cropped to its central square."""
    test_split: float = 0.2
    """Approximate share of each class in the test split, without a test folder. A file's content
    decides, so test files stay in that split when files are added."""
    split_seed: int = 0
    """Seed of the test split, which is the same for every --seed."""
    labels_csv: Path | None = None
    """CSV file of the images' targets, in place of class folders. It has a column of file names,
    and one of classes, of several labels each, or of numbers."""
    target: tuple[str, ...] = ()
    """Target columns of --labels-csv, where they cannot be inferred."""
    target_type: Literal["auto", "classes", "labels", "number"] = "auto"
    """Type of the target; auto infers number from more than 20 values or fractions, labels from
    cells with several, separated, else classes."""
    group: str = ""
    """Column of --labels-csv, such as a patient's number: images with the same value are in one
    split."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Returns the images, decoded to `image_size`, in the order of their names.

        With `data`: folders CLASS/**/*.jpg (or other formats), or train/CLASS/**, with validation/
        and test/ if present; or a data set prepared by TFDS. Without it: cats_vs_dogs (Elson et
        al., CCS 2007), prepared by TFDS, or a download, never with DLFLAX_OFFLINE=1. Inputs are
        `DiskArray` of uint8 (n, size, size, 3), or float32 in the images' unit if nine of ten have
        16 bits, 32 bits or floats. Raises InputError for an invalid field, or a class without an
        image for a split."""
        if not 8 <= self.image_size <= 1024:
            raise InputError(f"--image-size {self.image_size} must be from 8 to 1024 pixels.")
        if not 0 < self.test_split < 1:
            raise InputError(f"--test-split {self.test_split} must be above 0 and below 1.")
        for name in ("target", "group", "target_type"):
            if self.labels_csv is None and getattr(self, name) != getattr(type(self), name):
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} requires --labels-csv: add it, or remove --{flag}.")
        if self.split_seed < 0:
            raise InputError(f"--split-seed {self.split_seed} must be 0 or more.")
        if self.data is not None:
            folder = Path(self.data).expanduser()
            if not folder.is_dir():
                state = "is not a folder" if folder.exists() else "does not exist"
                raise InputError(f"--data {folder} {state}: {EXPECTED}")
            if self.labels_csv is None and (prepared := published.find_tfds(folder, self.dataset)):
                return self._from_tfds(prepared, log)
            return self._from_folder(folder, log)
        if self.labels_csv is not None:
            raise InputError("--labels-csv requires --data, the folder of the images.")
        if not self.dataset:
            raise InputError(f"--data is missing: {EXPECTED}")
        if self.dataset != "cats_vs_dogs":
            raise InputError(
                f'--dataset "{self.dataset}" is unknown: choose cats_vs_dogs, or pass --data; '
                f"{EXPECTED}"
            )
        return published.load(
            self.dataset, lambda prepared: self._from_tfds(prepared, log), ("cats_vs_dogs",), log
        )

    def encoder(self, train: Examples, log: Callable[[str], None]) -> ImageEncoder:
        """Returns the encoder fitted on the train split."""
        values, names = train.target, train.style.get("columns", ())
        if values.dtype.kind == "f":
            target = Numbers.fit(values, names)
        else:
            target = Labels(train.classes) if values.ndim == 2 else Classes(train.classes)
        images = train.columns["inputs"]
        return ImageEncoder(target, images.shape[1:], scale=fit_scale(images, log))

    def _from_folder(self, folder: Path, log) -> Dataset:
        origin, labels = f"--data {folder}", None
        files, folders, report = folder_files.walk(folder, origin)
        if self.labels_csv is not None:
            path = self.labels_csv.expanduser()
            files = [file for file in files if Path(file.path).resolve() != path.resolve()]
            labels = folder_labels.read_labels(
                path, files, origin, self.target, self.target_type, self.group, log
            )
        stamp = [[[file.name, file.size, file.mtime] for file in files], folders, report]
        if labels:
            stamp.append([labels.values, labels.report])

        def list_files() -> folder_files.Listing:
            if labels:
                return folder_labels.list_files(labels, files, report)
            return folder_files.group_by_class(files, folders, report, origin)

        decoded = decode.load_images(folder, self.image_size, stamp, list_files, origin, log)
        name, source = folder.resolve().name or self.dataset, f"images in {folder.resolve()}"
        if labels:
            return self._by_labels(name, source, decoded, labels, log)
        return self._by_class(name, source, decoded, origin, log)

    def _by_labels(self, name, source, decoded, labels, log) -> Dataset:
        pixels, table = decoded
        rows = np.flatnonzero(~np.array(table["repeated"], bool))
        values = [json.loads(table["class_names"][table["labels"][row]]) for row in rows]
        targets, class_names, has_target = labels.targets(values, log)
        rows = rows[has_target]
        if len(rows) < (fewest := 2 * folder_labels.FEWEST):
            raise InputError(
                f"--labels-csv {self.labels_csv}: {len(rows)} usable images have a label, but "
                f"{fewest} or more are required."
            )
        names, contents = (np.array(table[key], str)[rows] for key in ("names", "contents"))
        groups = np.array([labels.groups[n] for n in names], str) if self.group else None
        split = ByContent(self.test_split, self.split_seed, groups, contents)
        inputs, style = DiskArray(pixels, rows), {"columns": tuple(labels.columns)}
        examples = Examples({"inputs": inputs}, targets, names.tolist(), class_names, style)
        digest = hashlib.sha256(table["checksum"].encode())
        in_test = split.test(examples)
        for column in [targets, names] + [groups] * bool(self.group):
            digest.update(repr([column[~in_test].tolist(), column[in_test].tolist()]).encode())
        source, files = f"{len(rows):,} {source}", _report_file(table, log)
        return Dataset(examples, split, name, source, digest.hexdigest(), files=files)

    def _from_tfds(self, folder: Path, log) -> Dataset:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        stamp = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        origin, listing = f"The TFDS data set in {folder}", lambda: folder_files.list_tfds(folder)
        decoded = decode.load_images(folder, self.image_size, stamp, listing, origin, log)
        source = f"images of TFDS {folder.parent.name}:{folder.name} in {folder}"
        return self._by_class(folder.parent.name, source, decoded, origin, log)

    def _by_class(self, name, source, decoded, origin, log) -> Dataset:
        pixels, table = decoded
        rows = np.flatnonzero(~np.array(table["repeated"], bool))
        labels = np.array(table["labels"], np.int32)[rows]
        splits, names, contents = (
            np.array(table[key], str)[rows] for key in ("parts", "names", "contents")
        )
        _check_counts(labels, splits, table, origin)
        validation = splits == "validation" if "validation" in table["given"] else None
        split = ByContent(self.test_split, self.split_seed, None, contents, validation)
        if "test" in table["given"]:
            for flag, field in (("--test-split", "test_split"), ("--split-seed", "split_seed")):
                if (value := getattr(self, field)) != getattr(type(self), field):
                    raise InputError(f"{flag} {value}: {origin} has a test folder: remove {flag}.")
            split = Given(splits == "test", validation)
        inputs, class_names = DiskArray(pixels, rows), tuple(table["class_names"])
        examples = Examples({"inputs": inputs}, labels, names.tolist(), class_names)
        source, files = f"{len(labels):,} {source}", _report_file(table, log)
        return Dataset(examples, split, name, source, table["checksum"], files=files)


def _check_counts(labels, splits, table, origin) -> None:
    """Raises InputError unless every class has an image in each split."""
    class_names, given = table["class_names"], table["given"]
    kinds = [kind for _, outcome, kind, _ in table["report"] if outcome == "skipped"]
    skipped = f" (skipped: {_format_counts(kinds)})" if kinds else ""
    if not len(labels):
        raise InputError(f"{origin} has no usable image{skipped}: {EXPECTED}")
    if len(class_names) < 2:
        raise InputError(f'{origin} has only the class "{class_names[0]}": {EXPECTED}')
    minimum = dict.fromkeys(given or [""], 1)
    # Splits without a folder are drawn from the train split.
    minimum["train" if given else ""] += ("validation" not in given) + ("test" not in given)
    for label, class_name in enumerate(class_names):
        counts = collections.Counter(splits[labels == label].tolist())
        for split, fewest in minimum.items():
            if counts[split] < fewest:
                purpose = f" for {split}" if split else ""
                raise InputError(
                    f'{origin} has {counts[split]} usable images of the class "{class_name}"'
                    f"{purpose}{skipped}, but at least {fewest} are required."
                )


def _format_counts(kinds: list[str]) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in collections.Counter(kinds).most_common())


def _report_file(table: dict, log) -> dict[str, str]:
    """Returns {name: text} of the report, or {} without rows, and logs its summary."""
    report = table["report"]
    if not report:
        return {}
    files = collections.Counter(outcome for _, outcome in {tuple(row[:2]) for row in report})
    ends = {"skipped": "files could not be used", "converted": "were converted",
            "listed": "are used unchanged, and should be reviewed"}  # fmt: skip
    parts = [f"{files[o]:,} of {table['count']:,} {end}" for o, end in ends.items() if files[o]]
    log(f"{', '.join(parts)}, see {REPORT}: {_format_counts([kind for _, _, kind, _ in report])}.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "what", "reason"])
    writer.writerows([name, outcome, reason] for name, outcome, _, reason in report)
    return {REPORT: text.getvalue()}
