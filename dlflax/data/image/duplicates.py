"""Detection of duplicate images: equal bytes, equal pixels, or the same image re-encoded.

Duplicates would leak from the train split into the test split. Merely similar images, such as a
burst of one scene, are listed and kept: only the user can judge them.
"""

import collections
import contextlib
import dataclasses
import hashlib

import numpy as np

from dlflax.data.image.folder_files import Listing, skip_row

SIDE = 16  # pixels a side of the thumbnails that are compared
COLOUR = 0.25  # weight of the colours, which JPEG degrades, relative to the lightness
# Thresholds of the root mean square difference of two thumbnails over the standard deviation of
# their lightness. Measured by `python -m benchmarks.near_duplicates` on 1,399 photographs: copies,
# re-encoded or resized, differ by up to 0.06 (95th percentile), images shifted by 2 % by 0.09 or
# more, unrelated ones by 0.8.
SAME, ALIKE = 0.07, 0.4
# In a data set of similar images (scanned forms, parts on a belt) duplicates have to be nearer than
# this share of the usual distance.
MUCH_NEARER = 0.25
MOST_PAIRS = 2 * 10**9  # compared pairs, of the nearest mean brightness
MOST_NEAR = 10**6  # near pairs at which the search stops
FEWEST_COLUMNS = 1024
PLAIN = 4.0  # of 255: thumbnails of a smaller standard deviation have no comparable structure


def drop_duplicates(listing: Listing) -> Listing:
    """Drops files with the bytes of another one, and adds them to the report."""
    same_size = collections.Counter(listing.sizes)
    same_bytes = collections.defaultdict(list)
    for index, size in enumerate(listing.sizes):
        if same_size[size] > 1:
            with contextlib.suppress(Exception), listing.open(index) as file:  # `decode` reports it
                same_bytes[hashlib.file_digest(file, "sha256").digest()].append(index)
    report, dropped, labels = list(listing.report), set(), listing.labels
    for indices in same_bytes.values():
        conflict = len({labels[index] for index in indices}) > 1
        for index in indices[not conflict :]:
            other = indices[0]
            if conflict:
                other = next(i for i in indices if labels[i] != labels[index])
            reason = f"same bytes as {listing.names[other]}" + ", of another class" * conflict
            kind = "in two classes" if conflict else "duplicate"
            report.append(skip_row(listing.names[index], kind, reason))
            dropped.add(index)
    unique = [index for index in range(len(listing.names)) if index not in dropped]
    columns = {
        name: [getattr(listing, name)[index] for index in unique]
        for name in ("names", "labels", "splits", "sizes")
    }
    return dataclasses.replace(
        listing, **columns, open=lambda index: listing.open(unique[index]), report=report
    )


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Returns lightness and colours of uint8 (h, w, 3) as float16 (3 * SIDE * SIDE,), or gray
    float32 pixels as float32 (SIDE * SIDE,)."""
    import PIL.Image

    gray = pixels.dtype == np.float32
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if gray else pixels)
    image = image if gray else image.convert("YCbCr")
    image = np.asarray(image.resize((SIDE, SIDE), PIL.Image.Resampling.BOX))
    if gray:
        return image.ravel()
    return (np.float16(image) * np.float16([1, COLOUR, COLOUR])).transpose(2, 0, 1).ravel()


def find_repeats(thumbnails, digests, labels, names) -> tuple[np.ndarray, list[list[str]]]:
    """Returns bool (n,), true for decoded images that repeat an earlier one, and report rows. Of a
    pair with different labels both are true. thumbnails: (n, d); digests: of the pixels."""
    pairs = {}  # (earlier, later) -> distance
    first: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        if (other := first.setdefault(digest, index)) != index:
            pairs[other, index] = 0.0
    usual = _usual_distance(thumbnails)
    same = min(SAME, MUCH_NEARER * usual)
    near, limit = _near_pairs(thumbnails, min(ALIKE, 0.5 * usual))
    report = [["all images", "listed", "of too many", limit]] if limit else []
    dropped, alike = np.zeros(len(names), bool), {}
    for (one, other), distance in sorted({**near, **pairs}.items()):
        if distance > same:
            alike.setdefault(other, one)
        elif labels[one] != labels[other]:
            for index, partner in ((one, other), (other, one)):
                if not dropped[index]:
                    reason = f"shows the same as {names[partner]}, of another class"
                    report.append(skip_row(names[index], "in two classes", reason))
            dropped[[one, other]] = True
        elif not dropped[one] and not dropped[other]:
            reason = f"shows the same as {names[one]}{'' if distance else ', to the pixel'}"
            report.append(skip_row(names[other], "near duplicate", reason))
            dropped[other] = True
    report += [
        [names[other], "listed", "alike", f"resembles {names[one]}"]
        for other, one in alike.items()
        if not dropped[[one, other]].any()
    ]
    return dropped, report


def _usual_distance(thumbnails) -> float:
    """Returns the median distance of the fifth neighbour in a sample: four may be copies."""
    if len(thumbnails) < 7:
        return 1.0
    sample = np.float32(thumbnails[:: max(1, len(thumbnails) // 256)])
    nearest = np.partition(distances(sample, np.float32(thumbnails)), 5, axis=1)[:, 5]
    return float(np.median(nearest))


def distances(a, b) -> np.ndarray:
    """Returns the distances (n, m) of thumbnails (n, d) and (m, d), infinite for plain ones."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    rms = np.sqrt(squares.clip(0) / SIDE**2)
    contrast = np.minimum(_contrast(a)[:, None], _contrast(b))
    return np.where(contrast < PLAIN, np.inf, rms / contrast.clip(PLAIN))


def _contrast(thumbnails) -> np.ndarray:
    """Returns the standard deviation of lightness, float32 (n,)."""
    return np.std(thumbnails[:, : SIDE**2], axis=1, dtype=np.float32)


def _near_pairs(thumbnails, threshold: float) -> tuple[dict[tuple[int, int], float], str]:
    """Returns {(earlier, later): distance} up to a threshold, and the limit that stopped the
    search, or "". Only pairs whose mean brightness allows such a distance are compared."""
    thumbnails, pairs, limit = np.asarray(thumbnails), {}, ""
    if len(thumbnails) < 2:
        return {}, ""
    means = thumbnails[:, : SIDE**2].mean(1, dtype=np.float32)
    reach = threshold * _contrast(thumbnails).max()
    order = np.argsort(means, kind="stable")
    ascending, most_columns = means[order], max(FEWEST_COLUMNS, MOST_PAIRS // len(order))
    for start in range(0, len(order), 512):
        rows = order[start : start + 512]
        stop = np.searchsorted(ascending, means[rows[-1]] + reach, side="right")
        if stop > start + most_columns:
            stop = start + most_columns
            limit = f"near duplicates: compared with the {stop - start:,} of nearest brightness"
        columns = order[start:stop]
        block = distances(np.float32(thumbnails[rows]), np.float32(thumbnails[columns]))
        for i, j in np.argwhere(block <= threshold):
            one, other = sorted((int(rows[i]), int(columns[j])))
            if one != other:
                pairs[one, other] = float(block[i, j])
        if len(pairs) > MOST_NEAR:
            return pairs, f"near duplicates: more than {MOST_NEAR:,} pairs, the rest not compared"
    return pairs, limit
