"""Checkpoints: what is saved comes back, what is damaged is named and passed over."""

import jax
import numpy as np
import pytest

from dlflax import train
from dlflax.errors import RunError
from dlflax.models import CNN
from dlflax.train import Checkpoint, Hparams
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.checkpoint_files import MANIFEST

RECIPE = train.Recipe(model=CNN((2,), dense=(4,)), ema=True)


def state_at(step):
    inputs = np.zeros((1, 8, 8, 1), np.float32)
    state = jax.jit(train.init, static_argnums=0)(RECIPE, Hparams(), inputs, jax.random.key(step))
    return state.replace(step=jax.numpy.int32(step))


ABSTRACT = jax.eval_shape(state_at, 0)


@pytest.fixture
def saved(tmp_path):
    """Checkpoints at steps 1 to 4, of which 2 is the best."""
    said = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", RECIPE.task, said.append)
    history = []
    for step, loss in enumerate([0.5, 0.1, 0.3, 0.2], start=1):
        history.append({"epoch": step, "step": step, "val_loss": loss})
        checkpoints.save(Checkpoint(state_at(step), history))
    return checkpoints, said


def test_what_is_saved_comes_back(saved):
    checkpoints, said = saved
    assert checkpoints.steps() == [2, 3, 4]  # the last two and the best
    state, history, _ = checkpoints.restore_last(ABSTRACT)
    expected = state_at(4)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert said == []


def test_without_validation_the_last_is_the_best(tmp_path):
    checkpoints, history = Checkpoints(tmp_path / "checkpoints", RECIPE.task), []
    for step in (1, 2, 3):
        history.append({"epoch": step, "step": step})
        checkpoints.save(Checkpoint(state_at(step), history))
    assert checkpoints.steps() == [2, 3]
    assert int(checkpoints.restore_best(ABSTRACT).step) == 3


def data_files(checkpoints, step):
    folder = checkpoints.folder / str(step)
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST]


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_any_flipped_byte_is_refused_by_name(saved):
    checkpoints, _ = saved
    files = [p for p in data_files(checkpoints, 4) if p.stat().st_size]
    assert len(files) >= 5
    for path in files:
        flip(path)
        with pytest.raises(RunError, match=f"damaged: {path} has another sha256"):
            checkpoints.restore(ABSTRACT, 4)
        flip(path)
    checkpoints.restore(ABSTRACT, 4)


def test_the_one_before_is_used(saved):
    checkpoints, said = saved
    path = max(data_files(checkpoints, 4), key=lambda p: p.stat().st_size)
    flip(path)
    state, history, _ = checkpoints.restore_last(ABSTRACT)
    assert int(state.step) == 3 and len(history) == 3
    assert str(path) in said[0] and "step 3" in said[1]
    assert int(checkpoints.restore_best(ABSTRACT).step) == 2
    checkpoints.save(Checkpoint(state_at(4), [*history, {"epoch": 4, "step": 4, "val_loss": 0.2}]))
    assert int(checkpoints.restore_last(ABSTRACT)[0].step) == 4


@pytest.mark.parametrize("killed", ["before the manifest", "while writing", "while deleting"])
def test_a_killed_save_leaves_the_one_before(saved, killed):
    checkpoints, said = saved
    folder = checkpoints.folder / "4"
    (folder / MANIFEST).unlink()
    if killed == "while writing":
        folder.rename(checkpoints.folder / "4.orbax-checkpoint-tmp")
    if killed == "while deleting":
        data_files(checkpoints, 4)[0].unlink()
    state, history, _ = checkpoints.restore_last(ABSTRACT)
    assert int(state.step) == 3
    checkpoints.save(Checkpoint(state_at(4), [*history, {"epoch": 4, "step": 4, "val_loss": 0.2}]))
    assert checkpoints.steps() == [2, 3, 4]


def test_all_damaged_and_none(saved, tmp_path):
    checkpoints, _ = saved
    for step in checkpoints.steps():
        data_files(checkpoints, step)[0].unlink()
    with pytest.raises(RunError, match="every checkpoint in .* is damaged"):
        checkpoints.restore_last(ABSTRACT)
    with pytest.raises(RunError, match="no usable checkpoint"):
        checkpoints.restore_best(ABSTRACT)
    assert checkpoints.steps() == [2, 3, 4]  # nothing was deleted
    assert Checkpoints(tmp_path / "none", RECIPE.task).restore_last(ABSTRACT) is None
