"""IDX files of MNIST and Fashion-MNIST.

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

FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip
TITLE = "IDX files"
EXPECTED = f"a folder with {', '.join(FILES)}, each with or without .gz"

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


def find(folder: Path) -> list[Path]:
    """Returns the four `FILES` in `folder`, or []. InputError if some are missing."""
    paths = find_idx(folder)
    if paths and (missing := [name for name in FILES if name not in paths]):
        raise InputError(
            f"--data {folder} has no {missing[0]} (or {missing[0]}.gz): it should be {EXPECTED}."
        )
    return [paths[name] for name in FILES if paths]


def read(paths: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns [train, test] of `find`: images uint8 (n, h, w, 1), labels int32 (n,)."""
    images, labels, test_images, test_labels = map(read_idx, paths, (3, 1, 3, 1))
    pairs = (images, labels), (test_images, test_labels)
    return [(images[..., None], labels.astype(np.int32)) for images, labels in pairs]


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


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Returns the uint8 array with `ndim` dimensions of an IDX file, gzip or not, or raises
    InputError."""
    data = read_bytes(path)
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
