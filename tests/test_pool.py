"""The pool of a sweep: killed anywhere, with workers that die or are silent, it records every trial
once, and suggests the same."""

import concurrent.futures
import contextlib
import csv
import itertools
import math
import random
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from sklearn.datasets import load_digits

from dlflax import train
from dlflax.data.arrays import Arrays
from dlflax.errors import RunError
from dlflax.models import MLP
from dlflax.train import population
from dlflax.tune import study
from dlflax.tune.launch import Launcher, WorkerLost
from dlflax.tune.pool import pool_checkpoint, workers
from dlflax.tune.pool.pool import Pool
from dlflax.tune.pool.pool_checkpoint import PoolCheckpoint
from dlflax.tune.pool.rules import Budget, FreezeThaw, Full, Go, Halving, Stop
from dlflax.tune.pool.training import Job, Trial
from dlflax.tune.pool.trial_models import Members
from dlflax.tune.pool.workers import Workers
from dlflax.tune.suggest.samplers import make_sampler
from dlflax.tune.suggest.space import Space
from dlflax.tune.sweep import run_sweep
from dlflax.tune.sweep_config import Sweep

SPACE = Space({
    "x": FloatDistribution(-5, 10),
    "y": FloatDistribution(1e-3, 15, log=True),
    "z": CategoricalDistribution([0.5, 2.0, 7.0]),
})  # fmt: skip
EPOCHS = 4


def trained(trial, epochs=EPOCHS):
    """A bowl with a hole where training diverges."""
    if trial.is_at_goal():  # it keeps its place
        return trial
    if trial.records:
        assert trial.arrays[0][0, 0] == len(trial.records[0][0]), "the State of the trial"
    x, z = trial.params["x"], trial.params["z"]
    value = math.inf if x > 9 else (x - 2) ** 2 + z
    trial.values = [value + 1 / epoch for epoch in range(1, trial.goal + 1)]
    trial.records = [[[{"val_loss": each} for each in trial.values], None]]
    trial.arrays = [np.full((1, 3), len(trial.values), np.float32)]
    trial.seconds += 0.001
    if trial.goal >= epochs or value == math.inf:
        trial.value, trial.attrs = min(trial.values), {"diverged_at": 1} if x > 9 else {}
        trial.end()
    return trial


class Trainer(Launcher):
    """Workers in threads, some of which die: `dies` of (a count of orders, its numbers)."""

    def __init__(self, width=1, dies=lambda count, numbers: False, pause=lambda: 0.0):
        super().__init__(width, Path())
        self._dies, self._pause = dies, pause
        self._threads = concurrent.futures.ThreadPoolExecutor(width)
        self._count, self.orders, self.ended = itertools.count(), [], []

    def close(self):
        self._threads.shutdown()

    def share(self, arrays):
        return arrays

    def end(self, future):
        self.ended.append(future)
        future.set_exception(WorkerLost("ended"))

    def submit(self, function, /, job, data, order, *_):
        numbers = [trial.number for trial in order if not trial.is_at_goal()]
        self.orders.append(numbers)
        return self._threads.submit(self._train, next(self._count), numbers, order)

    def _train(self, count, numbers, order):
        time.sleep(self._pause())
        if self._dies(count, numbers):
            raise WorkerLost("killed by signal 9")
        return [trained(trial) for trial in order], 1


class Silent:
    """A Watch that shows nothing."""

    def progress(self, trials):
        pass

    def show(self, is_end=False):
        pass


def job(recipe=None, space=SPACE, **options):
    common = dict(epochs=EPOCHS, seed=3, num_seeds=1, patience=0, plateau_patience=0,
                  metric="loss", sign=1, rank="mean", population_map="map")  # fmt: skip
    return Job(recipe, train.Hparams(), space, **{**common, **options})


def search(
    folder, trials=20, population=4, rule=None, sampler="random", launcher=None, log=print,
    space=SPACE,
):  # fmt: skip
    """Runs or continues a sweep without training. Returns its trials without their times."""
    folder.mkdir(exist_ok=True)
    with study.open_study(folder, None, "s", "minimize") as opened:
        opened.settings({}, [{"x": 0.0, "y": 1.0, "z": 2.0}, {"x": 1.0}])
        members, saved = Members(folder, 1, 4, log), PoolCheckpoint(folder, log)
        Pool(
            job(space=space), opened, make_sampler((rule and rule.sampler) or sampler, space, 3),
            rule or Full(), Budget(trials, EPOCHS), population,
            Workers(launcher or Trainer(), job(), {}, folder, log), members, saved, Silent(),
            log=log,
        ).run()  # fmt: skip
        return table(opened)


def table(opened):
    return [
        (t.number, t.params, t.value, t.state.name, t.intermediate_values,
         {name: value for name, value in t.user_attrs.items() if name != "seconds"})
        for t in opened.trials()
    ]  # fmt: skip


def test_the_trial_of_the_defaults_is_marked(tmp_path):
    space = Space(SPACE.distributions, defaults={"x": 0.0, "y": 1.0, "z": 2.0})
    trials = search(tmp_path / "s", 4, space=space)
    assert [attrs.get("defaults") for *_, attrs in trials] == [True, None, None, None]


class Killed(BaseException):
    pass


@pytest.fixture
def kill(monkeypatch):
    """Ends the process at a write of the journal, which is then torn at a share of it."""

    def at(write, torn):
        count, append = itertools.count(), study.Journal.append_logs

        def killed(self, logs):
            before = self.path.stat().st_size
            append(self, logs)
            if self._batch is None and next(count) == write:
                size = self.path.stat().st_size
                with open(self.path, "rb+") as file:
                    file.truncate(before + int(torn * (size - before)))
                raise Killed

        monkeypatch.setattr(study.Journal, "append_logs", killed)
        return monkeypatch

    return at


RULES = {"full": Full(), "halving": Halving(2), "freeze-thaw": FreezeThaw(2)}


KILLS = [(1, 1.0), (2, 0.3), (3, 0.7), (4, 0.0), (5, 0.5), (7, 0.9), (9, 0.6)]


@pytest.mark.parametrize(
    ("rule", "sampler", "kills"),
    [("full", "gp", 0), ("full", "tpe", 1), ("full", "cmaes", 0), ("full", "random", 1),
     ("halving", "qmc", 0), ("halving", "tpe", 1), ("freeze-thaw", "qmc", 0)],
)  # fmt: skip
def test_a_sweep_killed_at_any_write_is_the_same_sweep(tmp_path, kill, rule, sampler, kills):
    """Every other of the kills, each with several rules and samplers."""
    options = dict(rule=RULES[rule], sampler=sampler, trials=13)
    whole = search(tmp_path / "whole", **options)
    assert len({str(params) for _, params, *_ in whole}) == len(whole) >= 13
    assert all(state != "RUNNING" for _, _, _, state, *_ in whole)
    for write, torn in KILLS[kills::2]:
        folder = tmp_path / f"killed_{write}"
        patch = kill(write, torn)
        with contextlib.suppress(Killed):
            search(folder, **options)
        patch.undo()
        assert search(folder, **options) == whole, (write, torn)


def test_more_trials_continue_with_the_same_ones(tmp_path):
    whole = search(tmp_path / "whole", trials=18, sampler="gp")
    for trials in (3, 8, 13, 18):
        parts = search(tmp_path / "parts", trials=trials, sampler="gp")
    assert [row[0] for row in parts] == list(range(18))
    assert parts[:8] == whole[:8]


def test_workers_that_die_change_nothing_for_random_search(tmp_path):
    """Each order is trained until it succeeds; only what a dead worker held is trained again."""
    said, pauses = [], random.Random(0)
    launcher = Trainer(3, lambda count, numbers: count % 4 == 1, lambda: pauses.random() / 200)
    alone = search(tmp_path / "alone", trials=40)
    assert search(tmp_path / "many", trials=40, launcher=launcher, log=said.append) == alone
    lost = len(launcher.orders) - 10
    assert lost > 0 and sum("killed by signal 9" in line for line in said) == lost


def test_three_failures_are_recorded_and_the_sweep_continues(tmp_path):
    said = []
    launcher = Trainer(2, lambda count, numbers: 5 in numbers)
    rows = search(tmp_path / "s", trials=12, launcher=launcher, log=said.append)
    states = [state for *_, state, _, _ in rows]
    assert states[4:8] == ["FAIL"] * 4 and states.count("COMPLETE") == 8
    assert launcher.orders.count([4, 5, 6, 7]) == 3
    assert "3 times: recorded as failed" in said[-1]


@pytest.mark.parametrize("rule", ["halving", "freeze-thaw"])
def test_rules_with_several_workers_that_die(tmp_path, rule):
    deaths = random.Random(1)
    launcher = Trainer(3, lambda count, numbers: deaths.random() < 0.1)
    rows = search(tmp_path / "s", rule=RULES[rule], trials=16, launcher=launcher)
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert {state for *_, state, _, _ in rows} <= {"COMPLETE", "PRUNED"}
    if rule == "halving":  # does not depend on who comes first
        assert rows == search(tmp_path / "alone", rule=RULES[rule], trials=16)


def test_asks_and_tells_of_several_workers_replay_on_one(tmp_path):
    """What the Gaussian process suggests is a function of what was finished when it was asked."""
    asked, ask = [], study.Study.ask

    def record(self, sampler, distributions, params):
        done = {t.number for t in self.finished_trials()}
        trials = ask(self, sampler, distributions, params)
        asked.append((done, [(t.number, t.params) for t in trials]))
        return trials

    pauses = random.Random(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.Study, "ask", record)
        launcher = Trainer(3, pause=lambda: pauses.random() / 50)
        rows = search(tmp_path / "s", sampler="gp", trials=24, launcher=launcher)
    sampler = make_sampler("gp", SPACE, 3)
    with study.open_study(None, None, "s", "minimize") as replay:
        replay.settings({}, [{"x": 0.0, "y": 1.0, "z": 2.0}, {"x": 1.0}])
        told = set()
        for done, trials in asked:
            for number in sorted(done - told):
                replay.report(number, rows[number][4])
                replay.tell(number, TrialState[rows[number][3]], rows[number][2], {})
            told = done
            again = replay.ask(sampler, SPACE.distributions, [None] * len(trials))
            assert [(t.number, t.params) for t in again] == trials


def test_a_worker_without_a_sign_of_life_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SILENCE", 0.2)
    said, begun = [], time.monotonic()
    (tmp_path / "s" / "workers").mkdir(parents=True)

    class Stopped(Trainer):
        def submit(self, function, /, job, data, order, *more):
            if len(self.orders):
                return super().submit(function, job, data, order, *more)
            self.orders.append([])
            beat = more[3]
            beat.touch()  # once, and never again
            return concurrent.futures.Future()

    rows = search(tmp_path / "s", trials=8, launcher=Stopped(1), log=said.append)
    assert [state for *_, state, _, _ in rows] == ["COMPLETE"] * 8
    assert time.monotonic() - begun < 30
    assert any("no sign of life" in line for line in said) and len(said) == 2


def test_what_a_worker_raises_ends_the_sweep(tmp_path):
    class Wrong(Trainer):
        def _train(self, *_):
            raise ZeroDivisionError("by the loss")

    with pytest.raises(ZeroDivisionError, match="by the loss"):
        search(tmp_path / "s", launcher=Wrong())
    assert all(state == "RUNNING" for *_, state, _, _ in read(tmp_path / "s"))


def read(folder):
    with study.open_study(folder, None, "s", "minimize") as opened:
        return table(opened)


def test_a_rule_of_one_s_own_copies_and_changes_trials(tmp_path):
    """Population-based training (Jaderberg et al. 2017): the worse half begins anew from a copy of
    the better half, with other hyperparameters."""

    class PopulationBased:
        is_narrow, sampler = False, ""

        def check(self, epochs):
            pass

        def decide(self, curves, free, budget):
            if len(curves) < free:
                return [Go(None, 1)] * (free - len(curves))
            active = [c for c in curves if not c.is_over]
            if any(c.is_busy for c in active) or not active:
                return []
            active.sort(key=lambda c: (c.values[-1], c.number))
            half, until = len(active) // 2, len(active[0].values) + 1
            if half and until <= budget.epochs:
                return (
                    [Go(c.number, until) for c in active[:half]]
                    + [
                        Go(None, until, {**c.params, "y": c.params["y"] / 1.2}, parent=c.number)
                        for c in active[:half]
                    ]
                    + [Stop(c.number) for c in active[half:]]
                )
            return [Stop(c.number) for c in active]

    rows = search(tmp_path / "s", rule=PopulationBased(), trials=4)
    assert len(rows) > 4
    copies = [row for row in rows if row[0] >= 4]
    for _, params, _, _, reports, _ in copies:
        assert any(params["x"] == p["x"] and params["y"] == pytest.approx(p["y"] / 1.2)
                   for _, p, *_ in rows)  # fmt: skip
        assert list(reports) == list(range(1, len(reports) + 1))


@pytest.mark.parametrize("steps", [[Go(0, 4)], [Go(None, 0)], [Stop(0)]])
def test_a_rule_that_is_wrong_does_not_hang(tmp_path, steps):
    """Trial 0 is over."""

    class Wrong:
        is_narrow, sampler = False, ""

        def decide(self, curves, free, budget):
            return steps if curves else [Go(None, EPOCHS)]

    if steps == [Stop(0)]:
        assert len(search(tmp_path / "s", rule=Wrong())) == 2  # one is only enqueued
        return
    with pytest.raises(RunError, match="Wrong returned Go"):
        search(tmp_path / "s", rule=Wrong())


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    append, count = study.Journal.append_logs, itertools.count()

    def full(self, logs):
        if self._batch is None and next(count) > 4:
            raise OSError(28, "No space left on device")
        append(self, logs)

    monkeypatch.setattr(study.Journal, "append_logs", full)
    with pytest.raises(
        RunError, match="could not write the study: .*No space.*; the [0-9]+ recorded trials"
    ):
        search(tmp_path / "s", trials=40)
    monkeypatch.undo()
    assert search(tmp_path / "s", trials=40) == search(tmp_path / "whole", trials=40)


# with training


RECIPE = train.Recipe(MLP(features=(8,)), schedule=train.Cosine(), batch_size=64, ema=True)
SWEEPS = {
    "two structures": {"space": {"model.features": ("8", "16")}},
    "two structures, halved": {"space": {"model.features": ("8", "16")}, "search": Halving(2)},
    "freeze-thaw": {"search": FreezeThaw(2), "trials": 3, "sampler": "gp"},
    "folds": {"bag_folds": 3, "population_size": 2},
    "seeds, plateau, diverged": {
        "num_seeds": 2, "plateau_patience": 1, "space": {"learning_rate": ("1e-3", "1e30", "log")},
    },
}  # fmt: skip


def arrays():
    images, targets = load_digits(return_X_y=True)
    part = {"inputs": np.float32(images.reshape(-1, 8, 8, 1) / 16), "targets": targets}
    parts = ({k: v[p] for k, v in part.items()} for p in (slice(0, 500), slice(500, 600)))
    return Arrays(*parts, class_names=tuple("0123456789"))


def run(folder, mode="map", space=None, log=lambda line: None, **options):
    common = {
        "trials": 4, "population_size": 4, "epochs": 4, "sampler": "qmc", "ensemble_size": 0,
        "given": ("population_size",),
    }  # fmt: skip
    config = Sweep(
        recipe=RECIPE, data=arrays(), population_map=mode, baseline="none", study="s",
        run_dir=folder, space={"learning_rate": ("1e-3", "1e-1", "log"), **(space or {})},
        **{**common, **options},
    )  # fmt: skip
    run_sweep("random_search", "digits", config, log)
    return (folder / "trials.csv").read_bytes()


def killed_when_saved(monkeypatch):
    """Every checkpoint is whole, and the last thing that the process does."""
    save = PoolCheckpoint.save

    def killed(self, *args):
        save(self, *args)
        raise Killed

    monkeypatch.setattr(PoolCheckpoint, "save", killed)


@pytest.mark.slow
@pytest.mark.usefixtures("trials_alone")
@pytest.mark.parametrize(
    ("mode", "name"), [*(("map", name) for name in SWEEPS), ("vmap", "two structures")]
)
def test_training_that_is_killed_after_any_epoch(name, mode, tmp_path, monkeypatch):
    """It continues to the same bits, and trains no epoch twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool_checkpoint, "SHARE", 1e9)  # after every epoch
    epochs, real = [0], population.train_epoch

    def counted(*args, **options):
        epochs[0] += 1
        return real(*args, **options)

    monkeypatch.setattr(population, "train_epoch", counted)
    whole = run(tmp_path / "whole", mode, **SWEEPS[name])
    wanted, epochs[0] = epochs[0], 0
    killed_when_saved(monkeypatch)
    lives = 0
    while lives < 40:
        try:
            again = run(tmp_path / "killed", mode, **SWEEPS[name])
            break
        except Killed:
            lives += 1
    assert lives and wanted == epochs[0], "no epoch twice"
    assert again == whole
    assert not (tmp_path / "killed" / "population.npz").exists()


@pytest.mark.slow
def test_the_run_folder_of_the_best_trial_has_the_rates_that_it_was_trained_with(tmp_path):
    run(tmp_path / "s", trials=2, population_size=2, plateau_patience=3)
    rates = []
    for name in ("trained", "retrained"):
        with open(tmp_path / "s" / name / "metrics.csv", encoding="utf-8") as file:
            rates.append([float(row["learning_rate"]) for row in csv.DictReader(file)])
    trained, retrained = rates
    assert trained and 0 < trained[-1] < trained[0]
    assert trained == retrained[: len(trained)]


@pytest.mark.slow
@pytest.mark.usefixtures("trials_alone")
def test_a_damaged_checkpoint_or_one_of_another_study_is_not_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool_checkpoint, "SHARE", 1e9)
    whole, said = run(tmp_path / "whole"), []
    for name in ("damaged", "other"):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            killed_when_saved(patched)
            run(tmp_path / name)
    path = tmp_path / "damaged" / "population.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run(tmp_path / "damaged", log=said.append) == whole
    assert any("population.npz is damaged" in line for line in said)
    (tmp_path / "other" / study.JOURNAL).unlink()
    assert run(tmp_path / "other", patience=3) == run(tmp_path / "fresh", patience=3)


def test_a_checkpoint_has_arrays_of_every_dtype_and_finds_a_flipped_bit(tmp_path):
    said, saving = [], PoolCheckpoint(tmp_path)
    arrays = [np.ones(3, ml_dtypes.bfloat16), np.arange(40, dtype=np.uint32), np.array([True])]
    trial = Trial(7, {"x": 0.5}, 2, [1.5, math.inf], records=[[[{"step": 1}], None]], arrays=arrays)
    saving.save([trial, Trial(8, {}, is_over=True)], [])
    trials, orders = PoolCheckpoint(tmp_path, said.append).load()
    assert [*trials] == [7, 8] and not orders and not said
    for leaf, before in zip(trials[7].pop("arrays"), arrays, strict=True):
        assert leaf.dtype == before.dtype and np.array_equal(leaf, before)
    assert Trial(**trials[7], arrays=arrays) == trial
    content = bytearray(saving.path.read_bytes())
    content[content.index(np.uint32(20).tobytes() + np.uint32(21).tobytes())] ^= 1
    saving.path.write_bytes(content)
    assert PoolCheckpoint(tmp_path, said.append).load() == ({}, [])
    assert len(said) == 1 and "population.npz is damaged" in said[0]


def test_a_checkpoint_that_cannot_be_written_does_not_stop_a_sweep(tmp_path, monkeypatch):
    said = []

    def full(*args, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool_checkpoint.np, "savez", full)
    saving = PoolCheckpoint(tmp_path, log=said.append)
    saving.save([Trial(0, {}, arrays=[np.zeros(2)])], [])
    assert saving.remaining_seconds() == math.inf
    assert len(said) == 1 and "No space left on device" in said[0]
