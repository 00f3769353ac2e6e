"""Checkpoints of a run: the last two epochs and the best one."""

import shutil
from collections.abc import Callable, Iterator
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
    """The folder `checkpoints/` of a run: `<step>/` for the last two epochs and the best one. A
    checkpoint is valid once its manifest exists, which is written last: a process killed at any
    time leaves the previous one. task: the recipe's, whose monitor selects the best epoch; log
    receives a sentence for each skipped checkpoint."""

    def __init__(self, folder: Path, task, log: Callable[[str], None] = print):
        self.folder = Path(folder).absolute()
        self.task, self.log = task, log
        self._is_verified = False

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, damaged or not, ascending."""
        return checkpoint_files.steps(self.folder)

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves a checkpoint under the State's step. All hosts have to call it; process 0 writes.
        Raises RunError if the disk is full or the folder is not writable."""
        state, history, partial = checkpoint
        step = int(state.step)
        try:
            notes = {"rows": list(history), "partial": partial}
            checkpoint_files.write(self.folder, step, as_dict(state), notes)
            if not self._is_verified and jax.process_count() == 1:
                self._verify_restoring(state)
        except Exception as error:  # tensorstore wraps a full disk in ValueError
            if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                raise  # another host is gone
            earlier = [s for s in self.steps() if s != step]
            safe = "there is no other"
            if earlier:
                safe = f"the checkpoint of step {earlier[-1]} is safe"
            raise RunError(
                f"could not save the checkpoint of step {step} in {self.folder}: "
                f"{checkpoint_files.reason(error)}; {safe}; free some space or fix the folder, "
                "then --resume."
            ) from error
        if not parallel.is_main():
            return
        needed = {*self.steps()[-2:]}
        if history:
            needed.add(int(history[best_epoch(history, self.task)]["step"]))
        for folder in self.folder.iterdir():
            if folder.name not in map(str, needed):
                shutil.rmtree(folder, ignore_errors=True)

    def _verify_restoring(self, state: State) -> None:
        """Raises RunError unless the checkpoint just saved restores the same State. Called once: a
        run with unusable checkpoints ends after its first epoch, not after its last."""
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        restored = self.restore(abstract, int(state.step)).state
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
            if jax.dtypes.issubdtype(old.dtype, jax.dtypes.prng_key):
                old, new = jax.random.key_data(old), jax.random.key_data(new)
            if not np.array_equal(np.asarray(old), np.asarray(new), equal_nan=True):
                raise RunError("the restored arrays differ from the saved ones")
        self._is_verified = True

    def restore(self, abstract: State, step: int) -> Checkpoint:
        """Returns the checkpoint of `step`. abstract: `train.abstract`, with a sharding per leaf.
        Raises RunError naming the damaged file."""
        tree, notes = checkpoint_files.read(self.folder, step, as_dict(abstract))
        return Checkpoint(State(**tree), notes["rows"], notes["partial"])

    def restore_best(self, abstract: State) -> State:
        """Returns the State of the best epoch in the history of the newest undamaged checkpoint.
        Changes nothing on disk. Raises RunError if there is no checkpoint, or the best is
        damaged."""
        for step, (state, history, _) in self._newest_first(abstract):
            if not history:
                break  # no complete epoch
            epoch = best_epoch(history, self.task)
            best = int(history[epoch]["step"])
            if best == step:
                return state
            self.log(f"using the weights of epoch {epoch + 1} of {len(history)}")
            return self.restore(abstract, best)[0]
        raise RunError(f"no usable checkpoint in {self.folder}: train first.")

    def restore_last(self, abstract: State) -> Checkpoint | None:
        """Returns the newest undamaged checkpoint, None if none is complete; removes newer ones,
        which the resumed run saves anew. Raises RunError if all are damaged."""
        steps = self.steps()
        for step, checkpoint in self._newest_first(abstract):
            if parallel.is_main():
                for newer in (s for s in steps if s > step):
                    shutil.rmtree(self.folder / str(newer))
                for incomplete in self.folder.iterdir():
                    if not (incomplete / checkpoint_files.MANIFEST).exists():
                        shutil.rmtree(incomplete, ignore_errors=True)
            if step != steps[-1]:
                self.log(f"continuing from the previous checkpoint, step {step}.")
            return checkpoint
        if steps:
            raise RunError(f"every checkpoint in {self.folder} is damaged: start a new run.")
        return None

    def _newest_first(self, abstract: State) -> Iterator[tuple[int, Checkpoint]]:
        """Yields (step, checkpoint), the newest first. Logs and skips the damaged ones."""
        for step in reversed(self.steps()):
            try:
                checkpoint = self.restore(abstract, step)
            except RunError as error:
                self.log(str(error))
            else:
                yield step, checkpoint
