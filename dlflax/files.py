"""Files: written whole or not at all, and the folder for what is computed once."""

import contextlib
import csv
import json
import os
from pathlib import Path

from dlflax.errors import RunError


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


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Writes all rows, atomically. The columns are all keys, in the order they first appear; what
    a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value) -> None:
    """Writes JSON, atomically. RunError when the disk does not take it."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror}.") from error
