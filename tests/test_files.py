"""What is read has an end and a size; what is kept is bounded; names cannot steer a terminal."""

import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dlflax import files
from dlflax.data import (
    Dataset,
    Examples,
    Given,
    ImageFolder,
    Nothing,
    Series,
    Text,
    idx,
    make_splits,
    read_dataset,
)
from dlflax.data.arrays import ArrayEncoder
from dlflax.errors import InputError
from dlflax.files import escape_controls, read_bytes, read_json
from dlflax.transfer.torch_file import read_state_dict

pytestmark = pytest.mark.usefixtures("place")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_has_no_end_is_not_read(place, kind):
    """It would be waited for, or read, for ever."""
    path = place / "x.npy"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError):
        read_bytes(path)
    encoder = ArrayEncoder(Nothing(), (3,), "float32")
    for read in (
        lambda: idx.read_bytes(path),
        lambda: encoder.parse(path),
        lambda: read_state_dict(path),
    ):
        with pytest.raises(InputError):
            read()
    for suffix, source in ((".csv", Text), (".csv", Series)):
        named = path.rename(place / f"x{suffix}") if path.exists() else place / f"x{suffix}"
        with pytest.raises(InputError):
            source(data=named).load(lambda _: None)


def test_links_are_not_followed_where_they_may_not_be(place):
    Path("a.json").write_text("3")
    Path("link.json").symlink_to("a.json")
    (place / "folder").symlink_to(place)
    assert read_json("link.json") == read_json("folder/a.json", follow=False) == 3
    for name in ("link.json", "folder", "none.json"):
        with pytest.raises(OSError):
            read_json(name, follow=False)


def test_bombs_are_not_unpacked(place, monkeypatch):
    monkeypatch.setattr(files, "host_memory", lambda: 4 * 10**6)
    Path("bomb.gz").write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(InputError, match="decompresses to more than"):
        idx.read_bytes(Path("bomb.gz"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    Path("bomb.pth").write_bytes(content.getvalue())
    with pytest.raises(InputError, match="decompress to more than a quarter"):
        read_state_dict("bomb.pth")
    Path("large.csv").write_bytes(bytes(10**7))
    with pytest.raises(InputError, match="large.csv cannot be read: more than"):
        idx.read_bytes(Path("large.csv"))


def test_json_that_is_nested_too_deeply(place):
    Path("a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError):
        read_json("a.json")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jdog", "\\x1b[2Jdog"),
        ("a\nb\r", "a\\nb\\r"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("süß 犬 🐕\u200d🦺", "süß 犬 🐕\u200d🦺"),
    ],
)
def test_names_cannot_steer_a_terminal(place, text, shown):
    assert escape_controls(text) == shown
    examples, split = Examples({}, classes=(text,)), Given(np.zeros(0, bool))
    assert Dataset(examples, split, "x", "x", "").class_names == (shown,)
    files.write_csv(place / "a.csv", [{"name": text}])
    assert shown in (place / "a.csv").read_text("utf-8")


def test_what_the_data_were_taken_for_is_kept(place):
    """Kind, shape, classes with counts, and all that was said of them."""
    rng = np.random.default_rng(0)
    from PIL import Image

    for k, name in enumerate("ab"):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(12 + k):
            pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "photos" / name / f"{i}.png")
    (place / "photos" / "a" / "cut.png").touch()

    source = ImageFolder(data=place / "photos", image_size=16)
    dataset = read_dataset(source, lambda _: None)
    summary = make_splits(source, dataset, 0.2, 0).summary()
    assert json.dumps(summary) and summary["examples"] == "colour images of 16 x 16 pixels"
    assert summary["input_shape"] == [16, 16, 3] and summary["input_type"] == "uint8"
    totals = {name: sum(row.values()) for name, row in summary["classes"].items()}
    assert totals == {"a": 12, "b": 13}
    assert any("1 of 26 files could not be used" in note for note in dataset.notes)
