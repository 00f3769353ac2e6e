"""One picture file, turned into what a trained image classifier expects."""

import contextlib
import functools
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dlflax.data import ink as ink_on_paper
from dlflax.errors import InputError

# A list, not all that Pillow knows: opening PostScript, for one, would start another program.
FORMATS = {
    "PNG": (".png", ".apng"), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "GIF": (".gif",),
    "BMP": (".bmp", ".dib"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",), "AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif"),
}  # fmt: skip
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # as telephones do
MAX_SIDE = 65_535  # pixels, as in JPEG: Pillow takes 16 bytes and more for a row, however short
BIG = 16_000_000  # pixels: of such pictures one is decoded at a time, for the memory it takes

_big = threading.Lock()


class PictureError(InputError):
    """A file that cannot be used as a picture. `kind` says why: "no picture", "truncated",
    "corrupt", "too large" or what is missing; `detail` says more about it, or is empty."""

    def __init__(self, message: str, kind: str, detail: str = ""):
        super().__init__(message)
        self.kind, self.detail = kind, detail


def read_picture(
    path: str | Path, shape: tuple[int, int, int], ink: bool, content: bytes | None = None,
    deep: bool = False,
) -> np.ndarray:  # fmt: skip
    """Returns a picture file of any size and mode as uint8 of `shape` (h, w, c), c 1 or 3. content:
    its bytes, where `path` is but a name.

    The first frame of an animation, turned upright by its EXIF orientation.

    `ink=False`: as `decode` does it; with `deep`, float32.

    `ink=True`: the model knows light ink on black (MNIST, Fashion-MNIST).
      1. The background is the median of the border. It has to lie in the darkest or the lightest
         third of the picture's own range; a light one is inverted. Transparent parts take the
         colour of an opaque border, else white under dark ink and black under light ink.
      2. An h x w picture is taken as it is: one of the test set comes back bit for bit.
      3. Any other is drawn as MNIST was: background to 0 and ink to 255, cropped to the ink,
         fitted into the middle 20/28 of the frame (antialiased, aspect kept), the centre of mass
         moved to the centre of the frame (http://yann.lecun.com/exdb/mnist/). Fashion-MNIST fills
         its frame instead: give such pictures in h x w.

    Raises InputError when the file is missing, not a picture, damaged or too large, and for
    `ink=True` when it is blank or its background neither dark nor light.
    """
    path = Path(path)
    height, width, channels = shape
    if content is None and not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path}: {what}; give one picture file, for example a PNG or JPEG.")
    try:
        stream = open(path, "rb") if content is None else io.BytesIO(content)  # noqa: SIM115
        with stream as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd metadata; what matters raises
            if not ink:
                return decode(file, path, shape, deep)[0]
            image, _ = _open(
                file, path, lambda image: image, functools.partial(_to_uint8, ink=True)
            )
    except PermissionError as error:
        raise InputError(f"{path}: may not be read; allow it, or give another file.") from error
    gray = ink_on_paper.light_on_dark(path, image, (height, width))
    return np.repeat(gray[:, :, None], channels, axis=2).reshape(shape)


def decode(
    file: BinaryIO, path: Path, shape: tuple[int, int, int], deep: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """An open picture file as uint8 of `shape` (h, w, c), c 1 or 3, and what was odd about it.

    The first frame, upright, transparent parts white, RGB or gray, the short side resized to fit
    (bicubic), the centre cut out. Pixels of 16 bits, 32 bits or floats become 8 bits by the full
    scale of their type (`_to_uint8`), or with `deep` float32 in their own unit, and 8-bit ones
    are refused then: `ImageEncoder.scale` has the range of all of them. A JPEG four times as large
    or more is decoded at a half, quarter or eighth of its size. `path` is for messages and the
    name's ending. Odd, such as "CMYK", is what the numbers cannot show as it was. To be called with
    warnings ignored: Pillow warns of odd metadata. Any number of threads may call it.

    Raises PictureError when it is not a picture, damaged, too large or of another depth.
    """
    height, width, channels = shape

    def fitted(image: Image.Image) -> np.ndarray:
        if image.mode == "F":
            low, high = image.getextrema()  # which bicubic overshoots
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            return np.repeat(np.asarray(image).clip(low, high)[:, :, None], channels, axis=2)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        return np.array(image).reshape(shape)

    return _open(file, path, fitted, _own_unit if deep else _to_uint8, _enough(shape))


def is_deep(file: BinaryIO, path: Path) -> bool:
    """True if the pixels are gray of 16 bits, 32 bits or floats, by the file's header. To be called
    with warnings ignored. PictureError as `decode`."""
    with _open_header(file, path) as image:
        return image.mode.startswith(("I", "F"))


def count_pixels(file: BinaryIO, path: Path, shape: tuple[int, int, int], ink: bool) -> int:
    """Counts the pixels that `read_picture` would decode, from the file's header alone. `path` is
    for messages. PictureError as `decode`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open_header(file, path) as image:
            if not ink:
                image.draft(None, (_enough(shape),) * 2)
            return image.width * image.height


def _enough(shape: tuple[int, int, int]) -> int:
    """Pixels a side below which a JPEG is not decoded for `shape`."""
    return 2 * max(shape[:2])


def _open(
    file: BinaryIO, path: Path, use: Callable[[Image.Image], Any],
    depth: Callable[[np.ndarray, bool, Path], np.ndarray], enough: int | None = None,
) -> tuple[Any, tuple[str, ...]]:  # fmt: skip
    """Returns `use` of the image, upright, in mode L, RGB, RGBA or F, and what was odd about it.
    depth: makes uint8, or float32, of pixels (h, w) of 16 bits (which the bool says), 32 bits or
    floats; enough: pixels a side below which no JPEG is decoded."""
    with _open_header(file, path) as image:
        pixels = image.width * image.height
        if enough:
            image.draft(None, (enough, enough))  # nothing but a JPEG can do that
        with _big if pixels > BIG else contextlib.nullcontext():
            mode = image.mode
            # 16-bit colours are in no mode of Pillow's: it drops their low bytes.
            deep = any(";16" in str(text) for text in (mode, *(tile[3] for tile in image.tile)))
            converted = _converted(image, depth, deep, path)
            return use(converted), _oddities(path, image, mode, deep, converted)


@contextlib.contextmanager
def _open_header(file: BinaryIO, path: Path) -> Iterator[Image.Image]:
    """Opens a picture file, of which nothing is decoded. PictureError for what it is not, is too
    much of, or raises while it is open."""
    try:
        _know_heic(file, path)
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS or max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError(f"{image.width:,} x {image.height:,} pixels")
            yield image
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{path}: not a picture; give {' or '.join(FORMATS)}.", "no picture"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS // 1_000_000} million pixels"
        raise PictureError(
            f"{path}: too large; give at most {limit}, and {MAX_SIDE:,} a side.",
            "too large", f"more than {limit}, or {MAX_SIDE:,} a side",
        ) from error  # fmt: skip
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        text = " ".join(str(error).split())[:200] or type(error).__name__
        short = isinstance(error, EOFError) or "truncated" in text.lower()
        raise PictureError(
            f"{path}: damaged or cut short ({text}); give a whole one.",
            "truncated" if short else "corrupt", text,
        ) from error  # fmt: skip


def _know_heic(file: BinaryIO, path: Path) -> None:
    """Teaches Pillow to read HEIC, where the file is that. PictureError without pillow-heif."""
    start = file.read(12)
    file.seek(0)
    Image.init()  # all that this Pillow reads, AVIF or not
    if start[4:8] != b"ftyp" or start[8:12] not in HEIC or "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError:
        raise PictureError(
            f"{path}: a HEIC picture needs pillow-heif (pip install 'dlflax[heic]'); install it, "
            "or give JPEG.", "HEIC, which needs pillow-heif",
        ) from None  # fmt: skip
    pillow_heif.register_heif_opener()


def _converted(image: Image.Image, depth, deep, path) -> Image.Image:
    """The opened picture, upright, in mode L, RGB, RGBA or F; another object than `image`."""
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata say nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(depth(np.asarray(image), deep, path))
    if depth is _own_unit:
        raise PictureError(
            f"{path}: of 8 bits, or of colours, but the images that it is used with are gray of 16 "
            "bits or more; give one of their depth and unit.", "8 bits among deeper images",
        )  # fmt: skip
    if deep and max(np.ravel(image.getextrema())) < 16:  # Pillow reads the high bytes alone
        raise PictureError(
            f"{path}: colours of 16 bits that use less than a sixteenth of their range; give 8 "
            "bits, all images converted by one range.", "pixels of another scale than 8 bits",
        )  # fmt: skip
    if image.mode.lower() in ("la", "pa", "rgba") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _oddities(path, image, mode, deep, converted) -> tuple[str, ...]:
    """What of the opened picture the `converted` one does not have."""
    odd = []
    known = "JPEG" if image.format == "MPO" else image.format  # as many telephones write them
    if path.suffix.lower() not in FORMATS[known]:
        odd.append(f"{known} named {path.suffix.lower() or 'without ending'}")
    if mode == "CMYK":
        odd.append("CMYK")
    if (mode.startswith(("I", "F")) or deep) and converted.mode != "F":
        odd.append("16-bit" if deep else {"I": "32-bit", "F": "float"}.get(mode, "16-bit"))
    if converted.mode == "RGBA" and converted.getchannel("A").getextrema()[0] < 255:
        odd.append("transparent, on white")
    with contextlib.suppress(Exception):  # a damaged second frame is none
        if image.format != "MPO" and getattr(image, "is_animated", False):
            odd.append("animated, first frame")
    return tuple(odd)


def _own_unit(pixels: np.ndarray, sixteen: bool, path: Path) -> np.ndarray:
    """Returns float32, NaN and infinity as the least finite number."""
    pixels = pixels.astype(np.float32)
    finite = np.isfinite(pixels)
    if not finite.any():
        raise PictureError(f"{path}: no pixel is finite; give numbers.", "no finite pixel")
    return np.where(finite, pixels, pixels[finite].min())


def _to_uint8(pixels: np.ndarray, sixteen: bool, path: Path, ink: bool = False) -> np.ndarray:
    """Returns uint8 of pixels beside 8-bit ones. White is 65535 of 16 bits, whatever the image has,
    and for 32 bits and floats, the unit of which nothing says, 1 (floats), 255 or 65535. With
    `ink`, which is scaled later, 4095 (as of 12-bit cameras) or the image's maximum, too."""
    kind, pixels = pixels.dtype.kind, _own_unit(pixels, sixteen, path)
    low, high = pixels.min(), pixels.max()
    scales = [scale for scale in (1, 255, 4095, 65535) if scale > (255 if sixteen else kind != "f")]
    full = next((scale for scale in scales if high <= scale), max(high, 1))
    if not ink and (low < 0 or full not in ((1, 255) if kind == "f" else (255, 65535))):
        raise PictureError(
            f"{path}: pixels from {low:g} to {high:g}, which is no scale for use with 8-bit "
            "images; give 8 bits, all images converted by one range.",
            "pixels of another scale than 8 bits", f"{low:g} to {high:g}",
        )  # fmt: skip
    return np.round(pixels.clip(0) * (255 / full)).astype(np.uint8)
