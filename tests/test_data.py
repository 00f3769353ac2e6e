"""Data: every source, every way a file can be wrong, and the order of examples."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dlflax import data
from dlflax.data import hub, idx, published
from dlflax.data.image import source as images
from dlflax.errors import InputError

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = idx.FILES


pytestmark = pytest.mark.usefixtures("isolated")


def idx_bytes(array, code=8):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.tobytes()


def small_set(seed=0):
    """Two images of each class to train on and one to test on."""
    rng = np.random.default_rng(seed)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (20, 28, 28), np.uint8),
        TRAIN_LABELS: rng.permutation(np.arange(20) % 10).astype(np.uint8),
        TEST_IMAGES: rng.integers(0, 256, (10, 28, 28), np.uint8),
        TEST_LABELS: rng.permutation(10).astype(np.uint8),
    }


def write(folder, arrays, pack=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = array if isinstance(array, bytes) else idx_bytes(array)
        if pack:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def check(dataset, arrays):
    for part, pictures, labels in (
        (dataset.train, TRAIN_IMAGES, TRAIN_LABELS),
        (dataset.test, TEST_IMAGES, TEST_LABELS),
    ):
        assert part["inputs"].dtype == np.uint8 and part["targets"].dtype == np.int32
        np.testing.assert_array_equal(part["inputs"], arrays[pictures][..., None])
        np.testing.assert_array_equal(part["targets"], arrays[labels])


def silent(sentence):
    raise AssertionError(f"nothing should be said, but: {sentence}")


# IDX files


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_idx_folder(tmp_path, pack, dot):
    arrays = small_set()
    names = {name: name.replace("-idx", ".idx") if dot else name for name in arrays}
    folder = write(tmp_path / "x", {names[name]: arrays[name] for name in arrays}, pack)
    dataset = data.load("mnist", folder, log=silent)
    check(dataset, arrays)
    assert (dataset.name, dataset.class_names) == ("mnist", tuple("0123456789"))
    assert dataset.source == f"IDX files in {folder}"
    digest = hashlib.sha256()
    for name in idx.FILES:
        array = arrays[name][..., None] if "images" in name else arrays[name].astype(np.int32)
        digest.update(str(array.shape).encode() + array.tobytes())
    assert dataset.checksum == digest.hexdigest()


GOOD = small_set()
LABELS = GOOD[TRAIN_LABELS]
BAD_FILES = {
    "not gzip": (TRAIN_IMAGES + ".gz", b"<html>", "is not gzip data"),
    "gzip cut": (TRAIN_IMAGES + ".gz", gzip.compress(idx_bytes(LABELS))[:-12], "is truncated"),
    "damaged": (TRAIN_IMAGES + ".gz", gzip.compress(b"1")[:-8] + b"8 wrong.", "is damaged gzip"),
    "empty": (TRAIN_IMAGES, b"", "is not an IDX file (it starts with nothing)"),
    "magic": (TRAIN_LABELS, b"\x89PNG 1234", "is not an IDX file (it starts with 89 50 4e 47)"),
    "type": (
        TRAIN_IMAGES,
        idx_bytes(GOOD[TRAIN_IMAGES], 0x0D),
        "has 3 dimensions of float32",
    ),
    "dimensions": (
        TRAIN_IMAGES,
        idx_bytes(LABELS),
        "has 1 dimension of uint8; expected uint8 in 3",
    ),
    "header cut": (TRAIN_IMAGES, b"\0\0\x08\x03\0\0", "ends inside its header"),
    "too short": (TEST_LABELS, idx_bytes(LABELS)[:-1], "has 19 values, but its header declares 20"),
    "too long": (
        TEST_LABELS,
        idx_bytes(LABELS) + b"1",
        "has 21 values, but its header declares 20",
    ),
    "label": (
        TRAIN_LABELS,
        idx_bytes(np.where(LABELS == 9, 10, LABELS).astype(np.uint8)),
        "has the label 10, not 0 to 9",
    ),
    "lengths": (TRAIN_LABELS, idx_bytes(LABELS[:-1]), "19 labels, but each image needs one label"),
    "empty class": (
        TRAIN_LABELS,
        idx_bytes(np.where(LABELS == 3, 4, LABELS).astype(np.uint8)),
        "has no example of class 3 (3)",
    ),
    "no images": (TEST_IMAGES, idx_bytes(GOOD[TEST_IMAGES][:0]), "has no images"),
    "size": (
        TRAIN_IMAGES,
        idx_bytes(np.zeros((20, 27, 28), np.uint8)),
        "has images of 27 x 28 x 1, but mnist has 28 x 28 x 1",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path, case):
    name, content, sentence = BAD_FILES[case]
    folder = write(tmp_path, {other: array for other, array in GOOD.items() if other not in name})
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        data.load("mnist", folder, log=silent)
    message = str(error.value)
    assert sentence in message and str(folder / name) in message
    assert "\n" not in message and message.endswith(".")
    assert error.value.__cause__ is None


def test_bad_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist: it should be a folder with"):
        data.load("mnist", tmp_path / "nowhere", log=silent)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder"):
        data.load("mnist", tmp_path / "file", log=silent)
    with pytest.raises(InputError, match=f"{tmp_path} has no data set: .* {TRAIN_IMAGES}"):
        data.load("mnist", tmp_path, log=silent)
    folder = write(tmp_path / "three", GOOD)
    (folder / TEST_LABELS).unlink()
    with pytest.raises(InputError, match=f"three has no {TEST_LABELS} "):
        data.load("mnist", folder, log=silent)


def published_sha256(name, file):
    files = published.DATASETS[name].files
    return next(digest for url, digest in files.items() if url.endswith(f"/{file}.gz"))


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs the development copy of MNIST")
def test_real_mnist():
    dataset = data.load("mnist", MNIST, log=silent)
    assert dataset.train["inputs"].shape == (60_000, 28, 28, 1)
    assert dataset.test["targets"].shape == (10_000,)
    # Known since 1998: the first labels, and the number of fives, the rarest digit.
    assert dataset.train["targets"][:5].tolist() == [5, 0, 4, 1, 9]
    assert np.sum(dataset.train["targets"] == 5) == 5421
    for name in idx.FILES:
        content = idx.read_bytes(MNIST / f"{name}.gz")
        assert hashlib.sha256(content).hexdigest() == published_sha256("mnist", name)
    start = time.perf_counter()
    again = data.load("mnist", MNIST, log=silent)
    assert time.perf_counter() - start < 2  # 0.1 s on a quiet machine
    assert again.checksum == dataset.checksum
    np.testing.assert_array_equal(again.train["inputs"], dataset.train["inputs"])


DEBIAN = images.DEBIAN_FASHION_MNIST


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_real_fashion_mnist():
    said = []
    dataset = data.load("fashion_mnist", log=said.append)
    assert dataset.source == f"IDX files in {DEBIAN}" and "DLFLAX_OFFLINE is set" in said[0]
    assert np.bincount(dataset.train["targets"]).tolist() == [6000] * 10
    assert dataset.class_names[dataset.train["targets"][0]] == "Ankle boot"
    for name in idx.FILES:
        content = idx.read_bytes(DEBIAN / f"{name}.gz")
        assert hashlib.sha256(content).hexdigest() == published_sha256("fashion_mnist", name)


def test_fashion_mnist_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "DEBIAN_FASHION_MNIST", tmp_path)
    with pytest.raises(InputError, match="--data .* apt install dataset-fashion-mnist"):
        data.load("fashion_mnist", log=lambda sentence: None)


# The digits, and the network


def test_digits_stand_in():
    said = []
    dataset = data.load("mnist", log=said.append)
    assert dataset.name == "digits" and "NOT MNIST" in dataset.source
    assert "NOT MNIST" in said[-1] and "--data" in said[-1] and said[-1].startswith("NOT")
    train, test = dataset.train, dataset.test
    assert len(train["inputs"]) + len(test["inputs"]) == 1797
    assert train["inputs"].shape[1:] == (28, 28, 1) and train["inputs"].max() > 250
    share = np.bincount(test["targets"]) / np.bincount(
        np.concatenate([train["targets"], test["targets"]])
    )
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    again = data.load("digits", log=silent)
    assert again.checksum == dataset.checksum


def test_unroutable_host(monkeypatch):
    monkeypatch.delenv("DLFLAX_OFFLINE")
    mnist = published.DATASETS["mnist"]
    elsewhere = dataclasses.replace(mnist, files={"https://10.255.255.1/mnist": ""})
    monkeypatch.setitem(published.DATASETS, "mnist", elsewhere)
    start = time.perf_counter()
    assert data.load("mnist", log=lambda sentence: None).name == "digits"
    assert time.perf_counter() - start < 5


@pytest.mark.slow
def test_hanging_name_lookup(monkeypatch):
    monkeypatch.delenv("DLFLAX_OFFLINE")
    over = threading.Event()

    def hang(*args, **kwargs):
        over.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.perf_counter()
    assert data.load("mnist", log=lambda sentence: None).name == "digits"
    assert time.perf_counter() - start < 5
    over.set()


# The cache


def test_arrays_are_cached(tmp_path, monkeypatch):
    folder, cache = write(tmp_path / "x", GOOD), tmp_path / "kept"
    first = data.load("mnist", folder, cache_dir=cache, log=silent)
    kept = sorted(cache.rglob("*.*"))

    with monkeypatch.context() as patch:
        patch.setattr(idx, "read_bytes", lambda path: pytest.fail("read again"))
        again = data.load("mnist", folder, cache_dir=cache, log=silent)
    check(again, GOOD)
    for name in ("name", "source", "class_names", "checksum"):
        assert getattr(again, name) == getattr(first, name)

    changed = small_set(seed=1)
    write(folder, changed)
    other = data.load("mnist", folder, cache_dir=cache, log=silent)
    check(other, changed)
    assert other.checksum != first.checksum
    new = sorted(cache.rglob("*.*"))
    assert len(new) == len(kept) and not set(new) & set(kept)  # replaced

    (tmp_path / "file").touch()
    said = []
    check(data.load("mnist", folder, cache_dir=tmp_path / "file", log=said.append), changed)
    assert len(said) == 1 and "cannot be cached in" in said[0]


# TFDS


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server with the small set, in the place of the real one."""
    folder = write(tmp_path / "mirror", GOOD, pack=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        files = {
            f"http://127.0.0.1:{server.server_port}/{name}.gz":
            hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in GOOD.items()
        }  # fmt: skip
        for name in ("mnist", "fashion_mnist"):
            small = dataclasses.replace(published.DATASETS[name], files=files)
            monkeypatch.setitem(published.DATASETS, name, small)
        monkeypatch.delenv("DLFLAX_OFFLINE")
        yield folder
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_download(tmp_path, monkeypatch, mirror, name):
    said = []
    dataset = data.load(name, log=said.append)
    check(dataset, GOOD)
    folder = tmp_path / "tfds" / name / "3.0.1"
    assert dataset.source == f"TFDS {name}:3.0.1 in {folder}"
    assert dataset.class_names == published.DATASETS[name].class_names
    assert len(said) == 1 and "Decoding" in said[0]

    # From now on the prepared files do, with no network at all and without the cache.
    monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: pytest.fail("network"))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("network"))
    check(data.load(name, cache_dir=tmp_path / "another", log=said.append), GOOD)
    check(data.load(name, tmp_path / "tfds", log=silent), GOOD)  # as --data; cached

    import tensorflow_datasets as tfds

    examples = tfds.data_source(name, split="test", data_dir=tmp_path / "tfds")
    np.testing.assert_array_equal(examples[0]["image"], GOOD[TEST_IMAGES][0, ..., None])
    assert "tensorflow" not in sys.modules


def test_download_of_a_wrong_file(tmp_path, mirror):
    write(mirror, {TEST_LABELS: GOOD[TEST_LABELS][::-1].copy()}, pack=True)
    said = []
    assert data.load("mnist", log=said.append).name == "digits"
    assert f"{TEST_LABELS}.gz is not the published file" in said[0]
    assert not published.find_tfds(tmp_path / "tfds", "mnist")
    write(mirror, GOOD, pack=True)  # the wrong file was not kept
    said.clear()
    check(data.load("mnist", log=said.append), GOOD), said


def test_download_that_fails(mirror):
    (mirror / f"{TRAIN_LABELS}.gz").unlink()
    said = []
    assert data.load("mnist", log=said.append).name == "digits"
    assert "could not be downloaded" in said[0] and "\n" not in said[0]


def prepare(root, image_shapes, name="tiny", file_format="array_record"):
    """A TFDS data set of two classes with an image of each of these shapes in both splits."""
    import PIL.Image
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for index, shape in enumerate(image_shapes):
                png = io.BytesIO()
                PIL.Image.fromarray(np.full((*shape, 3), index, np.uint8)).save(png, format="png")
                yield index, {"image": png.getvalue(), "label": index % 2}

    Tiny.name = name
    builder = Tiny(data_dir=root)
    builder.download_and_prepare(file_format=file_format)
    return builder


def test_any_prepared_tfds_set(tmp_path):
    prepare(tmp_path / "tfds", [(5, 4)] * 3)
    dataset = data.load("tiny", log=lambda sentence: None)
    assert dataset.train["inputs"].shape == dataset.test["inputs"].shape == (3, 5, 4, 3)
    assert dataset.train["targets"].tolist() == [0, 1, 0]
    assert dataset.class_names == ("cat", "dog") and dataset.name == "tiny"


def test_tfds_set_of_several_shapes(tmp_path):
    prepare(tmp_path / "tfds", [(5, 4), (4, 5)])
    with pytest.raises(InputError, match="must have one shape"):
        data.load("tiny", log=lambda sentence: None)


def test_unreadable_tfds_set_is_passed_over(tmp_path, monkeypatch, mirror):
    """A damaged or TFRecord folder (here: without TensorFlow) is named, and mnist downloaded."""
    find_spec = images.importlib.util.find_spec
    monkeypatch.setattr(
        images.importlib.util,
        "find_spec",
        lambda name: None if name == "tensorflow" else find_spec(name),
    )
    builder = prepare(tmp_path / "tfds", [(28, 28)] * 2, name="mnist")
    info = Path(builder.data_dir) / "dataset_info.json"
    said = []
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    dataset = data.load("mnist", log=said.append)
    assert any("tfrecord format, which only TensorFlow reads" in sentence for sentence in said)
    check(dataset, GOOD)
    assert str(tmp_path / "cache" / "dlflax" / "tfds") in dataset.source
    info.write_text("{")
    with pytest.raises(InputError, match=r"1.0.0 cannot be read as labelled images"):
        data.load("mnist", tmp_path / "tfds", log=lambda sentence: None)


def test_other_names(tmp_path, monkeypatch):
    find_spec = images.importlib.util.find_spec
    found = {"tensorflow": None}
    monkeypatch.setattr(
        images.importlib.util,
        "find_spec",
        lambda name: found[name] if name in found else find_spec(name),
    )
    with pytest.raises(InputError, match=r'"cifar100" .*mnist, .*pip install "dlflax\[tf\]"'):
        data.load("cifar100", log=silent)
    with pytest.raises(InputError, match="has no data set: .* a TFDS folder with cifar100/"):
        data.load("cifar100", tmp_path, log=silent)

    import tensorflow_datasets as tfds

    # With TensorFlow TFDS prepares the set itself; here a stand-in does.
    found["tensorflow"] = find_spec("numpy")
    with pytest.raises(InputError, match="cifar100.* .DLFLAX_OFFLINE is set"):
        data.load("cifar100", log=silent)
    monkeypatch.delenv("DLFLAX_OFFLINE")
    monkeypatch.setattr(
        tfds, "builder", lambda name, data_dir: prepare(data_dir, [(3, 3)] * 2, name)
    )
    assert len(data.load("cifar100", log=lambda sentence: None).train["inputs"]) == 2

    def unknown(name, data_dir):
        raise tfds.core.DatasetNotFoundError(name)

    monkeypatch.setattr(tfds, "builder", unknown)
    with pytest.raises(InputError, match='"mnits" is neither built in .*mnist, .*mnits'):
        data.load("mnits", log=silent)


def test_order_of_sources(tmp_path, monkeypatch, mirror):
    """--data before what TFDS has prepared, and that before a download."""
    asked = []
    no_network = hub.network_error
    monkeypatch.setattr(hub, "network_error", lambda url: asked.append(url) or no_network(url))
    check(data.load("mnist", log=lambda sentence: None), GOOD)  # downloaded
    assert len(asked) == 1
    other = small_set(seed=2)
    folder = write(tmp_path / "x", other)
    check(data.load("mnist", folder, log=silent), other)
    check(data.load("mnist", log=silent), GOOD)  # prepared, from the cache
    assert len(asked) == 1


# The order of examples


def test_split():
    train = {"inputs": np.arange(50) * 2, "targets": np.arange(50)}
    kept, held_out = data.split(train, 0.3, seed=1)
    assert len(held_out["targets"]) == 15
    both = np.concatenate([kept["targets"], held_out["targets"]])
    np.testing.assert_array_equal(np.sort(both), np.arange(50))
    for part in (kept, held_out):
        np.testing.assert_array_equal(part["inputs"], part["targets"] * 2)
        assert (np.diff(part["targets"]) > 0).all()
    again = data.split(train, 0.3, seed=1)[1]["targets"]
    np.testing.assert_array_equal(again, held_out["targets"])
    assert (data.split(train, 0.3, seed=2)[1]["targets"] != held_out["targets"]).any()
    assert data.split(train, 0, seed=1) == (train, None)


@pytest.mark.parametrize("fraction", [1.0, -0.1, 1.5, float("nan"), 0.001, 0.999])
def test_bad_split(fraction):
    with pytest.raises(InputError, match=str(fraction)):
        data.split({"targets": np.arange(50)}, fraction)


def test_order():
    first = data.order(1000, seed=3, epoch=7)
    assert first.dtype == np.int32
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    np.random.seed(0)
    data.order(1000, seed=3, epoch=8)
    np.testing.assert_array_equal(data.order(1000, seed=3, epoch=7), first)
    for seed, epoch in ((3, 0), (3, 8), (7, 3), (0, 7)):
        assert (data.order(1000, seed, epoch) != first).mean() > 0.9
    # Saved runs depend on it: the same on every machine and with every NumPy.
    assert data.order(8, seed=0, epoch=0).tolist() == [4, 6, 3, 5, 2, 1, 0, 7]
    with pytest.raises(InputError, match="seed must be 0 or more, not -1"):
        data.order(5, -1, 0)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 5), (10, 4), (3, 8), (1, 1), (7, 1)])
def test_epoch_batches(n, batch_size):
    batches = data.epoch_batches(n, batch_size, seed=5, epoch=2)
    assert batches.dtype == np.int32 and batches.shape == (-(-n // batch_size), batch_size)
    flat = batches.reshape(-1)
    np.testing.assert_array_equal(flat[:n], data.order(n, 5, 2))
    np.testing.assert_array_equal(flat[n:], -1 - np.resize(flat[:n], len(flat) - n))


def test_bad_batches():
    for n, batch_size in ((0, 4), (4, 0)):
        with pytest.raises(InputError, match="of 1 or more"):
            data.epoch_batches(n, batch_size, 0, 0)
