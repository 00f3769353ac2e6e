"""Cache on disk of images, decoded once and in parallel.

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
from dlflax.data.image.duplicates import drop_duplicates, find_repeats, thumbnail
from dlflax.data.image.folder_files import Listing, printable_name, skip_row
from dlflax.errors import InputError
from dlflax.files import STALE_SECONDS, atomic_write, cache_folder, host_memory, read_bytes
from dlflax.report.progress import progress_bar

_VERSION = 3  # of the cache's format and of the decoding


def load_images(
    folder: Path, size: int, stamp, list_files: Callable[[], Listing], origin: str, log
) -> tuple[np.ndarray, dict]:
    """Returns (pixels (n, size, size, 3), table) of a listing, cached under `stamp`, JSON values.

    Pixels are uint8, or float32 in the images' unit if more than nine of ten have 16 bits, 32 bits
    or floats. The table has n "labels", "names", "parts" (splits), "contents" (the first 16 hex
    digits of each file's SHA-256) and "repeated" (true for near duplicates), and "class_names",
    "given", "checksum", "report", "count" and "dtype". Each stamp has its own files, renamed when
    complete, so that no process reads partial ones. origin: for messages.
    """
    import PIL.Image

    stamp = [_VERSION, PIL.__version__, PIL.Image.MAX_IMAGE_PIXELS, size, stamp]
    version = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]
    key = f"{size} {printable_name(str(folder.resolve()))}"
    home = cache_folder() / "folders" / hashlib.sha256(key.encode()).hexdigest()[:12]
    pixels_path, table_path = home / f"{version}.npy", home / f"{version}.json"
    with contextlib.suppress(Exception):  # damaged bytes can raise anything: decode again
        return _read_cache(pixels_path, table_path, size)

    listing = drop_duplicates(list_files())
    count, dtype = len(listing.names), np.dtype("f4" if _are_deep(listing) else "u1")
    nbytes = count * size * size * 3 * dtype.itemsize
    try:
        home.mkdir(parents=True, exist_ok=True)
        _delete_stale(home, version)
        if shutil.disk_usage(home).free < nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with atomic_write(pixels_path) as temporary, open(temporary, "wb") as file:
            log(f"Decoding {count:,} images of {folder}, once: they are cached.")
            _write_header(file, count, size, dtype)
            table = decode(listing, size, file.write, dtype)
            file.seek(0)
            _write_header(file, len(table["names"]), size, dtype)
        text = json.dumps(table)
        with atomic_write(table_path) as temporary:  # last, because it marks the cache as complete
            checksum = hashlib.sha256(text.encode()).hexdigest()
            temporary.write_text(f"{checksum}\n{text}", encoding="utf-8", newline="\n")
        if table["names"]:
            return _read_cache(pixels_path, table_path, size)
        return np.empty((0, size, size, 3), dtype), table
    except OSError as error:
        log(f"The decoded images cannot be cached in {home} ({error.strerror or error}).")
    if nbytes > host_memory() / 2:
        raise InputError(
            f"{origin} takes {nbytes / 1e9:.1f} GB when decoded, too much for this machine's "
            f"memory and for {home}: set XDG_CACHE_HOME to a larger disk, or reduce --image-size."
        )
    log(f"Decoding {count:,} images of {folder} into memory.")
    pixels, rows = np.empty((count, size, size, 3), dtype), iter(range(count))

    def append(image: bytes) -> None:
        pixels[next(rows)] = np.frombuffer(image, dtype).reshape(size, size, 3)

    table = decode(listing, size, append, dtype)
    return pixels[: len(table["names"])], table


def _are_deep(listing: Listing) -> bool:
    """True if more than nine of ten images have 16 or 32 bits or floats, by their headers."""
    from dlflax.data.image import image_file

    def is_deep(index: int) -> bool | None:
        name = Path(listing.names[index])
        if name.suffix.lower() in image_file.FORMATS["JPEG"]:
            return False
        with contextlib.suppress(Exception), listing.open(index) as file:  # `decode` reports it
            return image_file.is_deep(file, name)

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        deep = [d for d in pool.map(is_deep, range(len(listing.names))) if d is not None]
    return sum(deep) > 0.9 * len(deep)


def _write_header(file: BinaryIO, count: int, size: int, dtype: np.dtype) -> None:
    """Writes the header of an .npy file, which NumPy pads to the same length for any count."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _delete_stale(home: Path, version: str) -> None:
    """Deletes the files of older stamps and killed processes."""
    for path in home.iterdir():
        with contextlib.suppress(OSError):
            abandoned = time.time() - path.stat().st_mtime > STALE_SECONDS
            if abandoned if path.suffix == ".tmp" else not path.name.startswith(version):
                path.unlink()


def _read_cache(pixels_path: Path, table_path: Path, size: int) -> tuple[np.ndarray, dict]:
    """Reads the files of `load_images`. Raises any exception if they are damaged."""
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


def _checksum(digest, table: dict) -> str:
    """Returns the checksum of the data set. digest: hashlib's, of the pixels."""
    columns = [table[name] for name in ("class_names", "labels", "names")]
    digest.update(json.dumps(columns).encode())
    return digest.hexdigest()


def decode(listing: Listing, size: int, write: Callable[[bytes], object], dtype) -> dict:
    """Decodes in a thread for each core, and passes each image's bytes to `write` in order.
    Returns the table of `load_images`. dtype: uint8, or float32 for pixels in the images' unit."""
    import grain

    from dlflax.data.image import image_file

    def decode_file(index: int):
        """Returns pixels or None, their thumbnail, the file's digest, rows of the report."""
        name = listing.names[index]
        try:
            with listing.open(index) as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
                file.seek(0)
                pixels, lost = image_file.decode(
                    file, Path(name), (size, size, 3), dtype.kind == "f"
                )
        except image_file.ImageError as error:
            reason = f"{error.kind}: {error.detail}" if error.detail else error.kind
            return None, None, "", [skip_row(name, error.kind, reason)]
        except Exception as error:  # the file system's, or TFDS's
            text = getattr(error, "strerror", None) or download.first_line(error)
            return None, None, "", [skip_row(name, "unreadable", f"unreadable: {text}")]
        kinds = ["misnamed" if " named " in reason else reason.split(",")[0] for reason in lost]
        rows = [[name, "converted", *row] for row in zip(kinds, lost, strict=True)]
        if (pixels == pixels[0, 0]).all():
            rows.append([name, "listed", "of one colour", "all pixels have one colour"])
        return pixels, thumbnail(pixels), content, rows

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=4 * cores)
    indices = grain.MapDataset.range(len(listing.names))
    results = indices.map(decode_file).to_iter_dataset(options)
    report, digest, decoded = list(listing.report), hashlib.sha256(), []
    with warnings.catch_warnings(), progress_bar("decoding", len(listing.names)) as advance:
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata, in every thread
        for index, (pixels, small, content, rows) in enumerate(results):
            advance(1)
            report.extend(rows)
            if pixels is not None:
                pixels = pixels.tobytes()
                digest.update(pixels)
                write(pixels)
                row = listing.names[index], listing.labels[index], listing.splits[index]
                decoded.append((*row, content, small, hashlib.sha256(pixels).digest()))
    columns = map(list, zip(*decoded, strict=True)) if decoded else ([] for _ in range(6))
    names, labels, splits, contents, thumbnails, digests = columns
    thumbnails = np.array(thumbnails)
    if dtype.kind == "f" and len(thumbnails):  # `find_repeats` compares them in the unit of 8 bits
        low, high = np.percentile(thumbnails, (1, 99))
        thumbnails = (thumbnails - low) * np.float32(255 / max(high - low, 1e-30))
    repeated, rows = find_repeats(thumbnails, digests, labels, names)
    table = {
        "labels": labels, "names": names, "parts": splits, "contents": contents,
        "repeated": repeated.tolist(), "class_names": listing.class_names, "given": listing.given,
        "report": sorted(report + rows), "count": listing.count, "dtype": dtype.str,
    }  # fmt: skip
    return {**table, "checksum": _checksum(digest, table)}
