"""What every data source promises, one claim a test; and what `Arrays` refuses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlflax.data import Arrays, ImageFolder, Images, Series, Table, Text
from dlflax.data.arrays import ArrayEncoder
from dlflax.data.target import Nothing
from dlflax.errors import InputError
from dlflax.testing import SourceSuite

RNG = np.random.default_rng(0)
KINDS = ("Images", "ImageFolder", "Text", "Table", "Series", "Arrays", "pictures in Arrays")


class TestSources(SourceSuite):
    @pytest.fixture(params=KINDS)
    def source(self, request, tmp_path, monkeypatch):
        """A small one of each kind."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        if request.param == "Images":
            return Images("digits")
        if request.param == "ImageFolder":
            for name in ("cat", "dog"):
                (tmp_path / "photos" / name).mkdir(parents=True)
                for i in range(20):
                    pixels = RNG.integers(0, 256, (12, 12, 3), np.uint8)
                    Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
            return ImageFolder(data=tmp_path / "photos", image_size=8)
        if request.param == "Text":
            lines = [f"{'good' if i % 2 else 'bad'} film number {i},{i % 2}" for i in range(60)]
            (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
            return Text(data=tmp_path / "films.csv")
        if request.param == "Table":
            lines = [f"{i % 7},{'red' if i % 3 else 'blue'},{'no' if i % 2 else 'yes'}\n"
                     for i in range(60)]  # fmt: skip
            (tmp_path / "rows.csv").write_text("number,colour,answer\n" + "".join(lines))
            return Table(data=tmp_path / "rows.csv")
        if request.param == "Series":
            return Series("sunspots", window=22, horizon=5)
        shape, dtype = (40, 3), np.float32
        if request.param == "pictures in Arrays":
            shape, dtype = (40, 6, 6, 3), np.uint8
        parts = [
            {"inputs": (100 * RNG.random(shape)).astype(dtype), "targets": np.arange(40) % 2}
            for _ in range(2)
        ]
        return Arrays(*parts, class_names=("no", "yes"))

    def user_input(self, source, splits, folder):
        first = splits.examples["test"].take(slice(1))
        if isinstance(source, Text):
            return first.columns["inputs"][0]
        if isinstance(source, Series):
            return None
        if isinstance(source, Table):
            row = {name: str(column[0]) for name, column in first.columns.items()}
            Path("new.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
            return "new.csv"
        array = splits.test["inputs"][0]
        if isinstance(splits.encoder, ArrayEncoder):
            np.save(folder / "x.npy", array)
            return "x.npy"
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(folder / "x.png")
        return "x.png"

    def missing_file(self, source):
        if isinstance(source, Text):
            return None
        return "nowhere.npy" if isinstance(source, Arrays) else "nowhere.csv"


X, Y = np.zeros((10, 3)), np.arange(10) % 2


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        (None, None, 'train must be a dict with "inputs"'),
        ({"x": X, "y": Y}, None, 'train must be a dict with "inputs"'),
        ({"inputs": X, "targets": Y[:9]}, None, "same number of rows, .* inputs 10, targets 9"),
        ({"inputs": X[:0], "targets": Y[:0]}, None, "at least one"),
        ({"inputs": np.array(["a"] * 10), "targets": Y}, None, "inputs of train must be an array"),
        ({"inputs": np.full((10, 3), np.nan), "targets": Y}, None, "NaN or infinity in row 0"),
        ({"inputs": X, "targets": Y + 2**40}, None, "integers beyond 32 bits"),
        ({"inputs": X, "targets": Y}, {"inputs": X}, "train has targets of int32 .* test nothing"),
        (
            {"inputs": X, "targets": Y},
            {"inputs": X[:, :2], "targets": Y},
            "both must have the same",
        ),
        ({"inputs": X, "targets": Y}, [1, 2], 'test must be a dict with "inputs"'),
    ],
)
def test_what_arrays_refuse(train, test, sentence):
    test = {"inputs": X, "targets": Y} if test is None else test
    with pytest.raises(InputError, match=sentence) as error:
        Arrays(train, test).load(print)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"no array", b"", None, np.zeros((2, 5)), np.array(["a"])])
def test_files_that_are_no_rows(tmp_path, content):
    path, encoder = tmp_path / "x.npy", ArrayEncoder(Nothing(), (3,), "float32")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=str(path)):
        encoder.parse(str(path))
