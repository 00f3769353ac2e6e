"""The IDX files of MNIST and Fashion-MNIST: where they are published, their names, their format.

The format is described by LeCun, Cortes and Burges, "The MNIST database of handwritten digits"
(http://yann.lecun.com/exdb/mnist/): two zero bytes, a type code, the number of dimensions, one
big-endian uint32 per dimension, then the values in C order.
"""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from dlflax import files
from dlflax.errors import InputError

URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}

# Of the uncompressed files: mirrors compress the same bytes differently.
# fmt: off
SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}

CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}

FILES = tuple(SHA256["mnist"])  # train images, train labels, test images, test labels

_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}


def find_idx(folder: Path) -> dict[str, Path]:
    """The files of `folder` that are called one of `FILES`, with or without .gz.

    `train-images.idx3-ubyte` is accepted for `train-images-idx3-ubyte`.
    """
    found = {}
    for name in FILES:
        spellings = [name, name.replace("-idx", ".idx")]
        paths = [folder / (spelling + end) for end in ("", ".gz") for spelling in spellings]
        there = [path for path in paths if path.is_file()]
        if there:
            found[name] = there[0]
    return found


def read_bytes(path: Path) -> bytes:
    """The contents of `path`, unpacked when it is gzip.

    Raises InputError when the file cannot be read, is damaged gzip, is called .gz and is not, or is
    too large.
    """
    try:
        data = files.read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if not data.startswith(b"\x1f\x8b"):
        if path.suffix == ".gz":
            raise InputError(
                f"{path} is not gzip data, whatever its name says: download it again, "
                "or drop .gz from the name if the file is already unpacked."
            )
        return data
    most = files.max_file_bytes()  # a bomb unpacks to anything
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise InputError(f"{path} unpacks to more than {most / 1e9:.0f} GB: too much to read.")
        return content
    except EOFError:
        raise InputError(f"{path} is cut short, its gzip data has no end: get it again.") from None
    except (gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path} is damaged gzip data: download it again.") from None


def parse_idx(data: bytes, path: Path, ndim: int) -> np.ndarray:
    """The uint8 array with `ndim` dimensions in the IDX bytes `data`; `path` is for messages.

    Raises InputError for a wrong magic number, value type, number of dimensions or length.
    """
    want = f"an IDX file of uint8 values in {ndim} dimension{'s' * (ndim > 1)}"
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise InputError(
            f"{path} is not an IDX file (it starts with {data[:4].hex(' ') or 'nothing'}), but "
            f"{want} starts with 00 00 08 {ndim:02x}."
        )
    if data[2] != 8:
        raise InputError(f"{path} holds {_TYPES[data[2]]} values, but {want} is needed.")
    if data[3] != ndim:
        raise InputError(f"{path} has {data[3]} dimensions, but {want} is needed.")
    start = 4 + 4 * ndim
    if len(data) < start:
        raise InputError(f"{path} ends inside its header: download it again.")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise InputError(
            f"{path} promises {' x '.join(map(str, shape))} values in its header, that is "
            f"{math.prod(shape):,} bytes, but holds {len(data) - start:,}: download it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # copy: writable


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of an IDX file, gzip or not: (n, height, width) images or (n,) labels.

    Raises InputError as `read_bytes` and `parse_idx` do.
    """
    return parse_idx(read_bytes(path), path, ndim)
