"""Folders of pictures as people have them: read, decoded once, split, refused, downloaded."""

import collections
import csv
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dlflax.data import Classes, DiskArray, ImageFolder, hub, make_splits, published
from dlflax.data.encoder import Upload
from dlflax.data.image import decode, folder, folder_files
from dlflax.data.image.encoder import ImageEncoder, fit_scale
from dlflax.data.image.image_file import read_image
from dlflax.errors import InputError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cats_and_dogs"
FORMATS = {
    "PNG": "png", "JPEG": "jpg", "GIF": "gif", "BMP": "bmp", "PPM": "ppm", "TIFF": "tif",
    "WEBP": "webp",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("isolated")


def image(seed, size=(40, 30), mode="RGB"):
    """A picture of smooth colours that no other seed has."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(format, seed, **options):
    file = io.BytesIO()
    image(seed).save(file, format, **options)
    return file.getvalue()


def write(root, size=(40, 30), **classes):
    """root/CLASS/0.png and so on, as many as are given for the class. Returns root."""
    for class_name, count in classes.items():
        (root / class_name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            seed = int.from_bytes(hashlib.sha256(f"{root.name}{class_name}{i}".encode()).digest())
            image(seed, size).save(root / class_name / f"{i}.png")
    return root


def load(root, log=None, **fields):
    said = []
    dataset = ImageFolder(data=root, **{"image_size": 16} | fields).load(log or said.append)
    check(dataset, root, fields.get("image_size", 16))
    return dataset


def check(dataset, root, size=16):
    """Every picture is what prediction makes of its file; train and test share none."""
    for name in ("train", "test"):
        part, files = getattr(dataset, name), files_of(dataset, name)
        assert part["inputs"].dtype == np.uint8 and part["targets"].dtype == np.int32
        assert len(part["inputs"]) == len(part["targets"]) == len(files)
        for pixels, label, name in zip(part["inputs"][:], part["targets"], files, strict=True):
            want = read_image(root / name, (size, size, 3), False)
            np.testing.assert_array_equal(pixels, want, str(name))
            assert dataset.class_names[label] in Path(name).parts
    names = dataset.examples.names
    assert len(set(names)) == len(names)


def files_of(dataset, part):
    """The names of the files of `dataset.train` or `dataset.test`, in their order."""
    in_test = dataset.split.test(dataset.examples)
    return np.array(dataset.examples.names)[in_test if part == "test" else ~in_test].tolist()


def report(dataset):
    """{file: [(what, reason), ...]} of files_skipped.csv."""
    rows = collections.defaultdict(list)
    if folder.REPORT in dataset.files:
        reader = csv.DictReader(io.StringIO(dataset.files[folder.REPORT]))
        assert reader.fieldnames == ["file", "what", "reason"]
        for row in reader:
            rows[row["file"]].append((row["what"], row["reason"]))
    return dict(rows)


def refused(match=None, **fields):
    with pytest.raises(InputError, match=match) as error:
        ImageFolder(**{"image_size": 16} | fields).load(lambda _: None)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and error.value.__cause__ is None
    return message


def never(monkeypatch):
    monkeypatch.setattr(decode, "decode", lambda *_: pytest.fail("decoded again"))


def python(code, *args, **options):
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_what_is_written_is_read(tmp_path, monkeypatch):
    root = write(tmp_path / "animals", dog=15, cat=10)
    (root / "cat" / "nested" / "deep").mkdir(parents=True)
    image(1, (300, 20)).save(root / "cat" / "nested" / "deep" / "A.JPEG", quality=90)
    said = []
    dataset = load(root, said.append)
    assert said == [f"Decoding 26 images of {root}, once: they are cached."]
    assert dataset.name == "animals" and dataset.source == f"26 images in {root}"
    assert dataset.class_names == ("cat", "dog") and dataset.files == {}
    assert np.bincount(dataset.test["targets"]).min() >= 1
    assert "cat/nested/deep/A.JPEG" in dataset.examples.names
    never(monkeypatch)
    again = load(root, pytest.fail)  # nothing is said either
    assert again.checksum == dataset.checksum and again.class_names == dataset.class_names
    for part in ("train", "test"):
        assert files_of(again, part) == files_of(dataset, part)
        for key in ("inputs", "targets"):
            ours, theirs = getattr(dataset, part)[key], getattr(again, part)[key]
            np.testing.assert_array_equal(ours[:], theirs[:])


def test_the_test_share_is_drawn_by_its_own_seed(tmp_path):
    root = write(tmp_path / "a", cat=20, dog=10, emu=3)
    drawn = [set(files_of(load(root, split_seed=seed), "test")) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for share, least, most in ((0.2, 1, 9), (0.5, 1, 16), (0.999, 1, 18)):
        dataset = load(root, test_split=share)
        counts = np.bincount(dataset.test["targets"])
        assert least <= counts[0] <= most and counts.min() == counts[2] == 1
        # What is kept suffices for a validation share, too.
        splits = make_splits(ImageFolder(), dataset, 0.5, 0)
        for part in (splits.train, splits.val, splits.test):
            assert set(part["targets"]) == {0, 1, 2}


def test_split(tmp_path, monkeypatch):
    root = write(tmp_path / "a", cat=20, dog=30)
    (root / "cat" / "empty.png").touch()
    dataset, source = load(root), ImageFolder(image_size=16)
    splits = make_splits(source, dataset, 0.25, 0)
    assert splits.encoder.model_fields() == {} and splits.class_names == ("cat", "dog")
    assert splits.names("test") == files_of(dataset, "test")
    assert splits.encoder == ImageEncoder(Classes(("cat", "dog")), (16, 16, 3), False)
    assert (
        splits.files == dataset.files
        and "cat/empty.png,skipped,empty" in splits.files["files_skipped.csv"]
    )
    parts = (splits.train, splits.val, splits.test)
    counts = np.array([np.bincount(part["targets"]) for part in parts])
    assert counts.sum(0).tolist() == [20, 30]
    np.testing.assert_array_equal(counts[1], np.round((counts[0] + counts[1]) / 4))
    for part in parts:
        assert set(part) == {"inputs", "targets"}
        assert isinstance(part["inputs"], np.ndarray) and part["inputs"].flags["C_CONTIGUOUS"]
        assert not isinstance(part["inputs"], np.memmap)
    every = np.concatenate([part["inputs"] for part in parts])
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == 50

    again, other = make_splits(source, dataset, 0.25, 0), make_splits(source, dataset, 0.25, 1)
    np.testing.assert_array_equal(again.val["inputs"], splits.val["inputs"])
    assert (other.val["inputs"] != splits.val["inputs"]).any()
    np.testing.assert_array_equal(other.test["inputs"], splits.test["inputs"])
    none = make_splits(source, dataset, 0, 0)
    assert none.val is None and len(none.train["inputs"]) == counts[:2].sum()
    for wrong in (-0.1, 1, float("nan")):
        with pytest.raises(InputError, match="from 0 up to below 1"):
            make_splits(source, dataset, wrong, 0)

    # Not into memory where that would take a quarter of it.
    nbytes = 50 * 16 * 16 * 3
    monkeypatch.setattr("dlflax.data.dataset.host_memory", lambda: 4 * nbytes)
    streamed = make_splits(source, dataset, 0.25, 0)
    assert isinstance(streamed.train["inputs"], DiskArray)
    np.testing.assert_array_equal(streamed.val["inputs"][:], splits.val["inputs"])
    monkeypatch.setattr("dlflax.data.dataset.host_memory", lambda: 4 * nbytes + 4)
    assert isinstance(make_splits(source, dataset, 0.25, 0).train["inputs"], np.ndarray)


@pytest.mark.parametrize("val", ["validation", "val", "valid", None])
@pytest.mark.parametrize("test", ["test", None])
def test_folders_of_their_own_for_the_parts(tmp_path, val, test):
    root = tmp_path / "data"
    write(root / "train", cat=6, dog=4)
    for part in filter(None, (val, test)):
        write(root / part, cat=2, dog=1)
    image(7).save(root / "above.png")
    (root / "notes").mkdir()
    image(8).save(root / "notes" / "b.png")
    if test:
        message = refused("has a test folder: remove", data=root, test_split=0.5)
        assert "--test-split 0.5: " in message
    dataset = load(root, **({} if test else {"test_split": 0.5}))
    assert dataset.class_names == ("cat", "dog")
    outside = [("skipped", "outside the classes")]
    assert report(dataset) == {"above.png": outside, "notes/b.png": outside}
    splits = make_splits(ImageFolder(), dataset, 0.5, 0)
    drawn = [] if test else [Path(name).parts[0] for name in files_of(dataset, "test")]
    assert set(drawn) <= {"train"}
    counts = [np.bincount(part["targets"]).tolist() for part in (splits.test, splits.val)]
    if test:
        assert counts[0] == [2, 1]
    assert min(counts[0]) >= 1
    left = [total - (0 if test else drawn) for total, drawn in zip([6, 4], counts[0], strict=True)]
    assert counts[1] == ([2, 1] if val else [round(0.5 * n) for n in left])
    if val:
        held_out = dataset.split.in_validation
        assert held_out.dtype == bool
        for name, held in zip(dataset.examples.names, held_out, strict=True):
            assert held == name.startswith(f"{val}/")
        whole = make_splits(ImageFolder(), dataset, 0, 0)  # all are trained on, and that is said
        assert whole.val is None and "are trained on too" in whole.notes[0]
    else:
        assert dataset.split.in_validation is None


def test_a_class_may_be_called_train(tmp_path):
    root = write(tmp_path / "vehicles", train=3, bus=3)
    assert load(root).class_names == ("bus", "train")


def test_refused_folders(tmp_path):
    missing = tmp_path / "nowhere"
    assert f"{missing} does not exist: it should be a folder" in refused(data=missing)
    (tmp_path / "file").touch()
    refused("is not a folder", data=tmp_path / "file")
    for name, classes, sentence in (
        ("none", {}, "has no usable image: it should be"),
        ("one", {"cat": 5}, 'has only the class "cat"'),
        ("few", {"cat": 5, "dog": 2}, '2 usable images of the class "dog", but at least 3'),
        ("empty", {"cat": 5, "dog": 5, "emu": 0}, '0 usable images of the class "emu"'),
        ("test", {"test/a": 2, "test/b": 2, "val/a": 2}, 'has "test", "val" but no train/'),
        ("differ", {"train/a": 3, "train/b": 3, "test/a": 1},
         'the classes "a", "b" in train/ and "a" in test/'),
        ("both", {"train/a": 1, "val/a": 1, "valid/a": 1}, "has both val/ and valid/"),
        ("bare", {"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 0},
         'has 0 usable images of the class "b" for test'),
        ("thin", {"train/a": 2, "train/b": 1, "test/a": 2, "test/b": 1},
         'has 1 usable images of the class "b" for train, but at least 2'),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        for inner, count in classes.items():
            place = tmp_path / name / inner
            write(place.parent, **{place.name: count})
        message = refused(data=tmp_path / name)
        assert message.startswith(f"--data {tmp_path / name}") and sentence in message, message
    bad = write(tmp_path / "bad", cat=4, dog=4)
    for i, path in enumerate(sorted(bad.rglob("*.png"))):
        path.write_bytes(b"" if i < 3 else path.read_bytes()[:90])
    assert "no usable image (skipped: 5 truncated, 3 empty)" in refused(data=bad)
    flat = tmp_path / "flat"
    flat.mkdir()
    image(1).save(flat / "a.png")
    assert "no usable image (skipped: 1 outside the classes)" in refused(data=flat)


def test_refused_fields(tmp_path):
    for fields, sentence in (
        ({"image_size": 7}, "--image-size 7 must be from 8 to 1024"),
        ({"image_size": 1025}, "--image-size 1025 must be from 8 to 1024"),
        ({"test_split": 0}, "--test-split 0 must be above 0 and below 1"),
        ({"test_split": 1}, "--test-split 1 must be above 0 and below 1"),
        ({"test_split": float("nan")}, "--test-split nan"),
        ({"split_seed": -1}, "--split-seed -1 must be 0 or more"),
        ({"dataset": "birds"}, '--dataset "birds" is unknown: choose cats_vs_dogs, or pass --data'),
    ):
        assert sentence in refused(**fields)


def test_odd_pictures_are_converted_and_listed(tmp_path):
    root = write(tmp_path / "a", cat=3, dog=3)
    cats, turned = root / "cat", Image.Exif()
    turned[0x0112] = 6
    gradient = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50

    def shades(seed):
        return np.uint16(image(seed, mode="L")) * 257

    cut_out = image(1).copy()
    cut_out.putalpha(Image.fromarray((gradient >> 8).astype(np.uint8)))
    expected = {
        "cmyk.jpg": "CMYK", "16.png": "16-bit", "16.tif": "16-bit", "32.tif": "32-bit",
        "float.tif": "float", "alpha.png": "transparent, on white", "png.jpg": "PNG named .jpg",
        "jpeg.webp": "JPEG named .webp", "moves.gif": "animated, first frame",
        "moves.webp": "animated, first frame", "moves.png": "animated, first frame",
        "pages.tif": "animated, first frame", "colours16.png": "16-bit",
    }  # fmt: skip
    image(2, mode="CMYK").save(cats / "cmyk.jpg")
    Image.fromarray(gradient).save(cats / "16.png")
    Image.fromarray(shades(60)).save(cats / "16.tif")
    Image.fromarray(shades(61).astype(np.int32)).save(cats / "32.tif")
    Image.fromarray(shades(62) / np.float32(65535)).save(cats / "float.tif")
    cut_out.save(cats / "alpha.png")
    image(3).save(cats / "png.jpg", "PNG")
    image(4).save(cats / "jpeg.webp", "JPEG")
    for i, name in enumerate(("moves.gif", "moves.webp", "moves.png", "pages.tif")):
        image(10 + i).save(cats / name, save_all=True, append_images=[image(20 + i)])
    rows = b"".join(b"\0" + os.urandom(6 * 5) for _ in range(5))
    (cats / "colours16.png").write_bytes(png(5, 5, rows, depth=16))
    # These are not worth a line.
    for i, mode in enumerate(("1", "L", "P", "RGBA", "LA")):
        image(30 + i, mode=mode).save(cats / f"{mode}.png")
    image(40).save(cats / "turned.jpg", exif=turned)
    image(41).save(cats / "bad_exif.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1")
    image(42).save(cats / "bare.PGM")
    for i, size in enumerate(((1, 5000), (5000, 1), (1, 1), (3, 2), (1, 65535))):
        image(50 + i, size).save(cats / f"strange{i}.png")
    said = []
    dataset = load(root, said.append)
    found = report(dataset)
    plain = [found.pop(f"cat/strange{i}.png") for i in (0, 1, 2, 4)]
    assert plain == [[("listed", "all pixels have one colour")]] * 4
    assert found == {f"cat/{name}": [("converted", what)] for name, what in expected.items()}
    assert len(said) == 2
    assert said[1].startswith(
        "13 of 31 were converted, 4 of 31 are used unchanged, and should be reviewed, see "
        "files_skipped.csv: "
    )
    assert "4 animated, 4 of one colour, 3 16-bit, 2 misnamed" in said[1]
    assert len(dataset.examples.names) == 31


def test_upright_and_a_huge_jpeg_decoded_small(tmp_path, monkeypatch):
    root = write(tmp_path / "a", cat=3, dog=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("RGB", (600, 400), "red")
    lying.paste("blue", (0, 0, 300, 400))  # the left half, which is the upper one when upright
    lying.save(root / "cat" / "lying.jpg", exif=exif, quality=95)
    drafted, draft = [], JpegImageFile.draft

    def watched(self, mode, size):
        answer = draft(self, mode, size)
        drafted.append(self.size)
        return answer

    monkeypatch.setattr(JpegImageFile, "draft", watched)
    dataset = load(root)
    assert set(drafted) == {(75, 50)}  # an eighth
    found = [
        getattr(dataset, part)["inputs"][index]
        for part in ("train", "test")
        for index, name in enumerate(files_of(dataset, part))
        if name == "cat/lying.jpg"
    ]
    pixels = found[0].astype(int)
    assert (pixels[:7, :, 2] > 200).all() and (pixels[9:, :, 0] > 200).all()


def test_bad_files_are_skipped_and_counted(tmp_path, monkeypatch):
    root = write(tmp_path / "a", cat=4, dog=4)
    cats, good = root / "cat", encoded("PNG", 1)
    jpeg = encoded("JPEG", 2)
    (cats / "empty.jpg").touch()
    (cats / "empty too.png").touch()
    (cats / "cut.png").write_bytes(good[:-40])
    (cats / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (cats / "broken.png").write_bytes(good[:60] + b"\0\1\2\3" + good[64:])
    (cats / "text.jpg").write_text("hello")
    (cats / "notes.txt").write_text("hello")
    (cats / "LICENSE").write_text("hello")
    (cats / "bomb.png").write_bytes(png(50_000, 50_000, b""))
    (cats / "long.png").write_bytes(png(1, 70_000, b""))
    os.mkfifo(cats / "pipe.png")  # opening it would wait for ever
    with open(cats / "sparse.bmp", "wb") as file:
        file.truncate(2**30 + 1)
    for name in (".DS_Store", "._0.png", "Thumbs.db", ".hidden.png"):
        (cats / name).write_bytes(good)
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "a.png").write_bytes(good)
    said = []
    dataset = load(root, said.append)
    large = "too large: more than 89 million pixels, or 65,535 a side"
    rows = report(dataset)
    assert {what for row in rows.values() for what, _ in row} == {"skipped"}
    reasons = {name: reason for name, [(_, reason)] in rows.items()}
    assert reasons.pop("cat/cut.png").startswith("truncated: ")
    assert reasons.pop("cat/cut.jpg").startswith("truncated: ")
    assert reasons.pop("cat/broken.png").startswith("corrupt: ")
    assert reasons == {
        "cat/empty.jpg": "empty", "cat/empty too.png": "empty", "cat/text.jpg": "not an image",
        "cat/notes.txt": "not an image: named .txt", "cat/bomb.png": large, "cat/long.png": large,
        "cat/LICENSE": "not an image: named without ending",
        "cat/pipe.png": "unreadable: no regular file",
        "cat/sparse.bmp": "too large: more than 1 GiB",
    }  # fmt: skip
    start, kinds = said[1].removesuffix(".").split(": ")
    assert start == "12 of 20 files could not be used, see files_skipped.csv"
    want = "3 not an image, 3 too large, 2 truncated, 2 empty, 1 corrupt, 1 unreadable"
    assert sorted(kinds.split(", ")) == sorted(want.split(", "))
    never(monkeypatch)
    said.clear()
    again = load(root, said.append)  # the report is kept, too, and said again
    assert again.files == dataset.files and len(said) == 1


def test_a_file_that_vanishes_or_may_not_be_read(tmp_path, monkeypatch):
    root = write(tmp_path / "a", cat=4, dog=4)
    walk = folder_files.walk

    def then_gone(*args):
        found = walk(*args)
        (root / "cat" / "0.png").unlink()
        return found

    monkeypatch.setattr(folder_files, "walk", then_gone)
    reason = "unreadable: No such file or directory"
    assert report(load(root)) == {"cat/0.png": [("skipped", reason)]}


def test_names_of_any_bytes(tmp_path):
    root = write(tmp_path / "a", cat=4, dog=4)
    for i, name in enumerate((b"\xff.png", 'süß 🐈\n,".png'.encode())):
        with open(os.fsencode(root / "cat") + b"/" + name, "wb") as file:
            file.write(encoded("PNG", i))
    (root / "dog" / "ü,\n.txt").touch()
    dataset = ImageFolder(data=root, image_size=16).load(lambda _: None)
    names = dataset.examples.names
    assert {"cat/\\xff.png", 'cat/süß 🐈\\n,".png'} < set(names)
    assert report(dataset) == {"dog/ü,\\n.txt": [("skipped", "not an image: named .txt")]}
    json.dumps(names).encode()
    dataset.files[folder.REPORT].encode()


def test_same_bytes(tmp_path):
    root = write(tmp_path / "a", cat=5, dog=5)
    shutil.copy(root / "cat" / "0.png", root / "cat" / "9.png")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "8.png")
    shutil.copy(root / "dog" / "1.png", root / "cat" / "dog.png")
    said = []
    dataset = load(root, said.append)
    assert report(dataset) == {
        "cat/8.png": [("skipped", "same bytes as cat/0.png")],
        "cat/9.png": [("skipped", "same bytes as cat/0.png")],
        "cat/dog.png": [("skipped", "same bytes as dog/1.png, of another class")],
        "dog/1.png": [("skipped", "same bytes as cat/dog.png, of another class")],
    }
    assert said[0].startswith("Decoding 9 images")
    assert said[1].startswith("4 of 13 files could not be used, see files_skipped.csv: ")
    assert "2 duplicate" in said[1] and "2 in two classes" in said[1]
    # The test set stays as it is given.
    parts = tmp_path / "parts"
    write(parts / "train", cat=4, dog=4)
    write(parts / "test", cat=2, dog=2)
    shutil.copy(parts / "test" / "cat" / "1.png", parts / "train" / "cat" / "z.png")
    dataset = load(parts)
    reason = "same bytes as test/cat/1.png"
    assert report(dataset) == {"train/cat/z.png": [("skipped", reason)]}
    assert len(files_of(dataset, "test")) == 4


def saved_anew(path, how):
    """The bytes of a picture file, encoded or resized again."""
    with Image.open(path) as picture:
        size, format, options = picture.size, "JPEG", {"quality": 95}
        if how == "resized":
            size = (round(0.6 * size[0]), round(0.6 * size[1]))
        elif how == "low quality":
            options = {"quality": 40}
        elif how == "another format":
            format, options = "WEBP", {"quality": 80}
        elif how == "the same pixels":
            format, options = "TIFF", {}
        file = io.BytesIO()
        picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, format, **options)
    return file.getvalue(), FORMATS[format]


@pytest.mark.parametrize(
    "how", ["resized", "low quality", "another format", "the same pixels", "high quality"]
)
def test_a_picture_saved_anew_is_a_duplicate(tmp_path, how):
    """Within the classes, across given parts, and against another class."""
    root = tmp_path / "a"
    for part, count in (("train", 14), ("test", 6)):
        write(root / part, (200, 150), cat=count, dog=count)
    copies = {}
    for place, of in (("train/cat/copy", "test/cat/1.png"), ("train/dog/copy", "train/dog/2.png"),
                      ("train/dog/other", "train/cat/3.png")):  # fmt: skip
        content, suffix = saved_anew(root / of, how)
        (root / f"{place}.{suffix}").write_bytes(content)
        copies[f"{place}.{suffix}"] = of
    said = []
    found = report(load(root, said.append, image_size=32))
    exactly = ", to the pixel" if how == "the same pixels" else ""
    cat, dog, other = copies
    assert found[cat] == [("skipped", f"shows the same as test/cat/1.png{exactly}")]
    assert found["train/dog/copy" + cat[-len(cat.partition("copy")[2]) :]][0][0] == "skipped"
    for name in (other, "train/cat/3.png"):
        assert found[name][0][0] == "skipped" and found[name][0][1].endswith(", of another class")
    assert "near duplicate" in said[1] and "2 in two classes" in said[1]


def test_pictures_that_are_alike_are_listed_and_kept(tmp_path):
    """A burst of one scene; and a set in which all pictures are alike, as of parts on a belt."""
    root = write(tmp_path / "a", cat=12, dog=12)
    scene = image(7, (200, 150))
    for i in range(3):
        scene.crop((6 * i, 2 * i, 170 + 6 * i, 130 + 2 * i)).save(root / "cat" / f"burst{i}.png")
    dataset = load(root)
    assert len(dataset.examples.names) == 27
    listed = report(dataset)
    assert set(listed) <= {f"cat/burst{i}.png" for i in range(3)} and listed
    assert all(what == "listed" for rows in listed.values() for what, _ in rows)

    belt = tmp_path / "belt"
    for class_name in ("good", "bad"):
        (belt / class_name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    part = np.float32(image(9, (64, 64)))
    for i in range(40):
        pixels = part + rng.normal(0, 3, part.shape)
        if i % 2:
            pixels[20:24, i : i + 4] += 60
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(belt / ("good", "bad")[i % 2] / f"{i}.png")
    dataset = load(belt, image_size=64)
    assert len(dataset.examples.names) == 40


def test_links(tmp_path):
    root, outside = write(tmp_path / "a", cat=4, dog=4), write(tmp_path / "b", cat=3, emu=3)
    (tmp_path / "ab").mkdir()  # begins as the folder's name does
    image(1).save(tmp_path / "ab" / "x.png")
    (root / "cat" / "out.png").symlink_to(outside / "cat" / "0.png")
    (root / "cat" / "near.png").symlink_to(tmp_path / "ab" / "x.png")
    (root / "cat" / "nowhere.png").symlink_to(tmp_path / "c.png")
    (root / "cat" / "itself.png").symlink_to("itself.png")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "here").symlink_to(".")
    (root / "emu").symlink_to(outside / "emu")  # as of pictures that are kept elsewhere
    (root / "cat" / "above").symlink_to(tmp_path)
    (root / "store").mkdir()
    image(2).save(root / "store" / "s.png")
    image(3).save(root / "store" / "t.png")
    image(4).save(root / "store" / "u.png")
    (root / "linked").symlink_to("store")  # a class, of the same pictures as another one
    message = refused(data=root)
    assert 'has 0 usable images of the class "linked"' in message and "6 in two classes" in message
    (root / "linked").unlink()
    dataset = load(root)
    assert dataset.class_names == ("cat", "dog", "emu", "store")
    labels = np.concatenate([dataset.train["targets"], dataset.test["targets"]])
    assert np.bincount(labels).tolist() == [4, 4, 3, 3]
    leads_out, read = "link out of the folder", "link to a folder that is read already"
    assert report(dataset) == {
        f"cat/{name}": [("skipped", reason)]
        for name, reason in {
            "out.png": leads_out, "near.png": leads_out, "above": leads_out,
            "nowhere.png": "broken link", "itself.png": "broken link",
            "up/": read, "here/": read,
        }.items()
    }  # fmt: skip
    # The folder itself may be a link, and links within it are followed.
    (root / "dog" / "same.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(root)
    assert report(load(tmp_path / "link"))["dog/same.png"] == [
        ("skipped", "same bytes as dog/0.png")
    ]


def caches(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_changed_files_are_decoded_again(tmp_path):
    root = write(tmp_path / "a", cat=4, dog=4)
    first = load(root)
    load(root, image_size=20)
    assert len(caches(tmp_path)) == 4
    image(1).save(root / "cat" / "3.png")
    second = load(root)
    assert first.checksum != second.checksum
    assert len(caches(tmp_path)) == 4  # what is out of date is gone
    first.train["inputs"][:]  # and yet to be read by whoever has it
    image(2).save(root / "cat" / "4.png")
    third = load(root)
    assert len(third.train["targets"]) + len(third.test["targets"]) == 9
    assert set(files_of(second, "test")) <= set(files_of(third, "test"))  # it stays
    (root / "cat" / "4.png").unlink()
    assert load(root).checksum == second.checksum
    (root / "emu").mkdir()
    refused('class "emu"', data=root)


def test_no_room_for_the_cache(tmp_path, monkeypatch):
    root = write(tmp_path / "a", cat=4, dog=4)
    checksum = load(root).checksum
    (tmp_path / "file").touch()
    full = shutil.disk_usage(tmp_path)._replace(free=100)

    def loaded(words):
        said = []
        dataset = load(root, said.append)
        assert dataset.checksum == checksum and words in "".join(said)
        assert said[-1] == f"Decoding 8 images of {root} into memory."
        make_splits(ImageFolder(), dataset, 0.2, 0)

    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        loaded("cannot be cached in")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        patch.setattr(shutil, "disk_usage", lambda _: full)
        loaded("(No space left on device)")
        patch.setattr(decode, "host_memory", lambda: 2 * 8 * 16 * 16 * 3 - 2)
        refused("set XDG_CACHE_HOME to a larger disk", data=root)
        assert not list((tmp_path / "another").rglob("*.*"))

    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "limited"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # what a write meets midway
    try:
        loaded("cannot be cached in")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in (tmp_path / "limited").rglob("*") if path.is_file()]


def png(width, height, rows, depth=8):
    """A PNG file that declares this size, whatever it holds."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )  # fmt: skip


def bad_files(rng):
    """(name, bytes) of files that are damaged in every way, in every format; no two the same."""
    seed = 1000
    for format, suffix in FORMATS.items():
        for part in (0.02, 0.1, 0.3, 0.6, 0.9, 0.99):
            seed += 1
            whole = encoded(format, seed)
            yield f"cut_{part}.{suffix}", whole[: max(1, int(part * len(whole)))]
        for i in range(30):
            seed += 1
            content = bytearray(encoded(format, seed))
            end = 64 if i < 20 else len(content)
            for place in rng.integers(0, end, 1 + i % 4):
                content[place] ^= rng.integers(1, 256)
            yield f"mutated_{i}.{suffix}", bytes(content)
        for i in range(3):
            yield f"random_{i}.{suffix}", rng.bytes(1 + 700 * i)
        yield f"magic.{suffix}", whole[:12] + rng.bytes(1500)
        yield f"text.{suffix}", f"<html>not found: {suffix}</html>".encode()
        seed += 1
        wrong = next(other for other in FORMATS.values() if other != suffix)
        yield f"{format}_as.{wrong}", encoded(format, seed)
    sizes = (
        (60_000, 60_000),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (0, 9),
        (9_000, 9_000),
        (1, 80_000_000),
    )
    for width, height in sizes:
        yield f"{width}x{height}.png", png(width, height, rng.bytes(50))
        bmp = bytearray(encoded("BMP", width % 10_007))
        bmp[18:26] = struct.pack("<ii", width, height)
        yield f"{width}x{height}.bmp", bytes(bmp)
        yield f"{width}x{height}.ppm", b"P6 %d %d 255\n" % (width, height) + rng.bytes(99)
        gif = bytearray(encoded("GIF", height % 10_007))
        gif[6:10] = struct.pack("<HH", width % 65_536, height % 65_536)
        yield f"{width}x{height}.gif", bytes(gif)
        jpeg = bytearray(encoded("JPEG", (width + height) % 10_007))
        frame = jpeg.index(b"\xff\xc0") + 5
        jpeg[frame : frame + 4] = struct.pack(">HH", height % 65_536, width % 65_536)
        yield f"{width}x{height}.jpg", bytes(jpeg)


ROBUST = """
import sys, json, grain
from dlflax.data import ImageFolder
def peak():
    with open("/proc/self/status") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("VmHWM")), 0)
ImageFolder(data=sys.argv[2], image_size=32).load(lambda _: None)
before = peak()
said = []
data = ImageFolder(data=sys.argv[1], image_size=32).load(said.append)
print(json.dumps([peak() - before, said, data.examples.names, data.files["files_skipped.csv"]]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_hundreds_of_bad_files(tmp_path):
    """No crash, no hang, bounded memory; each is decoded as prediction would do it, or listed."""
    root, good = write(tmp_path / "a", cat=6, dog=6), write(tmp_path / "b", cat=3, dog=3)
    count = 0
    for count, (name, content) in enumerate(bad_files(np.random.default_rng(0)), 1):
        (root / ("cat", "dog")[count % 2] / name).write_bytes(content)
    assert count > 300
    done = python(ROBUST, root, good)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    growth, said, names, text = json.loads(done.stdout)
    # 9,000 x 9,000 pixels of 4 bytes thrice, one picture at a time: decoded, its copy, on white.
    assert growth < 1_000_000, f"{growth:,} KiB"
    rows = list(csv.DictReader(io.StringIO(text)))
    skipped = {row["file"] for row in rows if row["what"] == "skipped"}
    every = {path.relative_to(root).as_posix() for path in root.rglob("*.*")}
    assert len(names) == len(set(names)) and not skipped & set(names)
    assert skipped | set(names) == every
    assert len(skipped) > 200 and len(said) == 2
    assert said[1].startswith(f"{len(skipped)} of {len(every)} files could not be used")
    twice = {row["file"] for row in rows if row["reason"].startswith("shows the same as")}
    for name in every - twice:  # the same as prediction says of each
        if name in skipped:
            with pytest.raises(InputError):
                read_image(root / name, (32, 32, 3), False)
        else:
            read_image(root / name, (32, 32, 3), False)


def pet_images(path, each=5):
    """A zip file as the download is; {name: (bytes, label)} of what should be taken from it."""
    taken = {}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme[1].txt", "hello")
        for label, name in enumerate(("Cat", "Dog")):
            archive.writestr(f"PetImages/{name}/Thumbs.db", "hello")
            for i in range(each):
                member = f"PetImages/{name}/{i}.jpg"
                content = encoded("JPEG", 100 * label + i)
                archive.writestr(member, content)
                taken[member] = content, label
            archive.writestr(f"PetImages/{name}/666.jpg", b"")
            archive.writestr(f"PetImages/{name}/667.jpg", encoded("PNG", 900 + label))
            cut = encoded("JPEG", 300 + label)[:-60]  # JFIF, as TFDS would keep it
            archive.writestr(f"PetImages/{name}/668.jpg", cut)
            taken[f"PetImages/{name}/668.jpg"] = cut, label
    return taken


def test_download(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    packed = tmp_path / "mirror" / "kagglecatsanddogs_5340.zip"
    taken = pet_images(packed)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=packed.parent)
    source, said = ImageFolder(image_size=16), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/{packed.name}"
            monkeypatch.delenv("DLFLAX_OFFLINE")
            content = packed.read_bytes()
            files = {url: hashlib.sha256(content).hexdigest()}
            entry = dataclasses.replace(published.DATASETS["cats_vs_dogs"], files=files)
            monkeypatch.setitem(published.DATASETS, "cats_vs_dogs", entry)
            packed.write_bytes(b"<html>")
            with pytest.raises(InputError, match="pass --data PetImages"):
                source.load(said.append)
            assert "is not the published file" in said[0]
            packed.write_bytes(content)  # the wrong file was not kept
            dataset = source.load(said.append)
        finally:
            server.shutdown()
            thread.join()
    place = tmp_path / "tfds" / "cats_vs_dogs" / "4.0.1"
    assert dataset.name == "cats_vs_dogs" and dataset.class_names == ("cat", "dog")
    assert dataset.source == f"10 images of TFDS cats_vs_dogs:4.0.1 in {place}"
    assert list(report(dataset)) == ["PetImages/Cat/668.jpg", "PetImages/Dog/668.jpg"]
    assert said[-1] == "2 of 12 files could not be used, see files_skipped.csv: 2 truncated."
    # The bytes of the archive, through the decoder of files.
    root = tmp_path / "unpacked"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(root)
    for part in ("train", "test"):
        of, files = getattr(dataset, part), files_of(dataset, part)
        for pixels, label, name in zip(of["inputs"][:], of["targets"], files, strict=True):
            np.testing.assert_array_equal(pixels, read_image(root / name, (16, 16, 3), False))
            assert label == taken[name][1]
    assert np.bincount(dataset.test["targets"]).tolist() == [1, 1]

    never(monkeypatch)
    monkeypatch.setattr(hub, "network_error", lambda url: pytest.fail("network"))
    assert source.load(said.append).checksum == dataset.checksum
    monkeypatch.undo()
    other = dataclasses.replace(source, data=tmp_path / "tfds", image_size=16)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert other.load(said.append).checksum == dataset.checksum

    import tensorflow_datasets as tfds

    examples = tfds.data_source("cats_vs_dogs", split="train", data_dir=tmp_path / "tfds")
    assert len(examples) == len(taken) == 12
    assert "tensorflow" not in sys.modules
    skip = {"image": tfds.decode.SkipDecoding()}
    examples = tfds.data_source(
        "cats_vs_dogs", split="train", data_dir=tmp_path / "tfds", decoders=skip
    )
    got = {e["image/filename"].decode(): (e["image"], e["label"]) for e in examples}
    assert got == taken

    # By hand, as the sentence says: the PNG is used, too, since it is a picture.
    by_hand = ImageFolder(data=root / "PetImages", image_size=16).load(said.append)
    assert by_hand.name == "PetImages" and by_hand.class_names == ("Cat", "Dog")
    assert ("converted", "PNG named .jpg") in report(by_hand)["Cat/667.jpg"]

    for path in place.glob("*array_record*"):
        path.write_bytes(b"")
    shutil.rmtree(tmp_path / "cache")
    refused("cannot be read as labelled images", data=tmp_path / "tfds")


def test_nowhere(monkeypatch):
    said = []
    with pytest.raises(InputError, match="pass --data PetImages") as error:
        ImageFolder().load(said.append)
    assert said == ["cats_vs_dogs cannot be downloaded: DLFLAX_OFFLINE is set."]
    assert "kagglecatsanddogs_5340.zip by hand" in str(error.value)


@pytest.mark.skipif(not REAL.exists(), reason="the photographs are not here")
def test_photographs(tmp_path):
    root = tmp_path / "photos"
    for class_name in ("cat", "dog"):
        (root / class_name).mkdir(parents=True)
        for path in sorted((REAL / class_name).iterdir())[:20]:
            shutil.copyfile(path, root / class_name / path.name)
    dataset = load(root, image_size=64)
    assert dataset.files == {} and dataset.source.startswith("40 images in ")
    assert np.bincount(dataset.test["targets"]).min() >= 1
    splits = make_splits(ImageFolder(), dataset, 0.25, 0)
    assert splits.train["inputs"].shape[1:] == (64, 64, 3) and splits.train["inputs"].std() > 30


DEEP = {  # dtype of the pixels, format, ending, lowest and highest training pixel
    "16.png": (np.uint16, "PNG", 190, 4000), "16.tif": (np.uint16, "TIFF", 0, 65535),
    "big.tif": (">u2", "TIFF", 100, 30000), "16.pgm": (np.uint16, "PPM", 500, 65000),
    "32.tif": (np.int32, "TIFF", -70000, 200000), "float.tif": (np.float32, "TIFF", -1.5, 2.5),
}  # fmt: skip


def deep_folder(root, kind, count=10, size=16):
    """root/dim and root/lit with images of like shapes over the range; {name: pixels (h, w)}."""
    dtype, format, low, high = DEEP[kind]
    pixels_of, rng = {}, np.random.default_rng(0)
    for name, share in (("dim", 0.1), ("lit", 1)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            shades = rng.uniform(0, share, (size, size))
            shades[0, 0], shades[0, 1] = 0, share
            pixels = np.asarray(low + shades * (high - low)).astype(dtype)
            file = f"{name}/{i}.{kind.partition('.')[2]}"
            Image.fromarray(pixels).save(root / file, format)
            pixels_of[file] = np.asarray(pixels, np.float32)
    return pixels_of


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_have_the_one_scale_of_the_training_images(tmp_path, kind):
    root, said = tmp_path / "cells", []
    pixels_of = deep_folder(root, kind)
    if kind == "big.tif":
        assert (root / "dim" / "0.tif").read_bytes()[:2] == b"MM"
    dtype, _, low, high = DEEP[kind]
    source = ImageFolder("", data=root, image_size=16)
    dataset = source.load(lambda _: None)
    assert dataset.files == {}
    tested = next(name for name in files_of(dataset, "test") if "lit" in name)
    splits = make_splits(source, dataset, 0.2, 0, said.append)
    of_train = [pixels_of[name] for name in splits.names("train")]
    lowest, highest = np.min(of_train), np.max(of_train)
    assert splits.encoder.scale == (lowest, highest)
    assert any(f"black is {lowest:g}, white {highest:g}" in line for line in said)
    for part in ("train", "val", "test"):
        inputs = getattr(splits, part)["inputs"]
        wanted = np.stack([pixels_of[name] for name in splits.names(part)]).astype(np.float64)
        wanted = ((wanted - lowest) / (highest - lowest)).clip(0, 1)
        assert inputs.dtype == np.float32 and inputs.shape[1:] == (16, 16, 3)
        np.testing.assert_allclose(inputs, np.repeat(wanted[..., None], 3, 3), atol=1e-6)
    # the same as a file, as bytes, in a folder and as an array
    encoder, path = splits.encoder, root / tested
    wanted = splits.test["inputs"][splits.names("test").index(tested)]
    opened = np.repeat(np.asarray(Image.open(path))[..., None], 3, 2)
    for given in (path, [str(path)], Upload(path.read_bytes(), path.name), opened[None],
                  opened.astype(np.float64)):  # fmt: skip
        np.testing.assert_array_equal(encoder.encode(encoder.parse(given))["inputs"][0], wanted)
    labelled = encoder.parse_with_targets(root)
    arrays = encoder.encode(labelled)["inputs"]
    np.testing.assert_array_equal(arrays[list(labelled.names).index(tested)], wanted)
    traced = jax.jit(lambda raw: encoder.batch(raw, jnp)["inputs"])(encoder.raw(labelled))
    np.testing.assert_allclose(traced, arrays, atol=1e-6)
    np.testing.assert_array_equal(
        encoder.image(arrays, 0), np.round(255 * arrays[0]).astype(np.uint8)
    )


def test_images_in_another_unit_are_refused(tmp_path):
    encoder = ImageEncoder(Classes(("dim", "lit")), (8, 8, 1), scale=(190.0, 4000.0))
    shape = (1, 8, 8, 1)
    rng = np.random.default_rng(0)
    for wrong in (rng.uniform(0, 1, shape), np.full(shape, 60000), np.full(shape, -9000.0),
                  np.full(shape, np.nan), np.full(shape, 200, np.uint8)):  # fmt: skip
        with pytest.raises(InputError, match="the training images"):
            encoder.parse(wrong)
    image(0).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="8 bits among deeper images; give gray"):
        encoder.parse(tmp_path / "a.png")
    Image.fromarray(rng.uniform(0, 1, (8, 8)).astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match="give images in the same unit"):
        encoder.parse(tmp_path / "b.tif")
    for scale in ((1.0,), (2.0, 1.0), (0.0, float("inf"))):
        with pytest.raises(InputError, match="encoder.json is damaged: the pixel range"):
            dataclasses.replace(encoder, scale=scale).parse(np.full(shape, 200))


def test_the_scale_of_a_small_range_and_of_single_spots():
    def fit(images):
        said = []
        return fit_scale(np.float32(images), said.append), said[0]

    images = np.random.default_rng(0).integers(190, 211, (20, 16, 16, 3))
    scale, sentence = fit(images)
    assert scale == (190, 210) and "(0.0% of 16 bits, stretched)" in sentence
    images[3, 0, 0] = 65535
    scale, sentence = fit(images)
    assert scale == (190, 210) and "outliers, to 190 and 65535, are clipped" in sentence
    with pytest.raises(InputError, match="too narrow a range"):
        fit(np.full((4, 8, 8, 3), 7))
    with pytest.raises(InputError, match="too narrow a range: subtract"):
        fit(1e9 + images.clip(190, 210))
    assert fit_scale(images.astype(np.uint8), pytest.fail) == ()


def test_files_of_8_bits_among_deeper_ones_and_the_other_way_round(tmp_path):
    root = tmp_path / "cells"
    deep_folder(root, "16.png", 20)
    image(1, (16, 16)).save(root / "lit" / "thumbnail.png")
    dataset = load_any(root)
    assert dataset.train["inputs"].dtype == np.float32 and len(dataset.examples) == 40
    (row,) = report(dataset)["lit/thumbnail.png"]
    assert row[0] == "skipped" and "8 bits among deeper images" in row[1]

    write(root, (16, 16), dim=10, lit=10)
    full = np.uint16(image(3, (16, 16), "L")) * 257
    Image.fromarray(full).save(root / "lit" / "full.tif")
    high_bytes = (full >> 8).astype(">u2")
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in high_bytes)
    (root / "lit" / "colours.png").write_bytes(png(16, 16, rows, depth=16))
    dataset = load_any(root)
    assert dataset.train["inputs"].dtype == np.uint8
    rows = report(dataset)
    scale = "pixels of another scale than 8 bits"
    assert rows["lit/full.tif"] == [("converted", "16-bit")]
    assert rows["lit/colours.png"] == [("skipped", scale)]
    assert rows["dim/10.png"][0][1].startswith(f"{scale}: 190 to ")
    at = dataset.examples.names.index("lit/full.tif")
    pixels = dataset.examples.columns["inputs"][at]
    np.testing.assert_array_equal(pixels, np.repeat(full[..., None] >> 8, 3, 2))


def load_any(root):
    return ImageFolder("", data=root, image_size=16).load(lambda _: None)


def test_repeated_deep_images_are_skipped(tmp_path):
    root = tmp_path / "cells"
    pixels_of = deep_folder(root, "16.tif")
    again = pixels_of["lit/0.tif"].clip(1) - 1
    Image.fromarray(again.astype(np.uint16)).save(root / "lit" / "again.png")
    rows = report(load_any(root))
    (name, ((what, reason),)) = rows.popitem()
    assert not rows and (name, what) == ("lit/again.png", "skipped")
    assert reason.startswith("shows the same as lit/0.tif")


def test_pixels_that_are_no_number(tmp_path):
    pixels = np.arange(64, dtype=np.float32).reshape(8, 8) - 20
    pixels[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    got = read_image(tmp_path / "a.tif", (8, 8, 1), False, deep=True)
    np.testing.assert_array_equal(got[0, :4, 0], [-17] * 4)
    Image.fromarray(pixels * np.nan).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match="no pixel is finite"):
        read_image(tmp_path / "b.tif", (8, 8, 1), False, deep=True)


@pytest.mark.parametrize("above", ["", "train"])
def test_classes_in_natural_order_without_what_systems_leave(tmp_path, above):
    root = write(tmp_path / "a" / above, **{"1": 4, "2": 4, "10": 4, "b9": 4, "b11": 4})
    made = "@eaDir #recycle $RECYCLE.BIN lost+found __MACOSX .ipynb_checkpoints"
    for name in made.split():
        write(root, **{name: 3})
        write(tmp_path / "a", **{name: 3})
        write(root / "2", **{name: 1})
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / name).write_bytes(b"x")
        (root / "1" / name).write_bytes(b"x")
    dataset = load(tmp_path / "a")
    assert dataset.class_names == ("1", "2", "10", "b9", "b11")
    assert len(dataset.examples) == 20 and dataset.files == {}
    write(tmp_path / "n", x=12, y=12)
    names = [name for name in load(tmp_path / "n").examples.names if name[0] == "x"]
    assert names == [f"x/{i}.png" for i in range(12)]
