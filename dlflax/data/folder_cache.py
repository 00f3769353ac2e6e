"""Pictures decoded once, in parallel, and kept on disk.

PIL and grain are imported only where they are needed.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dlflax.data import download
from dlflax.data.duplicates import repeated, small, without_duplicates
from dlflax.data.folder_files import Found, shown, skipped
from dlflax.errors import InputError
from dlflax.files import STALE_SECONDS, atomic_write, cache_folder, host_memory, read_bytes
from dlflax.report.progress import progress_bar

_VERSION = 3  # of the cache's format and of the decoding


def decoded(
    folder: Path, size: int, stamp, find: Callable[[], Found], place: str, log
) -> tuple[np.ndarray, dict]:
    """Returns (pixels (n, size, size, 3), table) of what find() finds, kept for as long as `stamp`,
    JSON values, is the same. Pixels are uint8, or float32 in their own unit where more than nine of
    ten images have 16 bits, 32 bits or floats. The table has n "labels", "names", "parts",
    "contents" (of each file's SHA-256 the first 16 hex digits) and "repeated" (whether it shows the
    same as an earlier one), and "class_names", "given", "checksum", "report", "count" and "dtype".

    Each stamp has files of its own names, complete from the moment they have them: another
    process, or one that is killed, leaves nothing that would be read wrongly.
    """
    import PIL.Image

    stamp = [_VERSION, PIL.__version__, PIL.Image.MAX_IMAGE_PIXELS, size, stamp]
    version = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]
    key = hashlib.sha256(f"{size} {shown(str(folder.resolve()))}".encode()).hexdigest()[:12]
    home = cache_folder() / "folders" / key
    pixels_path, table_path = home / f"{version}.npy", home / f"{version}.json"
    with contextlib.suppress(Exception):  # damaged bytes can raise anything: decode again
        return _read_cache(pixels_path, table_path, size)

    found = without_duplicates(find())
    count, dtype = len(found.names), np.dtype("f4" if _are_deep(found) else "u1")
    nbytes = count * size * size * 3 * dtype.itemsize
    what = f"Decoding {count:,} pictures of {folder}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _tidy(home, version)
        if shutil.disk_usage(home).free < nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with atomic_write(pixels_path) as temporary, open(temporary, "wb") as file:
            log(f"{what} (once: they are kept for the next start).")
            _write_header(file, count, size, dtype)
            table = decode(found, size, file.write, dtype)
            file.seek(0)
            _write_header(file, len(table["names"]), size, dtype)
        text = json.dumps(table)
        with atomic_write(table_path) as temporary:  # the last, so what it is for is there
            checksum = hashlib.sha256(text.encode()).hexdigest()
            temporary.write_text(f"{checksum}\n{text}", encoding="utf-8", newline="\n")
        if table["names"]:
            return _read_cache(pixels_path, table_path, size)
        return np.empty((0, size, size, 3), dtype), table
    except OSError as error:
        log(f"The decoded pictures cannot be kept in {home} ({error.strerror or error}).")
    if nbytes > host_memory() / 2:
        raise InputError(
            f"{place} takes {nbytes / 1e9:.1f} GB when decoded, too much for this machine's memory "
            f"and for {home}: set XDG_CACHE_HOME to a folder with room, or a smaller --size."
        )
    log(f"{what} into memory.")
    pixels, rows = np.empty((count, size, size, 3), dtype), iter(range(count))

    def append(picture: bytes) -> None:
        pixels[next(rows)] = np.frombuffer(picture, dtype).reshape(size, size, 3)

    table = decode(found, size, append, dtype)
    return pixels[: len(table["names"])], table


def _are_deep(found: Found) -> bool:
    """True if more than nine of ten images have 16 or 32 bits or floats, by their headers."""
    from dlflax.data import picture

    def is_deep(index: int) -> bool | None:
        name = Path(found.names[index])
        if name.suffix.lower() in picture.FORMATS["JPEG"]:
            return False
        with contextlib.suppress(Exception), found.open(index) as file:  # decoding will tell
            return picture.is_deep(file, name)

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        deep = [d for d in pool.map(is_deep, range(len(found.names))) if d is not None]
    return sum(deep) > 0.9 * len(deep)


def _write_header(file: BinaryIO, count: int, size: int, dtype: np.dtype) -> None:
    """Of an .npy file; NumPy pads it, so that another count does not change its length."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _tidy(home: Path, version: str) -> None:
    """Deletes what older stamps and killed processes left."""
    for path in home.iterdir():
        with contextlib.suppress(OSError):
            abandoned = time.time() - path.stat().st_mtime > STALE_SECONDS
            if abandoned if path.suffix == ".tmp" else not path.name.startswith(version):
                path.unlink()


def _read_cache(pixels_path: Path, table_path: Path, size: int) -> tuple[np.ndarray, dict]:
    """What `decoded` kept. Raises anything when it is not whole."""
    checksum, _, text = read_bytes(table_path).decode("utf-8").partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise ValueError("damaged")
    table = json.loads(text)
    pixels = np.load(pixels_path, mmap_mode="r")
    if pixels.shape != (len(table["names"]), size, size, 3) or pixels.dtype.str != table["dtype"]:
        raise ValueError("damaged")
    digest = hashlib.sha256()
    for start in range(0, len(pixels), 1024):
        digest.update(pixels[start : start + 1024])
    if _checksum(digest, table) != table["checksum"]:  # a flipped bit of a pixel
        raise ValueError("damaged")
    return pixels, table


def _checksum(pixels_digest, table: dict) -> str:
    """Of all that is trained on. pixels_digest: SHA-256 of the pixels."""
    columns = [table[name] for name in ("class_names", "labels", "names")]
    pixels_digest.update(json.dumps(columns).encode())
    return pixels_digest.hexdigest()


def decode(
    found: Found, size: int, write: Callable[[bytes], object], dtype: np.dtype
) -> dict:  # fmt: skip
    """Decodes with as many threads as there are cores and gives `write` each good image's bytes, in
    order. Returns the table of `decoded`. dtype: uint8, or float32 for pixels in their own unit."""
    import grain

    from dlflax.data import picture

    def one(index: int):
        """(array or None, its small picture, its file's digest, its rows of the report)."""
        name = found.names[index]
        try:
            with found.open(index) as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
                file.seek(0)
                pixels, odd = picture.decode(file, Path(name), (size, size, 3), dtype.kind == "f")
        except picture.PictureError as error:
            reason = f"{error.kind}: {error.detail}" if error.detail else error.kind
            return None, None, "", [skipped(name, error.kind, reason)]
        except Exception as error:  # the file system's, or TFDS's
            text = getattr(error, "strerror", None) or download.first_line(error)
            return None, None, "", [skipped(name, "unreadable", f"unreadable: {text}")]
        kinds = ["misnamed" if " named " in reason else reason.split(",")[0] for reason in odd]
        rows = [[name, "converted", kind, why] for kind, why in zip(kinds, odd, strict=True)]
        if (pixels == pixels[0, 0]).all():
            rows.append([name, "listed", "of one colour", "all pixels have one colour"])
        return pixels, small(pixels), content, rows

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=4 * cores)
    indices = grain.MapDataset.range(len(found.names))
    results = indices.map(one).to_iter_dataset(options)
    report, digest = list(found.report), hashlib.sha256()
    kept, contents, pictures, digests = [], [], [], []
    with warnings.catch_warnings(), progress_bar("decoding", len(found.names)) as advance:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, in every thread
        for index, (pixels, picture_, content, rows) in enumerate(results):
            advance(1)
            report.extend(rows)
            if pixels is not None:
                pixels = pixels.tobytes()
                digest.update(pixels)
                write(pixels)
                kept.append(index)
                contents.append(content)
                pictures.append(picture_)
                digests.append(hashlib.sha256(pixels).digest())
    names, labels, parts = (
        [column[index] for index in kept] for column in (found.names, found.labels, found.parts)
    )
    pictures = np.array(pictures)
    if dtype.kind == "f" and len(pictures):  # in the unit of 8 bits, as `repeated` compares them
        low, high = np.percentile(pictures, (1, 99))
        pictures = (pictures - low) * np.float32(255 / max(high - low, 1e-30))
    again, rows = repeated(pictures, digests, labels, names)
    table = {
        "labels": labels, "names": names, "parts": parts, "contents": contents,
        "repeated": again.tolist(), "class_names": found.class_names, "given": found.given,
        "report": sorted(report + rows), "count": found.count, "dtype": dtype.str,
    }  # fmt: skip
    return {**table, "checksum": _checksum(digest, table)}
