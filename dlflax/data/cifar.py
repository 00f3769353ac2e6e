"""CIFAR-10's binary version (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import io
import tarfile
from pathlib import Path

import numpy as np

from dlflax.data import idx
from dlflax.errors import InputError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
RECORD = 1 + 3 * 32 * 32  # the label, then the planes red, green and blue


def find_cifar(place: Path) -> list[Path]:
    """The archive, or the six files in `place` or its folder cifar-10-batches-bin; [] when there is
    nothing of CIFAR-10. InputError when a file is missing, or there is only the Python version."""
    if place.is_file():
        return [place]
    for folder in (place, place / FOLDER):
        found = [folder / file for file in FILES]
        if any(path.exists() for path in found):
            for path in found:
                if not path.is_file():
                    raise InputError(f"--data-dir {place} has no {path.name}: all six are needed.")
            return found
    if (place / ARCHIVE).is_file():
        return [place / ARCHIVE]
    for python in (place / "data_batch_1", place / "cifar-10-batches-py"):
        if python.exists():
            raise InputError(
                f"{python} is CIFAR-10's Python version, pickles that could run anything: give the "
                f"binary version, {URL}."
            )
    return []


def read_cifar(paths: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """[train, test] from what `find_cifar` found: images uint8 (n, 32, 32, 3), labels int32
    (n,). Nothing is unpacked to disk. InputError for a file that is damaged, has no whole number
    of records, or has a label above 9."""
    if len(paths) == 1:
        place, contents = paths[0], _members(paths[0])
    else:
        place, contents = paths[0].parent, {path.name: idx.read_bytes(path) for path in paths}
    parts = [_parse(place / file, contents[file]) for file in FILES]
    train = [np.concatenate(arrays) for arrays in zip(*parts[:5], strict=True)]
    return [(train[0], train[1]), parts[5]]


def _members(path: Path) -> dict[str, bytes]:
    # Unpacked first: tarfile stops before gzip's checksum, and would accept damaged pixels.
    content = idx.read_bytes(path)
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                file = Path(member.name).name
                if file in FILES and member.isfile():
                    found[file] = archive.extractfile(member).read()
    except tarfile.TarError as error:
        raise InputError(
            f"{path} is damaged or no archive ({error}): download it again from {URL}."
        ) from None
    if missing := [file for file in FILES if file not in found]:
        raise InputError(f"{path} has no {missing[0]}: it should be {URL}.")
    return found


def _parse(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % RECORD:
        raise InputError(
            f"{path} has {len(content):,} bytes, but should have {RECORD:,} for each image: "
            "download it again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    if (highest := records[:, 0].max()) > 9:
        raise InputError(f"{path} has the label {highest}, but labels are 0 to 9.")
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int32)
