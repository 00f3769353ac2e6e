"""The checkpoints of a run: those of the last two epochs and of the best one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from dlflax import parallel
from dlflax.errors import RunError
from dlflax.train import checkpoint_files
from dlflax.train.driver import Checkpoint
from dlflax.train.history import best_epoch
from dlflax.train.state import State, as_dict


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

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, damaged or not, ascending."""
        return checkpoint_files.steps(self.folder)

    def save(self, saved: Checkpoint) -> None:
        """Saves where a training stands under the State's step. Every host has to call it; process
        0 writes.

        Raises RunError when the disk is full or the folder cannot be written.
        """
        state, history, partial = saved
        step = int(state.step)
        try:
            notes = {"rows": list(history), "partial": partial}
            checkpoint_files.write(self.folder, step, as_dict(state), notes)
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
                f"{checkpoint_files.reason(error)}; {kept}; free some space or fix the folder, "
                "then --resume."
            ) from error
        if not parallel.is_main():
            return
        keep = {*self.steps()[-2:]}
        if history:
            keep.add(int(history[best_epoch(history, self.task)]["step"]))
        for folder in self.folder.iterdir():
            if folder.name not in map(str, keep):
                shutil.rmtree(folder, ignore_errors=True)

    def _check_restoring(self, saved: Checkpoint) -> None:
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

    def restore(self, abstract: State, step: int) -> Checkpoint:
        """The checkpoint of `step`, as it was saved. abstract:
        `train.abstract`, with where each leaf is to lie. RunError names the file whose bytes are
        not those that were saved."""
        tree, notes = checkpoint_files.read(self.folder, step, as_dict(abstract))
        return Checkpoint(State(**tree), notes["rows"], notes["partial"])

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
            if best == step:
                return state
            self.log(f"using the weights of epoch {epoch + 1} of {len(history)}")
            return self.restore(abstract, best)[0]
        raise RunError(f"no usable checkpoint in {self.folder}: train first.")

    def restore_last(self, abstract: State) -> Checkpoint | None:
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
                    if not (unfinished / checkpoint_files.MANIFEST).exists():
                        shutil.rmtree(unfinished, ignore_errors=True)
            if damaged:
                self.log(f"continuing from the checkpoint before, step {step}.")
            return restored
        if damaged:
            raise RunError(f"every checkpoint in {self.folder} is damaged: start a new run.")
        return None
