"""Checkpoint files: arrays and JSON values, written by Orbax, with a sha256 manifest.

The only module that imports orbax, and only to read or write: the import takes most of a second.
"""

import collections
import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax

from dlflax import parallel
from dlflax.errors import RunError
from dlflax.files import read_json

MANIFEST = "sha256.json"


def steps(folder: Path) -> list[int]:
    """Returns the steps of all complete checkpoints in the folder, damaged or not, ascending."""
    names = (path.parent.name for path in Path(folder).glob(f"*/{MANIFEST}"))
    return sorted(int(name) for name in names if name.isdigit())


def write(folder: Path, step: int, tree, notes: dict[str, Any]) -> None:
    """Writes FOLDER/STEP: a tree of arrays (dicts, tuples, typed keys), and notes, JSON values. A
    checkpoint is valid once its manifest exists, which is written last. All hosts have to call it;
    process 0 writes. Errors are those of Orbax: a full disk may be a ValueError of tensorstore."""
    import orbax.checkpoint as ocp

    with _silent_threads(), _manager(folder) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(tree), history=ocp.args.JsonSave(notes)
            ),
        )
    if parallel.is_main():
        _write_manifest(Path(folder) / str(step))


def read(folder: Path, step: int, abstract) -> tuple[Any, dict[str, Any]]:
    """Returns (tree, notes). abstract: shapes, dtypes and shardings of the tree. Raises RunError
    naming the damaged file, or if the tree does not match."""
    import orbax.checkpoint as ocp

    path = verify(folder, step)
    try:
        _check_shapes(path / "state", abstract)  # first: Orbax would fail in many threads
        restored = _restore(folder, step, state=ocp.args.StandardRestore(abstract))
    except (ValueError, KeyError, TypeError) as error:  # intact files, but of another model
        raise RunError(
            f"{path} does not match the model in the run's config.json ({reason(error)})."
        ) from error
    return restored.state, restored.history


def read_notes(folder: Path, step: int) -> dict[str, Any]:
    """Returns the notes alone. Raises RunError naming the damaged file."""
    verify(folder, step)
    return _restore(folder, step).history


def _restore(folder, step, **args):
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(history=ocp.args.JsonRestore(), **args)
    with _silent_threads(), _manager(folder) as manager:
        return manager.restore(step, args=args)


def verify(folder: Path, step: int) -> Path:
    """Returns FOLDER/STEP. Raises RunError if a file does not match the manifest."""
    path = Path(folder).absolute() / str(step)
    try:
        expected = read_json(path / MANIFEST)
        if not isinstance(expected, dict):
            raise ValueError("it is no list of files")
    except (OSError, ValueError) as error:
        raise RunError(f"{path / MANIFEST} cannot be read: {reason(error)}.") from error
    actual = _sha256(path)
    for name in sorted({*expected, *actual}):
        if expected.get(name) != actual.get(name):
            fault = "has another sha256 than when saved" if name in actual else "is missing"
            raise RunError(f"checkpoint damaged: {path / name} {fault}.")
    return path


@contextlib.contextmanager
def _manager(folder):
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with contextlib.ExitStack() as stack:
        if set(str(folder)) & set("*?[]"):
            # Orbax globs for its files with the unescaped path: a link has no such characters
            folder.mkdir(parents=True, exist_ok=True)
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dlflax-"))
            (link := Path(directory) / "checkpoints").symlink_to(folder)
            folder = link
        yield stack.enter_context(ocp.CheckpointManager(folder, options=options))


def _check_shapes(folder: Path, abstract) -> None:
    """Raises ValueError unless the tree saved in `folder` has arrays of these shapes."""
    import orbax.checkpoint as ocp

    tree = ocp.StandardCheckpointHandler().metadata(folder).tree
    saved, needed = _shapes(tree), _shapes(abstract)
    if missing := set(collections.Counter(needed) - collections.Counter(saved)):
        raise ValueError(f"it has no array of shape {min(missing)}, which the model needs")
    if len(saved) != len(needed):
        raise ValueError(f"it has {len(saved)} arrays where {len(needed)} are needed")


def _shapes(tree) -> list[tuple[int, ...]]:
    """Returns the shapes of all leaves but a State's key, which is saved as its data."""
    leaves = ((path[-1], leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))
    return [tuple(leaf.shape) for entry, leaf in leaves
            if getattr(entry, "key", getattr(entry, "name", None)) != "key"]  # fmt: skip


def _write_manifest(folder: Path) -> None:
    """Writes the manifest atomically and syncs it to disk, which makes the checkpoint valid."""
    temporary = folder / (MANIFEST + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(_sha256(folder), indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / MANIFEST)


def _sha256(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(MANIFEST)
    }


@contextlib.contextmanager
def _silent_threads():
    """Silences the threads of Orbax and tensorstore, whose errors the caller gets as well.
    tensorstore's threads print even after the failure."""
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = functools.partial(_without_closed_loops, sys.unraisablehook)
    threading.excepthook = lambda _: None
    logging.disable()
    try:
        yield
        sys.unraisablehook = hooks[0]  # not restored after a failure
    except Exception:
        # further failures are reported when they are garbage-collected
        logging.getLogger("asyncio").addFilter(
            lambda record: "exception was never retrieved" not in record.getMessage()
        )
        raise
    finally:
        threading.excepthook = hooks[1]
        logging.disable(logging.NOTSET)


def _without_closed_loops(unraisablehook, unraisable):
    """Drops the errors of tensorstore's threads after a failed save, whose event loop is closed."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        unraisablehook(unraisable)


def reason(error: Exception) -> str:
    """Returns the operating system's message if the error contains one, else its first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for message in map(os.strerror, errno.errorcode):
        if message in str(error):
            return message
    return (str(error).splitlines() or [type(error).__name__])[0]
