"""Conversion of ink on paper, photographed or drawn, to MNIST's light ink on black."""

from pathlib import Path

import numpy as np
from PIL import Image

from dlflax.errors import InputError

MIN_CONTRAST = 32  # of 255, between darkest and lightest: an image with less is blank
INK = 0.2  # of the strongest ink: fainter pixels do not count for the bounding box
UNEVEN = 0.06  # of the contrast: illumination is uneven if the border varies by more
BRIGHTER = 1.25  # times the brightest border: paper is never so bright
LARGEST = 400  # pixels a side that suffice to separate illumination and ink
FAINTEST = 0.15  # of the illumination that the strongest ink absorbs at least


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def light_on_dark(path: Path, image: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """Converts an image (mode L, RGB or RGBA) to light ink on black: uint8 of `shape`.

    The background is the median of the border; a light one is inverted. Unless the image has that
    shape, it is normalized as MNIST (http://yann.lecun.com/exdb/mnist/): ink to 255, cropped to it,
    resized to the middle 20/28 of the frame, its centre of mass in the centre. InputError for a
    blank image, or a background neither dark nor light."""
    gray = np.asarray(image.convert("L"))
    if image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A"))
        opaque = _border(alpha) >= 128
        if opaque.mean() >= 0.5:
            background = np.median(_border(gray)[opaque])
        else:
            background = 0 if alpha.any() and np.average(gray, weights=alpha) >= 128 else 255
        gray = np.round(background + (gray - background) * (alpha / 255)).astype(np.uint8)
    ink = _correct_illumination(gray) if gray.shape != shape else None
    if ink is None:
        ink = _darken_background(path, gray)
    return ink if ink.shape == shape else _normalize(ink, *shape)


def _darken_background(path, gray) -> np.ndarray:
    low, high = int(gray.min()), int(gray.max())
    remedy = "give dark ink on a light background or light ink on a dark one."
    if high - low < MIN_CONTRAST:
        raise InputError(f"{path}: blank, or nearly so; {remedy}")
    background = (np.median(_border(gray)) - low) / (high - low)
    if 1 / 3 < background < 2 / 3:
        raise InputError(f"{path}: the border is neither dark nor light; {remedy}")
    return gray if background < 0.5 else 255 - gray


def _correct_illumination(gray: np.ndarray) -> np.ndarray | None:
    """Returns the share of uneven light that ink absorbs: uint8, at most LARGEST a side, 0 for
    paper. None if the border is even, or there is no ink, dark on light or the reverse."""
    small = Image.fromarray(gray)
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    small = np.asarray(small)
    low, high = np.percentile(_border(small), (5, 95))
    if high - low <= UNEVEN * (float(gray.max()) - gray.min()):
        return None
    from scipy.ndimage import grey_closing  # imported here: training does not need it

    cleanest, least_dirt = None, 0.5  # of the strongest ink, along the border
    for paper in (small, 255 - small):
        # removes dark objects up to a third of the image wide, and keeps slopes and shadows
        light = np.float32(grey_closing(paper, max(3, min(paper.shape) // 3)))
        if light.max() > BRIGHTER * _border(light).max():
            continue  # the bright pixels are ink, not paper
        ink = (1 - paper / np.maximum(light, 1.0)).clip(0, 1)
        strongest = np.percentile(ink, 99.9)
        dirt = np.percentile(_border(ink), 95) / max(strongest, 1e-3)
        if strongest > FAINTEST and dirt < least_dirt:
            cleanest, least_dirt = ink / strongest, dirt
    if cleanest is None:
        return None
    return np.round(255 * _remove_edge(cleanest.clip(0, 1))).astype(np.uint8)


def _remove_edge(ink: np.ndarray) -> np.ndarray:
    """Removes components that touch the edge, such as a shadow's corner, unless most ink does."""
    from scipy.ndimage import label

    components, _ = label(ink > INK, np.ones((3, 3)))
    mass = np.bincount(components.ravel(), ink.ravel())
    at_edge = np.setdiff1d(_border(components), 0)
    inside = mass[1:].sum() - mass[at_edge].sum()
    return np.where(np.isin(components, at_edge), 0, ink) if inside > mass[at_edge].sum() else ink


def _normalize(gray: np.ndarray, height: int, width: int) -> np.ndarray:
    """Normalizes light ink on dark, of any size, as MNIST: uint8 (height, width)."""
    border = _border(gray).astype(np.float32)
    ink = gray - np.median(border)
    # Paper is uneven: variation like the border's is not ink. A clean drawing has none.
    noise = min(2 * np.percentile(np.abs(border - np.median(border)), 90), ink.max() / 2)
    ink = ((ink - noise) / (ink.max() - noise)).clip(0, 1).astype(np.float32)
    rows, columns = np.nonzero((ink > INK).any(1))[0], np.nonzero((ink > INK).any(0))[0]
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(height * 20 / 28 / ink.shape[0], width * 20 / 28 / ink.shape[1])
    size = [max(1, round(scale * side)) for side in ink.shape]
    ink = np.asarray(Image.fromarray(ink).resize(size[::-1], Image.Resampling.LANCZOS)).clip(0, 1)
    ink = np.round(ink * (255 / ink.max())).astype(np.uint8)  # resampling dims thin strokes
    corner = []
    for axis, side in enumerate((height, width)):
        mass = ink.sum(1 - axis, dtype=np.float64)
        centre = np.average(np.arange(len(mass)), weights=mass)
        # 14 of 28, as in MNIST, and always inside the frame.
        corner.append(min(max(0, round(side / 2 - centre)), side - size[axis]))
    frame = np.zeros((height, width), np.uint8)
    frame[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = ink
    return frame
