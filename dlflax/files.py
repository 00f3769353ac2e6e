"""Atomic writes and bounded reads."""

import contextlib
import csv
import errno
import json
import os
import re
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from dlflax.errors import RunError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

MAX_JSON_BYTES = 2**28  # of one of dlflax's own JSON files


def host_memory() -> int:
    """Returns the bytes of memory of this machine or, if less, of the container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max", or another system
            limits.append(int(Path(path).read_text(encoding="utf-8")))
    return min(limits)


def max_file_bytes() -> int:
    """Returns the most bytes that one file may hold, unpacked: a quarter of the memory."""
    return host_memory() // 4


def open_regular_file(path: str | Path, follow: bool = True) -> BinaryIO:
    """Opens a regular file to read bytes. OSError for a pipe or a device, which may have no end,
    for an unreadable file, and without `follow` for a symbolic link."""
    if not stat.S_ISREG(os.stat(path, follow_symlinks=follow).st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    # Windows has no O_NOFOLLOW: a link created since `os.stat` would be followed
    extra = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra))


def read_bytes(path: str | Path, most: int | None = None, follow: bool = True) -> bytes:
    """Reads a regular file; `follow` as in `open_regular_file`. OSError for more than `most` bytes,
    by default a quarter of the memory."""
    most = most or max_file_bytes()
    with open_regular_file(path, follow) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most / 1e6:,.0f} MB", str(path))
    return content


def read_json(path: str | Path, follow: bool = True):
    """Reads a JSON file; `follow` as in `open_regular_file`. ValueError for invalid JSON."""
    try:
        return json.loads(read_bytes(path, MAX_JSON_BYTES, follow).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def atomic_write(path: str | Path):
    """Yields a temporary path, which replaces `path` if the block ends without an exception."""
    path = Path(path)
    # of the thread, too: a server and a sweep write from several
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = False):
    """Locks a file against other processes; yields True if the lock was acquired, for which it may
    wait. It also yields True on Windows and on file systems without locks."""
    try:
        import fcntl

        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except (ImportError, OSError):
        yield True
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def escape_controls(text: str) -> str:
    """Escapes control characters and those that change the writing direction. A name must not move
    the cursor, colour the screen, or look like another name."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def pluralize(count: int, nouns: str, verb: str = "") -> str:
    """Returns "1 row has", "1,234 rows have", or without a verb "1 row", "1,234 rows"."""
    if count == 1:
        nouns, verb = nouns.removesuffix("s"), {"have": "has", "are": "is"}.get(verb, "")
    return f"{count:,} {nouns} {verb}".rstrip()


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Writes all rows, atomically. The columns are all keys, in the order they first appear; a
    missing key is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _escape_cell(value) for key, value in row.items()} for row in rows)


def _escape_cell(cell):
    """Escapes text for a spreadsheet: control characters, and formulas by an apostrophe."""
    if not isinstance(cell, str):
        return cell
    cell = escape_controls(cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def write_json(path: Path, value) -> None:
    """Writes JSON, atomically. RunError if the disk is full or not writable."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror}.") from error
