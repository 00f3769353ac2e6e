"""Files: written whole or not at all, and the folder for what is computed once."""

import contextlib
import csv
import errno
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import BinaryIO

from dlflax.errors import RunError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

MOST_JSON = 2**28  # bytes of a JSON file of ours
MOST_PROGRAMS = 2 * 10**9  # bytes of compiled programs that are kept
ABANDONED = 3600  # seconds without a write: whoever wrote into that file is gone


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/dlflax, by default ~/.cache/dlflax: decoded data, features, compiled
    programs. It can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlflax"


def tidy_cache() -> None:
    """Deletes from the cache what killed processes left half-written and, of compiled programs
    beyond MOST_PROGRAMS, those that were not used for longest."""
    with contextlib.suppress(OSError):
        for path in cache_folder().rglob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
        programs = []
        for path in (cache_folder() / "xla").glob("*-cache"):
            with contextlib.suppress(OSError):
                status = path.stat()
                used = max(status.st_atime, status.st_mtime)
                programs.append((used if status.st_size else 0.0, status.st_size, path))
        programs.sort(key=lambda row: row[0])
        total = sum(size for _, size, _ in programs)
        for _, size, path in programs:
            # an empty one, of a killed process or a full disk, would never be written again
            if size and total <= MOST_PROGRAMS:
                break
            total -= size
            with contextlib.suppress(OSError):
                path.unlink()


def host_memory() -> int:
    """Bytes of memory that this machine, or the container on it, has."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max", or another system
            limits.append(int(Path(path).read_text(encoding="utf-8")))
    return min(limits)


def most_to_read() -> int:
    """Bytes that one file may hold, unpacked: a quarter of the memory."""
    return host_memory() // 4


def opened(path: str | Path, follow: bool = True) -> BinaryIO:
    """An open file that has an end: a pipe or a device would be read for ever. OSError for those,
    for all else that cannot be read, and without `follow` for a symbolic link."""
    if not stat.S_ISREG(os.stat(path, follow_symlinks=follow).st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    # where there is no such flag (Windows), a link put there just now would be followed
    extra = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra))


def read_bytes(path: str | Path, most: int | None = None, follow: bool = True) -> bytes:
    """What a regular file holds; `follow` as in `opened`. OSError when it is larger than `most`
    bytes, by default a quarter of the memory."""
    most = most or most_to_read()
    with opened(path, follow) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most / 1e6:,.0f} MB", str(path))
    return content


def read_json(path: str | Path, follow: bool = True):
    """The JSON values in a file of ours; `follow` as in `opened`. OSError; ValueError for anything
    else in it."""
    try:
        return json.loads(read_bytes(path, MOST_JSON, follow).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def replacing(path: str | Path):
    """A temporary file name next to `path`, which it replaces when all went well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path):
    """Keeps other processes from the same while it lasts; gives whether it got the lock. Without
    effect on Windows and on file systems without locks."""
    try:
        import fcntl

        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except (ImportError, OSError):
        yield True
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def printable(text: str) -> str:
    """The text with control characters, and those that turn the direction of writing, escaped: a
    name must not move the cursor, colour the screen, or look like another one."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def many(count: int, nouns: str, verb: str) -> str:
    """Returns "1 row has", "1,234 rows have"."""
    if count == 1:
        return f"1 {nouns.removesuffix('s')} {dict(have='has', are='is')[verb]}"
    return f"{count:,} {nouns} {verb}"


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Writes all rows, atomically. The columns are all keys, in the order they first appear; what
    a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)


def _harmless(cell):
    """Text that a spreadsheet would take for a formula, behind an apostrophe; printable."""
    if isinstance(cell, str):
        cell = printable(cell)
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def write_json(path: Path, value) -> None:
    """Writes JSON, atomically. RunError when the disk does not take it."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror}.") from error
