"""Sources of images: IDX files, TensorFlow Datasets, a download, or an installed data set.

tensorflow_datasets, PIL and tensorflow are imported only by the source that needs them.
"""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlflax import cache
from dlflax.cache import cache_folder
from dlflax.data import idx, published
from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples
from dlflax.data.image.encoder import ImageEncoder
from dlflax.data.splits import Given
from dlflax.data.target import Classes
from dlflax.errors import InputError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

BUILT_IN = ("mnist", "fashion_mnist", "cifar10", "digits")
NOT_MNIST = (
    "NOT MNIST: replaced by scikit-learn's 1,797 digits, enlarged to 28 x 28, whose scores are not "
    f"comparable. Pass the four IDX files ({idx.FILES[0]}.gz and so on) as --data FOLDER."
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
    folder = cache_dir or cache_folder()

    def read_files(paths: list[Path], origin: Path) -> Dataset:
        return _read_once(folder, name, paths, lambda: _read_files(name, paths, origin), log)

    def read_tfds_folder(prepared: Path) -> Dataset:
        files = sorted(path for path in prepared.iterdir() if path.is_file())
        return _read_once(folder, name, files, lambda: _read_tfds(name, prepared, log), log)

    def read_digits() -> Dataset:
        spec = importlib.util.find_spec("sklearn")  # the import itself takes seconds
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        return _read_once(folder, "digits", [path], lambda: _read_digits(path), log)

    def stand_in() -> Dataset | None:
        if name == "mnist":
            log(NOT_MNIST)
            return dataclasses.replace(read_digits(), stands_in_for=name)
        paths = idx.find(DEBIAN_FASHION_MNIST) if name == "fashion_mnist" else []
        return read_files(paths, DEBIAN_FASHION_MNIST) if paths else None

    if data is None and name == "digits":
        return read_digits()
    if data is None:
        return published.load(name, read_tfds_folder, BUILT_IN, log, stand_in)
    root, reader = Path(data).expanduser(), published.reader(name)
    if reader and (paths := reader.find(root)):
        return read_files(paths, root)
    if prepared := published.find_tfds(root, name):
        return read_tfds_folder(prepared)
    state = "has no data set" if root.is_dir() else "is not a folder"
    state = state if root.exists() else "does not exist"
    expected = f"a TFDS folder with {name}/<version>/dataset_info.json"
    expected = f"{reader.EXPECTED}, or {expected}" if reader else expected
    raise InputError(f"--data {root} {state}: it should be {expected}.")


def _read_once(folder: Path, name: str, files: list[Path], read: Callable, log) -> Dataset:
    """Returns the data set of `read`, cached in `folder` while sizes and times of `files` are the
    same. read: returns (source, class names, [(images, targets) of train, of test], [(origin of
    images, of targets) of train, of test] for messages)."""
    status = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    home = cache.digest([name, str(files[0].parent.resolve())])[:12]
    path = folder / "arrays" / home / cache.digest([1, status])[:16]  # 1: the format's version
    if entry := cache.read(path):
        values, arrays = entry
    else:
        source, class_names, splits, origins = read()
        _check(name, class_names, splits, origins)
        digest = hashlib.sha256()
        for array in (array for arrays in splits for array in arrays):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array))
        values = len(splits[0][0]), class_names, name, source, digest.hexdigest()
        columns = map(np.concatenate, zip(*splits, strict=True))
        arrays = dict(zip(("images", "targets"), columns, strict=True))
        blocks = {name: [array] for name, array in arrays.items()}
        cache.write(path, values, blocks, log, alone=True)
    (train, class_names, *strings), (images, targets) = values, map(np.asarray, arrays.values())
    examples = Examples({"inputs": images}, targets, (), tuple(class_names))
    return Dataset(examples, Given(np.arange(len(images)) >= train, by_class=False), *strings)


def _check(name, class_names, splits, origins) -> None:
    """Raises InputError for invalid splits of `_read_once`."""
    for (inputs, targets), (origin, targets_origin) in zip(splits, origins, strict=True):
        if inputs.ndim != 4 or inputs.dtype != np.uint8:
            raise InputError(f"{origin} is {inputs.dtype} {inputs.shape}, not uint8 (n, h, w, c).")
        if len(inputs) == 0:
            raise InputError(f"{origin} has no images: at least one is required.")
        if published.reader(name) is idx and inputs.shape[1:] != (28, 28, 1):
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
            f"{origins[0][1]} has no example of class {empty} ({class_names[empty]}), but "
            "every class needs one in the train split."
        )


def _read_files(name: str, paths: list[Path], origin: Path) -> tuple:
    reader = published.reader(name)
    origins = [paths[:2], paths[2:]] if reader is idx else [(origin, origin)] * 2
    class_names = published.DATASETS[name].class_names
    return f"{reader.TITLE} in {origin.resolve()}", class_names, reader.read(paths), origins


def _read_tfds(name: str, folder: Path, log: Callable[[str], None]) -> tuple:
    log(f"Decoding the images of {folder}, once: they are cached.")
    class_names, read = published.read_tfds(folder, "image")
    if len(read) < 2:
        raise InputError(f"The TFDS data set in {folder} has no test split: pass --data.")
    splits, origins = [], [f"The {split} split in {folder}" for split in read]
    for origin, (images, labels) in zip(origins, read.values(), strict=True):
        if len(shapes := sorted({image.shape for image in images})) > 1:
            raise InputError(
                f"{origin} has images of {shapes[0]} and of {shapes[1]}, but all images of a data "
                "set must have one shape."
            )
        images = np.stack(images) if images else np.zeros((0, 1, 1, 1), np.uint8)
        splits.append((images, np.array(labels, np.int32)))
    source = f"TFDS {name}:{folder.name} in {folder}"
    return source, class_names, splits, [(origin, origin) for origin in origins]


def _read_digits(path: Path) -> tuple:
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
    return source, tuple("0123456789"), splits, [(path, path)] * 2
