"""Ink on paper, photographed or drawn, as the light ink on black that MNIST has."""

from pathlib import Path

import numpy as np
from PIL import Image

from dlflax.errors import InputError

MIN_CONTRAST = 32  # of 255: less than this between darkest and lightest is a blank picture
INK = 0.2  # of the strongest ink: fainter pixels do not count for the bounding box
UNEVEN = 0.06  # of the contrast: a border that varies by more lies in uneven light
BRIGHTER = 1.25  # times the brightest border: no light does that to paper
LARGEST = 400  # pixels a side that are enough to see light and ink
FAINTEST = 0.15  # of the light: ink that takes less away is none


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def light_on_dark(path: Path, image: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """An opened picture (mode L, RGB or RGBA) as light ink on black: uint8 of `shape`, as it is
    where it has that shape, else drawn as MNIST was. InputError for one that is blank, or whose
    background is neither dark nor light."""
    gray = np.asarray(image.convert("L"))
    if image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A"))
        opaque = _border(alpha) >= 128
        if opaque.mean() >= 0.5:
            behind = np.median(_border(gray)[opaque])
        else:
            behind = 0 if alpha.any() and np.average(gray, weights=alpha) >= 128 else 255
        gray = np.round(behind + (gray - behind) * (alpha / 255)).astype(np.uint8)
    found = _divided_by_the_light(gray) if gray.shape != shape else None
    if found is None:
        found = _dark_background(path, gray)
    return found if found.shape == shape else _as_mnist(found, *shape)


def _dark_background(path, gray) -> np.ndarray:
    """gray, inverted if its background is light."""
    low, high = int(gray.min()), int(gray.max())
    if high - low < MIN_CONTRAST:
        raise InputError(
            f"{path}: blank, or nearly so; give a picture with dark ink on a light "
            "background or light ink on a dark one."
        )
    background = (np.median(_border(gray)) - low) / (high - low)
    if 1 / 3 < background < 2 / 3:
        raise InputError(
            f"{path}: the border is neither dark nor light, so what is ink cannot be "
            "told; give dark ink on a light background or light ink on a dark one."
        )
    return gray if background < 0.5 else 255 - gray


def _divided_by_the_light(gray: np.ndarray) -> np.ndarray | None:
    """Of a picture in uneven light, the share of the light that ink takes away: uint8, at most
    LARGEST a side, 0 for paper. None where the border is even, or nothing is ink on paper, dark on
    light or the reverse."""
    small = Image.fromarray(gray)
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    small = np.asarray(small)
    low, high = np.percentile(_border(small), (5, 95))
    if high - low <= UNEVEN * (float(gray.max()) - gray.min()):
        return None
    found, dirtiest = None, 0.5  # of the strongest ink, along the border
    for paper in (small, 255 - small):
        light = _light(paper)
        if light.max() > BRIGHTER * _border(light).max():
            continue  # what is bright there is ink
        ink = (1 - paper / np.maximum(light, 1.0)).clip(0, 1)
        strongest = np.percentile(ink, 99.9)
        dirt = np.percentile(_border(ink), 95) / max(strongest, 1e-3)
        if strongest > FAINTEST and dirt < dirtiest:
            found, dirtiest = ink / strongest, dirt
    if found is None:
        return None
    return np.round(255 * _without_edge(found.clip(0, 1))).astype(np.uint8)


def _without_edge(ink: np.ndarray) -> np.ndarray:
    """Without what hangs on the picture's edge, such as the corner of a shadow, where there is more
    ink elsewhere."""
    from scipy.ndimage import label

    pieces, _ = label(ink > INK, np.ones((3, 3)))
    mass = np.bincount(pieces.ravel(), ink.ravel())
    at_edge = np.setdiff1d(_border(pieces), 0)
    inside = mass[1:].sum() - mass[at_edge].sum()
    return np.where(np.isin(pieces, at_edge), 0, ink) if inside > mass[at_edge].sum() else ink


def _light(paper: np.ndarray) -> np.ndarray:
    """The light on every pixel, float32: the picture without what is darker than all around it and
    narrower than a third of it (a morphological closing, which leaves slopes and the edges of
    shadows as they are)."""
    from scipy.ndimage import grey_closing  # whoever trains has no need of it

    return np.float32(grey_closing(paper, max(3, min(paper.shape) // 3)))


def _as_mnist(gray: np.ndarray, height: int, width: int) -> np.ndarray:
    """Light ink on dark, of any size, drawn the way MNIST was: uint8 (height, width)."""
    border = _border(gray).astype(np.float32)
    ink = gray - np.median(border)
    # Paper is not even: what the border itself varies by is no ink. Nothing for a clean drawing.
    noise = min(2 * np.percentile(np.abs(border - np.median(border)), 90), ink.max() / 2)
    ink = ((ink - noise) / (ink.max() - noise)).clip(0, 1).astype(np.float32)
    rows, columns = np.nonzero((ink > INK).any(1))[0], np.nonzero((ink > INK).any(0))[0]
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(height * 20 / 28 / ink.shape[0], width * 20 / 28 / ink.shape[1])
    size = [max(1, round(scale * side)) for side in ink.shape]
    ink = np.asarray(Image.fromarray(ink).resize(size[::-1], Image.Resampling.LANCZOS)).clip(0, 1)
    ink = np.round(ink * (255 / ink.max())).astype(np.uint8)  # thin strokes end below 1
    corner = []
    for axis, side in enumerate((height, width)):
        mass = ink.sum(1 - axis, dtype=np.float64)
        centre = np.average(np.arange(len(mass)), weights=mass)
        # 14 of 28, as in MNIST, and never over the edge.
        corner.append(min(max(0, round(side / 2 - centre)), side - size[axis]))
    frame = np.zeros((height, width), np.uint8)
    frame[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = ink
    return frame
