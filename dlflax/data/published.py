"""Published data sets: prepared by TensorFlow Datasets, or downloaded, verified and prepared so.

The data sets of the table are prepared without TensorFlow, with the names, versions and features of
the builders of TFDS (https://www.tensorflow.org/datasets/catalog/mnist and so on), so
`tfds.data_source("mnist")` reads them, too. PIL and tensorflow_datasets are imported where they are
used: start-up time counts.
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dlflax.cache import cache_folder, digest
from dlflax.data import cifar, hub, idx
from dlflax.errors import InputError, first_line

Examples = Iterator[tuple[Any, dict[str, Any]]]  # pairs of a key and an example of TFDS


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set with the version and features of its builder in TFDS, beside the label."""

    version: str
    features: dict[str, tuple[int | None, ...]]
    """Name -> shape of an image, or () for a text."""
    files: dict[str, str]
    """Address -> SHA-256: of IDX files without gzip, as mirrors compress them differently."""
    class_names: tuple[str, ...]
    reader: ModuleType | Callable[[list[Path]], dict[str, Examples]]
    """`idx` or `cifar`, which read a user's files, too; or a function that reads all splits."""
    by_hand: str
    """Advice for a machine without network."""


def reader(name: str) -> ModuleType | None:
    """Returns the module that reads a user's files of a data set, if any."""
    module = DATASETS[name].reader if name in DATASETS else None
    return module if isinstance(module, ModuleType) else None


def _encode_images(arrays: Sequence[tuple], features: Collection[str]) -> dict[str, Examples]:
    import PIL.Image

    def encode(split, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = io.BytesIO()  # TFDS would encode an array with TensorFlow
            PIL.Image.fromarray(image.squeeze()).save(file, format="png")
            example = {"image": file.getvalue(), "label": int(label), "id": f"{split}_{index:05d}"}
            yield index, {name: example[name] for name in (*features, "label")}

    return {"train": encode("train", *arrays[0]), "test": encode("test", *arrays[1])}


def _read_cats_vs_dogs(paths: list[Path]) -> dict[str, Examples]:
    """Reads the JFIF files of 25,000; TFDS has the same, but encodes them anew."""

    def read():
        with zipfile.ZipFile(paths[0]) as archive:
            for name in archive.namelist():
                if match := re.fullmatch(r"PetImages/(Cat|Dog)/\d+\.jpg", name):
                    image, label = archive.read(name), match[1].lower()
                    if b"JFIF" in image[:10]:
                        yield name, {"image": image, "image/filename": name, "label": label}

    return {"train": read()}


def _read_imdb(paths: list[Path]) -> dict[str, Examples]:
    def read(split):
        with tarfile.open(paths[0], "r:gz") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                label = folder.removeprefix(f"aclImdb/{split}/")
                if label in ("neg", "pos") and file.endswith(".txt"):
                    yield member.name, {"text": archive.extractfile(member).read(), "label": label}

    return {split: read(split) for split in ("train", "test")}


CATS_VS_DOGS = (
    "https://download.microsoft.com/download/3/E/1/"
    "3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip"
)
DATASETS = {
    "mnist": Published("3.0.1", {"image": (28, 28, 1)}, {
        f"https://storage.googleapis.com/cvdf-datasets/mnist/{file}.gz": sha256
        for file, sha256 in zip(idx.FILES, (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ), strict=True)
    }, tuple("0123456789"), idx, f"pass --data with {idx.EXPECTED}."),
    "fashion_mnist": Published("3.0.1", {"image": (28, 28, 1)}, {
        f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{file}.gz": sha256
        for file, sha256 in zip(idx.FILES, (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ), strict=True)
    }, (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ), idx, f"pass --data with {idx.EXPECTED}, or apt install dataset-fashion-mnist."),
    "cifar10": Published("3.0.2", {"id": (), "image": (32, 32, 3)}, {  # Krizhevsky 2009
        cifar.URL: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    }, (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ), cifar, f"pass --data with {cifar.EXPECTED} ({cifar.URL})."),
    "cats_vs_dogs": Published(  # Elson et al., CCS 2007
        "4.0.1", {"image": (None, None, 3), "image/filename": ()},
        {CATS_VS_DOGS: "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"},
        ("cat", "dog"), _read_cats_vs_dogs,
        f"get {CATS_VS_DOGS} by hand, unpack it and pass --data PetImages.",
    ),
    "imdb_reviews": Published("1.0.0", {"text": ()}, {  # Maas et al., ACL 2011
        "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz":
        "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
    }, ("neg", "pos"), _read_imdb, "unpack the archive and pass --data aclImdb."),
}  # fmt: skip


def load(
    name: str,
    read: Callable[[Path], Any],
    built_in: Collection[str],
    log: Callable[[str], None],
    stand_in: Callable[[], Any | None] = lambda: None,
) -> Any:
    """Returns `read` of the folder where TFDS has prepared a data set ($TFDS_DATA_DIR or
    ~/tensorflow_datasets), or it is downloaded to; else `stand_in()`, within seconds.

    `log` gets a sentence for each failure; InputError if all fail. built_in: names of this kind of
    data, of which those in `DATASETS` are downloaded without TensorFlow.
    """
    published = DATASETS.get(name) if name in built_in else None
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folders = root, cache_folder() / "tfds"  # the second if the first has an unreadable one
    for folder in folders:
        if prepared := find_tfds(folder, name):
            try:
                return read(prepared)
            except InputError as error:
                if not published:
                    raise
                log(str(error))
    if not published:
        return read(_prepare_with_tensorflow(name, root, built_in))
    empty = [folder for folder in folders if not find_tfds(folder, name)]
    if reason := hub.network_error(next(iter(published.files))):
        log(f"{name} cannot be downloaded: {reason}.")
    elif empty:
        try:
            return read(_prepare(name, published, empty[0]))
        except Exception as error:  # TFDS, requests and the file system raise dozens of types
            log(f"{name} could not be downloaded: {first_line(error)}")
    if (dataset := stand_in()) is not None:
        return dataset
    raise InputError(f"{name} is not on this machine and cannot be downloaded: {published.by_hand}")


def find_tfds(root: Path, name: str) -> Path | None:
    """Returns the newest version of `name` that TFDS has prepared below `root`."""
    for folder in (root / name / "plain_text", root / name):
        versions = {}
        for info in folder.glob("*/dataset_info.json"):
            numbers = info.parent.name.split(".")
            if all(number.isdecimal() for number in numbers):
                versions[tuple(map(int, numbers))] = info.parent
        if versions:
            return versions[max(versions)]
    return None


def _prepare(name: str, published: Published, root: Path) -> Path:
    """Downloads, verifies and prepares a data set below `root`. Returns its folder."""
    import tensorflow_datasets as tfds

    # Not registered: TFDS allows a name once, and the builders of TFDS may be imported later.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Published data set."""

        VERSION = tfds.core.Version(published.version)
        if "text" in published.features:
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain_text")]

        def _info(self):
            features = {
                name: tfds.features.Image(shape=shape) if shape else tfds.features.Text()
                for name, shape in published.features.items()
            }
            features["label"] = tfds.features.ClassLabel(names=published.class_names)
            inputs = "image" if "image" in features else "text"
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features),
                supervised_keys=(inputs, "label"), disable_shuffling=reader(name) is not None,
            )  # fmt: skip

        def _split_generators(self, dl_manager):
            paths = [Path(path) for path in dl_manager.download(list(published.files))]
            for path, (url, sha256) in zip(paths, published.files.items(), strict=True):
                _verify(path, url, sha256)
            if module := reader(name):
                return _encode_images(module.read(paths), published.features)
            return published.reader(paths)

        def _generate_examples(self):  # required, though `_split_generators` returns them
            raise NotImplementedError

    Builder.name = name
    builder = Builder(data_dir=root)
    builder.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return Path(builder.data_dir)


def _verify(path: Path, url: str, sha256: str) -> None:
    """Raises InputError for another checksum, and deletes the file: TFDS would keep it."""
    try:
        content = idx.read_bytes(path) if url.endswith("ubyte.gz") else None
        if sha256 != (digest(content) if content else hub.sha256_of(path)):
            raise InputError(f"{url} is not the published file.")
    except InputError:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)
        raise


def _prepare_with_tensorflow(name: str, root: Path, built_in: Collection[str]) -> Path:
    """Returns the folder of any other data set, prepared by the builder of TFDS."""
    is_installed = importlib.util.find_spec("tensorflow")
    reason = "DLFLAX_OFFLINE is set" if is_installed else 'others need pip install "dlflax[tf]"'
    if is_installed and not hub.is_offline():
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(name, data_dir=root)
            builder.download_and_prepare()
            return Path(builder.data_dir)
        except Exception as error:  # TFDS, requests and the file system raise dozens of types
            reason = first_line(error)
    raise InputError(
        f'"{name}" is neither built in ({", ".join(built_in)}) nor prepared by TFDS in {root} '
        f"({reason}): pass --data with your files or a prepared TFDS folder."
    )


@contextlib.contextmanager
def open_tfds(folder: Path, kind: str) -> Iterator[Any]:
    """Yields the builder of a prepared data set, and turns any error of TFDS into InputError.
    kind: the examples, for the message."""
    import tensorflow_datasets as tfds

    try:
        yield tfds.builder_from_directory(folder)
    except InputError:
        raise
    except Exception as error:  # a damaged folder can raise anything from TFDS
        reason = f"cannot be read as labelled {kind} ({first_line(error)})"
        advice = "prepare it again, or pass --data"
        raise InputError(f"The TFDS data set in {folder} {reason}: {advice}.") from None


def tfds_examples(builder, split: str, decoders=None) -> Sequence[dict[str, Any]]:
    """Returns the examples of a split, dicts of NumPy arrays. InputError without TensorFlow for
    other formats than array_record."""
    if builder.info.file_format.value == "array_record":
        return builder.as_data_source(split, decoders=decoders)
    if importlib.util.find_spec("tensorflow"):
        import tensorflow_datasets as tfds

        return list(tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders)))
    file_format = f"{builder.info.file_format.value} format, which only TensorFlow reads"
    raise InputError(
        f"The {split} split in {builder.data_dir} is in {file_format}: pip install "
        '"dlflax[tf]", or prepare it with file_format="array_record".'
    )


def read_tfds(folder: Path, inputs: str) -> tuple[Sequence[str], dict[str, tuple[list, list[int]]]]:
    """Returns (class names, {split: (inputs, labels)}) of the splits train and test of a prepared
    data set; validation without test. inputs: their name by default, image or text."""
    with open_tfds(folder, f"{inputs}s with a train split") as builder:
        inputs, label = builder.info.supervised_keys or (inputs, "label")
        tests = [split for split in ("test", "validation") if split in builder.info.splits]
        splits = {}
        for split in ["train", *tests[:1]]:
            rows = [(example[inputs], int(example[label])) for example in
                    tfds_examples(builder, split)]  # fmt: skip
            splits[split] = [row[0] for row in rows], [row[1] for row in rows]
        return builder.info.features[label].names, splits
