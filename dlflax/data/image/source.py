"""Sources of images: IDX files, TensorFlow Datasets, a download, or an installed data set.

tensorflow_datasets, PIL and tensorflow are imported only by the source that needs them.
"""

import contextlib
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
from dlflax.data.image.encoder import ImageEncoder
from dlflax.data.splits import Given
from dlflax.data.target import Classes
from dlflax.errors import InputError
from dlflax.files import atomic_write, cache_folder

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

FILES = "train-images-idx3-ubyte.gz and so on"
NOT_MNIST = (
    "NOT MNIST: replaced by scikit-learn's 1,797 digits, enlarged to 28 x 28, whose scores are not "
    f"comparable. Pass the four IDX files ({FILES}) as --data FOLDER."
)


@dataclasses.dataclass(frozen=True)
class Images(Source):
    """Labelled images of one size, with a published test split."""

    dataset: str = dataclasses.field(default="mnist", metadata={"resume": "free"})
    """mnist, fashion_mnist, cifar10, or with the extra `tf` any such data set of TFDS."""
    data: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """Folder with IDX files, CIFAR-10's binary files, or a prepared TFDS data set."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Returns the data set, by the function `load`."""
        return load(self.dataset, self.data, log=log)

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
    data: str | Path | None = None,
    *,
    cache_dir: Path | None = None,
    log: Callable[[str], None] = print,
) -> Dataset:
    """Returns the data set `name`, from the first source that has it.

    `name` is "mnist", "fashion_mnist", "cifar10", "digits" (scikit-learn's, at 28 x 28) or an image
    classification set of TFDS. With `data` that folder is the only source: four IDX files
    (http://yann.lecun.com/exdb/mnist/, gzip or not), CIFAR-10's binary version or a TFDS folder.
    Without it: a data set prepared by TFDS ($TFDS_DATA_DIR or ~/tensorflow_datasets), a download
    (never with DLFLAX_OFFLINE=1), then Debian's Fashion-MNIST or, for "mnist", the digits.
    Decoded arrays are cached in `cache_dir` ($XDG_CACHE_HOME or ~/.cache, /dlflax). `log` gets a
    sentence for each source that failed.

    Inputs are uint8 (n, h, w, c), (n, 28, 28, 1) for MNIST and its like; targets are int32 (n,).
    Raises InputError when no source has the data or a file is invalid.
    """
    reader = _Reader(name, cache_dir or cache_folder(), log)
    if data is not None:
        return reader.from_user(Path(data).expanduser())
    if name == "digits":
        return reader.digits()
    folders = (download.tfds_folders()[0], reader.cache_dir / "tfds")
    url = cifar.URL if name == "cifar10" else None
    if name in idx.URLS:
        url = f"{idx.URLS[name]}{idx.FILES[0]}.gz"
    dataset = download.load_or_download(name, url, reader.from_tfds, log, folders=folders)
    if dataset is None and url is None:
        return reader.from_tfds(_prepare_with_tensorflow(name, folders[0]))
    return reader.stand_in() if dataset is None else dataset


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reader of one data set from any source, with decoded arrays cached in `cache_dir`."""

    name: str
    cache_dir: Path
    log: Callable[[str], None]

    def from_idx(self, folder: Path) -> Dataset:
        files = idx.find_idx(folder)
        return self._cache(list(files.values()), lambda: _read_idx(self.name, folder, files))

    def from_tfds(self, folder: Path) -> Dataset:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return self._cache(files, lambda: _read_tfds(self.name, folder, self.log))

    def digits(self) -> Dataset:
        spec = importlib.util.find_spec("sklearn")  # the import itself takes seconds
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        return self._cache([path], lambda: _read_digits(path), "digits")

    def from_user(self, folder: Path) -> Dataset:
        """Returns the data set that --data names."""
        name, expected = self.name, _expected_files(self.name)
        if name == "cifar10" and (paths := cifar.find_cifar(folder)):
            return self._cache(paths, lambda: _read_cifar(folder, paths))
        if not folder.is_dir():
            state = "is not a folder" if folder.exists() else "does not exist"
            raise InputError(f"--data {folder} {state}: it should be {expected}.")
        files = idx.find_idx(folder) if name in idx.URLS else {}
        if len(files) == len(idx.FILES):
            return self.from_idx(folder)
        if not files and (prepared := download.find_tfds(folder, name)):
            return self.from_tfds(prepared)
        file = next(file for file in idx.FILES if file not in files)
        missing = f"{file} (or {file}.gz)" if name in idx.URLS else "data set"
        raise InputError(f"--data {folder} has no {missing}: it should be {expected}.")

    def stand_in(self) -> Dataset:
        """Returns an installed data set in place of one without download, or raises InputError."""
        if self.name == "mnist":
            self.log(NOT_MNIST)
            return dataclasses.replace(self.digits(), stands_in_for=self.name)
        if self.name == "cifar10":
            remedy = f"with {cifar.ARCHIVE} ({cifar.URL}) or the folder in it."
        elif len(idx.find_idx(DEBIAN_FASHION_MNIST)) == len(idx.FILES):
            return self.from_idx(DEBIAN_FASHION_MNIST)
        else:
            remedy = f"with the four IDX files ({FILES}), or apt install dataset-fashion-mnist."
        raise InputError(
            f"{self.name} is not on this machine and cannot be downloaded: pass --data {remedy}"
        )

    def _cache(self, files, read, name: str = "") -> Dataset:
        """Returns read(), cached in a file that is valid while sizes and times of `files` are."""
        status = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        name = name or self.name
        stamp = json.dumps([1, name, status])  # 1: the version of this format
        folder_hash = hashlib.sha256(str(files[0].parent.resolve()).encode()).hexdigest()[:12]
        path = self.cache_dir / f"{name.replace('/', '-')}-{folder_hash}.npz"
        # Damaged bytes can raise anything, and only cost decoding again: zip files have checksums.
        with contextlib.suppress(Exception), open(path, "rb") as file, np.load(file) as saved:
            if saved["stamp"].item() == stamp:
                splits = [
                    [saved[f"{split}_{key}"] for key in ("inputs", "targets")]
                    for split in ("train", "test")
                ]
                strings = [saved[key].item() for key in ("name", "source", "checksum")]
                return _from_arrays(splits, saved["class_names"].tolist(), *strings)
        data = read()
        arrays = {f"train_{key}": array for key, array in data.train.items()}
        arrays |= {f"test_{key}": array for key, array in data.test.items()}
        arrays |= {key: np.array(getattr(data, key)) for key in ("name", "source", "checksum")}
        arrays |= {"stamp": np.array(stamp), "class_names": np.array(data.class_names)}
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            self.log(f"{path} cannot be written ({error.strerror or error}): not cached.")
        return data


def _expected_files(name: str) -> str:
    tfds = f"a TFDS folder with {name}/<version>/dataset_info.json"
    if name == "cifar10":
        return f"{cifar.ARCHIVE}, its folder {cifar.FOLDER}, or {tfds}"
    if name not in idx.URLS:
        return tfds
    return f"a folder with {', '.join(idx.FILES)}, each with or without .gz, or {tfds}"


def _check(name, source, splits, class_names, descriptions) -> Dataset:
    """Returns a Dataset of (inputs, targets) for train and test, or raises InputError.
    descriptions: of inputs and targets for each split, for messages."""
    for (inputs, targets), (origin, targets_origin) in zip(splits, descriptions, strict=True):
        if inputs.ndim != 4 or inputs.dtype != np.uint8:
            raise InputError(f"{origin} is {inputs.dtype} {inputs.shape}, not uint8 (n, h, w, c).")
        if len(inputs) == 0:
            raise InputError(f"{origin} has no images: at least one is required.")
        if name in idx.URLS and inputs.shape[1:] != (28, 28, 1):
            size = " x ".join(map(str, inputs.shape[1:]))
            raise InputError(f"{origin} has images of {size}, but {name} has 28 x 28 x 1.")
        if len(inputs) != len(targets):
            raise InputError(
                f"{origin} has {len(inputs):,} images and {targets_origin} {len(targets):,} "
                "labels, but each image needs one label."
            )
        invalid, last = targets[(targets < 0) | (targets >= len(class_names))], len(class_names) - 1
        if len(invalid):
            raise InputError(f"{targets_origin} has the label {invalid[0]}, not 0 to {last}.")
    counts = np.bincount(splits[0][1], minlength=len(class_names))
    if not counts.all():
        empty = int(np.argmin(counts))
        raise InputError(
            f"{descriptions[0][1]} has no example of class {empty} ({class_names[empty]}), but "
            "every class needs one in the train split."
        )
    digest = hashlib.sha256()
    for array in (array for arrays in splits for array in arrays):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return _from_arrays(splits, class_names, name, source, digest.hexdigest())


def _from_arrays(splits, class_names, name: str, source: str, checksum: str) -> Dataset:
    images, targets = (np.concatenate(arrays) for arrays in zip(*splits, strict=True))
    in_test = np.arange(len(images)) >= len(splits[0][0])
    examples = Examples({"inputs": images}, targets, (), tuple(class_names))
    return Dataset(examples, Given(in_test, by_class=False), name, source, checksum)


def _read_idx(name: str, folder: Path, files: dict[str, Path]) -> Dataset:
    paths = [files[file] for file in idx.FILES]
    images, labels, test_images, test_labels = map(idx.read_idx, paths, (3, 1, 3, 1))
    train = images[..., None], labels.astype(np.int32)
    test = test_images[..., None], test_labels.astype(np.int32)
    source, descriptions = f"IDX files in {folder.resolve()}", (paths[:2], paths[2:])
    return _check(name, source, (train, test), idx.CLASS_NAMES[name], descriptions)


def _read_cifar(path: Path, files: list[Path]) -> Dataset:
    source = f"CIFAR-10's binary files in {path.resolve()}"
    descriptions = [(f"{path} ({file})",) * 2 for file in ("data_batch_1 to 5", "test_batch")]
    return _check("cifar10", source, cifar.read_cifar(files), cifar.CLASS_NAMES, descriptions)


def _read_tfds(name: str, folder: Path, log: Callable[[str], None]) -> Dataset:
    """Reads the train and test splits (without test: validation) of a prepared TFDS data set."""
    log(f"Decoding the images of {folder}, once: they are cached.")
    with download.open_builder(folder, "images with train and test splits") as builder:
        keys = builder.info.supervised_keys or ("image", "label")
        class_names = builder.info.features[keys[1]].names
        names = "train", "test" if "test" in builder.info.splits else "validation"
        descriptions = [f"The {split} split in {folder}" for split in names]
        splits = [
            _read_tfds_split(builder, keys, *row) for row in zip(names, descriptions, strict=True)
        ]
    source = f"TFDS {name}:{folder.name} in {folder}"
    return _check(name, source, splits, class_names, [(text, text) for text in descriptions])


def _read_tfds_split(builder, keys, split, description) -> tuple[np.ndarray, np.ndarray]:
    (image, label), count = keys, builder.info.splits[split].num_examples
    inputs, targets = None, np.zeros(count, np.int32)
    for index, example in enumerate(download.prepared_examples(builder, split, description)):
        if inputs is None:
            inputs = np.zeros((count, *example[image].shape), example[image].dtype)
        if example[image].shape != inputs.shape[1:]:
            raise InputError(
                f"{description} has images of {inputs.shape[1:]} and of {example[image].shape}, "
                "but all images of a data set must have one shape."
            )
        inputs[index], targets[index] = example[image], example[label]
    if inputs is None:
        raise InputError(f"{description} has no images: at least one is required.")
    return inputs, targets


def _prepare_with_tensorflow(name: str, root: Path) -> Path:
    """Returns the folder of any other TFDS data set, prepared by the builder of TFDS."""
    unknown = f'"{name}" is unknown: mnist, fashion_mnist, cifar10 and digits are built in'
    remedy = "pass --data with a prepared TFDS folder"
    if not importlib.util.find_spec("tensorflow"):
        raise InputError(f'{unknown}, others need TensorFlow (pip install "dlflax[tf]").')
    if download.is_offline():
        raise InputError(f"{name} is not in {root}, and DLFLAX_OFFLINE is set: {remedy}.")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root)
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"{unknown}, and TFDS has none of that name: choose one of these, or {remedy}."
        ) from None
    except Exception as error:  # TFDS, requests and the file system raise dozens of types
        reason = download.first_line(error)
        raise InputError(f"TFDS could not download {name} ({reason}): {remedy}.") from None
    return Path(builder.data_dir)


def _read_digits(path: Path) -> Dataset:
    """Returns scikit-learn's digits at 20 x 20 in a frame of 28 x 28, as MNIST's; 20 % are test."""
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
        indices = generator.permutation(np.flatnonzero(labels == digit))
        in_test[indices[: round(0.2 * len(indices))]] = True
    splits = [(images[rows], labels[rows]) for rows in (~in_test, in_test)]
    source = "scikit-learn digits, 1,797 images resized from 8x8 to 28x28 (NOT MNIST)"
    return _check("digits", source, splits, idx.CLASS_NAMES["mnist"], [(path, path)] * 2)
