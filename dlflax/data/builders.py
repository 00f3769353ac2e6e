"""MNIST, CIFAR-10, cats and dogs, the IMDB reviews for TensorFlow Datasets, without TensorFlow.

TFDS's own builders need TensorFlow to prepare. These have the same names, version and features,
so what they prepare is found by a plain `tfds.data_source("mnist")` too. See
https://www.tensorflow.org/datasets/catalog/mnist, .../fashion_mnist and so on.
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


def _information(builder, example: str, features, homepage: str, in_order: bool = False):
    return tfds.core.DatasetInfo(
        builder=builder, features=tfds.features.FeaturesDict(features), homepage=homepage,
        supervised_keys=(example, "label"), disable_shuffling=in_order,
    )  # fmt: skip


def _png(image) -> bytes:
    """Returns the file of an image: TFDS would encode an array with TensorFlow."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, format="png")
    return file.getvalue()


# Not registered: TFDS allows a name once, and its own builders may be imported later.
class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 train and 10,000 test images, uint8 (28, 28, 1), in the order of the IDX files."""

    VERSION = tfds.core.Version("3.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(names=idx.CLASS_NAMES[self.name]),
        }
        return _information(self, "image", features, idx.URLS[self.name], in_order=True)

    def _split_generators(self, dl_manager):
        urls = {file: f"{idx.URLS[self.name]}{file}.gz" for file in idx.FILES}
        paths = {file: Path(path) for file, path in dl_manager.download(urls).items()}
        contents = {file: self._verified(file, path) for file, path in paths.items()}
        images, labels, test_images, test_labels = (
            idx.parse_idx(contents[file], paths[file], ndim=3 if "images" in file else 1)
            for file in idx.FILES
        )
        return {
            "train": self._generate_examples(images, labels),
            "test": self._generate_examples(test_images, test_labels),
        }

    def _verified(self, file: str, path: Path) -> bytes:
        try:
            data = idx.read_bytes(path)
            if hashlib.sha256(data).hexdigest() != idx.SHA256[self.name][file]:
                raise InputError(f"{idx.URLS[self.name]}{file}.gz is not the published file.")
        except InputError:
            for unwanted in (path, path.with_name(f"{path.name}.INFO")):
                unwanted.unlink(missing_ok=True)  # or TFDS would not download it again
            raise
        return data

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image), "label": int(label)}


class FashionMnist(Mnist, skip_registration=True):
    """Fashion-MNIST: as `Mnist`, with photographs of ten kinds of clothing."""


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """50,000 train and 10,000 test photographs, uint8 (32, 32, 3), in the order of the binary files
    (Krizhevsky 2009)."""

    VERSION = tfds.core.Version("3.0.2")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=cifar.CLASS_NAMES),
        }
        homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"
        return _information(self, "image", features, homepage, in_order=True)

    def _split_generators(self, dl_manager):
        path = _published(dl_manager, cifar.URL, cifar.SHA256)
        train, test = cifar.read_cifar([path])
        return {
            "train": self._generate_examples("train", *train),
            "test": self._generate_examples("test", *test),
        }

    def _generate_examples(self, part, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            example = {"id": f"{part}_{index:05d}", "image": _png(image), "label": int(label)}
            yield index, example


def _published(dl_manager, url: str, sha256: str) -> Path:
    """The downloaded file. InputError, and it is not kept, when it is another one."""
    path = Path(dl_manager.download(url))
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        for unwanted in (path, path.with_name(f"{path.name}.INFO")):
            unwanted.unlink(missing_ok=True)  # as for MNIST
        raise InputError(f"{url} is not the published file.")
    return path


class CatsVsDogs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """23,262 photographs of cats and dogs, JPEG of any size (Elson et al., CCS 2007): those of
    25,000 that are JFIF files, as TFDS picks them, though it encodes them anew."""

    VERSION = tfds.core.Version("4.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        homepage = "https://www.microsoft.com/en-us/download/details.aspx?id=54765"
        return _information(self, "image", features, homepage)

    def _split_generators(self, dl_manager):
        path = _published(dl_manager, urls.CATS_VS_DOGS, urls.CATS_VS_DOGS_SHA256)
        return {"train": self._generate_examples(path)}

    def _generate_examples(self, path: Path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if match := re.fullmatch(r"PetImages/(Cat|Dog)/\d+\.jpg", name):
                    image = archive.read(name)
                    if b"JFIF" in image[:10]:
                        label = match[1].lower()
                        yield name, {"image": image, "image/filename": name, "label": label}


class ImdbReviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """25,000 train and 25,000 test film reviews with their sentiment (Maas et al., ACL 2011)."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain_text")]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["neg", "pos"]),
        }
        homepage = "https://ai.stanford.edu/~amaas/data/sentiment/"
        return _information(self, "text", features, homepage)

    def _split_generators(self, dl_manager):
        path = _published(dl_manager, urls.IMDB, urls.IMDB_SHA256)
        return {part: self._generate_examples(path, part) for part in ("train", "test")}

    def _generate_examples(self, path: Path, part: str):
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                label = folder.removeprefix(f"aclImdb/{part}/")
                if label in ("neg", "pos") and file.endswith(".txt"):
                    yield member.name, {"text": archive.extractfile(member).read(), "label": label}


def download(name: str, root: Path) -> Path:
    """The folder below `root` into which our builder has downloaded and prepared `name`."""
    builder = {
        "mnist": Mnist, "fashion_mnist": FashionMnist, "cifar10": Cifar10,
        "imdb_reviews": ImdbReviews, "cats_vs_dogs": CatsVsDogs,
    }[name](data_dir=root)  # fmt: skip
    builder.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return Path(builder.data_dir)
