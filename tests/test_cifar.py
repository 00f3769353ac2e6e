"""CIFAR-10's files, made of patches of real photographs: read, refused, downloaded."""

import functools
import hashlib
import http.server
import importlib.util
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlflax import data
from dlflax.data import cifar, sources
from dlflax.errors import InputError

PHOTOS = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "images"


def patches(count):
    """(images uint8 (count, 32, 32, 3), labels (count,)): the label is the strip of the two
    photographs that a patch was cut from."""
    photos = [np.asarray(Image.open(PHOTOS / name)) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 10
    images = []
    for label in labels:
        row, column = 80 * (label // 2) + rng.integers(0, 48), rng.integers(0, 600)
        images.append(photos[label % 2][row : row + 32, column : column + 32])
    return np.stack(images), labels.astype(np.int32)


def write_cifar(folder, train=100, test=20):
    """The six binary files. Returns (images, labels) of all, in the files' order."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = patches(train + test)
    records = [
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    ]
    for i, file in enumerate(cifar.FILES[:5]):
        (folder / file).write_bytes(b"".join(records[train * i // 5 : train * (i + 1) // 5]))
    (folder / cifar.FILES[5]).write_bytes(b"".join(records[train:]))
    return images, labels


def archive(folder, place):
    path = place / cifar.ARCHIVE
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, cifar.FOLDER)
    return path


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", ["folder", "parent", "archive", "folder of the archive"])
def test_what_is_written_is_read(tmp_path, form):
    folder = tmp_path / "data" / cifar.FOLDER
    images, labels = write_cifar(folder)
    (tmp_path / "packed").mkdir()
    packed = archive(folder, tmp_path / "packed")
    places = {"folder": folder, "parent": folder.parent, "archive": packed}
    place = places.get(form, packed.parent)
    for _ in range(2):  # the second time from the cache
        dataset = data.load("cifar10", place)
        np.testing.assert_array_equal(dataset.train["inputs"], images[:100])
        np.testing.assert_array_equal(dataset.test["inputs"], images[100:])
        np.testing.assert_array_equal(dataset.train["targets"], labels[:100])
        assert dataset.class_names[3] == "cat" and dataset.train["targets"].dtype == np.int32


def test_refusals(tmp_path):
    def refused(place):
        with pytest.raises(InputError) as error:
            data.load("cifar10", place)
        assert "\n" not in str(error.value)
        return str(error.value)

    folder = tmp_path / "bin"
    write_cifar(folder)
    content = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(content[:-1])
    assert "data_batch_2.bin has 61,459 bytes" in refused(folder)
    (folder / "data_batch_2.bin").write_bytes(b"\x0a" + content[1:])
    assert "has the label 10, but labels are 0 to 9" in refused(folder)
    packed = archive(folder, tmp_path)
    packed.write_bytes(packed.read_bytes()[:5000])
    assert "is damaged or no archive" in refused(packed)
    (folder / "data_batch_2.bin").unlink()
    assert "has no data_batch_2.bin" in refused(folder)
    assert "has no data_batch_2.bin" in refused(archive(folder, tmp_path))
    (tmp_path / "py" / "cifar-10-batches-py").mkdir(parents=True)
    assert "Python version, pickles" in refused(tmp_path / "py")
    (tmp_path / "none").mkdir()
    assert "cifar-10-binary.tar.gz" in refused(tmp_path / "none")
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "cannot be downloaded: pass --data-dir" in refused(None)


def test_download(tmp_path, monkeypatch):
    images, labels = write_cifar(tmp_path / "bin")
    (tmp_path / "mirror").mkdir()
    packed = archive(tmp_path / "bin", tmp_path / "mirror")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=packed.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/{cifar.ARCHIVE}"
            monkeypatch.setattr(cifar, "URL", url)
            monkeypatch.setenv("DLFLAX_OFFLINE", "0")
            said = []
            with pytest.raises(InputError):
                data.load("cifar10", say=said.append)
            assert "is not the published file" in said[0]
            digest = hashlib.sha256(packed.read_bytes()).hexdigest()
            monkeypatch.setattr(cifar, "SHA256", digest)
            dataset = data.load("cifar10", say=said.append)
        finally:
            server.shutdown()
            thread.join()
    assert dataset.source.startswith("TFDS cifar10:3.0.2")
    assert len(dataset.train["targets"]) == 100 and len(dataset.test["targets"]) == 20
    found = {image.tobytes() for image in dataset.train["inputs"]}
    assert found == {image.tobytes() for image in images[:100]}
    assert sources._prepared(tmp_path / "tfds", "cifar10")
