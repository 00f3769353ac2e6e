"""The encoder of images. PIL is imported where it is used: start-up time counts."""

import dataclasses
import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlflax.data import encoder, idx
from dlflax.data.encoder import BASE64, DiskArray, Encoder, Examples, Form, Limits, Spec, Upload
from dlflax.data.image import folder_files
from dlflax.data.npy import read_npy
from dlflax.data.target import UNKNOWN, Classes, Labels, Nothing, Numbers
from dlflax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ImageEncoder(Encoder):
    """Encoder of images of one size as bytes, which the model scales to 0..1."""

    form: ClassVar = Form(
        "file", "images", BASE64, ("image/*",),
        widget="image", upload="image", page="draw on a page, or give it images",
        experiment=("image_folder", "a folder with a folder of images for each class"),
    )  # fmt: skip

    target: Classes | Labels | Numbers | Nothing
    shape: tuple[int, int, int]
    """Height, width and channels, 1 or 3."""
    light_on_dark: bool = False
    """True for light ink on black, as MNIST's, to which other images are converted."""
    scale: tuple[float, ...] = ()
    """Pixel values of black and white for images of 16 bits, 32 bits or floats, else ()."""

    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Reads image files of any size, .npy files, or pixels: integers from 0 to 255 or floats
        from 0 to 1."""
        from dlflax.data.image.image_file import MAX_SIDE

        is_image = len(self.shape) == 3 and self.shape[2] in (1, 3)
        if not is_image or not all(0 < side <= MAX_SIDE for side in self.shape):
            raise InputError(f"encoder.json is damaged: the image shape {list(self.shape)}.")
        if self.scale and not (len(self.scale) == 2 and 0 < self.scale[1] - self.scale[0] < np.inf):
            raise InputError(f"encoder.json is damaged: the pixel range {list(self.scale)}.")
        if isinstance(given, np.ndarray):
            return self._from_array(given, "")
        if isinstance(given, Upload):
            pixels = self._read_image(Path(given.name), given.content)
            return Examples({"inputs": pixels[None]}, None, [given.name])
        given = encoder.column_values(given)
        if isinstance(given, list | tuple) and given:
            return encoder.join([self.parse(image, limits) for image in given])
        if (path := encoder.as_path(given)) is None:
            raise InputError("name one or more image files after the run folder.")
        if path.suffix == ".npy":
            return self._from_array(read_npy(path), str(given))
        return Examples({"inputs": self._read_image(path)[None]}, None, [str(given)])

    def measure(self, upload: Upload, limits: Limits) -> None:
        """Counts the pixels that decoding the upload would produce."""
        from dlflax.data.image import image_file

        file, path = io.BytesIO(upload.content), Path(upload.name)
        try:
            pixels = image_file.count_pixels(file, path, self.shape, self.light_on_dark)
        except image_file.ImageError as error:
            if error.kind != "too large":
                raise
            pixels = limits.pixels + 1
        limits.count_pixels(path, pixels)

    def _read_image(self, path: Path, content: bytes | None = None) -> np.ndarray:
        from dlflax.data.image import image_file

        pixels = image_file.read_image(
            path, self.shape, self.light_on_dark, content, deep=bool(self.scale)
        )
        self._check_unit(pixels[None], str(path))
        return pixels

    def _check_unit(self, pixels: np.ndarray, name: str) -> None:
        """Raises InputError for images (n, h, w, c) that cannot be in the training images' unit."""
        if not self.scale or not len(pixels):
            return
        low, high = self.scale
        means = pixels.mean((1, 2, 3), dtype=np.float64)
        invalid = (means < 2 * low - high) | (means > 2 * high - low)
        if high - low > 255 and pixels.dtype.kind == "f":  # 0..1 instead of 0..65535
            invalid |= (pixels.max((1, 2, 3)) <= 1) & (pixels != np.round(pixels)).any((1, 2, 3))
        if invalid.any():
            image = pixels[np.argmax(invalid)]
            raise InputError(
                f"{name} has pixels from {image.min():g} to {image.max():g}, but the training "
                f"images range from {low:g} to {high:g}: give images in the same unit."
            )

    def _from_array(self, array: np.ndarray, file: str) -> Examples:
        """Returns images (n, h, w, c), or one, of a file, or of "" for an array in memory."""
        array = array[None] if array.shape == self.shape else array
        if array.dtype.kind not in "fiu" or array.shape[1:] != self.shape:
            raise InputError(
                f"predict takes arrays in shape {('n', *self.shape)} or paths, not {array.dtype} "
                f"in shape {array.shape}."
            )
        dtype, white = (np.uint8, 255) if array.dtype.kind in "iu" else (np.float32, 1)
        if self.scale:
            dtype = np.float32
            if array.dtype == np.uint8 or not np.isfinite(array).all():
                raise InputError(
                    "predict takes finite pixels in the training images' unit, from "
                    f"{self.scale[0]:g} to {self.scale[1]:g}, not uint8, NaN or infinity."
                )
            self._check_unit(array, file or "predict: an image")
        elif not ((array >= 0) & (array <= white)).all():  # NaN, too
            raise InputError(
                "predict takes pixels as integers from 0 to 255 or as floats from 0 to 1; "
                f"these {array.dtype} range from {np.min(array):g} to {np.max(array):g}."
            )
        names = [f"{file}[{i}]" if file else str(i) for i in range(len(array))]
        names = [file] if file and len(array) == 1 else names
        return Examples({"inputs": array.astype(dtype)}, None, names)

    def parse_with_targets(self, given: Any) -> Examples:
        """Reads a folder with a folder of images for each class, or with IDX files. Logs images
        that cannot be read to stderr."""
        folder = encoder.as_path(given)
        if folder is None or not folder.is_dir():
            return super().parse_with_targets(given)
        if not isinstance(self.target, Classes):
            raise InputError(
                f"{folder} has no targets of this model, as only classes can be names of folders: "
                "give arrays and targets."
            )
        if files := idx.find_idx(folder):
            return self._from_idx(files)
        files, folders, report = folder_files.walk(folder, str(folder))
        listing = folder_files.group_by_class(files, folders, report, str(folder))

        def read(index: int) -> np.ndarray | None:
            name = Path(listing.names[index])
            try:
                with listing.open(index) as file:
                    return self._read_image(name, file.read())
            except (InputError, OSError) as error:
                print(f"{folder / name} is not evaluated: {error}", file=sys.stderr)
                return None

        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(read, range(len(listing.names))))
        rows = [i for i, image in enumerate(images) if image is not None]
        if not rows:
            raise InputError(f"{folder} has no image in a folder of its class.")
        classes = [listing.class_names[listing.labels[i]] for i in rows]
        names, pixels = [listing.names[i] for i in rows], np.stack([images[i] for i in rows])
        return Examples({"inputs": pixels}, self.target.numbers(classes), names)

    def _from_idx(self, files: dict[str, Path]) -> Examples:
        arrays = [
            (idx.read_idx(path, ndim=3)[..., None], idx.read_idx(files[labels], ndim=1))
            for name, path in files.items() if "images" in name
            and (labels := name.replace("images-idx3", "labels-idx1")) in files
        ]  # fmt: skip
        if not arrays:
            raise InputError("IDX files of images need those of their labels beside them.")
        images, labels = map(np.concatenate, zip(*arrays, strict=True))
        labels = np.where(labels < len(self.target.classes), np.int32(labels), UNKNOWN)
        return dataclasses.replace(self._from_array(images, ""), target=labels)

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        if not self.scale:
            return {"inputs": raw}
        low, high = self.scale

        def rescale(pixels):
            return xp.clip((pixels - low) / (high - low), 0, 1).astype(xp.float32)

        is_on_disk = isinstance(raw, DiskArray)
        return {"inputs": DiskArray(raw.array, raw.index, rescale) if is_on_disk else rescale(raw)}

    def encode(self, examples: Examples) -> dict[str, Any]:
        others = {name: c for name, c in examples.columns.items() if name != "inputs"}
        return {**super().encode(examples), **others}

    def spec(self) -> Spec:
        height, width, channels = self.shape
        low, high = self.scale or (0, 255)
        dtype, unit = ("float32", " in the training images' unit") if self.scale else ("uint8", "")
        style = "light on dark" if self.light_on_dark else "upright"
        meaning = f"images of {height} x {width} pixels, {low:g} to {high:g}{unit}, {style}"
        return Spec(self.shape, dtype, f"{'gray' if channels == 1 else 'RGB'} {meaning}")

    def describe(self) -> str:
        height, width, channels = self.shape
        return f"{'grey' if channels == 1 else 'colour'} images of {height} x {width} pixels"

    def image(self, inputs: Any, index: int) -> np.ndarray:
        pixels = np.asarray(inputs[index])
        return pixels if pixels.dtype == np.uint8 else np.round(255 * pixels).astype(np.uint8)

    def outlook(self) -> dict[str, Any]:
        return {"draw": self.light_on_dark}


def fit_scale(images: Any, log: Callable[[str], None]) -> tuple[float, ...]:
    """Returns and logs `ImageEncoder.scale` of training images (n, h, w, c): () of uint8, the range
    of float32, without outliers that take most of it. InputError for constant images."""
    if images.dtype == np.uint8:
        return ()
    low, high, sample = np.inf, -np.inf, []
    for start in range(0, len(images), 256):  # in batches: the array may be on disk
        pixels = images[start : start + 256][..., 0].ravel()
        low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        sample.append(pixels[:: 1 + images.nbytes // 2**26].copy())
    percentiles = np.percentile(np.concatenate(sample), (0.1, 99.9)).tolist()
    outliers = ""
    if 0 < percentiles[1] - percentiles[0] < (high - low) / 10:
        outliers = f"; outliers, to {low:g} and {high:g}, are clipped"
        low, high = percentiles
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        raise InputError(
            f"the training images have pixels from {low:.9g} to {high:.9g}, which is too narrow a "
            "range: subtract their common offset."
        )
    share = (high - low) / 65535
    small = f" ({share:.1%} of 16 bits, stretched)" if low >= 0 and 10 < high - low < 6553 else ""
    log(f"all images have one scale, the range of the training images: black is {low:g}, white "
        f"{high:g}{small}{outliers}. Later images must be in the same unit.")  # fmt: skip
    return low, high
