"""Do a run, a cross-validation and a sweep that are killed end as if they had not been?

python benchmarks/kills.py
python benchmarks/kills.py --cases sweep --kills 5 --seed 1 --folder kept

starts each as a process on scikit-learn's digits, kills it (SIGKILL) at random moments that are
spread over the time that it takes uninterrupted, and starts the same command with --resume again in
the same folder after every kill. At its end all JSON and CSV files, without times, the arrays and
the history of all checkpoints, and the trials of the study are compared with those of a process
that was not killed, bit for bit. The sweep checkpoints its population after every epoch, where it
usually takes no more than 5 % of the time for that. Prints a line for each; exit code 1 where
something differs.
"""

import collections
import contextlib
import csv
import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optuna
import orbax.checkpoint as ocp
import tyro

from dlflax.train import checkpoint_files
from dlflax.tune.study import JOURNAL, Journal

ROOT = Path(__file__).parents[1]
TIMES = {"seconds", "process_seconds", "compile_seconds", "examples_per_second",
         "trials_per_minute", "traces"}  # fmt: skip
BESIDE = {"checkpoints", "population", "members", "tensorboard"}  # whose JSON files are not results
SWEEP = """
import runpy
from dlflax.tune import checkpoint
checkpoint.SHARE = 1e9
runpy.run_module("sweeps.random_search", run_name="__main__", alter_sys=True)
"""
FOLDS = 3
PHASES = ("before the first checkpoint", "in training", "in the report", "after the end")
Name = Literal["run", "folds", "sweep"]


@dataclasses.dataclass
class Options:
    kills: int = 20
    """Kills of each."""
    seed: int = 0
    """Seed of their moments."""
    cases: tuple[Name, ...] = ("run", "folds", "sweep")
    """Processes to kill."""
    flags: str = "--model.features 8 --model.dense 16 --batch-size 4 --epochs 8"
    """Flags of all of them."""
    repeat: bool = True
    """Start what is not killed twice: the second, without compiling, is timed and compared too."""
    folder: Path | None = None
    """Folder for what they write, kept (default: a temporary one)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command, and how far it is."""

    words: tuple[str, ...]
    """The words after `python`; it writes the folder run/."""
    progress: Callable[[Path, float], float]
    """Rises from 0 to its largest value, when the report begins: of that folder, and of a process
    that was started at that time."""


def newest(folder: Path) -> int:
    """Returns the step of the newest finished checkpoint, 0 without one."""
    return max(checkpoint_files.steps(folder), default=0)


def count_folds(folder: Path, since: float) -> int:
    """Returns how many folds are scored; unless all are, those before a kill are trained anew."""
    path = folder / "results.json"
    if not path.exists():
        return 0
    count = len(json.loads(path.read_text(encoding="utf-8"))["each"])
    return count if count == FOLDS or path.stat().st_mtime >= since else 0


def population_step(folder: Path, since: float) -> float:
    """Returns how many epochs of populations are saved, inf once all trials are recorded."""
    step = newest(folder / "population")
    return step if step or not (folder / "trials.csv").exists() else math.inf


def case(name: Name, options: Options) -> Case:
    """Returns the case of that name."""
    common = "--dataset", "digits", "--run-dir", "run", *options.flags.split()
    run = "-m", "experiments.mnist", "--resume", "--hparams.dropout", "0.2", *common
    if name == "run":
        return Case(run, lambda folder, _: newest(folder / "checkpoints"))
    if name == "folds":
        return Case((*run, "--folds", str(FOLDS)), count_folds)
    searched = "--trials", "12", "--population", "4", "--ensemble", "4"
    searched = *searched, "--search", "halving", "--reduction-factor", "2"
    return Case(("-c", SWEEP, "mnist", *searched, *common), population_step)


class Process:
    """A process of a case, in a folder of its own, with the caches of all."""

    def __init__(self, chosen: Case, place: Path):
        place.mkdir(parents=True, exist_ok=True)
        self.log, self._run, self._progress = place / "log.txt", place / "run", chosen.progress
        self._begun, self._clock = time.time(), time.monotonic()
        cache = place.parent / "cache"
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "DLFLAX_OFFLINE": "1",
            "XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
            "TFDS_DATA_DIR": str(cache / "tfds"), "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self._printed = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, *chosen.words], cwd=place, env=environment, stdout=log, stderr=log
            )

    def has_ended(self, seconds: float = 0.01) -> bool:
        """True if it ends within so many seconds; SystemExit where it fails."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if code:
            raise SystemExit(f"exit code {code}: {self.log.read_text(encoding='utf-8')[-2000:]}")
        return True

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._clock

    def has_printed(self) -> bool:
        """True once it has started up."""
        return self.log.stat().st_size > self._printed

    def progress(self) -> float:
        """Its progress now."""
        with contextlib.suppress(FileNotFoundError):  # a checkpoint is being deleted
            return self._progress(self._run, self._begun)
        return 0


def finish(chosen: Case, place: Path) -> tuple[dict[float, float], float]:
    """Runs a case to its end. Returns ({progress: seconds until then}, seconds in all)."""
    process, clock = Process(chosen, place), {0.0: 0.0}
    while not process.has_ended():
        clock.setdefault(process.progress(), process.seconds())
    return clock, process.seconds()


def kill_at(
    chosen: Case, place: Path, progress: float, rest: float, clock: dict[float, float]
) -> str | None:
    """Kills a case so many seconds after it has that progress, or has started up if processes
    before it had. Returns the phase, None where it ended before."""
    process = Process(chosen, place)
    saved = process.progress() >= progress > 0
    while not (process.has_printed() if saved else process.progress() >= progress):
        if process.has_ended():
            return None
    if process.has_ended(rest):
        return None
    process.kill()
    now = process.progress()
    return PHASES[0] if not now else PHASES[1] if now < max(clock) else PHASES[2]


def kill_again_and_again(
    chosen: Case, place: Path, clock: dict, seconds: float, kills: int, rng: random.Random
) -> collections.Counter:
    """Kills a case so many times, and lets it end. Returns how many kills came in each phase."""
    phases: collections.Counter = collections.Counter()
    for k in range(kills):
        moment = seconds * (k + rng.random()) / kills  # of the process that was not killed
        progress = max(p for p, reached in clock.items() if reached <= moment)
        phase = kill_at(chosen, place, progress, moment - clock[progress], clock)
        while phase is None:
            phase = kill_at(chosen, place, 0, rng.uniform(0, seconds), clock) and PHASES[3]
        phases[phase] += 1
    finish(chosen, place)
    return phases


def leaves(value: Any, name: str):
    """Yields (name, value) of all that JSON holds, without times."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            if key not in TIMES:
                yield from leaves(item, f"{name} {key}")
    else:
        yield name, json.dumps(value)


def arrays(folder: Path):
    """Yields (name, array) of a checkpoint, and the leaves of its history."""
    checkpoint_files.verify(folder.parent, int(folder.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read as it was written
        tree = ocp.PyTreeCheckpointer().restore(folder / "state")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        yield jax.tree_util.keystr(path), np.asarray(leaf)
    history = json.loads((folder / "history/metadata").read_text(encoding="utf-8"))
    yield from leaves(history, "history")


def trials(path: Path) -> list:
    """Returns what a study has of its trials, without times."""
    storage = optuna.storages.JournalStorage(Journal(path))
    (study,) = optuna.get_all_study_names(storage)
    return [
        {
            "state": trial.state.name, "value": trial.value, "params": trial.params,
            "intermediate": trial.intermediate_values, "user": trial.user_attrs,
            "system": trial.system_attrs,
        }
        for trial in optuna.load_study(study_name=study, storage=storage).trials
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, Any]:
    """Returns {name: JSON text or array} of all results in a folder."""
    values: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == checkpoint_files.MANIFEST and "checkpoints" in path.parts:
            values |= {f"{Path(name).parent} {key}": leaf for key, leaf in arrays(path.parent)}
        elif path.name == JOURNAL:
            values |= leaves(trials(path), name)
        elif BESIDE & set(path.relative_to(folder).parts):
            continue
        elif path.suffix == ".json":
            values |= leaves(json.loads(path.read_text(encoding="utf-8")), name)
        elif path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                values |= leaves(list(csv.DictReader(file)), name)
    return values


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Returns what differs between two `contents`, a text for each."""
    texts = []
    for name in sorted({*first, *second}):
        a, b = first.get(name), second.get(name)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape:
            if (a.dtype, a.tobytes()) != (b.dtype, b.tobytes()):
                texts.append(f"{name}: {np.sum(a != b):,} of {a.size:,} numbers")
        elif a is not b and (a is None or b is None or not np.array_equal(a, b)):
            texts.append(f"{name}: {a!s:.40} and {b!s:.40}")
    return texts


def compare(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Returns "equal", or the number of differences and the first of them."""
    if texts := differences(first, second):
        return "; ".join([f"{len(texts):,} of {len(first):,} differ", *texts[:5]])
    many = sum(isinstance(value, np.ndarray) for value in first.values())
    return f"equal ({many:,} arrays, {len(first) - many:,} other values)"


def measure(name: Name, options: Options, place: Path) -> bool:
    """Kills one case, and prints a line. True if all ended as the same."""
    chosen, now, values = case(name, options), place / "now", {}

    def keep(kind: str) -> None:  # all had one path, which some files hold
        values[kind] = contents(now / "run")
        now.rename(place / f"{name}_{kind}")

    for kind in ("first", "second")[: 1 + options.repeat]:
        clock, seconds = finish(chosen, now)
        keep(kind)
    rng = random.Random(f"{options.seed} {name}")
    phases = kill_again_and_again(chosen, now, clock, seconds, options.kills, rng)
    keep("killed")
    counts = ", ".join(f"{phases[phase]} {phase}" for phase in PHASES if phases[phase])
    verdict = compare(values["first"], values["killed"])
    print(f"{name}, {seconds:.1f} s: {options.kills} kills, {counts}: {verdict}", flush=True)
    verdicts = [verdict]
    if options.repeat:
        verdicts.append(compare(values["first"], values["second"]))
        print(f"{name}, twice without a kill: {verdicts[1]}", flush=True)
    return all(verdict.startswith("equal") for verdict in verdicts)


def main(options: Options) -> int:
    """Returns how many of the cases differ."""
    with tempfile.TemporaryDirectory() as temporary:
        place = (options.folder or Path(temporary)).resolve()
        return sum(not measure(name, options, place) for name in options.cases)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # an accelerator is for those that are killed
    raise SystemExit(min(1, main(tyro.cli(Options, description=__doc__))))
