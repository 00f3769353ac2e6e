"""PyTorch files without PyTorch: both formats, damage and malice."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from dlflax.errors import InputError
from dlflax.transfer.torch_file import MAGIC, read_state_dict

ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "steps": np.array(7, np.int64),
    "mask": np.array([True, False]),
}


def torch_pickle(value, storages):
    """What torch.save's pickler makes of {name: array}: tensors over storages by persistent id."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage", "BoolStorage", "BFloat16Storage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*_):
        raise AssertionError("only its name is pickled")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    kinds = {"f": torch.FloatStorage, "i": torch.LongStorage, "b": torch.BoolStorage}

    class Placeholder:
        def __init__(self, key, array):
            self.pid = ("storage", kinds[array.dtype.kind], key, "cpu", array.size)

    class Tensor:
        def __init__(self, key, array):
            strides = tuple(s // array.itemsize for s in array.strides)
            hooks = collections.OrderedDict()
            self.state = (Placeholder(key, array), 0, array.shape, strides, False, hooks)

        def __reduce__(self):
            return _rebuild_tensor_v2, self.state

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return obj.pid if isinstance(obj, Placeholder) else None

    tensors = collections.OrderedDict()
    for key, (name, array) in enumerate(value.items()):
        storages[str(key)] = array
        tensors[name] = Tensor(str(key), array)
    file = io.BytesIO()
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        Pickler(file, 2).dump(tensors)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return file.getvalue()


def write(path, form):
    storages = {}
    content = torch_pickle(ARRAYS, storages)
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", content)
            for key, array in storages.items():
                archive.writestr(f"model/data/{key}", array.tobytes())
        return path
    header = (MAGIC, 1001, {"little_endian": True})
    body = b"".join(pickle.dumps(value, 2) for value in header) + content
    body += pickle.dumps(list(storages), 2)
    for array in storages.values():
        body += struct.pack("<q", array.size) + array.tobytes()
    path.write_bytes(body)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_both_formats(tmp_path, form):
    found = read_state_dict(write(tmp_path / "a.pth", form))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape


class Malice:
    def __reduce__(self):
        return os.mkdir, ("run",)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_nothing_is_run(tmp_path, form, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"weight": Malice()}, 2)
    path = tmp_path / "bad.pth"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", content)
    else:
        path.write_bytes(b"".join(pickle.dumps(v, 2) for v in (MAGIC, 1001, {})) + content)
    with pytest.raises(InputError, match="would run (posix|nt|os).mkdir, which is not allowed"):
        read_state_dict(path)
    assert not (tmp_path / "run").exists()


def test_damage_is_one_sentence(tmp_path):
    rng = np.random.default_rng(0)
    for form in ("zip", "legacy"):
        whole = write(tmp_path / "a.pth", form).read_bytes()
        for trial in range(150):
            broken = bytearray(whole)
            if trial % 2:
                del broken[rng.integers(0, len(broken)) :]
            else:
                for place in rng.integers(0, len(broken), 4):
                    broken[place] = rng.integers(0, 256)
            (tmp_path / "b.pth").write_bytes(broken)
            try:
                found = read_state_dict(tmp_path / "b.pth")
            except InputError as error:
                assert "\n" not in str(error) and "b.pth" in str(error)
            else:  # in the numbers, where nothing can tell
                assert set(found) <= set(ARRAYS) or trial % 2 == 0
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_state_dict(tmp_path / "nowhere.pth")
