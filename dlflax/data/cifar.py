"""Reader of CIFAR-10's binary version (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import io
import tarfile
from pathlib import Path

import numpy as np

from dlflax.data import idx
from dlflax.errors import InputError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
TITLE = "CIFAR-10's binary files"
EXPECTED = f"{ARCHIVE} or its folder {FOLDER}"
RECORD = 1 + 3 * 32 * 32  # the label, then the planes red, green and blue


def find(path: Path) -> list[Path]:
    """Returns the archive, or the six files in `path` or its folder cifar-10-batches-bin, or [].
    InputError for an incomplete data set or its Python version."""
    if path.is_file():
        return [path]
    for folder in (path, path / FOLDER):
        paths = [folder / file for file in FILES]
        if missing := [file.name for file in paths if not file.is_file()]:
            if any(file.exists() for file in paths):
                raise InputError(f"--data {path} has no {missing[0]}: all six are required.")
        else:
            return paths
    if (path / ARCHIVE).is_file():
        return [path / ARCHIVE]
    for python in (path / "data_batch_1", path / "cifar-10-batches-py"):
        if python.exists():
            raise InputError(
                f"{python} is CIFAR-10's Python version, pickles, which can run any code: give the "
                f"binary version, {URL}."
            )
    return []


def read(paths: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns [train, test] of `find`: images uint8 (n, 32, 32, 3), labels int32 (n,).
    InputError for a file that is damaged or has a label above 9."""
    if len(paths) == 1:
        root, contents = paths[0], _read_archive(paths[0])
    else:
        root, contents = paths[0].parent, {path.name: idx.read_bytes(path) for path in paths}
    batches = [_parse(root / file, contents[file]) for file in FILES]
    images, labels = map(np.concatenate, zip(*batches[:5], strict=True))
    return [(images, labels), batches[5]]


def _read_archive(path: Path) -> dict[str, bytes]:
    # Decompressed first: tarfile stops before gzip's checksum, and would accept damaged pixels.
    content = idx.read_bytes(path)
    contents = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                file = Path(member.name).name
                if file in FILES and member.isfile():
                    contents[file] = archive.extractfile(member).read()
    except tarfile.TarError as error:
        raise InputError(
            f"{path} is damaged or no tar archive ({error}): download it again from {URL}."
        ) from None
    if missing := [file for file in FILES if file not in contents]:
        raise InputError(f"{path} has no {missing[0]}: it should be {URL}.")
    return contents


def _parse(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % RECORD:
        raise InputError(
            f"{path} has {len(content):,} bytes, not {RECORD:,} for each image: download it again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    if (highest := records[:, 0].max()) > 9:
        raise InputError(f"{path} has the label {highest}, not 0 to 9.")
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int32)
