"""CIFAR-10's files, made of patches of real photographs: read, refused, downloaded."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import importlib.util
import socket
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlflax import data
from dlflax.data import cifar, hub, published
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
    """The six binary files with `patches`. Returns (images, labels) of all, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = patches(train + test)
    records = [
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    ]
    for i in range(5):
        content = b"".join(records[train * i // 5 : train * (i + 1) // 5])
        (folder / f"data_batch_{i + 1}.bin").write_bytes(content)
    (folder / "test_batch.bin").write_bytes(b"".join(records[train:]))
    return images, labels


def archive(folder, place):
    path = place / cifar.ARCHIVE
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, cifar.FOLDER)
    return path


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.mark.parametrize("form", ["folder", "parent", "archive", "folder of the archive"])
def test_what_is_written_is_read(tmp_path, monkeypatch, form):
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
        np.testing.assert_array_equal(dataset.test["targets"], labels[100:])
        assert dataset.train["inputs"].dtype == np.uint8
        assert dataset.train["targets"].dtype == np.int32
        assert dataset.class_names == (
            "airplane", "automobile", "bird", "cat", "deer",
            "dog", "frog", "horse", "ship", "truck",
        )  # fmt: skip
        monkeypatch.setattr(cifar, "read", lambda paths: pytest.fail("read again"))


def publish(monkeypatch, url, sha256):
    changed = dataclasses.replace(published.DATASETS["cifar10"], files={url: sha256})
    monkeypatch.setitem(published.DATASETS, "cifar10", changed)


def refused(place, log=print):
    with pytest.raises(InputError) as error:
        data.load("cifar10", place, log=log)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and error.value.__cause__ is None
    return message


def test_refused_files(tmp_path):
    folder = tmp_path / "bin"
    write_cifar(folder)
    file = folder / "data_batch_2.bin"
    content = file.read_bytes()
    for wrong, sentence in (
        (content[:-1], "has 61,459 bytes, not 3,073 for each image"),
        (b"", "has 0 bytes"),
        (b"\x0a" + content[1:], "has the label 10, not 0 to 9"),
    ):
        file.write_bytes(wrong)
        assert f"{file} {sentence}" in refused(folder)
        packed = archive(folder, tmp_path)
        assert f"{packed}/{file.name} {sentence}" in refused(packed)
    file.unlink()
    assert f"{folder} has no {file.name}" in refused(folder)
    assert f"{packed} has no {file.name}" in refused(archive(folder, tmp_path))


def test_refused_archives(tmp_path):
    write_cifar(tmp_path / "bin")
    packed = archive(tmp_path / "bin", tmp_path)
    content = packed.read_bytes()
    pixel = bytearray(content)
    pixel[len(content) // 2] ^= 1  # tarfile alone would not notice
    for wrong, sentence in (
        (bytes(pixel), "is damaged gzip data"),
        (content[:-20_000], "is truncated gzip data"),
        (b"<html>", "is not gzip data"),
        (gzip.compress(b"<html>"), "is damaged or no tar archive"),
        (gzip.compress(gzip.decompress(content)[:100_000]), "is damaged or no tar archive"),
    ):
        packed.write_bytes(wrong)
        assert f"{packed} {sentence}" in refused(packed)


def test_refused_places(tmp_path):
    for python in ("cifar-10-batches-py", "data_batch_1"):
        (tmp_path / python / python).mkdir(parents=True)
        sentence = "Python version, pickles, which can run any code: give the binary"
        assert sentence in refused(tmp_path / python)
    (tmp_path / "none").mkdir()
    message = refused(tmp_path / "none")
    assert "none has no data set: it should be cifar-10-binary.tar.gz" in message
    assert "nowhere does not exist: it should be cifar-10-binary" in refused(tmp_path / "nowhere")


@pytest.mark.slow
def test_nowhere(monkeypatch):
    """One sentence why it cannot be downloaded, and one what to pass; soon, if nothing answers."""
    said = []
    message = refused(None, said.append)
    assert said == ["cifar10 cannot be downloaded: DLFLAX_OFFLINE is set."]
    assert "pass --data with cifar-10-binary.tar.gz" in message
    monkeypatch.delenv("DLFLAX_OFFLINE")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        publish(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/x", "")
        start = time.perf_counter()
        assert "pass --data" in refused(None, said.append)
        assert time.perf_counter() - start < 6
    assert "cannot be downloaded: no network" in said[1]


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
            monkeypatch.delenv("DLFLAX_OFFLINE")
            content, said = packed.read_bytes(), []
            publish(monkeypatch, url, hashlib.sha256(content).hexdigest())
            packed.write_bytes(b"<html>")
            assert "pass --data" in refused(None, said.append)
            assert "is not the published file" in said[0]
            assert not published.find_tfds(tmp_path / "tfds", "cifar10")
            packed.write_bytes(content)  # the wrong file was not kept
            dataset = data.load("cifar10", log=said.append)
        finally:
            server.shutdown()
            thread.join()
    assert dataset.source == f"TFDS cifar10:3.0.2 in {tmp_path / 'tfds' / 'cifar10' / '3.0.2'}"
    # The same examples in the same order as from the files: a seed means one run.
    assert dataset.checksum == data.load("cifar10", tmp_path / "bin").checksum
    monkeypatch.setattr(hub, "network_error", lambda url: pytest.fail("network"))
    again = data.load("cifar10", cache_dir=tmp_path / "another")
    assert again.checksum == dataset.checksum
    assert data.load("cifar10", tmp_path / "tfds").checksum == dataset.checksum

    import tensorflow_datasets as tfds

    examples = tfds.data_source("cifar10", split="test", data_dir=tmp_path / "tfds")
    assert len(examples) == 20 and examples[3]["id"] == b"test_00003"
    np.testing.assert_array_equal(examples[3]["image"], images[103])
    assert examples[3]["label"] == labels[103]
    assert "tensorflow" not in sys.modules
