"""Distances of `dlflax.data.image.duplicates` between copies of an image, and between different
images.

python -m benchmarks.near_duplicates FOLDER

prints quantiles of the distance of an image and its re-encoded copies, the next image of a burst
(the same scene, shifted by some percent or lighter), and its nearest other image. FOLDER: JPEG
images, searched recursively.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dlflax.data.image.duplicates import distances, thumbnail

SIZE = 224


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(file).convert("RGB")


def scale(image, factor, resampling=Image.Resampling.LANCZOS):
    return image.resize([max(1, round(factor * side)) for side in image.size], resampling)


def shift(image, by):
    return image.crop((round(by * image.width), round(by / 2 * image.height), *image.size))


CHANGES = {
    "JPEG, quality 30": lambda image: encode(image, "JPEG", quality=30),
    "JPEG, quality 60": lambda image: encode(image, "JPEG", quality=60),
    "GIF": lambda image: encode(image, "GIF"),
    "half the size": lambda image: scale(image, 0.5),
    "half the size, JPEG, quality 70": lambda image: encode(scale(image, 0.5), "JPEG", quality=70),
    "a third of the size": lambda image: scale(image, 1 / 3),
    "0.7 of the size, nearest": lambda image: scale(image, 0.7, Image.Resampling.NEAREST),
    "shifted by 1 %": lambda image: shift(image, 0.01),
    "shifted by 2 %": lambda image: shift(image, 0.02),
    "shifted by 5 %": lambda image: shift(image, 0.05),
    "lighter by 4 %": lambda image: image.point(lambda value: min(255, int(1.04 * value + 2))),
}


def signature(path, change=lambda image: image):
    """Returns the float32 signature of a changed image at the size of training."""
    image = change(Image.open(path).convert("RGB"))
    fit = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.float32(thumbnail(np.asarray(fit)))


def main(folder):
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() == ".jpg")
    images = np.stack([signature(path) for path in paths])
    print(f"{len(paths):,} images; quantiles of the distance at 0, 5, 50, 95 and 100 %")
    for name, change in CHANGES.items():
        show(name, [
            distances(signature(path, change)[None], image[None])[0, 0]
            for path, image in zip(paths[::10], images[::10], strict=True)
        ])  # fmt: skip
    between = distances(images, images)
    np.fill_diagonal(between, np.inf)
    show("nearest other image", between.min(1))


def show(name, values):
    print(f"{name:32}", *(f"{x:6.3f}" for x in np.quantile(values, (0, 0.05, 0.5, 0.95, 1))))


if __name__ == "__main__":
    main(*sys.argv[1:])
