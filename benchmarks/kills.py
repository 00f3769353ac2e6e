"""Comparison of killed and resumed runs, cross-validations and sweeps with uninterrupted ones.

python benchmarks/kills.py
python benchmarks/kills.py --cases sweep --kills 5 --seed 1 --folder kept

starts each as a process on scikit-learn's digits, kills it (SIGKILL) at random times spread over
the time of an uninterrupted process, and resumes it in the same folder after every kill. At the end
all JSON and CSV files, without times, the arrays and the history of all checkpoints, and the trials
of the study are compared with those of an uninterrupted process, bit for bit. The sweep checkpoints
its population after every epoch; by default it spends at most 5 % of the time on that. No figures
are drawn. Prints a line for each; exit code 1 for a difference.
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
IGNORED = {"checkpoints", "members", "tensorboard"}  # their JSON files are no results
PROGRAM = """
import runpy, sys
from dlflax.report import figures
from dlflax.tune.pool import pool_checkpoint as checkpoint
checkpoint.SHARE, figures.draw = 1e9, lambda *_: {}
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
FOLDS = 3
PHASES = ("before the first checkpoint", "in training", "in the report", "after the end")
Name = Literal["run", "folds", "sweep"]


@dataclasses.dataclass
class Options:
    kills: int = 20
    """Kills per case."""
    seed: int = 0
    """Seed of the times of the kills."""
    cases: tuple[Name, ...] = ("run", "folds", "sweep")
    """Processes to kill."""
    flags: str = "--model.features 8 --model.dense 16 --batch-size 4 --epochs 8"
    """Flags of all cases."""
    repeat: bool = True
    """Run the uninterrupted process twice: the second, without compilation, is compared too."""
    folder: Path | None = None
    """Folder of the output (default: a temporary one)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command and its progress."""

    words: tuple[str, ...]
    """Arguments of `python`; the command writes the folder run/."""
    progress: Callable[[Path, float], float]
    """Maps (folder, start time of the process) to a number that increases from 0 to its maximum at
    the beginning of the report."""


def newest(folder: Path) -> int:
    """Returns the step of the newest finished checkpoint, 0 without one."""
    return max(checkpoint_files.steps(folder), default=0)


def count_folds(folder: Path, since: float) -> int:
    """Returns the number of scored folds; until all are, a killed process trains them again."""
    path = folder / "results.json"
    if not path.exists():
        return 0
    count = len(json.loads(path.read_text(encoding="utf-8"))["each"])
    return count if count == FOLDS or path.stat().st_mtime >= since else 0


def population_step(folder: Path, since: float) -> float:
    """Returns the number of saved epochs of populations, inf once all trials are recorded."""
    if not (folder / "population.npz").exists():
        return math.inf if (folder / "trials.csv").exists() else 0
    with np.load(folder / "population.npz") as file:
        return sum(len(trial["values"]) for trial in json.loads(str(file["notes"]))["trials"])


def case(name: Name, options: Options) -> Case:
    """Returns the case of that name."""
    common = "--dataset", "digits", "--run-dir", "run", *options.flags.split()
    run = "-c", PROGRAM, "experiments.mnist", "--resume", "--hparams.dropout", "0.2", *common
    if name == "run":
        return Case(run, lambda folder, _: newest(folder / "checkpoints"))
    if name == "folds":
        return Case((*run, "--folds", str(FOLDS)), count_folds)
    search = "--trials", "12", "--population-size", "4", "--ensemble-size", "4"
    rule = "--search", "halving", "--reduction-factor", "2"
    words = "-c", PROGRAM, "sweeps.random_search", "mnist", *search, *rule, *common
    return Case(words, population_step)


class Process:
    """A process of a case in its own folder, with the caches shared by all processes."""

    def __init__(self, case: Case, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self._run, self._progress = folder / "log.txt", folder / "run", case.progress
        self._start, self._clock = time.time(), time.monotonic()
        cache = folder.parent / "cache"
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "DLFLAX_OFFLINE": "1",
            "XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
            "TFDS_DATA_DIR": str(cache / "tfds"), "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self._log_size = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, *case.words], cwd=folder, env=environment, stdout=log, stderr=log
            )

    def is_over(self, seconds: float = 0.01) -> bool:
        """True if the process ends within these seconds; SystemExit if it fails."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if code:
            raise SystemExit(f"exit code {code}: {self.log.read_text(encoding='utf-8')[-2000:]}")
        return True

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()
        self._process.wait()

    def seconds(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self._clock

    def has_output(self) -> bool:
        """True once the process has printed."""
        return self.log.stat().st_size > self._log_size

    def progress(self) -> float:
        """Returns the current progress."""
        with contextlib.suppress(FileNotFoundError):  # a checkpoint is being deleted
            return self._progress(self._run, self._start)
        return 0


def finish(case: Case, folder: Path) -> tuple[dict[float, float], float]:
    """Runs a case to its end. Returns ({progress: seconds until then}, seconds in total)."""
    process, clock = Process(case, folder), {0.0: 0.0}
    while not process.is_over():
        clock.setdefault(process.progress(), process.seconds())
    return clock, process.seconds()


def kill_at(
    case: Case, folder: Path, progress: float, rest: float, clock: dict[float, float]
) -> str | None:
    """Kills a case `rest` seconds after this progress, or after its first output if the progress is
    saved. Returns the phase, None if the process ends earlier."""
    process = Process(case, folder)
    is_saved = process.progress() >= progress > 0
    while not (process.has_output() if is_saved else process.progress() >= progress):
        if process.is_over():
            return None
    if process.is_over(rest):
        return None
    process.kill()
    now = process.progress()
    return PHASES[0] if not now else PHASES[1] if now < max(clock) else PHASES[2]


def kill_repeatedly(
    case: Case, folder: Path, clock: dict, seconds: float, kills: int, rng: random.Random
) -> collections.Counter:
    """Kills a case several times, then runs it to its end. Returns the kills per phase."""
    phases: collections.Counter = collections.Counter()
    for k in range(kills):
        moment = seconds * (k + rng.random()) / kills  # of the uninterrupted process
        progress = max(p for p, reached in clock.items() if reached <= moment)
        phase = kill_at(case, folder, progress, moment - clock[progress], clock)
        while phase is None:
            phase = kill_at(case, folder, 0, rng.uniform(0, seconds), clock) and PHASES[3]
        phases[phase] += 1
    finish(case, folder)
    return phases


def leaves(value: Any, name: str):
    """Yields (name, value) of all leaves of JSON, without times."""
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
        warnings.simplefilter("ignore")  # shardings are those of the file
        tree = ocp.PyTreeCheckpointer().restore(folder / "state")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        yield jax.tree_util.keystr(path), np.asarray(leaf)
    history = json.loads((folder / "history/metadata").read_text(encoding="utf-8"))
    yield from leaves(history, "history")


def trials(path: Path) -> list:
    """Returns the recorded fields of a study's trials, without times."""
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
        elif IGNORED & set(path.relative_to(folder).parts):
            continue
        elif path.suffix == ".json":
            values |= leaves(json.loads(path.read_text(encoding="utf-8")), name)
        elif path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                values |= leaves(list(csv.DictReader(file)), name)
    return values


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Lists the differences between two `contents`."""
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
    count = sum(isinstance(value, np.ndarray) for value in first.values())
    return f"equal ({count:,} arrays, {len(first) - count:,} other values)"


def measure(name: Name, options: Options, folder: Path) -> bool:
    """Kills one case, and prints a line. True if all results are equal."""
    measured, now, values = case(name, options), folder / "now", {}

    def store(kind: str) -> None:  # all processes use one path, as some files have it
        values[kind] = contents(now / "run")
        now.rename(folder / f"{name}_{kind}")

    for kind in ("first", "second")[: 1 + options.repeat]:
        clock, seconds = finish(measured, now)
        store(kind)
    rng = random.Random(f"{options.seed} {name}")
    phases = kill_repeatedly(measured, now, clock, seconds, options.kills, rng)
    store("killed")
    counts = ", ".join(f"{phases[phase]} {phase}" for phase in PHASES if phases[phase])
    verdict = compare(values["first"], values["killed"])
    print(f"{name}, {seconds:.1f} s: {options.kills} kills, {counts}: {verdict}", flush=True)
    verdicts = [verdict]
    if options.repeat:
        verdicts.append(compare(values["first"], values["second"]))
        print(f"{name}, twice without a kill: {verdicts[1]}", flush=True)
    return all(verdict.startswith("equal") for verdict in verdicts)


def main(options: Options) -> int:
    """Returns the number of cases that differ."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        return sum(not measure(name, options, folder) for name in options.cases)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # the cases use the accelerator
    raise SystemExit(min(1, main(tyro.cli(Options, description=__doc__))))
