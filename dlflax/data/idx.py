"""IDX files of MNIST and Fashion-MNIST: addresses, names and format.

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

# Checksums of the uncompressed files: mirrors compress the same bytes differently.
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
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}
# fmt: on

FILES = tuple(SHA256["mnist"])  # train images, train labels, test images, test labels

_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}


def find_idx(folder: Path) -> dict[str, Path]:
    """Returns the paths in `folder` of the `FILES`, with or without .gz.

    `train-images.idx3-ubyte` is accepted for `train-images-idx3-ubyte`.
    """
    paths = {}
    for name in FILES:
        spellings = [name, name.replace("-idx", ".idx")]
        for path in (folder / (spelling + end) for end in ("", ".gz") for spelling in spellings):
            if name not in paths and path.is_file():
                paths[name] = path
    return paths


def read_bytes(path: Path) -> bytes:
    """Reads a file, and decompresses it if it is gzip, or raises InputError."""
    try:
        data = files.read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if not data.startswith(b"\x1f\x8b"):
        if path.suffix == ".gz":
            raise InputError(
                f"{path} is not gzip data, in spite of its name: download it again, or remove .gz "
                "from the name if it is already decompressed."
            )
        return data
    limit = files.max_file_bytes()  # against gzip bombs
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except EOFError:
        raise InputError(f"{path} is truncated gzip data: download it again.") from None
    except (gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path} is damaged gzip data: download it again.") from None
    if len(content) > limit:
        raise InputError(f"{path} decompresses to more than {limit / 1e9:.0f} GB, the limit.")
    return content


def parse_idx(data: bytes, path: Path, ndim: int) -> np.ndarray:
    """Returns the uint8 array with `ndim` dimensions of IDX bytes, or raises InputError; `path` is
    for messages."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        start = data[:4].hex(" ") or "nothing"
        raise InputError(f"{path} is not an IDX file (it starts with {start}): download it again.")
    if data[2:4] != bytes([8, ndim]):
        raise InputError(
            f"{path} has {files.pluralize(data[3], 'dimensions')} of {_TYPES[data[2]]}; expected uint8 in "
            f"{ndim}."
        )
    start = 4 + 4 * ndim
    if len(data) < start:
        raise InputError(f"{path} ends inside its header: download it again.")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise InputError(
            f"{path} has {len(data) - start:,} values, but its header declares "
            f"{' x '.join(map(str, shape))}: download it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # copy: writable


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Returns the uint8 array of an IDX file, gzip or not, or raises InputError."""
    return parse_idx(read_bytes(path), path, ndim)
