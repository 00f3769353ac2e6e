"""State dicts of PyTorch files (.pth, .pt, .bin), read without PyTorch, running nothing.

A pickle can call any function. The unpickler here knows the handful of names that a state dict
consists of, builds plain NumPy arrays from them, and refuses all others.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from dlflax.errors import InputError
from dlflax.files import max_file_bytes, read_bytes

# torch/serialization.py: what a file of the format before 1.6 begins with, after the pickle header
MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> array, of a state dict or of the dict under "state_dict" or "model" in the file.
    bfloat16 becomes float32. Both formats of `torch.save` are read.

    Raises InputError when the file is missing, damaged, or holds anything but tensors and plain
    values.
    """
    path = Path(path)
    try:
        content = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            found = _read_zip(content)
        else:
            found = _read_legacy(content)
        for key in ("state_dict", "model"):
            if isinstance(found, dict) and isinstance(found.get(key), dict):
                found = found[key]
        tensors = {name: value.array() for name, value in found.items() if _is_tensor(value)}
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # a damaged pickle raises anything
        what = type(error).__name__
        raise InputError(
            f"{path} is not a readable PyTorch state dict ({what}): damaged, or of another format."
        ) from error
    if not tensors:
        raise InputError(f"{path} holds no tensors: it should be a state dict.")
    return tensors


def _is_tensor(value):
    return isinstance(value, _Tensor)


class _Storage:
    """A flat array whose bytes come later in the file, or from another member of the archive."""

    def __init__(self, kind: str, numel: int):
        self.dtype, self.kind, self.numel = np.dtype(DTYPES[kind]), kind, numel
        self.bytes: bytes | memoryview = b""

    def array(self):
        flat = np.frombuffer(self.bytes, self.dtype, count=self.numel)
        if self.kind == "BFloat16Storage":  # the upper half of a float32
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return flat


class _Tensor:
    def __init__(self, storage, offset, size, stride, *_):
        self.storage, self.offset = storage, int(offset)
        self.size, self.stride = tuple(map(int, size)), tuple(map(int, stride))

    def array(self):
        flat = self.storage.array()
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        inside = min((self.offset, *self.stride), default=0) >= 0 and last < len(flat)
        # nor more numbers than there are: a stride of 0 could ask for any amount of memory
        if math.prod(self.size) > len(flat) or (math.prod(self.size) and not inside):
            raise ValueError("a tensor that reaches beyond its storage")
        strides = tuple(s * flat.itemsize for s in self.stride)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, strides)
        return np.array(view)


class _Unpickler(pickle.Unpickler):
    """Storages are `_Storage`s in `storages`, by key; nothing else is imported."""

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        if module in ("torch", "torch.storage") and name in DTYPES:
            return name
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
            ("torch._utils", "_rebuild_tensor"): _Tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise InputError(
                f"would run {module}.{name}, which is not read: give a state dict of plain tensors "
                "(torch.save(model.state_dict(), FILE)), or a safetensors file."
            )
        return known[module, name]

    def persistent_load(self, pid):
        what, kind, key, _, numel, *view = pid
        if what != "storage" or (view and view[0] is not None):
            raise ValueError("a storage of an unknown kind")
        return self.storages.setdefault(key, _Storage(kind, int(numel)))


def _read_zip(content: bytes):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > max_file_bytes():
            raise InputError("unpacks to more than a quarter of the memory: too much to read.")
        (index,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        folder = index.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise InputError("was written on a big-endian machine, which is not read.")
        unpickler = _Unpickler(io.BytesIO(archive.read(index)))
        found = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.bytes = archive.read(f"{folder}data/{key}")
    return found


def _read_legacy(content: bytes):
    file = io.BytesIO(content)
    if _Unpickler(file).load() != MAGIC:
        raise ValueError("not a PyTorch file")
    _Unpickler(file).load()  # version of the protocol
    if not _Unpickler(file).load().get("little_endian", True):
        raise InputError("was written on a big-endian machine, which is not read.")
    unpickler = _Unpickler(file)
    found = unpickler.load()
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storage.numel:
            raise ValueError("a storage of another length than announced")
        storage.bytes = file.read(numel * storage.dtype.itemsize)
    return found
