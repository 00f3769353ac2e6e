"""Pictures in one folder a class, of any size and format, decoded once.

What becomes of odd files, which are all counted and listed in files_skipped.csv:

- skipped: a file that is empty, truncated, corrupt (Pillow cannot decode it), no picture (by its
  name, or by its content), too large (more pixels than Pillow's MAX_IMAGE_PIXELS or 65,535 a side,
  told from the header alone, or more than 1 GiB), unreadable, no regular file, or in no class's
  folder; a link to a file outside, nowhere, or to a folder that is read already or above; a
  duplicate, with the bytes of an earlier file, or a near one, with the same picture saved anew
  (`duplicates.py`); and all such files in two classes.
- converted, and used: a picture named as another format, CMYK, 16 or 32 bits or floats a channel
  among others of 8 bits (by the full scale of the type), transparent (on white), animated (the
  first frame).
- of 16 or 32 bits or floats, where more than nine of ten are: all in their own unit, scaled by the
  range of the training images, and those of 8 bits are skipped.
- listed, and used: pictures that look much like another one, and pictures of one colour.
- used, and not listed: gray, palette and 1-bit pictures, made RGB; pictures that EXIF turns; a
  JPEG with damaged pixels in a whole file.
- passed over, and not even counted: hidden files and folders, and what Windows and macOS leave.

Files are read in the order test, validation, train, so the earlier of two duplicates is that of
the test. PIL, grain and tensorflow_datasets are imported only where they are needed.
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

from dlflax.data import download, folder_cache, folder_files, folder_labels, urls
from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import DiskArray, Examples
from dlflax.data.image_encoder import ImageEncoder, fit_scale
from dlflax.data.splits import ByContent, Given
from dlflax.data.target import Classes, Labels, Numbers
from dlflax.errors import InputError

REPORT = "files_skipped.csv"


@dataclasses.dataclass(frozen=True)
class ImageFolder(Source):
    """Pictures in one folder a class, of any size and format."""

    dataset: str = dataclasses.field(default="cats_vs_dogs", metadata={"resume": "free"})
    """cats_vs_dogs: what is downloaded when there is no data_dir."""
    data_dir: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """Folder with a folder of pictures a class, or with such folders in train/, val/ and test/."""
    size: int = 224
    """Pixels a side to which every picture is brought: its middle, as a square."""
    test: float = 0.2
    """About the share of each class that is held out for the test where there is no test folder.
    What a file holds decides, so it stays in the test when others are added."""
    split_seed: int = 0
    """Draws that share: one test set for every --seed."""
    labels: Path | None = None
    """A CSV file that says what the pictures below data_dir show, whatever folders they are in: a
    column of file names, and one of classes, of several labels each, or of numbers."""
    target: tuple[str, ...] = ()
    """Columns of --labels that are predicted, where that is not clear."""
    target_kind: Literal["auto", "classes", "labels", "number"] = "auto"
    """The kind of target; auto: a number where there are more than 20 different ones or
    fractions; labels where cells have several, separated; else classes."""
    group: str = ""
    """A column of --labels, such as a patient's number: pictures with the same value are all in the
    training, the validation or the test data."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """The pictures, as `picture.decode` brings them to `size`, in the order of their names.

        With `data_dir` that is the only source: folders CLASS/**/*.jpg (and the other endings of
        `picture.FORMATS`), or train/CLASS/**, with validation/ (val, valid) and test/ where there
        are any; or what TFDS has prepared. Without it: cats_vs_dogs (Elson et al., CCS 2007), as
        TFDS has prepared it ($TFDS_DATA_DIR or ~/tensorflow_datasets), or a download, never with
        DLFLAX_OFFLINE=1. Decoded pictures are kept below `cache_folder()`, for as long as
        every file keeps its size and time. `log` gets one sentence about the files that could not
        be used, see above, and one for each source that failed.

        "inputs" are `DiskArray` of uint8 (n, size, size, 3), or float32 in the images' own unit
        where they have 16 bits, 32 bits or floats, "targets" int32 (n,), "files" str
        (n,); with a validation folder, train also has "validation", bool (n,). `files` of the
        Dataset has files_skipped.csv if a file was skipped or converted.

        Raises InputError, one sentence, when a field is out of range, no source has the pictures,
        or there are too few: each class needs one to train, one to validate and one to test.
        """
        if not 8 <= self.size <= 1024:
            raise InputError(f"--size {self.size} must be from 8 to 1024 pixels.")
        if not 0 < self.test < 1:
            raise InputError(f"--test {self.test} must be above 0 and below 1.")
        for name in ("target", "group", "target_kind"):
            if self.labels is None and getattr(self, name) != getattr(type(self), name):
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is for a file of --labels: leave it out.")
        if self.split_seed < 0:
            raise InputError(f"--split-seed {self.split_seed} must be 0 or more.")
        if self.data_dir is not None:
            folder = Path(self.data_dir).expanduser()
            if not folder.is_dir():
                state = "is not a folder" if folder.exists() else "does not exist"
                raise InputError(
                    f"--data-dir {folder} {state}: it should be {folder_files.WANTED}."
                )
            if self.labels is None and (prepared := download.find_prepared(folder, self.dataset)):
                return self._from_tfds(prepared, log)
            return self._from_folder(folder, log)
        if self.labels is not None:
            raise InputError("--labels needs --data-dir, the folder that its pictures are in.")
        if not self.dataset:
            raise InputError(f"--data-dir is missing: it should be {folder_files.WANTED}.")
        if self.dataset != "cats_vs_dogs":
            raise InputError(
                f'--dataset "{self.dataset}" is unknown: it should be cats_vs_dogs, or pass '
                f"--data-dir with {folder_files.WANTED}."
            )
        found = download.load_or_download(
            self.dataset, urls.CATS_VS_DOGS, lambda folder: self._from_tfds(folder, log), log
        )
        if found is not None:
            return found
        raise InputError(
            f"{self.dataset} is not on this machine and cannot be downloaded: get "
            f"{urls.CATS_VS_DOGS.rpartition('/')[2]} by hand ({urls.CATS_VS_DOGS}, which has moved "
            "before), unpack it and pass --data-dir PetImages."
        )

    def encoder(self, train: Examples, log: Callable[[str], None]) -> ImageEncoder:
        """Returns the encoder of these images, with their mean target where it is a number."""
        values, names = train.target, train.style.get("columns", ())
        if values.dtype.kind == "f":
            target = Numbers.fit(values, names)
        else:
            target = Labels(train.classes) if values.ndim == 2 else Classes(train.classes)
        images = train.columns["inputs"]
        return ImageEncoder(target, images.shape[1:], scale=fit_scale(images, log))

    def _from_folder(self, folder: Path, log) -> Dataset:
        place, labels = f"--data-dir {folder}", None
        files, folders, report = folder_files.walk(folder, place)
        if self.labels is not None:
            path = self.labels.expanduser()
            files = [file for file in files if Path(file.path).resolve() != path.resolve()]
            labels = folder_labels.read(
                path, files, place, self.target, self.target_kind, self.group, log
            )
        stamp = [[[file.name, file.size, file.mtime] for file in files], folders, report]
        stamp += [[labels.of, labels.report]] if labels else []

        def find() -> folder_files.Found:
            if labels:
                return folder_labels.found(labels, files, report)
            return folder_files.by_class(files, folders, report, place)

        decoded = folder_cache.decoded(folder, self.size, stamp, find, place, log)
        name, source = folder.resolve().name or self.dataset, f"pictures in {folder.resolve()}"
        if labels:
            return self._labelled(name, source, decoded, labels, log)
        return self._dataset(name, source, decoded, place, log)

    def _labelled(self, name, source, decoded, labels, log) -> Dataset:
        """A checked Dataset of what was decoded, by a file of labels."""
        pixels, table = decoded
        kept = np.flatnonzero(~np.array(table["repeated"], bool))
        values = [json.loads(table["class_names"][table["labels"][i]]) for i in kept]
        targets, class_names, of_them = labels.targets(values, log)
        kept = kept[of_them]
        if len(kept) < 2 * folder_labels.FEWEST:
            raise InputError(
                f"--labels {self.labels}: {len(kept)} usable pictures have a label, but "
                f"{2 * folder_labels.FEWEST} or more are needed."
            )
        names, contents = (np.array(table[key], str)[kept] for key in ("names", "contents"))
        groups = np.array([labels.groups[n] for n in names], str) if self.group else None
        split = ByContent(self.test, self.split_seed, groups, contents)
        examples = Examples(
            {"inputs": DiskArray(pixels, kept)}, targets, names.tolist(), class_names,
            {"columns": tuple(labels.columns)},
        )  # fmt: skip
        digest = hashlib.sha256(table["checksum"].encode())
        in_test = split.test(examples)
        columns = {"targets": targets, "files": names} | ({"groups": groups} if self.group else {})
        for column in columns.values():
            digest.update(repr([column[~in_test].tolist(), column[in_test].tolist()]).encode())
        return Dataset(
            examples, split, name, f"{len(kept):,} {source}", digest.hexdigest(),
            files=_report_file(table, log),
        )  # fmt: skip

    def _from_tfds(self, folder: Path, log) -> Dataset:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        stamp = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        place = f"The TFDS data set in {folder}"
        decoded = folder_cache.decoded(
            folder, self.size, stamp, lambda: folder_files.open_tfds(folder), place, log
        )
        version = f"{folder.parent.name}:{folder.name}"
        return self._dataset(
            folder.parent.name, f"pictures of TFDS {version} in {folder}", decoded, place, log
        )

    def _dataset(self, name, source, decoded, place, log) -> Dataset:
        """A checked Dataset of what was decoded."""
        pixels, table = decoded
        class_names = table["class_names"]
        kept = np.flatnonzero(~np.array(table["repeated"], bool))
        labels = np.array(table["labels"], np.int32)[kept]
        parts, names, contents = (
            np.array(table[key], str)[kept] for key in ("parts", "names", "contents")
        )
        _check_counts(labels, parts, table, place)
        validation = parts == "validation" if "validation" in table["given"] else None
        split = ByContent(self.test, self.split_seed, None, contents, validation)
        if "test" in table["given"]:
            for flag, field in (("--test", "test"), ("--split-seed", "split_seed")):
                if getattr(self, field) != getattr(type(self), field):
                    raise InputError(
                        f"{flag} {getattr(self, field)}: {place} has a test folder, so none is "
                        "drawn: leave it out."
                    )
            split = Given(parts == "test", validation)
        examples = Examples(
            {"inputs": DiskArray(pixels, kept)}, labels, names.tolist(), tuple(class_names)
        )
        return Dataset(
            examples, split, name, f"{len(labels):,} {source}", table["checksum"],
            files=_report_file(table, log),
        )  # fmt: skip


def _check_counts(labels, parts, table, place) -> None:
    """InputError unless every class has a picture for each part."""
    class_names, given = table["class_names"], table["given"]
    counts = collections.Counter(kind for _, what, kind, _ in table["report"] if what == "skipped")
    skipped = f" ({_counted(counts)} left out)" if counts else ""
    if not len(labels):
        raise InputError(
            f"{place} has no usable picture{skipped}: it should be {folder_files.WANTED}."
        )
    if len(class_names) < 2:
        raise InputError(
            f'{place} has pictures of the one class "{class_names[0]}", but two or more are '
            f"needed: it should be {folder_files.WANTED}."
        )
    needed = {part: 1 for part in given or [""]}
    # What is drawn comes out of those to train on.
    needed["train" if given else ""] += ("validation" not in given) + ("test" not in given)
    for label, class_name in enumerate(class_names):
        there = collections.Counter(parts[labels == label].tolist())
        for part, fewest in needed.items():
            if there[part] < fewest:
                where = f" for {part}" if part else ""
                raise InputError(
                    f'{place} has {there[part]} usable pictures of the class "{class_name}"'
                    f"{where}{skipped}, but at least {fewest} are needed."
                )


def _counted(counts: collections.Counter) -> str:
    """For example "5 truncated, 4 empty"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def _report_file(table: dict, log) -> dict[str, str]:
    """{name: text} of the report's file, which `log` gets the summary of; {} where nothing is
    odd."""
    if not table["report"]:
        return {}
    log(_summary(table["report"], table["count"]))
    return {REPORT: _as_csv(table["report"])}


def _summary(report: list[list[str]], count: int) -> str:
    """One sentence about all of the report."""
    files = {
        what: {name for name, row_what, *_ in report if row_what == what}
        for what in ("skipped", "converted", "listed")
    }
    parts = [
        f"{len(names):,}{start}"
        for names, start in (
            (files["skipped"], f" of {count:,} files could not be used"),
            (files["converted"], f" of {count:,} were converted"),
            (files["listed"], f" of {count:,} are used as they are, and should be looked at"),
        )
        if names
    ]
    kinds = collections.Counter(kind for _, _, kind, _ in report)
    return f"{', '.join(parts)}, see {REPORT}: {_counted(kinds)}."


def _as_csv(report: list[list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "what", "reason"])
    writer.writerows([name, what, reason] for name, what, _, reason in report)
    return text.getvalue()
