"""How a sweep's own cost grows with its trials, and a distributed sweep's with its hosts.

python benchmarks/growth.py

Studies: so many recorded trials of ten epochs and three numbers, in SQLite. Seconds to record one,
to open the study again, to suggest 16 more, and to write trials.csv, the pictures and the page.
Hosts: processes of this machine that train one population together (`--distributed`), so what is
measured is what they say to each other, not a speed-up.
"""

import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from optuna.distributions import FloatDistribution
from stages import write_rows

from dlflax.report import tables, trial_figures
from dlflax.report.html import write_html
from dlflax.report.trials import write_trials_csv
from dlflax.tune.search import Sampler, suggest
from dlflax.tune.space import Space
from dlflax.tune.stores import open_study, sqlite_url
from dlflax.tune.trial import Outcome

DISTRIBUTIONS = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "dropout": FloatDistribution(0, 0.5),
    "l2": FloatDistribution(1e-7, 1e-3, log=True),
}
SPACE = Space(DISTRIBUTIONS, {})


@dataclasses.dataclass
class Options:
    trials: tuple[int, ...] = (100, 1_000, 10_000)
    """Recorded trials."""
    samplers: tuple[Sampler, ...] = ("random", "tpe", "gp")
    """Who suggests."""
    hosts: tuple[int, ...] = (1, 2, 4, 8)
    """Processes of a distributed sweep."""
    rows: Path | None = None
    """File for what is printed, as JSON."""


def outcome(trial) -> Outcome:
    """A learning curve that depends on the configuration."""
    distance = abs(np.log10(trial.params["learning_rate"]) + 2.5) + trial.params["dropout"]
    curve = {epoch: float(distance + 1 / epoch) for epoch in range(1, 11)}
    return Outcome(curve[10], curve)


def study(folder: Path, count: int, samplers) -> dict:
    """One row."""
    url = sqlite_url(folder / "study.db")

    def store():
        return open_study(url, "growth", "minimize", DISTRIBUTIONS)

    def at_random(history, indices):
        return suggest("random", SPACE, 0, "minimize", history, indices)

    row: dict = {"trials": count}
    clock = time.perf_counter()
    with store() as opened:
        while batch := opened.take(at_random, min(count, 500), count):
            opened.record(batch, [outcome(trial) for trial in batch])
    row["record one, ms"] = 1e3 * (time.perf_counter() - clock) / count
    clock = time.perf_counter()
    with store() as opened:
        trials = opened.trials()
        row["open again, s"] = time.perf_counter() - clock
    for sampler in samplers:
        clock = time.perf_counter()
        suggest(sampler, SPACE, 0, "minimize", trials, list(range(count, count + 16)))
        row[f"suggest 16 by {sampler}, s"] = time.perf_counter() - clock
    clock = time.perf_counter()
    write_trials_csv(folder / "trials.csv", trials, "minimize", "val_loss")
    pictures = trial_figures.draw(folder, trials, "minimize", "val_loss", print)
    results = {"study": "growth", "test": {}, "commands": {}, "best": {"hparams": {}}}
    write_html(folder, results, trials, pictures, "minimize", "val_loss")
    row["report, s"] = time.perf_counter() - clock
    row["study.db, MB"] = (folder / "study.db").stat().st_size / 2**20
    return row


def distributed(folder: Path, hosts: int) -> dict:
    """Seconds of a whole sweep of 32 trials on the digits, by so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        sys.executable, "-m", "sweeps.random_search", "mnist", "--model", "mlp", "--trials", "32",
        "--population", "16", "--epochs", "2", "--run-dir", str(folder / f"of_{hosts}"),
    ]  # fmt: skip
    if hosts > 1:
        command.append("--distributed")
    environment = {
        **os.environ, "DLFLAX_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache"),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts),
    }  # fmt: skip
    clock = time.perf_counter()
    processes = [
        subprocess.Popen(
            command, env={**environment, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for i in range(hosts)
    ]  # fmt: skip
    errors = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("\n".join(error[-500:] for error in errors))
    return {"hosts": hosts, "whole sweep, s": time.perf_counter() - clock}


def main(options: Options) -> None:
    found: list[dict] = []
    kinds = ((options.trials, study, (options.samplers,)), (options.hosts, distributed, ()))
    for values, measure, more in kinds:
        rows = []
        for value in values:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(Path(folder), value, *more))
            write_rows(options.rows, found + rows)
        if rows:
            lines = [[f"{value:,.3g}" for value in row.values()] for row in rows]
            tables.print_table(None, list(rows[0]), lines)
        found += rows


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
