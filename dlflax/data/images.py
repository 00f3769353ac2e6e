"""Sources of images: IDX files, TensorFlow Datasets, a download, or what is installed.

tensorflow_datasets, PIL and tensorflow are imported only by the source that needs them.
"""

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlflax.data import cifar, download, idx
from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples
from dlflax.data.image_encoder import ImageEncoder
from dlflax.data.splits import Given
from dlflax.data.target import Classes
from dlflax.errors import InputError
from dlflax.files import atomic_write, cache_folder

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

NOT_MNIST = (
    "NOT MNIST: scikit-learn's 1,797 digits, enlarged to 28 x 28, stand in for it; their scores "
    "say nothing about MNIST. --data-dir FOLDER reads the real one (train-images-idx3-ubyte.gz and "
    "the three other IDX files)."
)


@dataclasses.dataclass(frozen=True)
class Images(Source):
    """Labelled pictures of one size, with a test split of their own."""

    dataset: str = dataclasses.field(default="mnist", metadata={"resume": "free"})
    """mnist, fashion_mnist, cifar10, or with the extra `tf` any such set of TFDS."""
    data_dir: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """Folder with IDX files, CIFAR-10's binary files, or a prepared TFDS data set."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """`load`."""
        return load(self.dataset, self.data_dir, log=log)

    def encoder(self, train: Examples, log: Callable[[str], None]) -> ImageEncoder:
        """Returns the encoder of these images."""
        images = train.columns["inputs"]
        return ImageEncoder(Classes(train.classes), images.shape[1:], _light_on_dark(images))


def _light_on_dark(images) -> bool:
    """True if these are MNIST-like: one channel, and a border that is nearly always black."""
    if images.shape[-1] != 1:
        return False
    border = np.concatenate([images[:1000, 0].ravel(), images[:1000, -1].ravel()])
    return bool(np.median(border) < 32)


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    cache_dir: Path | None = None,
    log: Callable[[str], None] = print,
) -> Dataset:
    """The data set `name`, from the first source that has it.

    `name` is "mnist", "fashion_mnist", "cifar10", "digits" (scikit-learn's, at 28 x 28) or an image
    classification set of TFDS. With `data_dir` that folder is the only source: four IDX files
    (http://yann.lecun.com/exdb/mnist/, gzip or not), CIFAR-10's binary version or a TFDS folder.
    Without it: a data set prepared by TFDS ($TFDS_DATA_DIR or ~/tensorflow_datasets), a download
    (never with DLFLAX_OFFLINE=1), and at last Debian's Fashion-MNIST or, for "mnist", the digits.
    Decoded arrays are kept in `cache_dir` ($XDG_CACHE_HOME or ~/.cache, /dlflax). `log` gets a
    sentence for each source that failed.

    Inputs are uint8 (n, h, w, c), (n, 28, 28, 1) for MNIST and its like; targets are int32 (n,).
    Raises InputError, one sentence, when no source has the data or a file is wrong.
    """
    read = _Read(name, cache_dir or cache_folder(), log)
    if data_dir is not None:
        return read.from_user(Path(data_dir).expanduser())
    if name == "digits":
        return read.digits()
    folders = (download.tfds_folders()[0], read.cache_dir / "tfds")
    url = cifar.URL if name == "cifar10" else None
    if name in idx.URLS:
        url = f"{idx.URLS[name]}{idx.FILES[0]}.gz"
    found = download.prepared_or_downloaded(name, url, read.from_tfds, log, folders=folders)
    if found is not None:
        return found
    if url is None:
        return read.from_tfds(_prepare_with_tensorflow(name, folders[0]))
    return read.installed()


@dataclasses.dataclass(frozen=True)
class _Read:
    """Reads one data set from wherever it is; what was decoded is kept in `cache_dir`."""

    name: str
    cache_dir: Path
    log: Callable[[str], None]

    def _cached(self, files, read):
        return _cached(self.name, files, self.cache_dir, self.log, read)

    def from_idx(self, folder: Path) -> Dataset:
        files = idx.find_idx(folder)
        return self._cached(list(files.values()), lambda: _read_idx(self.name, folder, files))

    def from_cifar(self, place: Path, files: list[Path]) -> Dataset:
        return self._cached(files, lambda: _read_cifar(place, files))

    def from_tfds(self, folder: Path) -> Dataset:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return self._cached(files, lambda: _read_tfds(self.name, folder, self.log))

    def digits(self) -> Dataset:
        spec = importlib.util.find_spec("sklearn")  # found, not imported: the import takes seconds
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        return _cached("digits", [path], self.cache_dir, self.log, lambda: _read_digits(path))

    def from_user(self, folder: Path) -> Dataset:
        """Returns the data set that --data-dir names."""
        name, wanted = self.name, _wanted(self.name)
        if name == "cifar10" and (files := cifar.find_cifar(folder)):
            return self.from_cifar(folder, files)
        if not folder.is_dir():
            state = "is not a folder" if folder.exists() else "does not exist"
            raise InputError(f"--data-dir {folder} {state}: it should be {wanted}.")
        if name in idx.URLS and (found := idx.find_idx(folder)):
            for file in idx.FILES:
                if file not in found:
                    raise InputError(
                        f"--data-dir {folder} has no {file} (or {file}.gz): it should be {wanted}."
                    )
            return self.from_idx(folder)
        if prepared := download.prepared(folder, name):
            return self.from_tfds(prepared)
        missing = f"{idx.FILES[0]} (or {idx.FILES[0]}.gz)" if name in idx.URLS else "data set"
        raise InputError(f"--data-dir {folder} has no {missing}: it should be {wanted}.")

    def installed(self) -> Dataset:
        """Returns the stand-in of a data set that cannot be downloaded. InputError without."""
        name = self.name
        if name == "mnist":
            self.log(NOT_MNIST)
            return dataclasses.replace(self.digits(), stands_in_for=name)
        if name == "cifar10":
            raise InputError(
                f"cifar10 is not on this machine and cannot be downloaded: pass --data-dir with "
                f"{cifar.ARCHIVE} ({cifar.URL}) or the folder in it."
            )
        if len(idx.find_idx(DEBIAN_FASHION_MNIST)) == len(idx.FILES):
            return self.from_idx(DEBIAN_FASHION_MNIST)
        raise InputError(
            f"{name} is not on this machine and cannot be downloaded: pass --data-dir FOLDER with "
            "the four IDX files (train-images-idx3-ubyte.gz and so on), or "
            "apt install dataset-fashion-mnist."
        )


def _wanted(name: str) -> str:
    tfds = f"a TFDS folder with {name}/<version>/dataset_info.json"
    if name == "cifar10":
        return f"{cifar.ARCHIVE}, its folder {cifar.FOLDER}, or {tfds}"
    if name not in idx.URLS:
        return tfds
    return f"a folder with {', '.join(idx.FILES)}, each with or without .gz, or {tfds}"


def _dataset(name, source, parts, class_names, places) -> Dataset:
    """A checked Dataset of (inputs, targets) for train and test; `places` name them in messages."""
    for (inputs, targets), (inputs_place, targets_place) in zip(parts, places, strict=True):
        if inputs.ndim != 4 or inputs.dtype != np.uint8:
            raise InputError(
                f"{inputs_place} has {inputs.dtype} values in shape {inputs.shape}, but images "
                "are uint8 (n, height, width, channels)."
            )
        if len(inputs) == 0:
            raise InputError(f"{inputs_place} has no images: at least one is needed.")
        if name in idx.URLS and inputs.shape[1:] != (28, 28, 1):
            raise InputError(
                f"{inputs_place} has images of {' x '.join(map(str, inputs.shape[1:]))}, but "
                f"those of {name} are 28 x 28 x 1."
            )
        if len(inputs) != len(targets):
            raise InputError(
                f"{inputs_place} has {len(inputs):,} images and {targets_place} {len(targets):,} "
                "labels, but each image needs one label."
            )
        wrong = targets[(targets < 0) | (targets >= len(class_names))]
        if len(wrong):
            raise InputError(
                f"{targets_place} has the label {wrong[0]}, but labels are 0 to "
                f"{len(class_names) - 1}."
            )
    counts = np.bincount(parts[0][1], minlength=len(class_names))
    if not counts.all():
        empty = int(np.argmin(counts))
        raise InputError(
            f"{places[0][1]} has no example of class {empty} ({class_names[empty]}), but every "
            "class needs one to train on."
        )
    digest = hashlib.sha256()
    for array in (array for part in parts for array in part):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return _of_arrays(name, source, parts, class_names, digest.hexdigest())


def _of_arrays(name, source, parts, class_names, checksum) -> Dataset:
    images, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    in_test = np.arange(len(images)) >= len(parts[0][0])
    examples = Examples({"inputs": images}, targets, (), tuple(class_names))
    return Dataset(examples, Given(in_test, by_class=False), name, source, checksum)


def _cached(name, files, cache_dir, log, read) -> Dataset:
    """read(), kept in a file that is valid as long as `files` keep their sizes and times."""
    status = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    stamp = json.dumps([1, name, status])  # 1: the version of this format
    place = hashlib.sha256(str(files[0].parent.resolve()).encode()).hexdigest()[:12]
    path = cache_dir / f"{name.replace('/', '-')}-{place}.npz"
    try:
        with open(path, "rb") as file, np.load(file) as saved:  # a zip file, which has checksums
            if saved["stamp"].item() == stamp:
                parts = [
                    [saved[f"{part}_{key}"] for key in ("inputs", "targets")]
                    for part in ("train", "test")
                ]
                name, source, checksum = (
                    saved[key].item() for key in ("name", "source", "checksum")
                )
                classes = saved["class_names"].tolist()
                return _of_arrays(name, source, parts, classes, checksum)
    except Exception:  # damaged bytes can raise anything, and all it costs is decoding again
        pass
    data = read()
    arrays = {f"train_{key}": array for key, array in data.train.items()}
    arrays |= {f"test_{key}": array for key, array in data.test.items()}
    arrays |= {key: np.array(getattr(data, key)) for key in ("name", "source", "checksum")}
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, stamp=np.array(stamp), class_names=np.array(data.class_names), **arrays)
    except OSError as error:
        log(f"The decoded images cannot be kept in {cache_dir} ({error.strerror or error}).")
    return data


def _read_idx(name: str, folder: Path, files: dict[str, Path]) -> Dataset:
    arrays = [idx.read_idx(files[file], ndim=3 if "images" in file else 1) for file in idx.FILES]
    train, test = (
        (images[..., None], labels.astype(np.int32)) for images, labels in (arrays[:2], arrays[2:])
    )
    paths = [files[file] for file in idx.FILES]
    places = paths[:2], paths[2:]
    source = f"IDX files in {folder.resolve()}"
    return _dataset(name, source, (train, test), idx.CLASS_NAMES[name], places)


def _read_cifar(place: Path, files: list[Path]) -> Dataset:
    source = f"CIFAR-10's binary files in {place.resolve()}"
    places = [(f"{place} ({part})",) * 2 for part in ("data_batch_1 to 5", "test_batch")]
    return _dataset("cifar10", source, cifar.read_cifar(files), cifar.CLASS_NAMES, places)


def _read_tfds(name: str, folder: Path, log: Callable[[str], None]) -> Dataset:
    """The train and test splits of a prepared TFDS data set; validation when there is no test.

    An array_record data set is read without TensorFlow.
    """
    log(f"Decoding the images of {folder} (once: they are kept for the next start).")
    with download.builder_of(folder, "images with train and test splits") as builder:
        image, label = builder.info.supervised_keys or ("image", "label")
        class_names = builder.info.features[label].names
        test = "test" if "test" in builder.info.splits else "validation"
        parts = [
            _read_tfds_split(builder, split, image, label, f"The {split} split in {folder}")
            for split in ("train", test)
        ]
    places = [(f"The {split} split in {folder}",) * 2 for split in ("train", test)]
    source = f"TFDS {name}:{folder.name} in {folder}"
    return _dataset(name, source, parts, class_names, places)


def _read_tfds_split(builder, split, image, label, place) -> tuple[np.ndarray, np.ndarray]:
    count = builder.info.splits[split].num_examples
    inputs, targets = None, np.zeros(count, np.int32)
    examples = download.prepared_examples(builder, split, place)
    for index, example in enumerate(examples):
        if inputs is None:
            inputs = np.zeros((count, *example[image].shape), example[image].dtype)
        if example[image].shape != inputs.shape[1:]:
            raise InputError(
                f"{place} has images of {inputs.shape[1:]} and of {example[image].shape}, but all "
                "images of a data set must have one shape."
            )
        inputs[index], targets[index] = example[image], example[label]
    if inputs is None:
        raise InputError(f"{place} has no images: at least one is needed.")
    return inputs, targets


def _prepare_with_tensorflow(name: str, root: Path) -> Path:
    """The folder of any other TFDS data set, downloaded and prepared by its own builder."""
    unknown = f'"{name}" is unknown here: mnist, fashion_mnist, cifar10 and digits are built in'
    if not importlib.util.find_spec("tensorflow"):
        raise InputError(
            f'{unknown}, and other data sets of TFDS need TensorFlow (pip install "dlflax[tf]").'
        )
    if download.offline():
        raise InputError(
            f"{name} is not in the TFDS folder {root}, and with DLFLAX_OFFLINE set nothing is "
            "downloaded: pass --data-dir with a prepared TFDS folder."
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root)
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        raise InputError(f"{unknown}, and TFDS has none of that name.") from None
    except Exception as error:  # as in `load`
        reason = download.first_line(error)
        raise InputError(
            f"{name} could not be downloaded by TFDS ({reason}): pass --data-dir "
            "with a prepared TFDS folder, or choose mnist, fashion_mnist, cifar10 or digits."
        ) from None
    return Path(builder.data_dir)


def _read_digits(path: Path) -> Dataset:
    """scikit-learn's digits as MNIST has them: 20 x 20 in a frame of 28 x 28, 80 % to train on."""
    import PIL.Image

    table = np.loadtxt(path, delimiter=",")  # 64 values from 0 to 16, then the label
    if table.shape != (1797, 65):
        raise InputError(f"{path} is {table.shape}, not (1797, 65): reinstall scikit-learn.")
    small = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    images = np.zeros((len(small), 28, 28, 1), np.uint8)
    for image, pixels in zip(images, small, strict=True):
        larger = PIL.Image.fromarray(pixels).resize((20, 20), PIL.Image.Resampling.BICUBIC)
        image[4:24, 4:24, 0] = larger
    labels = table[:, 64].astype(np.int32)
    generator = np.random.Generator(np.random.Philox(0))
    in_test = np.zeros(len(labels), bool)
    for digit in range(10):
        members = generator.permutation(np.flatnonzero(labels == digit))
        in_test[members[: round(0.2 * len(members))]] = True
    parts = [(images[chosen], labels[chosen]) for chosen in (~in_test, in_test)]
    source = "scikit-learn digits, 1,797 images resized from 8x8 to 28x28 (NOT MNIST)"
    return _dataset("digits", source, parts, tuple("0123456789"), [(path, path)] * 2)
