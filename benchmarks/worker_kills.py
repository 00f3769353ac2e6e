"""Does a sweep whose workers are killed all the time end as if they had not been?

python benchmarks/worker_kills.py
python benchmarks/worker_kills.py --launchers ray --seconds 300 --workers 4 --every 10

runs a sweep on scikit-learn's digits by several workers, and kills one of them (SIGKILL) at random
about every so many seconds, and the driver --driver-kills times; the driver is started again with
the same command. Every trial must be recorded once, in whatever order workers came and went. Then
one worker on one core, undisturbed, trains the same: random search anew, whose table must be equal;
of the Gaussian process the recorded parameters, whose scores must be equal, and a sampler of this
process is asked and told in the recorded order, and must suggest the recorded parameters.
--idle measures, in place of kills, the share of time that 2 undisturbed workers wait for orders.
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

from dlflax.tune.samplers import make_sampler
from dlflax.tune.space import Space
from dlflax.tune.study import JOURNAL, Journal, open_study

ROOT = Path(__file__).parents[1]
SPACE = ["--space.learning-rate", "1e-4", "1e-2", "log", "--space.dropout", "0", "0.5",
         "--space.l2", "1e-7", "1e-3", "log"]  # fmt: skip
Launcher = Literal["local", "slurm", "ray"]


@dataclasses.dataclass
class Options:
    launchers: tuple[Launcher, ...] = ("local", "ray")
    searches: tuple[Literal["random", "gp"], ...] = ("random", "gp")
    workers: int = 4
    """Workers; of local ones no more than there are cores."""
    seconds: float = 300.0
    """That workers are killed in."""
    every: float = 10.0
    """Mean time between two kills, in seconds."""
    driver_kills: int = 10
    trials: int = 400
    """Trials in all; the sweep is stopped after the seconds where it has more."""
    population: int = 2
    epochs: int = 4
    seed: int = 0
    folder: Path | None = None
    """Folder of what is written (default: a temporary one)."""
    idle: bool = False


class Recorded(optuna.samplers.BaseSampler):
    """The parameters that another sweep recorded ($RECORDED, JSON), by number."""

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
        "--epochs", str(options.epochs), "--population", str(options.population), "--ensemble", "0",
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
    """Returns the processes that train."""
    if launcher == "ray":
        found = subprocess.run(["pgrep", "-f", "ray::_compute"], capture_output=True, text=True)
    else:
        found = subprocess.run(["pgrep", "-P", str(driver), "-f", "spawn_main"],
                               capture_output=True, text=True)  # fmt: skip
    return [int(word) for word in found.stdout.split()]


def disturb(options: Options, search: str, launcher: Launcher, folder: Path) -> tuple[int, int]:
    """Runs the sweep, killing workers and drivers. Returns how many of each."""
    more = ["--trials", str(options.trials), "--launcher", launcher]
    more += ["--workers", str(options.workers)]
    words, chance = command(options, search, folder, *more), random.Random(options.seed)
    ends = time.monotonic() + options.seconds
    driver_ends = [options.seconds * (k + 1) / (options.driver_kills + 1)
                   for k in range(options.driver_kills)]  # fmt: skip
    kills, driver_kills, began = 0, 0, time.monotonic()
    driver = start(words, folder)
    next_kill = began + chance.expovariate(1 / options.every)
    while driver.poll() is None and time.monotonic() < ends:
        time.sleep(0.2)
        if time.monotonic() > next_kill:
            if workers := workers_of(driver.pid, launcher):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills += 1
            next_kill = time.monotonic() + chance.expovariate(1 / options.every)
        if driver_ends and time.monotonic() - began > driver_ends[0]:
            driver_ends.pop(0)
            driver.kill()
            driver.wait()
            driver_kills += 1
            driver = start(words, folder)
    driver.kill()
    driver.wait()
    count = len(finished(folder))
    # what was begun is finished without kills
    more[1] = str(-(-max(count, 1) // options.population) * options.population)
    last = start(command(options, search, folder, *more), folder)
    assert last.wait() == 0, (folder / "log").read_text(encoding="utf-8")[-2000:]
    return kills, driver_kills


def finished(folder: Path):
    with open_study(folder, None, "s", "minimize") as study:
        return study.finished_trials()


def rows(trials):
    return [(t.number, t.params, t.value, t.state.name, t.intermediate_values) for t in trials]


def replay(folder: Path, search: str) -> int:
    """Asks and tells a sampler in the recorded order. Returns how many suggestions differ."""
    seed, trials, wrong, told = 0, finished(folder), 0, set()
    space = Space(trials[0].distributions)
    sampler = make_sampler(search, space, seed)
    by_number = {trial.number: trial for trial in trials}
    with open_study(None, None, "s", "minimize") as study:
        first = [by_number[0].params] if by_number[0].user_attrs.get("defaults") else []
        study.settings({}, first)
        for log in Journal(folder / JOURNAL).read_logs(0):
            if log["op_code"] == 6 and TrialState(log["state"]).is_finished():
                trial = by_number.get(log["trial_id"])
                if trial is not None and trial.number not in told:
                    told.add(trial.number)
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
    """Disturbs a sweep, and prints whether it is the undisturbed one."""
    kills, driver_kills = disturb(options, search, launcher, folder)
    trials = finished(folder)
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
    said = (folder / "log").read_text(encoding="utf-8").count("recorded as failed")
    once &= len(failed) == said * options.population  # three workers of theirs were killed
    equal = [row for row in rows(trials) if row[0] not in failed] == [
        row for row in rows(finished(alone)) if row[0] not in failed
    ]
    wrong = replay(folder, search)
    print(
        f"{launcher}, {search}: {len(trials)} trials, {kills} workers and {driver_kills} drivers "
        f"killed, {len(failed)} trials thrice; every trial recorded once: {once}; the table "
        f"of one undisturbed worker: {equal}; "
        f"suggestions that differ when replayed: {wrong}",
        flush=True,
    )
    return once and equal and not wrong


IDLE = """
import runpy, sys, time
from dlflax.tune import orders
events, submit = [], orders.Workers.submit

def timed(self, order, *args):
    submit(self, order, *args)
    events.append((time.monotonic(), 1))
    order.future.add_done_callback(lambda _: events.append((time.monotonic(), -1)))

orders.Workers.submit = timed
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
    """Prints the share of time that 2 workers wait for an order, from the first one to the last, on
    trials of unequal length: --patience ends some of them early."""
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
        good = [
            compare(options, search, launcher, folder / f"{launcher}_{search}")
            for launcher in options.launchers for search in options.searches
        ]  # fmt: skip
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
