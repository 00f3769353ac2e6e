"""Pictures as people have them: any size, mode and damage, and back to what the model knows."""

import gzip
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile, ImageOps

from dlflax.data.image.image_file import ImageError, count_pixels, read_image
from dlflax.errors import InputError

MNIST = Path(__file__).parents[1] / "../shared/data/mnist/t10k-images-idx3-ubyte.gz"
SHAPE = (28, 28, 1)


def digits():
    """uint8 (n, 28, 28): MNIST's first test images; without them scikit-learn's, redrawn."""
    if MNIST.exists():
        with gzip.open(MNIST) as file:
            return np.frombuffer(file.read(16 + 20 * 784), np.uint8, offset=16).reshape(-1, 28, 28)
    from sklearn.datasets import load_digits

    small = [Image.fromarray((x * 15.9).astype(np.uint8)) for x in load_digits().images[:20]]
    return np.stack([np.pad(x.resize((20, 20), Image.Resampling.BICUBIC), 4) for x in small])


def save(path, array, size=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    if size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    image.save(path, **options)
    return path


def drawing(mode="L", size=(120, 90), paper=255, ink=0):
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).ellipse((40, 20, 70, 75), outline=ink, width=8)
    return image.convert(mode)


def difference(a, b):
    return np.abs(a.astype(float).squeeze() - b.astype(float).squeeze()).mean()


def test_own_format_comes_back_bit_for_bit(tmp_path):
    for digit in digits():
        for picture in (digit, 255 - digit, np.stack([digit] * 3, -1)):
            path = save(tmp_path / "a.png", picture)
            np.testing.assert_array_equal(read_image(path, SHAPE, True), digit[:, :, None])


def test_big_dark_on_light_digits_come_back(tmp_path):
    """Drawn 20 times as large, off centre on a page, the digits look as MNIST has them."""
    if not MNIST.exists():
        pytest.skip("needs MNIST, whose own framing is the reference")
    differences = []
    for digit in digits():
        page = Image.new("L", (900, 1200), 255)
        page.paste(ImageOps.invert(Image.fromarray(digit)).resize((560, 560), 0), (300, 100))
        got = read_image(save(tmp_path / "a.png", page), SHAPE, True)
        differences.append(difference(got, digit))
        assert got.dtype == np.uint8 and got.shape == SHAPE
        light = read_image(save(tmp_path / "b.png", ImageOps.invert(page)), SHAPE, True)
        np.testing.assert_array_equal(got, light)
    # Centring moves in whole pixels, so one in ten may land a pixel off (difference 15 to 20).
    assert np.median(differences) < 3.5 and max(differences) < 25, differences


def test_a_noisy_photograph_of_a_page_has_a_black_background(tmp_path):
    rng = np.random.default_rng(0)
    page = np.asarray(drawing(size=(400, 300), ink=60), float) * 0.75 + rng.normal(0, 5, (300, 400))
    got = read_image(
        save(tmp_path / "a.jpg", page.clip(0, 255).astype(np.uint8), quality=80), SHAPE, True
    )
    assert got.max() == 255 and np.median(got) == 0
    clean = read_image(save(tmp_path / "b.png", drawing(size=(400, 300))), SHAPE, True)
    assert difference(got, clean) < 12


def test_box_of_20_and_centre_of_mass(tmp_path):
    for size in ((60, 30), (30, 60), (500, 20)):
        page = Image.new("L", (700, 200), 255)
        ImageDraw.Draw(page).rectangle((13, 17, 13 + size[0], 17 + size[1]), fill=0)
        got = read_image(save(tmp_path / "a.png", page), SHAPE, True)[:, :, 0].astype(float)
        ys, xs = np.nonzero(got)
        assert max(np.ptp(ys), np.ptp(xs)) + 1 == 20
        for axis in (0, 1):
            centre = np.average(np.arange(28), weights=got.sum(1 - axis))
            assert 13.5 <= centre <= 14.5


def test_hair_lines_and_specks_stay_visible(tmp_path):
    page = np.full((1500, 1500), 255, np.uint8)
    page[[100, 1400], [100, 1400]] = 0
    got = read_image(save(tmp_path / "a.png", page), SHAPE, True)
    assert got.max() == 255 and (got[:, :, 0] > 99).sum() == 2


def test_other_sizes(tmp_path):
    path = save(tmp_path / "a.png", drawing())
    assert read_image(path, (8, 8, 1), True).shape == (8, 8, 1)
    got = read_image(path, (32, 32, 3), True)
    assert (got == got[:, :, :1]).all() and got.max() == 255


def sixteen_bit():
    return Image.fromarray(np.asarray(drawing()).astype(np.uint16) * 257)


def transparent(ink):
    mask = ImageOps.invert(drawing())
    return Image.merge("LA", (Image.new("L", mask.size, ink), mask))


PICTURES = {
    "1.png": drawing("1"),
    "L.png": drawing("L"),
    "P.png": drawing("P"),
    "RGB.png": drawing("RGB"),
    "RGBA.png": drawing("RGBA"),
    "LA.png": drawing("LA"),
    "I16.png": sixteen_bit(),
    "CMYK.tif": drawing("CMYK"),
    "F.tif": Image.fromarray(np.asarray(drawing(), np.float32) / 255),
    "F255.tif": drawing("F"),
    "I.tif": drawing("I"),
    "L.webp": drawing("RGB"),
    "L.bmp": drawing("L"),
    "L.pgm": drawing("L"),
    "black_ink_on_nothing.png": transparent(0),
    "white_ink_on_nothing.png": transparent(255),
    "RGBA_on_nothing.png": transparent(255).convert("RGBA"),
    "white_on_black.png": ImageOps.invert(drawing()),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_mode_is_the_same_drawing(tmp_path, name):
    reference = read_image(save(tmp_path / "reference.png", drawing()), SHAPE, True)
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, PICTURES[name], **options)
    np.testing.assert_array_equal(read_image(path, SHAPE, True), reference)
    for shape in ((20, 24, 1), (20, 24, 3)):
        got = read_image(path, shape, False)
        assert got.dtype == np.uint8 and got.shape == shape
        if "nothing" not in name and "white" not in name:
            want = read_image(tmp_path / "reference.png", shape, False)
            np.testing.assert_array_equal(got, want)


def test_transparent_corners_of_an_opaque_card_take_its_colour(tmp_path):
    alpha = Image.new("L", (120, 90), 0)
    ImageDraw.Draw(alpha).rounded_rectangle((0, 0, 119, 89), radius=15, fill=255)
    card = Image.merge("LA", (drawing(), alpha))
    card.paste((0, 0), (0, 0, 3, 3))  # what lies under full transparency must not matter
    got = read_image(save(tmp_path / "a.png", card), SHAPE, True)
    want = read_image(save(tmp_path / "b.png", drawing()), SHAPE, True)
    np.testing.assert_array_equal(got, want)


def test_first_frame_and_orientation(tmp_path):
    frames = [drawing("P"), Image.new("P", (120, 90), 0)]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    want = read_image(save(tmp_path / "b.png", drawing()), SHAPE, True)
    np.testing.assert_array_equal(read_image(path, SHAPE, True), want)

    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: turn by 90 degrees clockwise to see it upright
    path = save(tmp_path / "c.png", drawing().rotate(90, expand=True), exif=exif)
    np.testing.assert_array_equal(read_image(path, SHAPE, True), want)


def test_photographs_are_resized_and_cut_in_the_middle(tmp_path):
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, 20:80] = (200, 100, 50)
    path = save(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(path, (60, 60, 3), False), pixels[:, 20:80])
    assert (read_image(path, (12, 12, 3), False)[:, 2:-2] == (200, 100, 50)).all()
    np.testing.assert_array_equal(read_image(path, (60, 100, 3), False), pixels)
    clear = save(tmp_path / "b.png", Image.new("RGBA", (50, 50), (255, 0, 0, 0)))
    assert (read_image(clear, (10, 10, 3), False) == 255).all()


def encoded(format, **options):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format, **options)
    return file.getvalue()


def refuse(path, words, ink=True):
    with pytest.raises(InputError, match=words) as info:
        read_image(path, SHAPE, ink)
    message = str(info.value)
    assert message.startswith(str(path)) and "give" in message and "\n" not in message


def test_no_picture(tmp_path):
    refuse(tmp_path / "missing.png", "does not exist")
    refuse(tmp_path, "is not a file")
    for name, content in {
        "empty.png": b"",
        "text.png": b"hello, world",
        "header.png": encoded("PNG")[:8],
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        refuse(tmp_path / name, "not an image|damaged")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP"])
def test_cut_short(tmp_path, format):
    whole = encoded(format)
    for part in (0.2, 0.6, 0.9):
        path = tmp_path / f"{part}.bin"
        path.write_bytes(whole[: int(part * len(whole))])
        refuse(path, "not an image|damaged", ink=False)


def test_damaged_png(tmp_path):
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    refuse(tmp_path / "a.png", "damaged")


@pytest.mark.parametrize("factor", [1.5, 3])
def test_bomb(tmp_path, monkeypatch, factor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(120 * 90 / factor))  # warns, then raises
    refuse(save(tmp_path / "a.png", drawing()), "too large")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP"])
def test_pixels_are_counted_before_they_are_decoded(format, monkeypatch):
    file, path = io.BytesIO(), Path("a.bin")
    Image.new("L", (1200, 900)).save(file, format)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    assert count_pixels(file, path, (28, 28, 1), True) == 1200 * 900
    drafted = 600 * 450 if format == "JPEG" else 1200 * 900  # no less than twice the side
    assert count_pixels(file, path, (200, 224, 3), False) == drafted
    with pytest.raises(ImageError, match="not an image"):
        count_pixels(io.BytesIO(b"no"), path, (28, 28, 1), True)


def test_blank_or_ambiguous(tmp_path):
    refuse(save(tmp_path / "white.png", Image.new("L", (50, 50), 255)), "blank")
    refuse(save(tmp_path / "clear.png", Image.new("RGBA", (50, 50), (0, 0, 0, 0))), "blank")
    refuse(save(tmp_path / "faint.png", drawing(paper=140, ink=120)), "blank")
    refuse(save(tmp_path / "28.png", Image.new("L", (28, 28), 0)), "blank")
    gray = drawing(paper=128)
    ImageDraw.Draw(gray).ellipse((80, 20, 100, 60), fill=255)
    refuse(save(tmp_path / "gray.png", gray), "neither dark nor light")
    dim = read_image(save(tmp_path / "dim.png", drawing(paper=128)), SHAPE, True)
    want = read_image(save(tmp_path / "b.png", drawing()), SHAPE, True)
    np.testing.assert_array_equal(dim, want)  # gray paper with black ink is no riddle


def lit(kind, darkest, height, width):
    """How light falls on a page: float (height, width), 1 where it is brightest."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return {
        "from the left": 1 - (1 - darkest) * x,
        "from above": 1 - (1 - darkest) * y,
        "a lamp": 1 - (1 - darkest) * np.clip(2 * ((x - 0.3) ** 2 + (y - 0.4) ** 2), 0, 1),
        "a soft shadow": darkest + (1 - darkest) / (1 + np.exp(25 * (x - 0.55))),
        "a hard shadow": np.where(x + 0.3 * y < 0.6, 1, darkest),
    }[kind]


KINDS = ["from the left", "from above", "a lamp", "a soft shadow", "a hard shadow"]


@pytest.mark.parametrize(
    "kind, ink, paper", [(k, 30, 230) for k in KINDS] + [(k, 230, 40) for k in KINDS[:4]]
)
def test_a_page_in_uneven_light(tmp_path, kind, ink, paper):
    rng, worst = np.random.default_rng(0), []
    for digit in digits()[:5]:
        page = Image.new("L", (450, 600), 255)
        page.paste(ImageOps.invert(Image.fromarray(digit)).resize((280, 280)), (85, 150))
        want = read_image(save(tmp_path / "clean.png", page), SHAPE, True)
        even = ink + np.asarray(page, float) * (paper - ink) / 255
        for darkest in (0.8, 0.6, 0.4):
            shown = even * lit(kind, darkest, *even.shape) + rng.normal(0, 3, even.shape)
            path = save(tmp_path / "a.jpg", shown.clip(0, 255).astype(np.uint8), quality=85)
            got = read_image(path, SHAPE, True)
            worst.append(np.corrcoef(got.ravel(), want.ravel())[0, 1])
    assert np.median(worst) > 0.85 and min(worst) > 0.4, worst  # a pixel off costs .3


def test_avif_and_heic(tmp_path, monkeypatch):
    want = read_image(save(tmp_path / "a.png", drawing()), SHAPE, True)
    avif = save(tmp_path / "a.avif", drawing("RGB"), quality=95)
    assert difference(read_image(avif, SHAPE, True), want) < 3
    pillow_heif = pytest.importorskip("pillow_heif")
    heic = tmp_path / "IMG_1.HEIC"
    pillow_heif.from_pillow(drawing("RGB")).save(heic, quality=95)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for known in (Image.OPEN, Image.MIME):
        known.pop("HEIF", None)
    refuse(heic, r"HEIC, which requires pillow-heif; pip install 'dlflax\[heic\]'")
    monkeypatch.undo()
    whole = read_image(heic, (90, 120, 1), False)
    assert difference(whole, np.asarray(drawing())) < 3
