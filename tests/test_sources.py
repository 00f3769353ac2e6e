"""What every data source promises, one claim a test; and what `Arrays` refuses."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dlflax.data import Arrays, ImageFolder, Images, Series, Text
from dlflax.errors import InputError

RNG = np.random.default_rng(0)
KINDS = ("Images", "ImageFolder", "Text", "Series", "Arrays", "pictures in Arrays")


@pytest.fixture(params=KINDS)
def source(request, tmp_path, monkeypatch):
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
        return ImageFolder(data_dir=tmp_path / "photos", size=8)
    if request.param == "Text":
        lines = [f"{'good' if i % 2 else 'bad'} film number {i},{i % 2}" for i in range(60)]
        (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
        return Text(data_dir=tmp_path / "films.csv")
    if request.param == "Series":
        return Series("sunspots", window=22, horizon=5)
    shape, dtype = ((40, 3), np.float32) if request.param == "Arrays" else ((40, 6, 6, 3), np.uint8)
    parts = [
        {"inputs": (100 * RNG.random(shape)).astype(dtype), "targets": np.arange(40) % 2}
        for _ in range(2)
    ]
    return Arrays(*parts, class_names=("no", "yes"))


def given(source, splits, place):
    """What a user would give `read`."""
    if isinstance(source, Text):
        return ["a good film"]
    if isinstance(source, Series):
        return []
    if isinstance(source, Arrays) and splits.kind == "array":
        np.save(place / "x.npy", splits.test["inputs"][0])
        return ["x.npy"]
    array = splits.test["inputs"][0]
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(place / "x.png")
    return ["x.png"]


def silently(source):
    return source.load(lambda sentence: None)


def test_loading_again_gives_the_same_data(source):
    assert silently(source).checksum == silently(source).checksum
    assert len(silently(source).checksum) == 64


def test_splitting_is_a_function_of_its_arguments(source):
    dataset = silently(source)
    for a, b in zip(*(source.split(dataset, 0.25, 3).train.items() for _ in range(2)), strict=True):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])


def test_the_test_data_do_not_depend_on_the_seed(source):
    dataset = silently(source)
    # of texts the inputs are tokens, which the training texts number
    a, b = (source.split(dataset, 0.25, seed).test["targets"] for seed in (0, 1))
    np.testing.assert_array_equal(a, b)


def test_nothing_is_held_out_for_a_share_of_zero(source):
    dataset = silently(source)
    whole, part = source.split(dataset, 0.0, 0), source.split(dataset, 0.25, 0)
    assert whole.val is None and len(part.val["inputs"]) > 0
    assert len(whole.train["inputs"]) >= len(part.train["inputs"]) + len(part.val["inputs"])


def test_arrays_are_what_the_trainer_takes(source):
    splits = source.split(silently(source), 0.25, 0)
    for part in (splits.train, splits.val, splits.test):
        assert {"inputs", "targets"} <= set(part)
        assert len({len(array) for array in part.values()}) == 1
        assert part["inputs"].dtype in (np.uint8, np.float32, np.int32)
        assert part["inputs"].dtype == splits.train["inputs"].dtype
        assert part["inputs"].shape[1:] == splits.train["inputs"].shape[1:]
        assert part["targets"].dtype in (np.int32, np.float32)


def test_what_is_saved_of_it_is_json_and_text(source):
    splits = source.split(silently(source), 0.25, 0)
    assert json.loads(json.dumps(splits.info)) == splits.info
    assert all(isinstance(text, str) for text in splits.files.values())
    assert splits.kind in ("picture", "text", "series", "array")
    if splits.test_names is not None:
        assert len(splits.test_names) == len(splits.test["inputs"])


def test_its_fields_make_it_again(source):
    assert silently(dataclasses.replace(source)).checksum == silently(source).checksum


def test_what_a_user_gives_becomes_inputs_of_the_same_kind(source, tmp_path):
    splits = source.split(silently(source), 0.25, 0)
    for name, text in splits.files.items():
        (tmp_path / name).write_text(text)
    data = {"input_shape": splits.test["inputs"].shape[1:], **splits.info}
    names, kind, batch = source.read(given(source, splits, tmp_path), data, tmp_path)
    assert len(names) == 1 == len(batch["inputs"]) and isinstance(kind, str)
    assert batch["inputs"].dtype == splits.test["inputs"].dtype
    assert batch["inputs"].shape[1:] == splits.test["inputs"].shape[1:]
    if splits.kind == "picture" or isinstance(source, Arrays):
        np.testing.assert_array_equal(batch["inputs"][0], splits.test["inputs"][0])


def test_what_is_not_there_is_one_sentence(source, tmp_path):
    if isinstance(source, Text):
        pytest.skip("any text is one")
    splits = source.split(silently(source), 0.25, 0)
    data = {"input_shape": splits.test["inputs"].shape[1:], **splits.info}
    with pytest.raises(InputError, match="nowhere") as error:
        source.read(
            ["nowhere.npy" if isinstance(source, Arrays) else "nowhere.csv"], data, tmp_path
        )
    assert "\n" not in str(error.value)


X, Y = np.zeros((10, 3)), np.arange(10) % 2


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        (None, None, 'train must be a dict with "inputs"'),
        ({"x": X, "y": Y}, None, 'train must be a dict with "inputs"'),
        ({"inputs": X, "targets": Y[:9]}, None, "as many rows each, .* inputs 10, targets 9"),
        ({"inputs": X[:0], "targets": Y[:0]}, None, "at least one"),
        ({"inputs": np.array(["a"] * 10), "targets": Y}, None, "inputs of train must be an array"),
        ({"inputs": np.full((10, 3), np.nan), "targets": Y}, None, "NaN or infinity in row 0"),
        ({"inputs": X, "targets": Y + 2**40}, None, "whole numbers beyond 32 bits"),
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
    path, source = (
        tmp_path / "x.npy",
        Arrays({"inputs": X, "targets": Y}, {"inputs": X, "targets": Y}),
    )
    data = {"input_shape": [3], "dtype": "float32"}
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=str(path)):
        source.read([str(path)], data, tmp_path)
