"""Overhead of a sweep as a function of its trials.

python benchmarks/growth.py

The study is a journal with trials of ten epochs and three parameters. Milliseconds to ask for and
record a trial, in populations of 16; seconds to open the study again, to suggest 16 trials, and to
write trials.csv, the figures and the page.
"""

import dataclasses
import functools
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from stages import write_rows

from dlflax.report import tables
from dlflax.report.sweep import trial_figures
from dlflax.report.sweep.html import write_html
from dlflax.report.sweep.trials import write_trials_csv
from dlflax.tune.study import JOURNAL, open_study
from dlflax.tune.suggest.samplers import make_sampler
from dlflax.tune.suggest.space import Space

DISTRIBUTIONS = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "dropout": FloatDistribution(0, 0.5),
    "l2": FloatDistribution(1e-7, 1e-3, log=True),
}
SPACE = Space(DISTRIBUTIONS, {})


@dataclasses.dataclass
class Options:
    trials: tuple[int, ...] = (100, 1_000, 10_000)
    """Numbers of recorded trials."""
    samplers: tuple[str, ...] = ("random", "tpe", "gp")
    """Samplers to measure."""
    rows: Path | None = None
    """JSON file of the results."""


def learning_curve(trial) -> dict[int, float]:
    """Returns {epoch: value}, a function of the configuration."""
    distance = abs(np.log10(trial.params["learning_rate"]) + 2.5) + trial.params["dropout"]
    return {epoch: float(distance + 1 / epoch) for epoch in range(1, 11)}


def measure(folder: Path, count: int, samplers) -> dict:
    """Returns the row of a number of trials."""
    open_growth = functools.partial(open_study, folder, None, "growth", "minimize")
    random_sampler, row = make_sampler("random", SPACE, 0), {"trials": count}
    clock, done = time.perf_counter(), 0
    with open_growth() as study:
        while done < count:
            batch = study.ask(random_sampler, DISTRIBUTIONS, [None] * min(16, count - done))
            done += len(batch)
            with study.writing():
                for trial in batch:
                    curve = learning_curve(trial)
                    study.report(trial.number, curve)
                    study.tell(trial.number, TrialState.COMPLETE, curve[10], {})
    row["record one, ms"] = 1e3 * (time.perf_counter() - clock) / count
    clock = time.perf_counter()
    with open_growth() as study:
        trials = study.trials()
        row["open again, s"] = time.perf_counter() - clock
    journal = (folder / JOURNAL).read_bytes()
    for sampler in samplers:
        with open_growth() as study:
            clock = time.perf_counter()
            study.ask(make_sampler(sampler, SPACE, 0), DISTRIBUTIONS, [None] * 16)
            row[f"suggest 16 by {sampler}, s"] = time.perf_counter() - clock
        (folder / JOURNAL).write_bytes(journal)
    clock = time.perf_counter()
    write_trials_csv(folder / "trials.csv", trials, "minimize", "val_loss")
    figures = trial_figures.draw(folder, trials, "minimize", "val_loss", print)
    results = {"study": "growth", "test": {}, "commands": {}, "best": {"hparams": {}}}
    write_html(folder, results, trials, figures, "minimize", "val_loss")
    row["report, s"] = time.perf_counter() - clock
    row[f"{JOURNAL}, MB"] = len(journal) / 2**20
    return row


def main(options: Options) -> None:
    rows: list[dict] = []
    for count in options.trials:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Path(folder), count, options.samplers))
        write_rows(options.rows, rows)
    lines = [[f"{value:,.3g}" for value in row.values()] for row in rows]
    tables.print_table(None, list(rows[0]), lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
