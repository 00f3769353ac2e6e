"""Cache on disk: entries of JSON values and arrays, verified when they are read.

An entry has a file NAME.json, with its values and the dtype, shape and SHA-256 of its arrays, and a
file NAME.ARRAY with the bytes of each. Each file is renamed when it is complete, NAME.json last, so
that no process reads partial ones, and processes that write an entry at once do no harm.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.files import atomic_write, read_bytes

MAX_PROGRAM_BYTES = 2 * 10**9  # of all compiled programs in the cache
STALE_SECONDS = 3600  # after so long without a write, the writer of a temporary file is dead


def cache_folder() -> Path:
    """Returns $XDG_CACHE_HOME/dlflax, by default ~/.cache/dlflax. It has decoded data, features
    and compiled programs, and can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlflax"


def digest(*parts: Any) -> str:
    """Returns the SHA-256, 64 hex digits, of arrays, bytes and JSON values."""
    sha256 = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha256.update(f"{part.dtype} {part.shape}".encode())
            sha256.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
        else:
            sha256.update(part if isinstance(part, bytes) else json.dumps(part).encode())
    return sha256.hexdigest()


def read(path: Path) -> tuple[Any, dict[str, np.ndarray]] | None:
    """Returns (values, memory-mapped arrays) of an entry; None if missing or damaged. path:
    without suffix."""
    try:
        checksum, _, text = read_bytes(f"{path}.json").decode("utf-8").partition("\n")
        if digest(text.encode()) != checksum:
            return None
        values, manifest = json.loads(text)
        arrays = {}
        for name, (dtype, shape, sha256) in manifest.items():
            if 0 in shape:
                array = np.empty(shape, dtype)  # which cannot be mapped
            else:
                array = np.memmap(f"{path}.{name}", dtype, "r", shape=tuple(shape))
            if hashlib.sha256(array).hexdigest() != sha256:
                return None
            arrays[name] = array
        return values, arrays
    except Exception:  # damaged bytes can raise anything
        return None


def write(
    path: Path,
    values: Any,
    arrays: Mapping[str, Iterable[np.ndarray]] | None = None,
    log: Callable[[str], None] = lambda sentence: None,
    *,
    nbytes: int = 0,
    alone: bool = False,
) -> bool:
    """Writes an entry, or logs why it cannot be written; True if written.

    values: JSON, which may change until all arrays are written. arrays: one or more blocks
    (rows, ...) of each. nbytes: required space. alone: other entries in the folder are out of date,
    and are deleted.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _delete_leftovers(path.parent.glob("*.tmp"))
        for other in path.parent.iterdir() if alone else ():
            if not other.name.startswith((path.name, ".")):
                with contextlib.suppress(OSError):
                    other.unlink()
        manifest = {
            name: _write_array(Path(f"{path}.{name}"), blocks)
            for name, blocks in (arrays or {}).items()
        }
        text = json.dumps([values, manifest])
        with atomic_write(f"{path}.json") as temporary:
            content = f"{digest(text.encode())}\n{text}"
            temporary.write_text(content, encoding="utf-8", newline="\n")
        return True
    except OSError as error:
        log(f"Results cannot be cached in {path.parent} ({error.strerror or error}).")
        return False


def _write_array(path: Path, blocks: Iterable[np.ndarray]) -> tuple[str, list[int], str]:
    """Writes the bytes of blocks (rows, ...). Returns (dtype, shape, SHA-256)."""
    sha256, count = hashlib.sha256(), 0
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        for block in map(np.ascontiguousarray, blocks):
            content = block.reshape(-1).view(np.uint8)
            file.write(content)
            sha256.update(content)
            count += len(block)
    return block.dtype.str, [count, *block.shape[1:]], sha256.hexdigest()


def _delete_leftovers(temporary: Iterable[Path]) -> None:
    """Deletes the temporary files of killed processes."""
    for path in temporary:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def tidy_cache() -> None:
    """Deletes the temporary files of killed processes and, beyond MAX_PROGRAM_BYTES, the compiled
    programs least recently used."""
    with contextlib.suppress(OSError):  # of a process that tidies at the same time
        _delete_leftovers(cache_folder().rglob("*.tmp"))
        programs = []
        for path in (cache_folder() / "xla").glob("*-cache"):
            status = path.stat()
            # JAX never writes an empty program (of a killed process, a full disk) again
            used = max(status.st_atime, status.st_mtime) if status.st_size else 0.0
            programs.append((used, status.st_size, path))
        total = sum(size for _, size, _ in programs)
        for _, size, path in sorted(programs):
            if size and total <= MAX_PROGRAM_BYTES:
                break
            total -= size
            path.unlink()
