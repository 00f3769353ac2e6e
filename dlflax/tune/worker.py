"""The work of a sweep: an order of trials, trained in one program a structure. A function of its
arguments alone, so that any process on any machine can do it."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import math
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlflax import train
from dlflax.run.serialize import MODULE_PREFIX
from dlflax.train import population
from dlflax.train.layout import layout_for
from dlflax.tune.space import Space

MOST_OUTPUTS = 2**22  # numbers of a model's outputs on validation data that are kept


@dataclasses.dataclass(frozen=True)
class Job:
    """The part of a sweep that all its trials have in common."""

    recipe: train.Recipe
    hparams: train.Hparams
    space: Space
    epochs: int
    seed: int
    seeds: int
    patience: int
    reduce_on_plateau: int
    metric: str
    """The objective, without its val_."""
    sign: int
    """1 where the lowest value is the best, else -1."""
    rank: str
    """mean or cautious: what a trial counts that has several seeds."""
    mode: str
    """auto, vmap or map."""


@dataclasses.dataclass
class Assignment:
    """A trial of an order."""

    number: int
    params: Mapping[str, Any]
    until: int
    """Epochs that it is to have."""
    records: list | None = None
    """A record a seed, as `Population.records` returns; None at its beginning."""
    arrays: list[np.ndarray] = dataclasses.field(default_factory=list)
    """Its State, as `Population.states` returns; [] once it is over."""


class Model(NamedTuple):
    """A trained member."""

    variables: dict
    """{"params": ..., ...} of its best epoch, to evaluate with."""
    outputs: np.ndarray
    """On the first validation examples, float32 (n, ...)."""


@dataclasses.dataclass
class Outcome:
    """A trial after an order."""

    number: int
    value: float
    """The score so far; +-inf once it diverged, never NaN."""
    curve: list[float]
    """The objective after each epoch, the mean over seeds."""
    is_over: bool
    records: list
    arrays: list[np.ndarray]
    seconds: float
    """Its share of the time that its order took."""
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values, kept as Optuna's user attributes."""
    models: list[Model] = dataclasses.field(default_factory=list)
    """One a seed, of a trial that is over and worth keeping."""


def pack(job: Job) -> bytes:
    """Returns a job for another process, with the source of an experiment that is a script or file.
    Pickle alone only names its classes."""
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
    """Returns the same job again for the same bytes, whose structures are then compiled once."""
    sources, job = pickle.loads(packed)
    modules = {name: _load_source(*source) for name, *source in sources}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if module not in modules:
                return super().find_class(module, name)
            return functools.reduce(getattr, name.split("."), modules[module])

    return Unpickler(io.BytesIO(job)).load()


def _load_source(path: str, source: bytes):
    """Returns the module of a file, or of its source where that disk does not have it."""
    path = Path(path)
    name = MODULE_PREFIX + path.stem
    if not (path.exists() and path.read_bytes() == source):
        path = Path(tempfile.mkdtemp()) / path.name
        path.write_bytes(source)
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trial_seeds(seed: int, number: int, count: int) -> np.ndarray:
    """Returns uint32 (count,): what a trial is trained with, whatever its place in a population."""
    return np.random.SeedSequence([seed, number]).generate_state(count + 1)[1:]


def train_order(
    job: Job | bytes,
    data,
    order: list[Assignment],
    width: int,
    seconds: float = math.inf,
    worth: float = -math.inf,
    beat: Path | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> tuple[list[Outcome], int]:
    """Trains each trial of an order up to its epochs, or what of it is done after so many seconds,
    to whole epochs. Returns the outcomes, and how many programs were compiled.

    job: or its `pack`; data: `.load()` gives {"train": ..., "val": ..., "pretrained": ...}; width:
    trials that the programs are made for; worth: the models of a trial that is over are returned
    where its value is lower, times the job's sign; beat: a file that is touched all the time as a
    sign of life; on_epoch gets the epochs of all trials so far.
    """
    job = _unpack(job) if isinstance(job, bytes) else job
    with _beating(beat):
        return _train_order(job, data.load(), order, width, seconds, worth, on_epoch)


@contextlib.contextmanager
def _beating(path: Path | None):
    """Touches a file all the time, in another thread; where it cannot be made, nothing is done."""
    is_done = threading.Event()

    def beat():
        with contextlib.suppress(OSError):
            while not is_done.wait(1.0):
                path.touch()

    thread = threading.Thread(target=beat, daemon=True)
    if path is not None and path.parent.is_dir():
        path.touch()
        thread.start()
    try:
        yield
    finally:
        is_done.set()


def _train_order(job, parts, order, width, seconds, worth, on_epoch):
    clock, traces = time.monotonic(), population.traces
    groups: dict[train.Recipe, list[Assignment]] = {}
    hparams = {}
    for each in order:
        recipe, hparams[each.number] = job.space.apply(each.params, job.recipe, job.hparams)
        groups.setdefault(recipe, []).append(each)
    is_first, outcomes = [True], {}

    def should_stop():
        """True once the time is over; one epoch is trained in any case."""
        late = time.monotonic() - clock > seconds and not is_first[0]
        is_first[0] = False
        return late

    done = {each.number: _epochs(each.records) for each in order}
    # one structure after the other, and only one is in memory
    for recipe, group in groups.items():
        numbers = [hparams[each.number] for each in group]
        members = _population(job, recipe, numbers, group, parts, width)

        def count(members=members, group=group):
            for each, row in zip(group, members.histories, strict=True):
                done[each.number] = len(row[0])
            if on_epoch:
                on_epoch(sum(done.values()))

        members.train([each.until for each in group], count, should_stop)
        outcomes |= _outcomes(job, members, group, worth, parts)
    taken = (time.monotonic() - clock) / len(order)
    ordered = [dataclasses.replace(outcomes[each.number], seconds=taken) for each in order]
    return ordered, population.traces - traces


def _epochs(records) -> int:
    return len(records[0][0]) if records else 0


_placed: dict[int, tuple[Any, Any]] = {}  # devices -> (arrays of the host, the same on them)


def _place(parts, layout):
    """Returns training and validation data on the devices, where they stay for the next order."""
    host, placed = _placed.get(layout.devices, (None, None))
    if host is not parts:
        placed = population.put_on_devices(layout, parts["train"], parts["val"])
        _placed[layout.devices] = parts, placed
    return placed


def release_data() -> None:
    """Frees the memory of the data on the devices."""
    _placed.clear()


def _population(job, recipe, hparams, group, parts, width):
    """Returns the members of a group, each where it was."""
    inputs, mode = parts["train"]["inputs"][:1], None if job.mode == "auto" else job.mode
    layout = layout_for(recipe, job.hparams, inputs, width * job.seeds, mode)
    members = population.Population(
        recipe, hparams, [trial_seeds(job.seed, each.number, job.seeds) for each in group],
        *_place(parts, layout), epochs=job.epochs, layout=layout, patience=job.patience,
        reduce_on_plateau=job.reduce_on_plateau, pretrained=parts.get("pretrained"),
        keep_best=True, objective=job.metric,
    )  # fmt: skip
    if any(each.records for each in group):
        states = {k: each.arrays for k, each in enumerate(group) if each.arrays}
        members.resume([each.records for each in group], states)
    return members


def _outcomes(job, members, group, worth, parts) -> dict[int, Outcome]:
    """Returns number -> Outcome of a group."""
    records = [row if all(history for history, _ in row) else None for row in members.records()]
    values = [score_of(job, row) for row in records]
    over = [
        k in members.divergence_steps or all(seed.is_complete() for seed in members.trainings[k])
        for k in range(len(group))
    ]
    states = members.states([k for k in range(len(group)) if records[k] and not over[k]])
    # those that were over before have no goal
    kept = [k for k, each in enumerate(group) if each.until and over[k]]
    kept = [k for k in kept if math.isfinite(values[k]) and job.sign * values[k] < worth]
    models = _models(job, members, kept, parts)
    outcomes = {}
    for k, each in enumerate(group):
        # the seeds' rows by epoch, as far as all came: patience may have stopped one earlier
        rows = zip(*members.histories[k], strict=False)
        curve = [float(np.mean([row[f"val_{job.metric}"] for row in epoch])) for epoch in rows]
        curve = [value if math.isfinite(value) else job.sign * math.inf for value in curve]
        attrs = seeds_of(job, records[k])
        if k in members.divergence_steps:
            attrs = {"diverged_at": members.divergence_steps[k]}
        outcomes[each.number] = Outcome(
            each.number, values[k], curve, over[k], records[k], states.get(k, []), 0.0, attrs,
            models.get(k, []),
        )  # fmt: skip
    return outcomes


def _models(job, members, kept, parts) -> dict[int, list[Model]]:
    """Returns the trained members of those configurations."""
    if not kept:
        return {}
    inputs = parts["train"]["inputs"][:1]
    size = math.prod(train.output_shape(members.recipe, job.hparams, inputs).shape)
    best = members.best(max(1, MOST_OUTPUTS // size))
    return {k: [Model(*best[k, seed]) for seed in range(job.seeds)] for k in kept}


def _scores(job, records) -> np.ndarray:
    """Returns the scores of a trial's seeds, float (n,): of their best epochs so far, and the worst
    once one of them diverged."""
    if not records or any(diverged_at for _, diverged_at in records):
        return np.full(job.seeds, job.sign * math.inf)
    best = min if job.sign == 1 else max
    return np.array([best(row[f"val_{job.metric}"] for row in history) for history, _ in records])


def score_of(job: Job, records: list | None) -> float:
    """Returns what a trial counts so far: the mean over its seeds, or one deviation worse."""
    scores = _scores(job, records)
    is_cautious = job.rank == "cautious" and job.seeds > 1 and np.isfinite(scores).all()
    return float(scores.mean() + (job.sign * scores.std(ddof=1) if is_cautious else 0.0))


def seeds_of(job: Job, records: list | None) -> dict[str, Any]:
    """Returns the attributes of a trial that has several seeds: their scores, and the deviation."""
    scores = _scores(job, records)
    if job.seeds == 1 or not np.isfinite(scores).all():
        return {}
    return {"values": scores.tolist(), "std": float(scores.std(ddof=1))}
