"""Comparison of a sweep whose workers are killed with an uninterrupted sweep.

python benchmarks/worker_kills.py
python benchmarks/worker_kills.py --launchers ray --seconds 300 --workers 4 --every 10

runs a sweep on scikit-learn's digits by several workers, kills a random worker (SIGKILL) every few
seconds, and the driver --driver-kills times; the same command starts the driver again. Every trial
must be recorded once. Then one uninterrupted worker on one core trains the same: a random search,
whose table must be equal; or the recorded parameters of the Gaussian process, whose scores must be
equal. A replay of the recorded order must suggest the recorded parameters. --idle measures, in
place of kills, the fraction of time that 2 workers wait for orders.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import optuna
import tyro
from optuna.trial import TrialState

from dlflax.tune.study import JOURNAL, Journal, open_study
from dlflax.tune.suggest.samplers import make_sampler
from dlflax.tune.suggest.space import Space

ROOT = Path(__file__).parents[1]
SPACE = ["--space.learning-rate", "1e-4", "1e-2", "log", "--space.dropout", "0", "0.5",
         "--space.l2", "1e-7", "1e-3", "log"]  # fmt: skip
Launcher = Literal["local", "slurm", "ray"]


@dataclasses.dataclass
class Options:
    launchers: tuple[Launcher, ...] = ("local", "ray")
    searches: tuple[Literal["random", "gp"], ...] = ("random", "gp")
    workers: int = 4
    """Number of workers; local ones are limited to the number of cores."""
    seconds: float = 300.0
    """Duration of the kills."""
    every: float = 10.0
    """Mean time between two kills, in seconds."""
    driver_kills: int = 10
    trials: int = 400
    """Maximum number of trials; the sweep ends after --seconds."""
    population: int = 2
    epochs: int = 4
    seed: int = 0
    folder: Path | None = None
    """Folder of the output (default: a temporary one)."""
    idle: bool = False


class Recorded(optuna.samplers.BaseSampler):
    """Sampler of another sweep's parameters ($RECORDED, JSON), by number."""

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        recorded = json.loads(Path(os.environ["RECORDED"]).read_text(encoding="utf-8"))
        return recorded[trial.number][param_name]


def command(options: Options, search: str, folder: Path, *more: str) -> list[str]:
    module = "sweeps.random_search" if search == "random" else "sweeps.bayes_opt"
    return [
        sys.executable, "-m", module, "mnist", "--dataset", "digits", "--model", "mlp", *SPACE,
        "--epochs", str(options.epochs), "--population-size", str(options.population),
        "--ensemble-size", "0",
        "--baseline", "none", "--run-dir", str(folder), "--study", "s", *more,
    ]  # fmt: skip


def start(words: list[str], folder: Path, **environment: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    with open(folder / "log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            words, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path, **environment}
        )


def workers_of(driver: int, launcher: Launcher) -> list[int]:
    """Returns the process ids of the workers."""
    pattern = ("ray::_compute",) if launcher == "ray" else ("spawn_main", "-P", str(driver))
    done = subprocess.run(["pgrep", "-f", *pattern], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def disturb(options: Options, search: str, launcher: Launcher, folder: Path) -> tuple[int, int]:
    """Runs the sweep and kills workers and drivers. Returns the numbers of both kills."""
    more = ["--trials", str(options.trials), "--launcher", launcher]
    more += ["--workers", str(options.workers)]
    words, rng = command(options, search, folder, *more), random.Random(options.seed)
    end = time.monotonic() + options.seconds
    driver_ends = [options.seconds * (k + 1) / (options.driver_kills + 1)
                   for k in range(options.driver_kills)]  # fmt: skip
    kills, driver_kills, begin = 0, 0, time.monotonic()
    driver = start(words, folder)
    next_kill = begin + rng.expovariate(1 / options.every)
    while driver.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
        if time.monotonic() > next_kill:
            if workers := workers_of(driver.pid, launcher):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    kills += 1
            next_kill = time.monotonic() + rng.expovariate(1 / options.every)
        if driver_ends and time.monotonic() - begin > driver_ends[0]:
            driver_ends.pop(0)
            driver.kill()
            driver.wait()
            driver_kills += 1
            driver = start(words, folder)
    driver.kill()
    driver.wait()
    count = len(finished_trials(folder))
    # the last command finishes the population without kills
    more[1] = str(-(-max(count, 1) // options.population) * options.population)
    last = start(command(options, search, folder, *more), folder)
    assert last.wait() == 0, (folder / "log").read_text(encoding="utf-8")[-2000:]
    return kills, driver_kills


def finished_trials(folder: Path):
    with open_study(folder, None, "s", "minimize") as study:
        return study.finished_trials()


def rows(trials):
    return [(t.number, t.params, t.value, t.state.name, t.intermediate_values) for t in trials]


def replay(folder: Path, search: str) -> int:
    """Replays the recorded order on a sampler. Returns the number of suggestions that differ."""
    seed, trials, wrong, reported = 0, finished_trials(folder), 0, set()
    space = Space(trials[0].distributions)
    sampler = make_sampler(search, space, seed)
    by_number = {trial.number: trial for trial in trials}
    with open_study(None, None, "s", "minimize") as study:
        first = [by_number[0].params] if by_number[0].user_attrs.get("defaults") else []
        study.settings({}, first)
        for log in Journal(folder / JOURNAL).read_logs(0):
            if log["op_code"] == 6 and TrialState(log["state"]).is_finished():
                trial = by_number.get(log["trial_id"])
                if trial is not None and trial.number not in reported:
                    reported.add(trial.number)
                    with study.writing():
                        study.report(trial.number, trial.intermediate_values)
                        study.tell(trial.number, trial.state, trial.value, {})
            elif (
                log["op_code"] == 4
                and "params" not in log
                or (log["op_code"] == 6 and log["state"] == TrialState.RUNNING)
            ):
                (asked,) = study.ask(sampler, space.distributions, [None])
                recorded = by_number.get(asked.number)
                wrong += recorded is not None and asked.params != recorded.params
    return wrong


def compare(options: Options, search: str, launcher: Launcher, folder: Path) -> bool:
    """Compares a disturbed sweep with an undisturbed one. True if they are equal."""
    kills, driver_kills = disturb(options, search, launcher, folder)
    trials = finished_trials(folder)
    recorded = folder / "recorded.json"
    recorded.write_text(json.dumps([trial.params for trial in trials]), encoding="utf-8")
    alone = folder.with_name(f"{folder.name}_alone")
    more = ["--trials", str(len(trials)), "--workers", "1"]
    if search == "gp":
        more += ["--sampler", "worker_kills:Recorded"]
    words = ["taskset", "-c", "0", *command(options, search, alone, *more)]
    assert start(words, alone, RECORDED=str(recorded)).wait() == 0, alone
    once = [trial.number for trial in trials] == list(range(len(trials)))
    failed = {trial.number for trial in trials if trial.state == TrialState.FAIL}
    logged = (folder / "log").read_text(encoding="utf-8").count("recorded as failed")
    once &= len(failed) == logged * options.population  # a population fails after three kills
    equal = [row for row in rows(trials) if row[0] not in failed] == [
        row for row in rows(finished_trials(alone)) if row[0] not in failed
    ]
    wrong = replay(folder, search)
    print(
        f"{launcher}, {search}: {len(trials)} trials, {kills} workers and {driver_kills} drivers "
        f"killed, {len(failed)} trials thrice; every trial recorded once: {once}; table equals "
        f"that of one undisturbed worker: {equal}; suggestions that differ in a replay: {wrong}",
        flush=True,
    )
    return once and equal and not wrong


IDLE = """
import runpy, sys, time
from dlflax.tune.pool import workers
events, submit = [], workers.Workers.submit

def timed(self, order, *args):
    submit(self, order, *args)
    events.append((time.monotonic(), 1))
    order.future.add_done_callback(lambda _: events.append((time.monotonic(), -1)))

workers.Workers.submit = timed
runpy.run_module("sweeps.random_search", run_name="__main__", alter_sys=True)
events.sort()
last = max(clock for clock, change in events if change == 1)
busy = idle = at_work = 0
for (clock, change), (after, _) in zip(events, events[1:]):
    at_work += change
    if after <= last:
        busy += at_work * (after - clock)
        idle += (2 - at_work) * (after - clock)
print(f"2 workers waited {idle / (busy + idle):.2%} of the time until the last order began, "
      f"{sum(change == 1 for _, change in events)} orders", flush=True)
"""


def idle(options: Options, folder: Path) -> None:
    """Prints the fraction of time that 2 workers wait for an order. Trials have different lengths
    by --patience."""
    more = ["--trials", "64", "--workers", "2", "--patience", "1", "--epochs", "40"]
    words = command(options, "random", folder, *more)
    driver = start([words[0], "-c", IDLE, *words[3:]], folder)
    assert driver.wait() == 0, (folder / "log").read_text(encoding="utf-8")[-2000:]
    print(re.findall(r"2 workers waited .*", (folder / "log").read_text(encoding="utf-8"))[-1])


def main(options: Options) -> None:
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.idle:
            return idle(options, folder / "idle")
        equal = [
            compare(options, search, launcher, folder / f"{launcher}_{search}")
            for launcher in options.launchers for search in options.searches
        ]  # fmt: skip
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
