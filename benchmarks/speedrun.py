"""Wall-clock seconds of a process to its test accuracy by `--preset fast`, once per seed.

python benchmarks/speedrun.py --data FOLDER
python benchmarks/speedrun.py --dataset fashion_mnist --data FOLDER
python benchmarks/speedrun.py --dataset cifar10 --data FOLDER      (for a GPU)

Measured as in cifar10-airbench (Jordan 2024): the first process compiles and is listed separately,
the others use its compilation cache; the mean test accuracy should reach a goal.
"""

import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro
from stages import write_rows

GOALS = {"mnist": 0.99, "fashion_mnist": 0.91, "cifar10": 0.94}


@dataclasses.dataclass
class Options:
    data: Path
    """Folder with the data set's files."""
    dataset: Literal[tuple(GOALS)] = "mnist"
    """Experiment."""
    seeds: int = 10
    """Processes after the first."""
    flags: str | None = None
    """Flags in place of --preset fast (CIFAR-10: none): --flags="--preset best"."""
    rows: Path | None = None
    """JSON file of the results."""


def measure(options: Options, seed: int, cache: str) -> dict:
    """Runs the shipped command."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        flags = "" if options.dataset == "cifar10" else "--preset fast"
        flags = shlex.split(flags if options.flags is None else options.flags)
        command = [sys.executable, "-m", f"experiments.{options.dataset}", *flags]
        command += ["--data", str(options.data), "--seed", str(seed)]
        clock = time.perf_counter()
        subprocess.run(
            [*command, "--run-dir", str(run_dir)],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "XDG_CACHE_HOME": cache},
        )  # fmt: skip
        seconds = time.perf_counter() - clock
        results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    return {
        "dataset": options.dataset, "seed": seed, "accuracy": results["test"]["accuracy"],
        "validation": results["val"]["accuracy"], "seconds": seconds,
        "seconds of epochs": results["seconds"],
    }  # fmt: skip


def main(options: Options) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for seed in range(options.seeds + 1):
            rows.append(measure(options, seed, cache))
            write_rows(options.rows, rows)
            row = rows[-1]
            note = " (compiles)" if seed == 0 else ""
            print(f"seed {seed}: {row['accuracy']:.2%} in {row['seconds']:.1f} s{note}", flush=True)
    warm = rows[1:] or rows
    accuracies, seconds = ([row[name] for row in warm] for name in ("accuracy", "seconds"))
    mean, goal = statistics.mean(accuracies), GOALS[options.dataset]
    spread = f" +- {statistics.stdev(accuracies):.2%}" if len(warm) > 1 else ""
    print(
        f"{options.dataset}: {mean:.2%}{spread} in {statistics.mean(seconds):.1f} s, {len(warm)} "
        f"seeds; the goal of {goal:.0%} is {'reached' if mean >= goal else 'missed'}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
