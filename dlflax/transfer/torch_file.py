"""State dicts of PyTorch files (.pth, .pt, .bin), read safely and without PyTorch.

A pickle can call any function. This unpickler allows only the few names of a state dict, builds
NumPy arrays from them, and rejects all others.
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

MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file in the format before PyTorch 1.6
BIG_ENDIAN = "was written on a big-endian machine, which is not supported."
DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads {name: array} from a state dict, or from the file's dict "state_dict" or "model", in
    both formats of `torch.save`. bfloat16 becomes float32. Raises InputError if the file is
    missing, damaged, or has anything but tensors and plain values."""
    path = Path(path)
    try:
        content = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        read = _read_zip if zipfile.is_zipfile(io.BytesIO(content)) else _read_legacy
        state = read(content)
        for key in ("state_dict", "model"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        tensors = {k: tensor.array() for k, tensor in state.items() if isinstance(tensor, _Tensor)}
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path} is not a readable PyTorch state dict ({type(error).__name__}): damaged, or "
            "of another format."
        ) from error
    if not tensors:
        raise InputError(f"{path} has no tensors: it should be a state dict.")
    return tensors


class _Storage:
    """Flat array, whose bytes are later in the file, or in another member of the archive."""

    def __init__(self, type_name: str, numel: int):
        self.dtype, self.type_name, self.numel = np.dtype(DTYPES[type_name]), type_name, numel
        self.bytes: bytes | memoryview = b""

    def array(self):
        flat = np.frombuffer(self.bytes, self.dtype, count=self.numel)
        if self.type_name == "BFloat16Storage":  # the upper half of a float32
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
        # at most the storage's size: a stride of 0 could require any amount of memory
        if math.prod(self.size) > len(flat) or (math.prod(self.size) and not inside):
            raise ValueError("a tensor exceeds its storage")
        strides = tuple(s * flat.itemsize for s in self.stride)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, strides)
        return np.array(view)


class _Unpickler(pickle.Unpickler):
    """Unpickler that creates a `_Storage` for each key in `storages`, and imports nothing."""

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        if module in ("torch", "torch.storage") and name in DTYPES:
            return name
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
            ("torch._utils", "_rebuild_tensor"): _Tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in allowed:
            raise InputError(
                f"would run {module}.{name}, which is not allowed: pass a state dict of plain "
                "tensors (torch.save(model.state_dict(), FILE)), or a safetensors file."
            )
        return allowed[module, name]

    def persistent_load(self, pid):
        tag, type_name, key, _, numel, *view = pid
        if tag != "storage" or (view and view[0] is not None):
            raise ValueError("a storage of an unsupported type")
        return self.storages.setdefault(key, _Storage(type_name, int(numel)))


def _read_zip(content: bytes):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > max_file_bytes():
            raise InputError("the files decompress to more than a quarter of the memory.")
        (index,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        folder = index.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise InputError(BIG_ENDIAN)
        unpickler = _Unpickler(io.BytesIO(archive.read(index)))
        state = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.bytes = archive.read(f"{folder}data/{key}")
    return state


def _read_legacy(content: bytes):
    file = io.BytesIO(content)
    if _Unpickler(file).load() != MAGIC:
        raise ValueError("not a PyTorch file")
    _Unpickler(file).load()  # version of the protocol
    if not _Unpickler(file).load().get("little_endian", True):
        raise InputError(BIG_ENDIAN)
    unpickler = _Unpickler(file)
    state = unpickler.load()
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storage.numel:
            raise ValueError("a storage of an unexpected length")
        storage.bytes = file.read(numel * storage.dtype.itemsize)
    return state
