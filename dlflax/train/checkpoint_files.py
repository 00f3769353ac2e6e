"""A tree of arrays and JSON values on disk through Orbax, with a sha256 manifest that Orbax lacks.

The only file that imports orbax, and only when a checkpoint is written or read: the import takes
most of a second.
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
    """Steps with a finished checkpoint in the folder, damaged or not, ascending."""
    found = Path(folder).glob(f"*/{MANIFEST}")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())


def write(folder: Path, step: int, tree, notes: dict[str, Any]) -> None:
    """Writes FOLDER/STEP: a tree of arrays (dicts, tuples, typed keys), and notes, JSON values. It
    counts once its manifest is there, which is written last: a process killed at any moment leaves
    no half checkpoint. Every host has to call it; process 0 writes. What fails is raised as it is:
    a full disk may be a ValueError of tensorstore."""
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
    """(tree, notes) as they were written. abstract: shapes and dtypes of the tree, with where each
    leaf is to lie. RunError names the file whose bytes are not those that were saved."""
    import orbax.checkpoint as ocp

    place = check(folder, step)
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), history=ocp.args.JsonRestore()
    )
    try:
        _check_shapes(place / "state", abstract)  # first: Orbax finds out in many threads
        with _silent_threads(), _manager(folder) as manager:
            restored = manager.restore(step, args=args)
    except (ValueError, KeyError, TypeError) as error:  # the files are whole, so it is another
        raise RunError(
            f"{place} does not hold what the run's config.json describes ({reason(error)})."
        ) from error
    return restored.state, restored.history


def read_notes(folder: Path, step: int) -> dict[str, Any]:
    """The notes alone. RunError as for `read`."""
    import orbax.checkpoint as ocp

    check(folder, step)
    with _silent_threads(), _manager(folder) as manager:
        args = ocp.args.Composite(history=ocp.args.JsonRestore())
        return manager.restore(step, args=args).history


def check(folder: Path, step: int) -> Path:
    """FOLDER/STEP. RunError unless its bytes are those that were saved."""
    place = Path(folder).absolute() / str(step)
    try:
        expected = read_json(place / MANIFEST)
        if not isinstance(expected, dict):
            raise ValueError("it is no list of files")
    except (OSError, ValueError) as error:
        raise RunError(f"{place / MANIFEST} cannot be read: {reason(error)}.") from error
    found = _sha256(place)
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            fault = "is missing" if name not in found else "is not what was saved (sha256)"
            raise RunError(f"checkpoint damaged: {place / name} {fault}.")
    return place


@contextlib.contextmanager
def _manager(folder):
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with contextlib.ExitStack() as stack:
        if set(str(folder)) & set("*?[]"):
            # Orbax looks for its own files by a pattern made of the path as it is: through a
            # link without such characters it finds them
            folder.mkdir(parents=True, exist_ok=True)
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="dlflax-"))
            (link := Path(place) / "checkpoints").symlink_to(folder)
            folder = link
        yield stack.enter_context(ocp.CheckpointManager(folder, options=options))


def _check_shapes(folder: Path, abstract) -> None:
    """ValueError unless the tree that is saved in `folder` has arrays of these shapes."""
    import orbax.checkpoint as ocp

    tree = ocp.StandardCheckpointHandler().metadata(folder).tree
    saved = [
        tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not _is_key(path)
    ]  # fmt: skip
    wanted = [
        leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
        if not _is_key(path)
    ]  # fmt: skip
    if odd := set(collections.Counter(wanted) - collections.Counter(saved)):
        raise ValueError(f"it has no array of shape {min(odd)}, which the model needs")
    if len(saved) != len(wanted):
        raise ValueError(f"it has {len(saved)} arrays where {len(wanted)} are needed")


def _is_key(path) -> bool:
    """Whether it is a State's key, whose saved shape is that of its data."""
    return getattr(path[-1], "key", getattr(path[-1], "name", None)) == "key"


def _write_manifest(folder: Path) -> None:
    """Whole or not at all, and on the disk: the checkpoint counts from here on."""
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
    """What fails in the threads of Orbax and tensorstore is raised where they are called. Without
    this they print it as well, tensorstore's even after the failure."""
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = functools.partial(_without_closed_loops, sys.unraisablehook)
    threading.excepthook = lambda _: None
    logging.disable()
    try:
        yield
        sys.unraisablehook = hooks[0]  # after a failure it stays
    except Exception:
        # what failed beside the first failure is reported when it is collected
        logging.getLogger("asyncio").addFilter(
            lambda record: "exception was never retrieved" not in record.getMessage()
        )
        raise
    finally:
        threading.excepthook = hooks[1]
        logging.disable(logging.NOTSET)


def _without_closed_loops(unraisablehook, unraisable):
    """After a failed save tensorstore's threads report to an event loop that is closed."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        unraisablehook(unraisable)


def reason(error: Exception) -> str:
    """The operating system's own words where there are any, else the first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for words in map(os.strerror, errno.errorcode):
        if words in str(error):
            return words
    return (str(error).splitlines() or [type(error).__name__])[0]
