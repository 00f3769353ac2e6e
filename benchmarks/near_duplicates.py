"""Distances of `dlflax.data.image.duplicates` between copies of an image, and between different
images.

python -m benchmarks.near_duplicates FOLDER

python -m benchmarks.near_duplicates FOLDER phash     # by imagehash, of 256 bits

prints quantiles of the distance of an image and its re-encoded copies, the next image of a burst
(the same scene, shifted by some percent or lighter), the same in other colours, and its nearest
other image; then of parts that differ by a small defect. FOLDER: JPEG images, searched recursively.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

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
    "channels permuted": lambda image: Image.merge("RGB", [image.getchannel(c) for c in "GBR"]),
}


def load(path, change=lambda image: image):
    """Returns a changed image at the size of training."""
    image = change(Image.open(path).convert("RGB"))
    return ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)


def part(number):
    """Returns an image of a part with a defect at a random place, and noise."""
    image, rng = Image.new("RGB", (SIZE, SIZE), (120, 120, 120)), np.random.default_rng(number)
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 60, 164, 164), fill=(180, 170, 60))
    x, y = rng.integers(70, 150, 2).tolist()
    draw.ellipse((x, y, x + 8, y + 8), fill=(20, 20, 20))
    pixels = np.asarray(image) + rng.normal(0, 3, (SIZE, SIZE, 3))
    return Image.fromarray(np.uint8(pixels.clip(0, 255)))


def main(folder, name=""):
    describe, compare = (lambda image: np.float32(thumbnail(np.asarray(image)))), distances
    if name:
        import imagehash

        def describe(image):
            return np.float32(getattr(imagehash, name)(image, hash_size=16).hash.ravel())

        def compare(a, b):  # bits that differ
            return a.sum(1)[:, None] + b.sum(1) - 2 * a @ b.T

    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() == ".jpg")
    images = np.stack([describe(load(path)) for path in paths])
    print(f"{len(paths):,} images; quantiles of the distance at 0, 5, 50, 95 and 100 %")
    for title, change in CHANGES.items():
        show(title, [
            compare(describe(load(path, change))[None], image[None])[0, 0]
            for path, image in zip(paths[::10], images[::10], strict=True)
        ])  # fmt: skip
    parts = [part(number) for number in range(200)]
    described = np.stack(list(map(describe, parts)))
    show("a part, JPEG, quality 60", [
        compare(describe(CHANGES["JPEG, quality 60"](image))[None], row[None])[0, 0]
        for image, row in zip(parts, described, strict=True)
    ])  # fmt: skip
    for title, rows in (("nearest other image", images), ("nearest other part", described)):
        between = compare(rows, rows)
        np.fill_diagonal(between, np.inf)
        show(title, between.min(1))


def show(name, values):
    print(f"{name:32}", *(f"{x:6.3f}" for x in np.quantile(values, (0, 0.05, 0.5, 0.95, 1))))


if __name__ == "__main__":
    main(*sys.argv[1:])
