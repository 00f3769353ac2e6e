"""Pictures that are there twice: the same bytes, the same pixels, or the same picture saved anew.

What is there twice would be in training and in the test. Pictures that are merely alike, such as a
burst of one scene, are listed and kept: nobody but the user knows what they are.
"""

import collections
import contextlib
import dataclasses
import hashlib

import numpy as np

from dlflax.data.folder_files import Found, skipped

SIDE = 16  # pixels of the small pictures that are compared
COLOUR = 0.25  # weight of the colours beside the lightness
# Root mean square difference of two small pictures over the standard deviation of their lightness.
# Measured by `python -m benchmarks.near_duplicates` on 1,399 photographs: re-encoded or resized
# ones differ by up to 0.06 in 95 of 100 cases, those moved by 2 % by 0.09 or more, others by 0.8.
SAME, ALIKE = 0.07, 0.4
# Where all pictures are alike (scanned forms, parts on a belt) that says nothing: the same are
# then those that are as much nearer than others usually are.
MUCH_NEARER = 0.25
PLAIN = 4.0  # of 255: with a smaller standard deviation there is nothing to compare by


def without_duplicates(found: Found) -> Found:
    """`found` without files that have the bytes of another one; they are in its report."""
    same_size = collections.Counter(found.sizes)
    same_bytes = collections.defaultdict(list)
    for index, size in enumerate(found.sizes):
        if same_size[size] > 1:
            with contextlib.suppress(Exception), found.open(index) as file:  # decoding will tell
                same_bytes[hashlib.file_digest(file, "sha256").digest()].append(index)
    report, dropped = list(found.report), set()
    for indices in same_bytes.values():
        conflict = len({found.labels[index] for index in indices}) > 1
        for index in indices[not conflict :]:
            other = indices[0]
            if conflict:
                other = next(i for i in indices if found.labels[i] != found.labels[index])
            reason = f"same bytes as {found.names[other]}" + ", of another class" * conflict
            kind = "in two classes" if conflict else "duplicate"
            report.append(skipped(found.names[index], kind, reason))
            dropped.add(index)
    kept = [index for index in range(len(found.names)) if index not in dropped]
    return dataclasses.replace(
        found,
        names=[found.names[i] for i in kept],
        labels=[found.labels[i] for i in kept],
        parts=[found.parts[i] for i in kept],
        sizes=[found.sizes[i] for i in kept],
        open=lambda index: found.open(kept[index]),
        report=report,
    )


def small(pixels: np.ndarray) -> np.ndarray:
    """A picture, uint8 (h, w, 3), as what is compared: float16 (3 * SIDE * SIDE,), its lightness
    and then its colours, which count less: JPEG keeps fewer of them. A gray one of float32 in its
    own unit: float32 (SIDE * SIDE,)."""
    import PIL.Image

    if pixels.dtype == np.float32:
        picture = PIL.Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
        return np.asarray(picture.resize((SIDE, SIDE), PIL.Image.Resampling.BOX)).ravel()
    picture = PIL.Image.fromarray(pixels).convert("YCbCr")
    picture = np.asarray(picture.resize((SIDE, SIDE), PIL.Image.Resampling.BOX), np.float16)
    return (picture * np.float16([1, COLOUR, COLOUR])).transpose(2, 0, 1).ravel()


def repeated(pictures, digests, labels, names) -> tuple[np.ndarray, list[list[str]]]:
    """Which of n decoded pictures repeat an earlier one: (bool (n,), rows of the report).

    pictures: `small` of each, (n, d); digests: of the pixels. Where the two have different labels,
    both are out. Pictures that are only alike get a row too, and stay.
    """
    pairs = {}  # (earlier, later) -> distance
    first: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        if (other := first.setdefault(digest, index)) != index:
            pairs[other, index] = 0.0
    usual = _usual_distance(pictures)
    same = min(SAME, MUCH_NEARER * usual)
    pairs = {**_near(pictures, min(ALIKE, 0.5 * usual)), **pairs}
    dropped, alike, report = np.zeros(len(names), bool), {}, []
    for (one, other), distance in sorted(pairs.items()):
        if distance > same:
            alike.setdefault(other, one)
        elif labels[one] != labels[other]:
            for index, partner in ((one, other), (other, one)):
                if not dropped[index]:
                    reason = f"shows the same as {names[partner]}, of another class"
                    report.append(skipped(names[index], "in two classes", reason))
            dropped[[one, other]] = True
        elif not dropped[one] and not dropped[other]:
            how = "" if distance else ", to the pixel"
            reason = f"shows the same as {names[one]}{how}"
            report.append(skipped(names[other], "near duplicate", reason))
            dropped[other] = True
    report += [
        [names[other], "listed", "alike", f"looks much like {names[one]}"]
        for other, one in alike.items()
        if not dropped[[one, other]].any()
    ]
    return dropped, report


def _usual_distance(pictures) -> float:
    """How far a picture's fifth-nearest is, at the median of some: four may be copies of it."""
    some = np.float32(pictures[:: max(1, len(pictures) // 256)])
    if len(pictures) < 7:
        return 1.0
    nearest = np.partition(distances(some, np.float32(pictures)), 5, axis=1)[:, 5]
    return float(np.median(nearest))


def distances(some, others) -> np.ndarray:
    """(n, d) and (m, d) -> (n, m), infinite for plain pictures."""
    spread = [_spread(each) for each in (some, others)]
    squares = [np.square(each).sum(1) for each in (some, others)]
    squared = squares[0][:, None] + squares[1] - 2 * some @ others.T
    rms = np.sqrt(squared.clip(0) / SIDE**2)
    spread = np.minimum(spread[0][:, None], spread[1])
    return np.where(spread < PLAIN, np.inf, rms / spread.clip(PLAIN))


def _spread(pictures) -> np.ndarray:
    """Standard deviation of each one's lightness, float32 (n,)."""
    return np.std(pictures[:, : SIDE**2], axis=1, dtype=np.float32)


def _near(pictures, most: float) -> dict[tuple[int, int], float]:
    """{(earlier, later): distance} of those within `most`, in float32 matrix products. Only those
    are compared whose mean brightness lets them be so near."""
    pictures, pairs = np.asarray(pictures), {}
    if len(pictures) < 2:
        return pairs
    means = pictures[:, : SIDE**2].mean(1, dtype=np.float32)
    reach = most * _spread(pictures).max()
    order = np.argsort(means, kind="stable")
    ascending = means[order]
    for start in range(0, len(order), 512):
        rows = order[start : start + 512]
        stop = np.searchsorted(ascending, means[rows[-1]] + reach, side="right")
        columns = order[start:stop]
        found = distances(np.float32(pictures[rows]), np.float32(pictures[columns]))
        for i, j in np.argwhere(found <= most):
            one, other = sorted((int(rows[i]), int(columns[j])))
            if one != other:
                pairs[one, other] = float(found[i, j])
    return pairs
