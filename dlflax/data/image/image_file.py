"""Decoding of an image file into the input of an image model."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dlflax.data.image import ink as ink_on_paper
from dlflax.errors import InputError

# Not every format of Pillow's: opening PostScript, for one, would start another program.
FORMATS = {
    "PNG": (".png", ".apng"), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "GIF": (".gif",),
    "BMP": (".bmp", ".dib"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",), "AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif"),
}  # fmt: skip
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # of telephones
MAX_SIDE = 65_535  # pixels, as in JPEG: Pillow takes 16 bytes and more for a row, however short
BIG = 16_000_000  # pixels from which images are decoded one at a time, to bound memory

_big = threading.Lock()


class ImageError(InputError):
    """Error for a file that is no usable image. `kind`: the reason, such as "not an image",
    "truncated", "corrupt" or "too large"; `detail`: text of the cause, or ""."""

    def __init__(self, message: str, kind: str, detail: str = ""):
        super().__init__(message)
        self.kind, self.detail = kind, detail


def read_image(
    path: str | Path, shape: tuple[int, int, int], ink: bool, content: bytes | None = None,
    deep: bool = False,
) -> np.ndarray:  # fmt: skip
    """Returns an image file of any size and mode as uint8 of `shape` (h, w, c), c 1 or 3, as
    `decode`, or raises InputError. content: the file's bytes, when `path` is only a name; ink: True
    for models of light ink on black, as `ink.light_on_dark`."""
    path = Path(path)
    height, width, channels = shape
    if content is None and not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path}: {state}; give one image file, for example a PNG or JPEG.")
    try:
        stream = open(path, "rb") if content is None else io.BytesIO(content)  # noqa: SIM115
        with stream as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata
            if not ink:
                return decode(file, path, shape, deep)[0]
            with _open(file, path, ink=True) as (image, _):
                pass  # `image` is a copy
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it; allow it.") from error
    gray = ink_on_paper.light_on_dark(path, image, (height, width))
    return np.repeat(gray[:, :, None], channels, axis=2).reshape(shape)


def decode(
    file: BinaryIO, path: Path, shape: tuple[int, int, int], deep: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns an open image file as uint8 of `shape` (h, w, c), c 1 or 3, and the properties lost
    in conversion, such as "CMYK".

    The first frame, upright, transparent parts white, RGB or gray, the short side resized to fit
    (bicubic), the centre cropped. Pixels of 16 bits, 32 bits or floats become 8 bits by the full
    scale of their type; with `deep` they become float32 in the file's unit, and 8-bit files are
    refused. `path` is for messages and the file type. Thread-safe. Call with warnings ignored:
    Pillow warns of odd metadata. Raises ImageError for an unusable file."""
    height, width, channels = shape
    with _open(file, path, shape, deep) as (image, lost):
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != "F":
            image = image.convert("L" if channels == 1 else "RGB")
        pixels = np.array(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
        if image.mode == "F":
            pixels = pixels.clip(*image.getextrema())  # bicubic resampling overshoots
            pixels = np.repeat(pixels[:, :, None], channels, axis=2)
        return pixels.reshape(shape), lost


def is_deep(file: BinaryIO, path: Path) -> bool:
    """True if the pixels are gray of 16 bits, 32 bits or floats, by the file's header. Call with
    warnings ignored. ImageError as `decode`."""
    with _open_header(file, path) as image:
        return image.mode.startswith(("I", "F"))


def count_pixels(file: BinaryIO, path: Path, shape: tuple[int, int, int], ink: bool) -> int:
    """Counts the pixels that `read_image` would decode, from the file's header alone. `path` is
    for messages. ImageError as `decode`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open_header(file, path) as image:
            if not ink:
                image.draft(None, (2 * max(shape[:2]),) * 2)
            return image.width * image.height


@contextlib.contextmanager
def _open(
    file: BinaryIO, path: Path, shape: tuple[int, int, int] | None = None, deep: bool = False,
    ink: bool = False,
) -> Iterator[tuple[Image.Image, tuple[str, ...]]]:  # fmt: skip
    """Yields the image, upright, in mode L, RGB, RGBA or, if `deep`, F, and the properties lost.
    shape: a JPEG is decoded to twice this size at least; ink: as `_to_uint8`."""
    with _open_header(file, path) as image:
        is_big = image.width * image.height > BIG
        if shape:
            image.draft(None, (2 * max(shape[:2]),) * 2)  # no effect but for JPEG
        with _big if is_big else contextlib.nullcontext():
            mode = image.mode
            # Pillow has no mode for 16-bit colours: it drops the low bytes.
            is_16_bit = any(";16" in str(t) for t in (mode, *(tile[3] for tile in image.tile)))
            converted = _convert(image, path, is_16_bit, deep, ink)
            yield converted, _lost_properties(path, image, mode, is_16_bit, converted)


@contextlib.contextmanager
def _open_header(file: BinaryIO, path: Path) -> Iterator[Image.Image]:
    """Opens an image file without decoding it. Turns any error in the body into ImageError."""
    try:
        _register_heic(file, path)
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS or max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError(f"{image.width:,} x {image.height:,} pixels")
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        formats = " or ".join(FORMATS)
        raise ImageError(f"{path}: not an image; give {formats}.", "not an image") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        millions = Image.MAX_IMAGE_PIXELS // 1_000_000
        limit = f"more than {millions} million pixels, or {MAX_SIDE:,} a side"
        raise ImageError(f"{path}: too large; give no {limit}.", "too large", limit) from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        text = " ".join(str(error).split())[:200] or type(error).__name__
        is_truncated = isinstance(error, EOFError) or "truncated" in text.lower()
        kind = "truncated" if is_truncated else "corrupt"
        raise ImageError(f"{path}: damaged, {kind} ({text}); give another.", kind, text) from error


def _register_heic(file: BinaryIO, path: Path) -> None:
    """Registers Pillow's HEIC plugin if the file is HEIC. ImageError without pillow-heif."""
    start = file.read(12)
    file.seek(0)
    Image.init()  # registers the formats of this Pillow
    if start[4:8] != b"ftyp" or start[8:12] not in HEIC or "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError:
        reason = "HEIC, which requires pillow-heif"
        message = f"{path}: {reason}; pip install 'dlflax[heic]', or give JPEG."
        raise ImageError(message, reason) from None
    pillow_heif.register_heif_opener()


def _convert(image: Image.Image, path, is_16_bit, deep, ink) -> Image.Image:
    """Returns the opened image upright, in mode L, RGB, RGBA or F, as a new object."""
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata do not affect the pixels
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image, np.float32)
        is_finite = np.isfinite(pixels)
        if not is_finite.any():
            raise ImageError(f"{path}: no pixel is finite; give numbers.", "no finite pixel")
        pixels = np.where(is_finite, pixels, pixels[is_finite].min())
        if not deep:
            pixels = _to_uint8(pixels, is_16_bit, image.mode.startswith("F"), ink, path)
        return Image.fromarray(pixels)
    if deep:
        reason = "8 bits among deeper images"
        raise ImageError(f"{path}: {reason}; give gray images of 16 bits or more.", reason)
    if is_16_bit and max(np.ravel(image.getextrema())) < 16:  # Pillow reads the high bytes alone
        raise ImageError(
            f"{path}: 16-bit colours that use less than a sixteenth of their range; convert all "
            "images to 8 bits by one range.", "pixels of another scale than 8 bits",
        )  # fmt: skip
    if image.mode.lower() in ("la", "pa", "rgba") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _lost_properties(path, image, mode, is_16_bit, converted) -> tuple[str, ...]:
    """Lists the properties of the opened image that are lost in `converted`."""
    lost = []
    file_type = "JPEG" if image.format == "MPO" else image.format  # many telephones write MPO
    if path.suffix.lower() not in FORMATS[file_type]:
        lost.append(f"{file_type} named {path.suffix.lower() or 'without ending'}")
    if mode == "CMYK":
        lost.append("CMYK")
    if (mode.startswith(("I", "F")) or is_16_bit) and converted.mode != "F":
        lost.append("16-bit" if is_16_bit else {"I": "32-bit", "F": "float"}.get(mode, "16-bit"))
    if converted.mode == "RGBA" and converted.getchannel("A").getextrema()[0] < 255:
        lost.append("transparent, on white")
    with contextlib.suppress(Exception):  # a damaged second frame does not count
        if image.format != "MPO" and getattr(image, "is_animated", False):
            lost.append("animated, first frame")
    return tuple(lost)


def _to_uint8(pixels: np.ndarray, is_16_bit: bool, is_float: bool, ink: bool, path) -> np.ndarray:
    """Scales pixels to uint8. White is 65535 in 16-bit images, whatever their maximum, and 1
    (floats), 255 or 65535 in 32-bit and float images, whose unit is unknown; with `ink`, which is
    rescaled later, also 4095 (12-bit cameras) or the image's maximum."""
    low, high = pixels.min(), pixels.max()
    lower = 255 if is_16_bit else 0 if is_float else 1
    whites = [white for white in (1, 255, 4095, 65535) if white > lower]
    white = next((white for white in whites if high <= white), max(high, 1))
    if not ink and (low < 0 or white not in ((1, 255) if is_float else (255, 65535))):
        raise ImageError(
            f"{path}: pixels from {low:g} to {high:g}, which is no scale for use with 8-bit "
            "images; give 8 bits, all images converted by one range.",
            "pixels of another scale than 8 bits", f"{low:g} to {high:g}",
        )  # fmt: skip
    return np.round(pixels.clip(0) * (255 / white)).astype(np.uint8)
