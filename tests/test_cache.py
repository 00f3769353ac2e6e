"""The cache on disk: what was written is read, or computed again; nothing stops a run."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from dlflax import cache

pytestmark = pytest.mark.usefixtures("isolated")
VALUES = {"names": ["a", "süß"], "score": 0.1 + 0.2, "none": None, "nan": float("nan")}
ARRAYS = {
    "pixels": np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3),
    "features": np.float32([[1 / 3, np.nan], [np.inf, -0.0]]),
    "right": np.array([True, False]),
    "empty": np.empty((0, 7), np.int32),
}


@pytest.fixture
def entry(tmp_path):
    path = tmp_path / "some [folder]" / "0123abcd"
    assert cache.read(path) is None
    assert cache.write(path, VALUES, {name: [array] for name, array in ARRAYS.items()}, pytest.fail)
    return path


def check(path):
    values, arrays = cache.read(path)
    assert json.dumps(values) == json.dumps(VALUES) and list(arrays) == list(ARRAYS)
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (ARRAYS[name].dtype, ARRAYS[name].shape)
        assert array.tobytes() == ARRAYS[name].tobytes()
        assert not array.size or isinstance(array, np.memmap) and not array.flags.writeable


def test_what_is_written_is_read(entry):
    check(entry)
    whole = {path: path.read_bytes() for path in entry.parent.iterdir()}

    def blocks(array):
        yield array[:0]
        yield from (row[None] for row in array)

    assert cache.write(entry, VALUES, {name: blocks(array) for name, array in ARRAYS.items()})
    assert {path: path.read_bytes() for path in entry.parent.iterdir()} == whole


def test_values_may_change_until_the_arrays_are_written(entry):
    values = {}

    def blocks():
        yield np.zeros(3)
        values["mean"] = 0.0

    cache.write(entry, values, {"x": blocks()})
    assert cache.read(entry)[0] == {"mean": 0.0}


@pytest.mark.parametrize("suffix", [".json", ".pixels"])
def test_damaged_entries_are_not_read(entry, suffix):
    path = entry.with_name(entry.name + suffix)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-2] ^= 4
    for damage in (None, b"", b"{}", content[: len(content) // 2], content[:-1], flipped):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert cache.read(entry) is None
        path.write_bytes(content)
    check(entry)
    path.write_bytes(b"")
    cache.write(entry, VALUES, {name: [array] for name, array in ARRAYS.items()})
    assert path.read_bytes() == content


def test_bytes_of_another_shape_and_of_objects_are_not_read(entry):
    """Nor is a pickle, which could run code."""
    path = entry.with_name("0123abcd.json")
    text = path.read_text("utf-8").partition("\n")[2]
    for old, new in (('"|u1", [5', '"|i2", [5'), ("[5, 4", "[6, 4"), ('"|u1"', '"|O"')):
        changed = text.replace(old, new)
        assert changed != text
        path.write_text(f"{cache.digest(changed.encode())}\n{changed}", "utf-8")
        assert cache.read(entry) is None


def test_a_disk_that_takes_nothing(tmp_path, entry, monkeypatch):
    """One sentence, and nothing is left."""
    said, arrays = [], {"x": [np.zeros(10_000)]}
    (tmp_path / "file").touch()
    assert not cache.write(tmp_path / "file" / "in" / "x", 0, arrays, said.append)
    assert not cache.write(tmp_path / "space" / "x", 0, arrays, said.append, nbytes=2**62)
    assert "No space left on device" in said[1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # what a write meets midway
    try:
        assert not cache.write(tmp_path / "limited" / "x", 0, arrays, said.append)
        assert not cache.write(entry, 0, {"pixels": arrays["x"]}, said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for name in ("space", "limited"):
        assert list((tmp_path / name).iterdir()) == []
    check(entry)
    entry.with_name("0123abcd.json").unlink()
    entry.with_name("0123abcd.json").mkdir()
    assert not cache.write(entry, VALUES, {}, said.append)
    assert len(said) == 5 and all(" cannot be cached in " in sentence for sentence in said)

    def interrupted():
        yield np.zeros(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write(tmp_path / "space" / "x", 0, {"x": interrupted()})
    assert list((tmp_path / "space").iterdir()) == []


def test_what_is_out_of_date_is_deleted(entry):
    _, mapped = cache.read(entry)
    another = entry.with_name("4567")
    cache.write(another, 0)
    check(entry)
    cache.write(another, 1, {"x": [np.zeros(2)]}, alone=True)
    assert sorted(p.name for p in entry.parent.iterdir()) == ["4567.json", "4567.x"]
    np.testing.assert_array_equal(mapped["pixels"], ARRAYS["pixels"])  # by whoever has it


WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from dlflax import cache
path, moment = Path(sys.argv[1]), int(sys.argv[2])
real, calls = os.replace, []
def replace(*args):
    calls.append(args)
    if len(calls) == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
os.replace = replace
blocks = lambda: (np.full((1, 9), i) for i in range(200))
for _ in range(1 if moment else 30):
    cache.write(path, list(range(200)), {"a": blocks(), "b": blocks()})
    read = cache.read(path)
    assert read is None or read[0][-1] == read[1]["b"][-1, 0] == 199
"""


@pytest.mark.slow
def test_killed_writers_and_several_at_once(tmp_path):
    path = tmp_path / "x" / "y"

    def start(moment):
        return subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, path, str(moment)])

    killed = [start(moment) for moment in (1, 2, 3)]
    assert [process.wait(60) for process in killed] == [-9] * 3
    assert cache.read(path) is None
    left = list(path.parent.glob(".*.tmp"))
    assert len(left) == 3
    at_once = [start(0) for _ in range(2)]
    assert [process.wait(60) for process in at_once] == [0, 0]
    assert cache.read(path)[0][-1] == 199
    assert set(left) < set(path.parent.iterdir())  # someone may be writing them now
    for file in left:
        os.utime(file, (0, 0))
    cache.write(path, 0)
    assert not set(left) & set(path.parent.iterdir())


def test_digests_differ():
    array = np.arange(4)
    parts = [
        (array,), (array[::-1],), (array.astype("f8"),), (array.reshape(2, 2),), (array[:0],), (),
        ("a",), (b"a",), (["a"],), ([1, "a"],), (1.5,), (None,),
    ]  # fmt: skip
    assert len({cache.digest(*each) for each in parts}) == len(parts)
    assert cache.digest(array.reshape(2, 2).T) == cache.digest(array.reshape(2, 2).T.copy())
    assert cache.digest(b"abc").startswith("ba7816bf")  # FIPS 180


def test_the_folder_is_tidied(monkeypatch):
    """Half-written files that are old, empty programs, and those not used for longest."""
    programs = cache.cache_folder() / "xla"
    programs.mkdir(parents=True)
    now = time.time()
    for i in range(10):
        path = programs / f"jit_{i}-cache"
        path.write_bytes(bytes(100 if i else 0))
        os.utime(path, (now - 1000 + i, now - 1000 + i))
    folders = cache.cache_folder() / "folders"
    folders.mkdir()
    for name, age in (("old.tmp", 10_000), ("new.tmp", 10)):
        (folders / name).touch()
        os.utime(folders / name, (now - age, now - age))
    monkeypatch.setattr(cache, "MAX_PROGRAM_BYTES", 500)
    cache.tidy_cache()
    left = sorted(path.name for path in programs.iterdir())
    assert left == [f"jit_{i}-cache" for i in range(5, 10)]
    assert [path.name for path in folders.iterdir()] == ["new.tmp"]
    shutil.rmtree(cache.cache_folder())
    cache.tidy_cache()
