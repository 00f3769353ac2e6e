"""Images of any size and format, decoded in parallel, once: they are cached.

PIL and grain are imported only where they are needed.
"""

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dlflax import cache
from dlflax.data.image.duplicates import drop_duplicates, find_repeats, thumbnail
from dlflax.data.image.folder_files import Listing, printable_name, skip_row
from dlflax.errors import InputError, first_line
from dlflax.files import host_memory
from dlflax.report.progress import progress_bar

_VERSION = 4  # of the cache's format and of the decoding


def load_images(
    folder: Path, size: int, stamp, list_files: Callable[[], Listing], origin: str, log
) -> tuple[np.ndarray, dict]:
    """Returns (pixels (n, size, size, 3), table) of a listing, cached under `stamp`, JSON values.

    Pixels are uint8, or float32 in the images' unit if more than nine of ten have 16 bits, 32 bits
    or floats. The table has n "labels", "names", "parts" (splits), "contents" (the first 16 hex
    digits of each file's SHA-256) and "repeated" (true for near duplicates), and "class_names",
    "given", "checksum", "report" and "count". origin: for messages.
    """
    import PIL.Image

    home = cache.digest(f"{size} {printable_name(str(folder.resolve()))}".encode())[:12]
    version = [_VERSION, PIL.__version__, PIL.Image.MAX_IMAGE_PIXELS, size, stamp]
    path = cache.cache_folder() / "folders" / home / cache.digest(version)[:16]
    if entry := cache.read(path):
        return entry[1]["pixels"], entry[0]

    listing, shape = drop_duplicates(list_files()), (size, size, 3)
    count, dtype = len(listing.names), np.dtype("f4" if _are_deep(listing) else "u1")
    nbytes, table = count * math.prod(shape) * dtype.itemsize, {}

    def blocks() -> Iterator[np.ndarray]:
        log(f"Decoding {count:,} images of {folder}, once: they are cached.")
        yield np.empty((0, *shape), dtype)
        yield from (image[None] for image in decode(listing, shape, dtype, table))

    written = cache.write(path, table, {"pixels": blocks()}, log, nbytes=nbytes, alone=True)
    if written and (entry := cache.read(path)):
        return entry[1]["pixels"], entry[0]
    if nbytes > host_memory() / 2:
        raise InputError(
            f"{origin} takes {nbytes / 1e9:.1f} GB when decoded, too much for this machine's "
            f"memory and for {path.parent}: set XDG_CACHE_HOME to a larger disk, or reduce "
            "--image-size."
        )
    log(f"Decoding {count:,} images of {folder} into memory.")
    pixels = np.empty((count, *shape), dtype)
    for row, image in enumerate(decode(listing, shape, dtype, table)):
        pixels[row] = image
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


def decode(
    listing: Listing, shape: tuple[int, int, int], dtype: np.dtype, table: dict
) -> Iterator[np.ndarray]:
    """Yields images in order, decoded in a thread for each core, and then fills the table of
    `load_images`. dtype: uint8, or float32 for pixels in the images' unit."""
    import grain

    from dlflax.data.image import image_file

    def decode_file(index: int):
        """Returns pixels or None, their thumbnail, the file's digest, rows of the report."""
        name = listing.names[index]
        try:
            with listing.open(index) as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
                file.seek(0)
                pixels, lost = image_file.decode(file, Path(name), shape, dtype.kind == "f")
        except image_file.ImageError as error:
            reason = f"{error.kind}: {error.detail}" if error.detail else error.kind
            return None, None, "", [skip_row(name, error.kind, reason)]
        except Exception as error:  # the file system's, or TFDS's
            text = getattr(error, "strerror", None) or first_line(error)
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
                pixels = np.ascontiguousarray(pixels)
                digest.update(pixels)
                row = listing.names[index], listing.labels[index], listing.splits[index]
                decoded.append((*row, content, small, hashlib.sha256(pixels).digest()))
                yield pixels
    columns = map(list, zip(*decoded, strict=True)) if decoded else ([] for _ in range(6))
    names, labels, splits, contents, thumbnails, digests = columns
    thumbnails = np.array(thumbnails)
    if dtype.kind == "f" and len(thumbnails):  # `find_repeats` compares them in the unit of 8 bits
        low, high = np.percentile(thumbnails, (1, 99))
        thumbnails = (thumbnails - low) * np.float32(255 / max(high - low, 1e-30))
    repeated, rows = find_repeats(thumbnails, digests, labels, names)
    digest.update(json.dumps([listing.class_names, labels, names]).encode())
    table |= {
        "labels": labels, "names": names, "parts": splits, "contents": contents,
        "repeated": repeated.tolist(), "class_names": listing.class_names, "given": listing.given,
        "report": sorted(report + rows), "count": listing.count, "checksum": digest.hexdigest(),
    }  # fmt: skip
