"""Time and memory of a population as functions of its trials, width, devices and data.

python benchmarks/cost.py                       prints a table and draws docs/cost.png

Every point is a process of its own, measured after compilation: seconds of training, validation and
the start of a population, and the process's peak memory. A 784-128-10 network on scikit-learn's
digits. Results on 2 cores with 32 MB of cache:

- Trials: the cost is proportional from one full population on: 256 cost 16.1 times as much as 16.
  One trial costs 1/4 of 16, not 1/16: the start of a population costs the same, and one of the two
  devices is idle. Memory is constant, 307 to 325 MB.
- Population: one at a time takes 2.5 times as long as 16, for these two reasons. 64 are no faster
  by map; by vmap they are 1.6 times slower than 16, whose parameters and moments (20 MB) fit into
  the cache, unlike those of 64 (78 MB). Memory grows from 264 to 437 MB by map.
- Virtual devices: 2 are 1.9 times as fast as one; 8 on 2 cores are 17 % slower than 2. More than 2
  cores were not measured.
- Data: 16 times as many examples take 13.6 times as long; the time is proportional from 4 times on.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from dlflax.report import figures, tables

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
BASE = {"trials": 64, "population": 16, "devices": CORES, "data": 1, "mode": "map"}


@dataclasses.dataclass
class Options:
    trials: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Trials, 16 at once."""
    population: tuple[int, ...] = (1, 4, 16, 64)
    """Trials at once, of 64."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Virtual CPU devices; one per core for the other points."""
    data: tuple[int, ...] = (1, 2, 4, 16)
    """Repetitions of the training digits."""
    features: int = 128
    """Width of the hidden layer."""
    epochs: int = 1
    """Epochs per trial."""
    rounds: int = 3
    """Processes per point; the least time and memory count."""
    figure: Path = Path("docs/cost.png")
    """File of the figure."""


def child(trials, population, data, mode, features, epochs) -> dict:
    """Measures seconds of training after compilation, and the process's peak memory in MB."""
    import resource

    import numpy as np

    from dlflax import data as sources
    from dlflax import train
    from dlflax.models import MLP
    from dlflax.train import population as populations
    from dlflax.train.layout import layout_for

    train_set, val_set = sources.split(sources.load("digits", log=lambda _: None).train)
    train_set = {name: np.concatenate([leaf] * data) for name, leaf in train_set.items()}
    recipe = train.Recipe(MLP(features=(features,)))
    layout = layout_for(recipe, train.Hparams(), train_set["inputs"][:1], population, mode)
    splits = populations.put_on_devices(layout, train_set, val_set)

    def run(first, stop):
        hparams = [train.Hparams(dropout=0.1 * (trial % 5)) for trial in range(first, stop)]
        seeds = np.arange(first, stop)[:, None]
        members = populations.Population(
            recipe, hparams, seeds, *splits, epochs=epochs, layout=layout
        )
        members.train(epochs)

    run(0, 1)  # compiles
    seconds = []
    for _ in range(2):
        clock = time.perf_counter()
        for first in range(0, trials, population):
            run(first, min(first + population, trials))
        seconds.append(time.perf_counter() - clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": min(seconds),
        "megabytes": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "examples": len(train_set["targets"]),
        "devices": layout.devices,
    }


def measure(options: Options, folder: str, setting: dict) -> dict:
    """Runs `child` in a process. folder: the compilation cache of all processes."""
    setting = {**setting, "features": options.features, "epochs": options.epochs}
    count = setting.pop("devices")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags.strip(),
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(setting)],
        check=True, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main(options: Options) -> None:
    panels = {
        "trials": ("trials", options.trials, {}),
        "map, at once": ("population", options.population, {}),
        "vmap, at once": ("population", options.population, {"mode": "vmap"}),
        "devices": ("devices", options.devices, {}),
        "data": ("data", options.data, {}),
    }
    settings = {
        (title, n): {**BASE, **others, name: n}
        for title, (name, values, others) in panels.items()
        for n in values
    }
    unique = {json.dumps(setting): setting for setting in settings.values()}
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):  # all points in each round, as the load of a machine varies
            rounds.append({k: measure(options, folder, s) for k, s in unique.items()})
    best = {k: {key: min(row[k][key] for row in rounds) for key in rounds[0][k]} for k in unique}
    results = {
        title: [best[json.dumps(settings[title, n])] for n in values]
        for title, (_, values, _) in panels.items()
    }
    print(
        f"default: 64 trials of {options.epochs} epoch, 16 at once by map on {CORES} virtual "
        f"devices, {best[json.dumps(BASE)]['examples']:,} digits, 784-{options.features}-10, batch "
        f"32; the least of {options.rounds} processes"
    )
    lines = []
    for title, (_, values, _) in panels.items():
        first = results[title][0]["seconds"]
        lines += [
            (f"{title} {n}", f"{n / values[0]:g}", f"{row['seconds'] / first:.2f}",
             f"{row['seconds']:.2f}", f"{row['megabytes']:,.0f}", f"{row['devices']}")
            for n, row in zip(values, results[title], strict=True)
        ]  # fmt: skip
    columns = ("", "times", "seconds, times", "seconds", "peak MB", "devices")
    tables.print_table(None, columns, lines)
    figures.save_figure(plot(panels, results), options.figure)
    print(f"written: {options.figure}")


def plot(panels, results):
    """Draws seconds above, megabytes below, one column of axes per varied setting."""
    from matplotlib.ticker import NullLocator

    figure = figures.new_figure(13, 5.4)
    grid = figure.subplots(2, len(panels), sharex="col", sharey="row")
    for (title, (name, values, _)), pair in zip(panels.items(), grid.T, strict=True):
        seconds, megabytes = (
            [row[key] for row in results[title]] for key in ("seconds", "megabytes")
        )
        top, bottom = pair
        if name in ("trials", "data"):
            line = [seconds[-1] * n / values[-1] for n in values]
            top.plot(values, line, "--", color="#999999", label="proportional")
            top.legend(frameon=False, fontsize=8)
        top.plot(values, seconds, "o-", color="tab:blue", markersize=4)
        top.set(title=title, yscale="log")
        bottom.plot(values, megabytes, "o-", color="tab:orange", markersize=4)
        bottom.set_xscale("log")
        bottom.set_xticks(values, [str(n) for n in values])
        for axes in pair:
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(axis="y", color="#dddddd", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
    grid[1, 0].set_ylim(0, None)  # shared by the row, so after all plots
    grid[0, 0].set_ylabel("seconds")
    grid[1, 0].set_ylabel("peak memory, MB")
    return figure


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(**json.loads(sys.argv[2]))))
    else:
        main(tyro.cli(Options, description=__doc__))
