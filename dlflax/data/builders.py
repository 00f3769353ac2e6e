"""Builders of TensorFlow Datasets that prepare data sets without TensorFlow.

They have the names, versions and features of the builders of TFDS
(https://www.tensorflow.org/datasets/catalog/mnist and so on), so `tfds.data_source("mnist")` reads
the data sets, too.
"""

import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path

import PIL.Image
import tensorflow_datasets as tfds

from dlflax.data import cifar, idx, urls
from dlflax.errors import InputError


def _dataset_info(builder, example: str, features, classes, homepage: str, in_order: bool = False):
    features = {**features, "label": tfds.features.ClassLabel(names=classes)}
    return tfds.core.DatasetInfo(
        builder=builder, features=tfds.features.FeaturesDict(features), homepage=homepage,
        supervised_keys=(example, "label"), disable_shuffling=in_order,
    )  # fmt: skip


def _png(image) -> bytes:
    """Encodes an image as PNG: TFDS would encode an array with TensorFlow."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, format="png")
    return file.getvalue()


# Not registered: TFDS allows a name once, and the builders of TFDS may be imported later.
class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 train and 10,000 test images, uint8 (28, 28, 1), in the order of the IDX files."""

    VERSION = tfds.core.Version("3.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(28, 28, 1))}
        classes, homepage = idx.CLASS_NAMES[self.name], idx.URLS[self.name]
        return _dataset_info(self, "image", features, classes, homepage, in_order=True)

    def _split_generators(self, dl_manager):
        urls = {file: f"{idx.URLS[self.name]}{file}.gz" for file in idx.FILES}
        paths = {file: Path(path) for file, path in dl_manager.download(urls).items()}
        contents = {file: self._read(file, path) for file, path in paths.items()}
        images, labels, test_images, test_labels = (
            idx.parse_idx(contents[file], paths[file], ndim=3 if "images" in file else 1)
            for file in idx.FILES
        )
        return {
            "train": self._generate_examples(images, labels),
            "test": self._generate_examples(test_images, test_labels),
        }

    def _read(self, file: str, path: Path) -> bytes:
        try:
            data = idx.read_bytes(path)
            if hashlib.sha256(data).hexdigest() != idx.SHA256[self.name][file]:
                raise InputError(f"{idx.URLS[self.name]}{file}.gz is not the published file.")
        except InputError:
            _discard(path)
            raise
        return data

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image), "label": int(label)}


class FashionMnist(Mnist, skip_registration=True):
    """Fashion-MNIST: as `Mnist`, with photographs of ten classes of clothing."""


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """50,000 train and 10,000 test photographs, uint8 (32, 32, 3), in the order of the binary files
    (Krizhevsky 2009)."""

    VERSION = tfds.core.Version("3.0.2")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(), "image": tfds.features.Image(shape=(32, 32, 3)),
        }  # fmt: skip
        homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"
        return _dataset_info(self, "image", features, cifar.CLASS_NAMES, homepage, in_order=True)

    def _split_generators(self, dl_manager):
        path = _download_file(dl_manager, cifar.URL, cifar.SHA256)
        train, test = cifar.read_cifar([path])
        return {
            "train": self._generate_examples("train", *train),
            "test": self._generate_examples("test", *test),
        }

    def _generate_examples(self, split, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            example = {"id": f"{split}_{index:05d}", "image": _png(image), "label": int(label)}
            yield index, example


def _download_file(dl_manager, url: str, sha256: str) -> Path:
    """Downloads a file. Raises InputError, and deletes the file, for another checksum."""
    path = Path(dl_manager.download(url))
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        _discard(path)
        raise InputError(f"{url} is not the published file.")
    return path


def _discard(path: Path) -> None:
    """Deletes a download, which TFDS would not repeat otherwise."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)


class CatsVsDogs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """23,262 photographs of cats and dogs, JPEG of any size (Elson et al., CCS 2007).

    Of 25,000 photographs, these are JFIF files; TFDS has the same, but encodes them anew.
    """

    VERSION = tfds.core.Version("4.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "image/filename": tfds.features.Text()}
        homepage = "https://www.microsoft.com/en-us/download/details.aspx?id=54765"
        return _dataset_info(self, "image", features, ["cat", "dog"], homepage)

    def _split_generators(self, dl_manager):
        path = _download_file(dl_manager, urls.CATS_VS_DOGS, urls.CATS_VS_DOGS_SHA256)
        return {"train": self._generate_examples(path)}

    def _generate_examples(self, path: Path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if match := re.fullmatch(r"PetImages/(Cat|Dog)/\d+\.jpg", name):
                    image, label = archive.read(name), match[1].lower()
                    if b"JFIF" in image[:10]:
                        yield name, {"image": image, "image/filename": name, "label": label}


class ImdbReviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """25,000 train and 25,000 test film reviews with their sentiment (Maas et al., ACL 2011)."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain_text")]

    def _info(self) -> tfds.core.DatasetInfo:
        homepage = "https://ai.stanford.edu/~amaas/data/sentiment/"
        features = {"text": tfds.features.Text()}
        return _dataset_info(self, "text", features, ["neg", "pos"], homepage)

    def _split_generators(self, dl_manager):
        path = _download_file(dl_manager, urls.IMDB, urls.IMDB_SHA256)
        return {split: self._generate_examples(path, split) for split in ("train", "test")}

    def _generate_examples(self, path: Path, split: str):
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                label = folder.removeprefix(f"aclImdb/{split}/")
                if label in ("neg", "pos") and file.endswith(".txt"):
                    yield member.name, {"text": archive.extractfile(member).read(), "label": label}


def download(name: str, root: Path) -> Path:
    """Downloads and prepares the data set `name` below `root`, and returns its folder."""
    builder = {
        "mnist": Mnist, "fashion_mnist": FashionMnist, "cifar10": Cifar10,
        "imdb_reviews": ImdbReviews, "cats_vs_dogs": CatsVsDogs,
    }[name](data_dir=root)  # fmt: skip
    builder.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return Path(builder.data_dir)
