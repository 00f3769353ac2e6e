"""How far apart are a picture and its copies, and two different pictures?

python -m benchmarks.near_duplicates FOLDER

prints quantiles of the distance that `dlflax.data.duplicates` goes by: of copies saved anew, of the
next picture of a burst (the same scene, moved by some percent or lit otherwise), and of each
picture's nearest other one. FOLDER: any pictures, searched through with all folders in it.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dlflax.data.duplicates import distances, thumbnail

SIZE = 224


def pixels(picture):
    """uint8 (SIZE, SIZE, 3), as training sees it."""
    return np.asarray(ImageOps.fit(picture, (SIZE, SIZE), Image.Resampling.BICUBIC))


def encoded(picture, format, **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return Image.open(file).convert("RGB")


def scaled(picture, by, how=Image.Resampling.LANCZOS):
    return picture.resize([max(1, round(by * side)) for side in picture.size], how)


def moved(picture, by):
    return picture.crop((round(by * picture.width), round(by / 2 * picture.height), *picture.size))


CHANGES = {
    "JPEG, quality 30": lambda p: encoded(p, "JPEG", quality=30),
    "JPEG, quality 60": lambda p: encoded(p, "JPEG", quality=60),
    "GIF": lambda p: encoded(p, "GIF"),
    "half the size": lambda p: scaled(p, 0.5),
    "half the size, JPEG, quality 70": lambda p: encoded(scaled(p, 0.5), "JPEG", quality=70),
    "a third of the size": lambda p: scaled(p, 1 / 3),
    "0.7 of the size, nearest": lambda p: scaled(p, 0.7, Image.Resampling.NEAREST),
    "moved by 1 %": lambda p: moved(p, 0.01),
    "moved by 2 %": lambda p: moved(p, 0.02),
    "moved by 5 %": lambda p: moved(p, 0.05),
    "lighter by 4 %": lambda p: p.point(lambda value: min(255, int(1.04 * value + 2))),
}


def main(folder):
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() == ".jpg")
    pictures = [thumbnail(pixels(Image.open(path).convert("RGB"))) for path in paths]
    pictures = np.float32(pictures)
    print(f"{len(paths):,} pictures; distance at 0, 5, 50, 95 and 100 of 100")
    for name, change in CHANGES.items():
        found = [
            distances(thumbnail(pixels(change(Image.open(path).convert("RGB"))))[None].astype(
                np.float32), each[None])[0, 0]
            for path, each in zip(paths[::10], pictures[::10], strict=True)
        ]  # fmt: skip
        show(name, found)
    between = distances(pictures, pictures)
    np.fill_diagonal(between, np.inf)
    show("the nearest other picture", between.min(1))


def show(name, found):
    print(f"{name:32}", *(f"{value:6.3f}" for value in np.quantile(found, (0, 0.05, 0.5, 0.95, 1))))


if __name__ == "__main__":
    main(*sys.argv[1:])
