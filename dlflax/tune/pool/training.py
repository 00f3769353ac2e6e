"""The work of a sweep: an order of trials, trained in one program a structure. A function of its
arguments alone, so that any process on any machine can do it."""

import contextlib
import dataclasses
import functools
import io
import math
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlflax import train
from dlflax.config.experiment import execute
from dlflax.config.serialize import MODULE_PREFIX
from dlflax.train import population
from dlflax.train.bag import fold_options, fold_seeds, held_out_folds, held_out_outputs
from dlflax.train.layout import layout_for
from dlflax.tune.suggest.space import Space

MOST_OUTPUTS = 2**22  # outputs of a model on validation data, in numbers, for the ensemble


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings of a sweep that all its trials have in common."""

    recipe: train.Recipe
    hparams: train.Hparams
    space: Space
    epochs: int
    seed: int
    num_seeds: int  # of a trial, or its folds, each under a seed
    patience: int
    plateau_patience: int
    metric: str  # the objective, without its val_
    sign: int  # 1 where lower is better, else -1
    rank: str  # mean or pessimistic: the score of a trial that has several seeds
    population_map: str  # auto, vmap or map
    has_folds: bool = False  # the score is that of all examples, each held out from one member


class Model(NamedTuple):
    """A trained member."""

    variables: dict  # {"params": ..., ...} of its best epoch, to evaluate with
    outputs: np.ndarray  # on its fold, or the first validation examples, float32 (n, ...)


@dataclasses.dataclass
class Trial:
    """A trial that was begun, as the pool has it, workers get a copy and return it."""

    number: int
    params: Mapping[str, Any]
    goal: int = 0  # the epoch that its last order trains it to
    values: list[float] = dataclasses.field(default_factory=list)
    """The objective after each epoch, the mean over seeds or examples; +-inf once it diverged,
    never NaN."""
    value: float | None = None  # the score of a trial that is over
    is_over: bool = False
    records: list | None = None  # one a seed, as `Population.records` returns; None: a new trial
    arrays: list[np.ndarray] = dataclasses.field(default_factory=list)
    """Its State, as `Population.states` returns; [] once it is over."""
    seconds: float = 0.0  # its share of the time that its orders took
    failures: int = 0  # workers that it lost
    is_failed: bool = False
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)  # for Optuna, JSON values
    models: list[Model] = dataclasses.field(default_factory=list)
    """One a seed or fold, of a trial that is over and among the best."""

    def is_at_goal(self) -> bool:
        """True if its last order has nothing left to train of it."""
        return self.is_over or len(self.values) >= self.goal

    def end(self) -> None:
        """Ends the trial, which frees its State and models."""
        self.is_over, self.arrays, self.models = True, [], []


def pack(job: Job) -> bytes:
    """Returns a job for another process, with the source of an experiment that is a script or file:
    pickle has only the names of its classes."""
    files = [
        module for name, module in sys.modules.copy().items() if name.startswith(MODULE_PREFIX)
    ]
    main = sys.modules["__main__"]
    if main.__spec__ is None and str(getattr(main, "__file__", "")).endswith(".py"):
        files.append(main)  # python my_experiment.py
    sources = [
        (module.__name__, str(Path(module.__file__).absolute()), Path(module.__file__).read_bytes())
        for module in files
    ]
    return pickle.dumps((sources, pickle.dumps(job)))


@functools.lru_cache(maxsize=1)
def _unpack(packed: bytes) -> Job:
    """Returns the same object for the same bytes, so that its structures are compiled once."""
    sources, job = pickle.loads(packed)
    modules = {}
    for name, path, source in sources:
        sys.path.append(str(Path(path).parent))
        modules[name] = execute(MODULE_PREFIX + Path(path).stem, Path(path), source)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if module not in modules:
                return super().find_class(module, name)
            return functools.reduce(getattr, name.split("."), modules[module])

    return Unpickler(io.BytesIO(job)).load()


def trial_seeds(seed: int, number: int, count: int) -> np.ndarray:
    """Returns the seeds that a trial is trained with in any population, uint32 (count,)."""
    return np.random.SeedSequence([seed, number]).generate_state(count + 1)[1:]


def train_order(
    job: Job | bytes, data, order: list[Trial], width: int, seconds: float = math.inf,
    threshold: float = -math.inf, beat: Path | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> tuple[list[Trial], int]:  # fmt: skip
    """Trains each trial of an order up to its epoch, or to the first whole epoch after so many
    seconds. Returns the trials, and the number of compiled programs.

    job: or its `pack`; data: returns {"train": ..., "val": ..., "pretrained": ...}, with folds also
    "fold_of", int (n,) of the examples in both; order: copies, which are changed; width: trials
    that the programs are compiled for; threshold: the models of a trial that is over are returned
    where its value, times the job's sign, is lower; beat: a file that is touched every second as a
    sign of life; on_epoch: gets the epochs of all trials so far.
    """
    job = _unpack(job) if isinstance(job, bytes) else job
    groups: dict[train.Recipe, list[tuple[Trial, train.Hparams]]] = {}
    for trial in order:
        recipe, hparams = job.space.apply(trial.params, job.recipe, job.hparams)
        groups.setdefault(recipe, []).append((trial, hparams))
    done = {trial.number: len(trial.values) for trial in order}
    traces, is_first = population.traces, [True]

    def should_stop():
        """True once the time is over; one epoch is trained in any case."""
        is_late = time.monotonic() - clock > seconds and not is_first[0]
        is_first[0] = False
        return is_late

    with _heartbeat(beat):
        parts, clock = data(), time.monotonic()
        # one structure after the other, and only one is in memory
        for recipe, pairs in groups.items():
            group, hparams = zip(*pairs, strict=True)
            members = _make_members(job, recipe, hparams, group, parts, width)

            def count(members=members, group=group):
                for trial, row in zip(group, members.histories, strict=True):
                    done[trial.number] = len(row[0])
                if on_epoch:
                    on_epoch(sum(done.values()))

            # a trial at its goal has nothing to do, and keeps its index
            goals = [0 if trial.is_at_goal() else trial.goal for trial in group]
            members.train(goals, count, should_stop)
            _update(job, members, group, threshold, parts)
    for trial in order:
        trial.seconds += (time.monotonic() - clock) / len(order)
    return order, population.traces - traces


@contextlib.contextmanager
def _heartbeat(path: Path | None):
    """Touches a file every second, in another thread, if its folder exists."""
    is_done = threading.Event()

    def beat():
        with contextlib.suppress(OSError):
            while not is_done.wait(1.0):
                path.touch()

    if path is not None and path.parent.is_dir():
        path.touch()
        threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()


def _member_seeds(job: Job, trial: Trial) -> np.ndarray:
    """Returns the seeds of a trial's members. The bag of trial 0, the defaults, is a run's."""
    if job.has_folds and trial.number == 0:
        return fold_seeds(job.seed, job.num_seeds)
    return trial_seeds(job.seed, trial.number, job.num_seeds)


_placed: dict[int, tuple[Any, Any]] = {}  # devices -> (arrays of the host, the same on them)


def release_data() -> None:
    """Frees the memory of the data on the devices."""
    _placed.clear()


def _make_members(job, recipe, hparams, group, parts, width):
    """Returns the members of a group, each with its State. The data stay on the devices for the
    next order."""
    inputs = parts["train"]["inputs"][:1]
    mode = None if job.population_map == "auto" else job.population_map
    layout = layout_for(recipe, job.hparams, inputs, width * job.num_seeds, mode)
    host, placed = _placed.get(layout.devices, (None, None))
    if host is not parts:
        placed = population.put_on_devices(layout, parts["train"], parts["val"])
        _placed[layout.devices] = parts, placed
    members = population.Population(
        recipe, hparams, [_member_seeds(job, trial) for trial in group],
        *placed, epochs=job.epochs, layout=layout, patience=job.patience,
        plateau_patience=job.plateau_patience, pretrained=parts.get("pretrained"),
        keep_best=True, objective=job.metric,
        **(fold_options(_folds(parts), parts["train"], recipe.batch_size) if job.has_folds else {}),
    )  # fmt: skip
    if any(trial.records for trial in group):
        states = {k: trial.arrays for k, trial in enumerate(group) if trial.arrays}
        members.resume([trial.records for trial in group], states)
    return members


def _folds(parts):
    return held_out_folds(parts["fold_of"])


def _update(job, members, group, threshold, parts) -> None:
    """Writes what the members of a group have reached to its trials."""
    active, ended, name = [], [], f"val_{job.metric}"
    sizes = [len(fold.val) for fold in _folds(parts)] if job.has_folds else None
    for k, (trial, seeds) in enumerate(zip(group, members.trainings, strict=True)):
        if trial.is_at_goal() or not all(seed.history for seed in seeds):
            continue  # the time was over before its first epoch
        trial.records = [(seed.history, seed.diverged_at) for seed in seeds]
        # epochs of all seeds: patience may have stopped one of them earlier
        rows = zip(*(seed.history for seed in seeds), strict=False)
        values = [float(np.average([row[name] for row in epoch], weights=sizes)) for epoch in rows]
        trial.values = [value if math.isfinite(value) else job.sign * math.inf for value in values]
        diverged_at, trial.arrays = members.divergence_steps.get(k), []
        if not (diverged_at or all(seed.is_complete() for seed in seeds)):
            active.append(k)
            continue
        trial.is_over, trial.value = True, score_of(job, trial.records)
        trial.attrs = (
            {"diverged_at": diverged_at} if diverged_at else seed_attrs(job, trial.records)
        )
        if math.isfinite(trial.value):
            ended.append(k)
    for k, arrays in members.states(active).items():
        group[k].arrays = arrays
    if not job.has_folds:
        ended = [k for k in ended if job.sign * group[k].value < threshold]
    if ended:
        _take_models(job, members, [(k, group[k]) for k in ended], threshold, parts)


def _take_models(job, members, ended, threshold, parts) -> None:
    """Writes their models to trials that are over and among the best, and with folds the score of
    the held-out outputs. ended: (configuration, trial) pairs."""
    recipe, train_set = members.recipe, parts["train"]
    size = math.prod(train.output_shape(recipe, job.hparams, train_set["inputs"][:1]).shape)
    count = len(train_set["inputs"]) if job.has_folds else max(1, MOST_OUTPUTS // size)
    trained = members.best(count)
    for k, trial in ended:
        models = [Model(*trained[k, seed]) for seed in range(job.num_seeds)]
        if job.has_folds:
            folds, hparams = _folds(parts), members.trainings[k][0].hparams
            models = [model._replace(outputs=model.outputs[fold.val])
                      for model, fold in zip(models, folds, strict=True)]  # fmt: skip
            outputs = held_out_outputs(folds, [model.outputs for model in models])
            score = train.scores(recipe.task, hparams, train_set, outputs)[job.metric]
            trial.value = score if math.isfinite(score) else job.sign * math.inf
        if job.sign * trial.value < threshold:
            trial.models = models


def _scores(job, records) -> np.ndarray:
    """Returns the scores of a trial's seeds at their best epochs so far, float (n,); the worst for
    all once one of them diverged."""
    if not records or any(diverged_at for _, diverged_at in records):
        return np.full(job.num_seeds, job.sign * math.inf)
    best = min if job.sign == 1 else max
    return np.array([best(row[f"val_{job.metric}"] for row in history) for history, _ in records])


def score_of(job: Job, records: list | None) -> float:
    """Returns the score of a trial so far: the mean over its seeds, or one deviation worse."""
    scores = _scores(job, records)
    is_pessimistic = job.rank == "pessimistic" and job.num_seeds > 1 and np.isfinite(scores).all()
    return float(scores.mean() + (job.sign * scores.std(ddof=1) if is_pessimistic else 0.0))


def seed_attrs(job: Job, records: list | None) -> dict[str, Any]:
    """Returns the attributes of a trial that has several seeds: their scores, and the deviation."""
    scores = _scores(job, records)
    if job.num_seeds == 1 or job.has_folds or not np.isfinite(scores).all():
        return {}
    return {"values": scores.tolist(), "std": float(scores.std(ddof=1))}
