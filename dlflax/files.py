"""Files: written whole or not at all, and the folder for what is computed once."""

import contextlib
import csv
import json
import os
import re
from pathlib import Path

from dlflax.errors import RunError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/dlflax, by default ~/.cache/dlflax: decoded data, features, compiled
    programs. It can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlflax"


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
