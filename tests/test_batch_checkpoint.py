"""A batch in training that was stopped goes on to the same bits, and does no epoch twice."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dlflax import train
from dlflax.data.arrays import Arrays
from dlflax.models import MLP
from dlflax.train import population
from dlflax.train.layout import Layout
from dlflax.train.population import Population
from dlflax.tune import checkpoint, sweep

RECIPE = train.Recipe(MLP(features=(8,)), schedule=train.Cosine(), batch_size=64, ema=True)
SWEEPS = {
    "one structure": {},
    "two structures, one after the other": {"space": {"model.features": ("8", "16")}},
    "two structures in step, halved": {"space": {"model.features": ("8", "16")}, "prune": 2},
    "seeds, plateau, diverged": {
        "seeds": 2, "reduce_on_plateau": 1, "space": {"learning_rate": ("1e-3", "1e30", "log")},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """A checkpoint after every epoch."""
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)


def arrays():
    images, targets = load_digits(return_X_y=True)
    part = {"inputs": np.float32(images.reshape(-1, 8, 8, 1) / 16), "targets": targets}
    parts = ({k: v[p] for k, v in part.items()} for p in (slice(0, 500), slice(500, 600)))
    return Arrays(*parts, class_names=tuple("0123456789"))


def run_sweep(folder, mode, space=None, **options):
    config = sweep.Sweep(
        recipe=RECIPE, data=arrays(), trials=4, population=4, epochs=4, sampler="qmc", mode=mode,
        space={"learning_rate": ("1e-3", "1e-1", "log"), **(space or {})}, run_dir=folder,
        study="s", **options,
    )  # fmt: skip
    sweep.run_sweep("random_search", "digits", config, lambda line: None)
    return (folder / "trials.csv").read_bytes(), (folder / "results.json").read_text()


class Killed(BaseException):
    pass


def killed_when_saved(monkeypatch):
    """Every checkpoint is whole, and the last thing that the process does."""
    save = checkpoint.BatchCheckpoint.save

    def saved(self, *args, **notes):
        save(self, *args, **notes)
        raise Killed

    monkeypatch.setattr(checkpoint.BatchCheckpoint, "save", saved)


ALL = [(name, mode) for name in SWEEPS for mode in ("vmap", "map")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), ALL)
def test_stopped_after_any_epoch(name, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = dict(SWEEPS[name], ensemble=0)
    epochs = [0]
    real = population.train_epoch

    def counted(*args, **options):
        epochs[0] += 1
        return real(*args, **options)

    monkeypatch.setattr(population, "train_epoch", counted)
    whole, _ = run_sweep(tmp_path / "whole", mode, **options)
    wanted, epochs[0] = epochs[0], 0

    killed_when_saved(monkeypatch)
    lives = 0
    while lives < 30:
        try:
            found, _ = run_sweep(tmp_path / "killed", mode, **options)
            break
        except Killed:
            lives += 1
    assert lives == wanted == epochs[0], "a kill after every epoch, and no epoch twice"
    assert found == whole
    assert not (tmp_path / "killed" / "population").exists()


@pytest.mark.slow
def test_a_damaged_or_a_stranger_s_checkpoint_is_not_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole, _ = run_sweep(tmp_path / "whole", "map", ensemble=0)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_when_saved(patched)
        run_sweep(tmp_path / "killed", "map", ensemble=0)
    for path in Path("killed/population").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:-1] + b"x")
    found, _ = run_sweep(tmp_path / "killed", "map", ensemble=0)
    assert found == whole


def test_a_full_disk_does_not_stop_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.checkpoint_files, "write", full)
    saving = checkpoint.BatchCheckpoint(tmp_path, log=said.append)
    parts = arrays().load()
    hparams, seeds = [train.Hparams()] * 2, np.arange(2, dtype=np.uint32)[:, None]
    members = Population(
        RECIPE, hparams, seeds, parts.train, parts.test, epochs=2, layout=Layout("map", 2, 2)
    )
    assert saving.due()
    saving.save([], {}, [members])
    assert not saving.due() and len(said) == 1 and "No space left on device" in said[0]


@pytest.mark.slow
def test_another_study_in_the_same_folder_begins_anew(tmp_path, monkeypatch):
    """Its trials have the same numbers and hyperparameters, and other epochs."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_when_saved(patched)
        run_sweep(tmp_path / "again", "map", ensemble=0)
    (tmp_path / "again" / "study.db").unlink()
    found, _ = run_sweep(tmp_path / "again", "map", ensemble=0, patience=3)
    assert found == run_sweep(tmp_path / "fresh", "map", ensemble=0, patience=3)[0]
