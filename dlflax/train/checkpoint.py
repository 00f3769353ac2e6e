"""Checkpoints through Orbax, with a sha256 manifest that Orbax lacks.

The only file that imports orbax, and only when a checkpoint is written or read: the import takes
most of a second.
"""

import collections
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from dlflax import parallel
from dlflax.errors import RunError
from dlflax.files import read_json
from dlflax.train.history import best_epoch
from dlflax.train.loop import Saved
from dlflax.train.recipe import State

MANIFEST = "sha256.json"


class Checkpoints:
    """The folder `checkpoints/` of a run: `<step>/` for the last two epochs and the best one.

    A checkpoint counts once its manifest is there, which is written last: a process killed at any
    moment leaves the one before. task: the recipe's, which decides the best epoch; log receives a
    sentence for every checkpoint that is passed over.
    """

    def __init__(self, folder: Path, task, log: Callable[[str], None] = print):
        self.folder = Path(folder).absolute()
        self.task, self.log = task, log
        self._read_back = False

    @contextlib.contextmanager
    def _manager(self):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        with contextlib.ExitStack() as stack:
            folder = self.folder
            if set(str(folder)) & set("*?[]"):
                # Orbax looks for its own files by a pattern made of the path as it is: through a
                # link without such characters it finds them
                folder.mkdir(parents=True, exist_ok=True)
                place = stack.enter_context(tempfile.TemporaryDirectory(prefix="dlflax-"))
                folder = Path(place) / "checkpoints"
                folder.symlink_to(self.folder)
            yield stack.enter_context(ocp.CheckpointManager(folder, options=options))

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, damaged or not, ascending."""
        found = self.folder.glob(f"*/{MANIFEST}")
        return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())

    def save(self, saved: Saved) -> None:
        """Saves where a training stands under the State's step. Every host has to call it; process
        0 writes.

        Raises RunError when the disk is full or the folder cannot be written.
        """
        import orbax.checkpoint as ocp

        state, history, partial = saved
        step = int(state.step)
        try:
            with _silent_threads(), self._manager() as manager:
                manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(_tree(state)),
                        history=ocp.args.JsonSave({"rows": list(history), "partial": partial}),
                    ),
                )
            if parallel.is_main():
                _write_manifest(self.folder / str(step))
            if not self._read_back and jax.process_count() == 1:
                self._check_restoring(saved)
        except Exception as error:  # tensorstore wraps a full disk in ValueError
            if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                raise  # another host is gone
            others = [s for s in self.steps() if s != step]
            kept = "none was saved yet"
            if others:
                kept = f"the checkpoint of step {others[-1]} is safe"
            raise RunError(
                f"could not save the checkpoint of step {step} in {self.folder}: "
                f"{_reason(error)}; {kept}; free some space or fix the folder, then --resume."
            ) from error
        if not parallel.is_main():
            return
        keep = {*self.steps()[-2:]}
        if history:
            keep.add(int(history[best_epoch(history, self.task)]["step"]))
        for folder in self.folder.iterdir():
            if folder.name not in map(str, keep):
                shutil.rmtree(folder, ignore_errors=True)

    def _check_restoring(self, saved: Saved) -> None:
        """RunError unless the checkpoint that was just saved gives the same State back: once, so
        that a run whose checkpoints cannot be used ends after its first epoch, not after its last.
        """
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            saved.state,
        )
        found = self.restore(abstract, int(saved.state.step)).state
        for ours, theirs in zip(jax.tree.leaves(saved.state), jax.tree.leaves(found), strict=True):
            if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
                ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
            same = np.array_equal(np.asarray(ours), np.asarray(theirs), equal_nan=True)
            if not same:
                raise RunError("what was saved comes back as other numbers")
        self._read_back = True

    def restore(self, abstract: State, step: int) -> Saved:
        """The checkpoint of `step`, as it was saved. abstract:
        `train.abstract`, with where each leaf is to lie. RunError names the file whose bytes are
        not those that were saved."""
        import orbax.checkpoint as ocp

        folder = self.folder / str(step)
        try:
            expected = read_json(folder / MANIFEST)
            if not isinstance(expected, dict):
                raise ValueError("it is no list of files")
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / MANIFEST} cannot be read: {_reason(error)}.") from error
        found = _sha256(folder)
        for name in sorted({*expected, *found}):
            if expected.get(name) != found.get(name):
                fault = "is missing" if name not in found else "is not what was saved (sha256)"
                raise RunError(f"checkpoint damaged: {folder / name} {fault}.")
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(_tree(abstract)), history=ocp.args.JsonRestore()
        )
        try:
            _check_shapes(folder / "state", abstract)  # first: Orbax finds out in many threads
            with _silent_threads(), self._manager() as manager:
                restored = manager.restore(step, args=args)
        except (ValueError, KeyError, TypeError) as error:  # the files are whole, so it is another
            raise RunError(
                f"{folder} does not hold what the run's config.json describes ({_reason(error)})."
            ) from error
        history = restored.history
        return Saved(State(**restored.state), history["rows"], history["partial"])

    def restore_best(self, abstract: State) -> State:
        """The State of the `best_epoch` in the newest undamaged checkpoint's history. Changes
        nothing on disk. RunError where there is no checkpoint, or the best is damaged."""
        for step in reversed(self.steps()):
            try:
                state, history, _ = self.restore(abstract, step)
            except RunError as error:
                self.log(str(error))
                continue
            if not history:
                break  # no epoch was finished
            epoch = best_epoch(history, self.task)
            best = int(history[epoch]["step"])
            self.log(f"using the weights of epoch {epoch + 1} of {len(history)}")
            return state if best == step else self.restore(abstract, best)[0]
        raise RunError(f"no usable checkpoint in {self.folder}: train first.")

    def restore_last(self, abstract: State) -> Saved | None:
        """The newest undamaged checkpoint; what is newer and unusable is removed, since training
        on from here writes it again. None where no checkpoint was ever finished; RunError where
        there are some and all are damaged."""
        damaged = []
        for step in reversed(self.steps()):
            try:
                restored = self.restore(abstract, step)
            except RunError as error:
                self.log(str(error))
                damaged.append(step)
                continue
            if parallel.is_main():
                for newer in damaged:
                    shutil.rmtree(self.folder / str(newer))
                for unfinished in self.folder.iterdir():
                    if not (unfinished / MANIFEST).exists():
                        shutil.rmtree(unfinished, ignore_errors=True)
            if damaged:
                self.log(f"continuing from the checkpoint before, step {step}.")
            return restored
        if damaged:
            raise RunError(f"every checkpoint in {self.folder} is damaged: start a new run.")
        return None


def _tree(state: State) -> dict:
    """The State as it is saved: a field that came later is left out where it holds nothing, so that
    checkpoints from before it have the same structure."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {k: v for k, v in fields.items() if k != "ema_collections" or v is not None}


def _check_shapes(folder: Path, abstract: State) -> None:
    """ValueError unless the State that is saved in `folder` has arrays of these shapes."""
    import orbax.checkpoint as ocp

    tree = ocp.StandardCheckpointHandler().metadata(folder).tree
    saved = [tuple(leaf.shape) for leaf in jax.tree.leaves(tree) if leaf.name != "key"]
    wanted = [leaf.shape for leaf in jax.tree.leaves(abstract.replace(key=None))]
    if odd := set(collections.Counter(wanted) - collections.Counter(saved)):
        raise ValueError(f"it has no array of shape {min(odd)}, which the model needs")
    if len(saved) != len(wanted):
        raise ValueError(f"it has {len(saved)} arrays where {len(wanted)} are needed")


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


def _reason(error: Exception) -> str:
    """The operating system's own words where there are any, else the first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for words in map(os.strerror, errno.errorcode):
        if words in str(error):
            return words
    return (str(error).splitlines() or [type(error).__name__])[0]
