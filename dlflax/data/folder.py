"""Pictures in one folder a class, of any size and format, decoded once.

What becomes of odd files, which are all counted and listed in files_skipped.csv:

- skipped: a file that is empty, truncated, corrupt (Pillow cannot decode it), no picture (by its
  name, or by its content), too large (more pixels than Pillow's MAX_IMAGE_PIXELS or 65,535 a side,
  told from the header alone, or more than 1 GiB), unreadable, no regular file, or in no class's
  folder; a link that leads out of the folder, nowhere, or to a folder that is read already; a
  duplicate, with the bytes of an earlier file; and all files with the same bytes in two classes.
- converted, and used: a picture named as another format, CMYK, 16 or 32 bits or floats a channel
  (scaled to 8 bits), transparent (on white), animated (the first frame).
- used, and not listed: gray, palette and 1-bit pictures, made RGB; pictures that EXIF turns; a
  JPEG with damaged pixels in a whole file.
- passed over, and not even counted: hidden files and folders, and what Windows and macOS leave.

Files are read in the order test, validation, train, so the earlier of two duplicates is that of
the test. PIL, grain and tensorflow_datasets are imported only where they are needed.
"""

import collections
import contextlib
import csv
import dataclasses
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dlflax import logs
from dlflax.data import sources
from dlflax.data.dataset import Dataset, Rows, Splits, host_memory
from dlflax.data.order import _permutation
from dlflax.errors import InputError

# The sum of the TFDS builder of that name.
CATS_VS_DOGS_URL = (
    "https://download.microsoft.com/download/3/E/1/"
    "3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip"
)
CATS_VS_DOGS_SHA256 = "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"

MAX_BYTES = 2**30  # of one file
REPORT = "files_skipped.csv"
ABANDONED = 3600  # seconds without a write: whoever decoded into that file is gone

_VERSION = 1  # of the cache's format and of the decoding
_LEFT_BEHIND = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_PARTS = {
    "test": "test", "validation": "validation", "val": "validation", "valid": "validation",
    "train": "train",
}  # fmt: skip
_WANTED = (
    "a folder with one folder of pictures a class, or with such folders in train/, and in "
    "validation/ and test/ where there are any"
)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Pictures in one folder a class, of any size and format."""

    dataset: str = "cats_vs_dogs"
    """cats_vs_dogs: what is downloaded when there is no data_dir."""
    data_dir: Path | None = None
    """Folder with a folder of pictures a class, or with such folders in train/, val/ and test/."""
    size: int = 224
    """Pixels a side to which every picture is brought: its middle, as a square."""
    test: float = 0.2
    """Share of each class that is held out for the test where there is no test folder."""
    split_seed: int = 0
    """Draws that share: one test set for every --seed."""

    def load(self, say: Callable[[str], None] = print) -> Dataset:
        """The pictures, as `picture.decode` brings them to `size`, in the order of their names.

        With `data_dir` that is the only source: folders CLASS/**/*.jpg (and the other endings of
        `picture.FORMATS`), or train/CLASS/**, with validation/ (val, valid) and test/ where there
        are any; or what TFDS has prepared. Without it: cats_vs_dogs (Elson et al., CCS 2007), as
        TFDS has prepared it ($TFDS_DATA_DIR or ~/tensorflow_datasets), or a download, never with
        DLFLAX_OFFLINE=1. Decoded pictures are kept below `sources.cache_folder()`, for as long as
        every file keeps its size and time. `say` gets one sentence about the files that could not
        be used, see above, and one for each source that failed.

        "inputs" are `Rows` of uint8 (n, size, size, 3), "targets" int32 (n,), "files" str (n,);
        with a validation folder, train also has "validation", bool (n,). `files` of the Dataset
        has files_skipped.csv if a file was skipped or converted.

        Raises InputError, one sentence, when a field is out of range, no source has the pictures,
        or there are too few: each class needs one to train, one to validate and one to test.
        """
        if not 8 <= self.size <= 1024:
            raise InputError(f"--size {self.size} must be from 8 to 1024 pixels.")
        if not 0 < self.test < 1:
            raise InputError(f"--test {self.test} must be above 0 and below 1.")
        if self.split_seed < 0:
            raise InputError(f"--split-seed {self.split_seed} must be 0 or more.")
        if self.data_dir is not None:
            folder = Path(self.data_dir).expanduser()
            if not folder.is_dir():
                state = "is not a folder" if folder.exists() else "does not exist"
                raise InputError(f"--data-dir {folder} {state}: it should be {_WANTED}.")
            if prepared := sources._prepared(folder, self.dataset):
                return self._from_tfds(prepared, say)
            place = f"--data-dir {folder}"
            files, folders, report = _walk(folder, place)
            stamp = [[[file.name, file.size, file.mtime] for file in files], folders, report]

            def find() -> _Found:
                return _sorted(files, folders, report, place)

            decoded = _decoded(folder, self.size, stamp, find, place, say)
            name = folder.resolve().name or self.dataset
            return self._dataset(name, f"pictures in {folder.resolve()}", decoded, place, say)

        if not self.dataset:
            raise InputError(f"--data-dir is missing: it should be {_WANTED}.")
        if self.dataset != "cats_vs_dogs":
            raise InputError(
                f'--dataset "{self.dataset}" is unknown: it should be cats_vs_dogs, or pass '
                f"--data-dir with {_WANTED}."
            )
        # The second folder is for a download, when the first holds a set that cannot be read here.
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        roots = Path(default).expanduser(), sources.cache_folder() / "tfds"
        for root in roots:
            if prepared := sources._prepared(root, self.dataset):
                try:
                    return self._from_tfds(prepared, say)
                except InputError as error:
                    say(str(error))
        free = [root for root in roots if not sources._prepared(root, self.dataset)]
        if reason := sources._no_network(CATS_VS_DOGS_URL):
            say(f"{self.dataset} cannot be downloaded: {reason}.")
        elif free:
            try:
                return self._from_tfds(sources._download("cats_vs_dogs", free[0]), say)
            except Exception as error:  # as in `sources.load`
                reason = sources._first_line(error)
                say(f"{self.dataset} could not be downloaded: {reason}")
        raise InputError(
            f"{self.dataset} is not on this machine and cannot be downloaded: get "
            f"{CATS_VS_DOGS_URL.rpartition('/')[2]} by hand ({CATS_VS_DOGS_URL}, which has moved "
            "before), unpack it and pass --data-dir PetImages."
        )

    def split(self, dataset: Dataset, validation: float, seed: int) -> Splits:
        """The share `validation` of each class, drawn by `seed`, is held out of the training
        pictures; where there is a validation folder it is that, whatever the share.

        Every class keeps one picture to train on and, with a share above 0, gives one. "inputs"
        are uint8 (n, size, size, 3) in memory when all of them take less than a quarter of it,
        else `Rows`; "targets" are int32 (n,). Raises InputError when `validation` is not from 0
        up to below 1.
        """
        if not 0 <= validation < 1:
            raise InputError(
                f"the validation fraction must be from 0 up to below 1, not {validation}."
            )
        train, test = dataset.train, dataset.test
        if "validation" in train:
            held_out = train["validation"]
        else:
            held_out = _drawn(train["targets"], validation, seed, 0)
        in_memory = train["inputs"].nbytes + test["inputs"].nbytes < host_memory() / 4

        def part(of, chosen):
            inputs = of["inputs"]
            inputs = Rows(inputs.array, inputs.index[chosen])
            if in_memory:
                inputs = np.ascontiguousarray(inputs[:])
            return {"inputs": inputs, "targets": of["targets"][chosen]}

        return Splits(
            part(train, ~held_out),
            part(train, held_out) if held_out.any() else None,
            part(test, np.ones(len(test["targets"]), bool)),
            model={
                "num_outputs": len(dataset.class_names),
                "shape": train["inputs"].shape[1:],
                "vocabulary": 0,
            },
            info={"light_on_dark": False},
            files=dict(dataset.files),
        )  # fmt: skip

    def _from_tfds(self, folder: Path, say) -> Dataset:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        stamp = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        place = f"The TFDS data set in {folder}"
        decoded = _decoded(folder, self.size, stamp, lambda: _open_tfds(folder), place, say)
        version = f"{folder.parent.name}:{folder.name}"
        return self._dataset(
            folder.parent.name, f"pictures of TFDS {version} in {folder}", decoded, place, say
        )

    def _dataset(self, name, source, decoded, place, say) -> Dataset:
        """A checked Dataset of what was decoded."""
        pixels, table = decoded
        report, class_names = table["report"], table["class_names"]
        labels = np.array(table["labels"], np.int32)
        parts, names = (np.array(table[key], str) for key in ("parts", "names"))
        _check_counts(labels, parts, table, place)
        in_test = parts == "test"
        if "test" not in table["given"]:
            free = np.flatnonzero(parts != "validation")
            kept = 1 if "validation" in table["given"] else 2
            in_test[free] = _drawn(labels[free], self.test, self.split_seed, 2, kept)

        def part(chosen):
            chosen = np.flatnonzero(chosen)
            return {
                "inputs": Rows(pixels, chosen),
                "targets": labels[chosen],
                "files": names[chosen],
            }

        train, test = part(~in_test), part(in_test)
        if "validation" in table["given"]:
            train["validation"] = parts[~in_test] == "validation"
        files = {}
        if report:
            say(_summary(report, table["count"]))
            files[REPORT] = _as_csv(report)
        return Dataset(
            name, f"{len(labels):,} {source}", train, test, tuple(class_names), table["checksum"],
            files,
        )  # fmt: skip


@dataclasses.dataclass
class _File:
    """A file below the folder; `name` is for people, and its part of the cache's stamp."""

    path: str
    name: str
    size: int
    mtime: int
    regular: bool


@dataclasses.dataclass
class _Found:
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


def _skipped(name: str, kind: str, reason: str = "") -> list[str]:
    return [name, "skipped", kind, reason or kind]


def _drawn(labels: np.ndarray, share: float, seed: int, purpose: int, kept: int = 1) -> np.ndarray:
    """bool (n,): about `share` of each class, at least one of it, but not the last `kept`; none
    for share 0."""
    counts = np.bincount(labels)
    wanted = np.minimum(np.maximum(1, np.round(share * counts)), counts - kept) * (share > 0)
    shuffled = _permutation(len(labels), seed, purpose)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn = np.zeros(len(labels), bool)
    drawn[by_class[rank < np.repeat(wanted, counts)]] = True
    return drawn


def _check_counts(labels, parts, table, place) -> None:
    """InputError unless every class has a picture for each part."""
    class_names, given = table["class_names"], table["given"]
    counts = collections.Counter(kind for _, what, kind, _ in table["report"] if what == "skipped")
    skipped = f" ({_counted(counts)} left out)" if counts else ""
    if not len(labels):
        raise InputError(f"{place} has no usable picture{skipped}: it should be {_WANTED}.")
    if len(class_names) < 2:
        raise InputError(
            f'{place} has pictures of the one class "{class_names[0]}", but two or more are '
            f"needed: it should be {_WANTED}."
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


def _summary(report: list[list[str]], count: int) -> str:
    """One sentence about all of the report."""
    files = {
        what: {name for name, row_what, *_ in report if row_what == what}
        for what in ("skipped", "converted")
    }
    parts = [
        f"{len(names):,}{start}"
        for names, start in (
            (files["skipped"], f" of {count:,} files could not be used"),
            (files["converted"], f" of {count:,} were converted"),
        )
        if names
    ]
    kinds = collections.Counter(kind for _, _, kind, _ in report)
    return f"{' and '.join(parts)}, see {REPORT}: {_counted(kinds)}."


def _as_csv(report: list[list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "what", "reason"])
    writer.writerows([name, what, reason] for name, what, _, reason in report)
    return text.getvalue()


def _shown(name: str) -> str:
    """A file's name, `/` between folders, as text that is valid Unicode."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace(os.sep, "/")


def _walk(root: Path, place: str) -> tuple[list[_File], list[str], list[list[str]]]:
    """(files, folders, report) of all that is below `root`, by name.

    Links to what is below `root` are followed; below each of its folders every folder is read
    once, however many links lead to it, so loops end.
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
            report.append(_skipped(prefix, "unreadable", f"unreadable: {error.strerror}"))
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _LEFT_BEHIND:
                continue
            name = prefix + _shown(entry.name)
            try:
                real = os.path.realpath(entry.path)
                if entry.is_symlink():
                    status = os.stat(real)
                    if os.path.commonpath([inside, real]) != inside:
                        report.append(_skipped(name, "link", "link that leads out of the folder"))
                        continue
                else:
                    status = entry.stat()
            except OSError as error:
                if entry.is_symlink():
                    report.append(_skipped(name, "link", "link that leads nowhere"))
                else:
                    report.append(_skipped(name, "unreadable", f"unreadable: {error.strerror}"))
                continue
            if not stat.S_ISDIR(status.st_mode):
                regular = stat.S_ISREG(status.st_mode)
                files.append(_File(entry.path, name, status.st_size, status.st_mtime_ns, regular))
            elif real in seen:
                report.append(_skipped(f"{name}/", "link", "link to a folder that is read already"))
            else:
                folders.append(name)
                below = seen if prefix else {inside}
                below.add(real)
                waiting.append((entry.path, f"{name}/", below))
    files.sort(key=lambda file: file.name)
    return files, sorted(folders), sorted(report)


def _sorted(files: list[_File], folders: list[str], report: list[list[str]], place: str) -> _Found:
    """What `_walk` found, by part, class and name; what is no picture at first sight is left out.

    Raises InputError when the folders are neither classes nor train/ and so on with classes.
    """
    from dlflax.data import picture

    suffixes = {suffix for known in picture.FORMATS.values() for suffix in known}
    top = {name.partition("/")[0] for name in folders}
    classes = {name: set() for name in top}
    for name in folders:
        folder, _, below = name.partition("/")
        if below:
            classes[folder].add(below.partition("/")[0])
    given = {}  # part -> its folder
    if classes.get("train"):
        for name in sorted(top & set(_PARTS)):
            if (part := _PARTS[name]) in given:
                raise InputError(f"{place} has both {given[part]}/ and {name}/: keep one of them.")
            given[part] = name
            if classes[name] != classes["train"]:
                ours, theirs = (_listed(classes[folder]) for folder in ("train", name))
                raise InputError(
                    f"{place} has the classes {ours} in train/ and {theirs} in {name}/, but they "
                    "should be the same."
                )
        class_names = sorted(classes["train"])
    elif top and top <= set(_PARTS) and any(classes.values()):
        raise InputError(f"{place} has {_listed(top)} but no train/: it should be {_WANTED}.")
    else:
        class_names = sorted(top)

    chosen, report = [], list(report)
    count = len(files) + len(report)
    numbers = {name: number for number, name in enumerate(class_names)}
    order = {part: number for number, part in enumerate(("test", "validation", "train", ""))}
    for file in files:
        part, folder = "", file.name
        if given:
            folder, _, folder_below = file.name.partition("/")
            part = _PARTS.get(folder) if given.get(_PARTS.get(folder)) == folder else None
            folder = folder_below
        class_name, inner, _ = folder.partition("/")
        suffix = os.path.splitext(file.name)[1].lower()
        if suffix not in suffixes:
            reason = f"no picture: named {suffix}" if suffix else "no picture: named without ending"
            report.append(_skipped(file.name, "no picture", reason))
        elif not file.regular:
            report.append(_skipped(file.name, "unreadable", "unreadable: no regular file"))
        elif part is None or not inner:
            report.append(_skipped(file.name, "outside the classes"))
        elif file.size == 0:
            report.append(_skipped(file.name, "empty"))
        elif file.size > MAX_BYTES:
            report.append(_skipped(file.name, "too large", "too large: more than 1 GiB"))
        else:
            chosen.append((order[part], numbers[class_name], file.name, part, file))
    chosen.sort(key=lambda row: row[:3])
    found = [row[4] for row in chosen]
    return _Found(
        class_names, list(given), [file.name for file in found], [row[1] for row in chosen],
        [row[3] for row in chosen], [file.size for file in found],
        lambda index: open(found[index].path, "rb"), report, count,
    )  # fmt: skip


def _listed(names) -> str:
    names = sorted(names)
    shown = ", ".join(f'"{name}"' for name in names[:8]) or "none"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _open_tfds(folder: Path) -> _Found:
    """The pictures of a prepared TFDS data set, not decoded; array_record without TensorFlow."""
    import tensorflow_datasets as tfds

    names, labels, parts, sizes, places, report = [], [], [], [], [], []
    try:
        builder = tfds.builder_from_directory(folder)
        image, label = builder.info.supervised_keys or ("image", "label")
        class_names = list(builder.info.features[label].names)
        decoders = {image: tfds.decode.SkipDecoding()}
        splits = [part for part in ("test", "validation", "train") if part in builder.info.splits]
        for part in splits:
            if builder.info.file_format.value == "array_record":
                examples = builder.as_data_source(part, decoders=decoders)
            elif importlib.util.find_spec("tensorflow"):
                dataset = builder.as_dataset(split=part, decoders=decoders)
                examples = list(tfds.as_numpy(dataset))
            else:
                raise InputError(
                    f"The {part} split in {folder} is in {builder.info.file_format.value} format, "
                    'which only TensorFlow reads: pip install "dlflax[tf]", or prepare it with '
                    'file_format="array_record".'
                )
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
    except InputError:
        raise
    except Exception as error:  # a damaged folder can raise anything from TFDS
        raise InputError(
            f"The TFDS data set in {folder} cannot be read as labelled pictures "
            f"({sources._first_line(error)}): prepare it again, or pass --data-dir."
        ) from None

    def opened(index: int) -> BinaryIO:
        examples, place = places[index]
        return io.BytesIO(examples[place][image])

    given = splits if len(splits) > 1 else []
    return _Found(class_names, given, names, labels, parts, sizes, opened, report, len(names))


def _without_duplicates(found: _Found) -> _Found:
    """`found` without files that have the bytes of another one; they are in its report."""
    same_size = collections.Counter(found.sizes)
    same_bytes = collections.defaultdict(list)
    for index, size in enumerate(found.sizes):
        if same_size[size] > 1:
            with contextlib.suppress(Exception), found.open(index) as file:  # decoding will tell
                same_bytes[hashlib.file_digest(file, "sha256").digest()].append(index)
    report, dropped = list(found.report), set()
    for indices in same_bytes.values():
        conflict = len({found.labels[index] for index in indices}) > 1
        for index in indices[not conflict :]:
            other = indices[0]
            if conflict:
                other = next(i for i in indices if found.labels[i] != found.labels[index])
            reason = f"same bytes as {found.names[other]}" + ", of another class" * conflict
            kind = "in two classes" if conflict else "duplicate"
            report.append(_skipped(found.names[index], kind, reason))
            dropped.add(index)
    kept = [index for index in range(len(found.names)) if index not in dropped]
    return dataclasses.replace(
        found,
        names=[found.names[i] for i in kept],
        labels=[found.labels[i] for i in kept],
        parts=[found.parts[i] for i in kept],
        sizes=[found.sizes[i] for i in kept],
        open=lambda index: found.open(kept[index]),
        report=report,
    )


def _decoded(
    folder: Path, size: int, stamp, find: Callable[[], _Found], place: str, say
) -> tuple[np.ndarray, dict]:
    """(uint8 (n, size, size, 3), table) of what find() finds, kept for as long as `stamp`, JSON
    values, is the same. The table has n "labels", "names" and "parts", and "class_names", "given",
    "checksum", "report" and "count".

    Each stamp has files of its own names, complete from the moment they have them: another
    process, or one that is killed, leaves nothing that would be read wrongly.
    """
    import PIL.Image

    stamp = [_VERSION, PIL.__version__, PIL.Image.MAX_IMAGE_PIXELS, size, stamp]
    version = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]
    key = hashlib.sha256(f"{size} {_shown(str(folder.resolve()))}".encode()).hexdigest()[:12]
    home = sources.cache_folder() / "folders" / key
    pixels_path, table_path = home / f"{version}.npy", home / f"{version}.json"
    with contextlib.suppress(Exception):  # damaged bytes can raise anything: decode again
        return _read_cache(pixels_path, table_path, size)

    found = _without_duplicates(find())
    count = len(found.names)
    nbytes = count * size * size * 3
    what = f"Decoding {count:,} pictures of {folder}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _tidy(home, version)
        if shutil.disk_usage(home).free < nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _finished(pixels_path) as file:
            say(f"{what} (once: they are kept for the next start).")
            _write_header(file, count, size)
            table = _decode(found, size, file.write)
            file.seek(0)
            _write_header(file, len(table["names"]), size)
        text = json.dumps(table)
        with _finished(table_path) as file:  # the last, so what it is for is there
            file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
        if table["names"]:
            return _read_cache(pixels_path, table_path, size)
        return np.empty((0, size, size, 3), np.uint8), table
    except OSError as error:
        say(f"The decoded pictures cannot be kept in {home} ({error.strerror or error}).")
    if nbytes > host_memory() / 2:
        raise InputError(
            f"{place} takes {nbytes / 1e9:.1f} GB when decoded, too much for this machine's memory "
            f"and for {home}: set XDG_CACHE_HOME to a folder with room, or a smaller --size."
        )
    say(f"{what} into memory.")
    pixels, rows = np.empty((count, size, size, 3), np.uint8), iter(range(count))

    def keep(picture: bytes) -> None:
        pixels[next(rows)] = np.frombuffer(picture, np.uint8).reshape(size, size, 3)

    table = _decode(found, size, keep)
    return pixels[: len(table["names"])], table


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    """Of an .npy file; NumPy pads it, so that another count does not change its length."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)


@contextlib.contextmanager
def _finished(path: Path) -> Iterator[BinaryIO]:
    """A new file that has the name `path` once all is written, and otherwise vanishes."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave zeros under the name
            file.close()
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()  # writes what it still holds
            Path(file.name).unlink(missing_ok=True)
            raise


def _tidy(home: Path, version: str) -> None:
    """Deletes what older stamps and killed processes left."""
    for path in home.iterdir():
        with contextlib.suppress(OSError):
            abandoned = time.time() - path.stat().st_mtime > ABANDONED
            if abandoned if path.suffix == ".tmp" else not path.name.startswith(version):
                path.unlink()


def _read_cache(pixels_path: Path, table_path: Path, size: int) -> tuple[np.ndarray, dict]:
    """What `_decoded` kept. Raises anything when it is not whole."""
    checksum, _, text = table_path.read_text("utf-8").partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise ValueError("damaged")
    table = json.loads(text)
    pixels = np.load(pixels_path, mmap_mode="r")
    if pixels.shape != (len(table["names"]), size, size, 3) or pixels.dtype != np.uint8:
        raise ValueError("damaged")
    return pixels, table


def _decode(found: _Found, size: int, write: Callable[[bytes], object]) -> dict:
    """Decodes with as many threads as there are cores and gives `write` each good picture's
    bytes, in order; the table of `_decoded`."""
    import grain

    from dlflax.data import picture

    def decoded(index: int):
        """(uint8 array or None, its row of the report or None)."""
        name = found.names[index]
        try:
            with found.open(index) as file:
                pixels, odd = picture.decode(file, Path(name), (size, size, 3))
        except picture.PictureError as error:
            reason = f"{error.kind}: {error.detail}" if error.detail else error.kind
            return None, [_skipped(name, error.kind, reason)]
        except Exception as error:  # the file system's, or TFDS's
            text = getattr(error, "strerror", None) or sources._first_line(error)
            return None, [_skipped(name, "unreadable", f"unreadable: {text}")]
        kinds = ["misnamed" if " named " in reason else reason.split(",")[0] for reason in odd]
        return pixels, [
            [name, "converted", kind, reason] for kind, reason in zip(kinds, odd, strict=True)
        ]

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=4 * cores)
    indices = grain.MapDataset.range(len(found.names))
    results = indices.map(decoded).to_iter_dataset(options)
    kept, report, digest = [], list(found.report), hashlib.sha256()
    with warnings.catch_warnings(), logs.counting("decoding", len(found.names)) as advance:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, in every thread
        for index, (pixels, rows) in enumerate(results):
            advance(1)
            report.extend(rows)
            if pixels is not None:
                content = pixels.tobytes()
                digest.update(content)
                write(content)
                kept.append(index)
    names, labels, parts = (
        [column[index] for index in kept] for column in (found.names, found.labels, found.parts)
    )
    digest.update(json.dumps([found.class_names, labels, names]).encode())
    return {
        "labels": labels, "names": names, "parts": parts, "class_names": found.class_names,
        "given": found.given, "checksum": digest.hexdigest(), "report": sorted(report),
        "count": found.count,
    }  # fmt: skip
