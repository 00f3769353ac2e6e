"""How a sweep's own cost grows with its trials.

python benchmarks/growth.py

Studies: so many recorded trials of ten epochs and three numbers, in a journal. Milliseconds to ask
for and record one, in populations of 16; seconds to open the study again, to suggest 16 more, and
to write trials.csv, the pictures and the page.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from stages import write_rows

from dlflax.report import tables, trial_figures
from dlflax.report.html import write_html
from dlflax.report.trials import write_trials_csv
from dlflax.tune.samplers import make_sampler
from dlflax.tune.space import Space
from dlflax.tune.study import JOURNAL, open_study

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
    samplers: tuple[str, ...] = ("random", "tpe", "gp")
    """Who suggests."""
    rows: Path | None = None
    """File for what is printed, as JSON."""


def outcome(trial) -> dict[int, float]:
    """Epoch -> value, which depends on the configuration."""
    distance = abs(np.log10(trial.params["learning_rate"]) + 2.5) + trial.params["dropout"]
    return {epoch: float(distance + 1 / epoch) for epoch in range(1, 11)}


def measure(folder: Path, count: int, samplers) -> dict:
    """One row."""

    def opened():
        return open_study(folder, None, "growth", "minimize")

    at_random, row = make_sampler("random", SPACE, 0), {"trials": count}
    clock, done = time.perf_counter(), 0
    with opened() as study:
        while done < count:
            batch = study.ask(at_random, DISTRIBUTIONS, [None] * min(16, count - done))
            done += len(batch)
            with study.writing():
                for trial in batch:
                    curve = outcome(trial)
                    study.report(trial.number, curve)
                    study.tell(trial.number, TrialState.COMPLETE, curve[10], {})
    row["record one, ms"] = 1e3 * (time.perf_counter() - clock) / count
    clock = time.perf_counter()
    with opened() as study:
        trials = study.trials()
        row["open again, s"] = time.perf_counter() - clock
    size = (folder / JOURNAL).stat().st_size
    journal = (folder / JOURNAL).read_bytes()
    for sampler in samplers:
        with opened() as study:
            clock = time.perf_counter()
            study.ask(make_sampler(sampler, SPACE, 0), DISTRIBUTIONS, [None] * 16)
            row[f"suggest 16 by {sampler}, s"] = time.perf_counter() - clock
        (folder / JOURNAL).write_bytes(journal)
    clock = time.perf_counter()
    write_trials_csv(folder / "trials.csv", trials, "minimize", "val_loss")
    pictures = trial_figures.draw(folder, trials, "minimize", "val_loss", print)
    results = {"study": "growth", "test": {}, "commands": {}, "best": {"hparams": {}}}
    write_html(folder, results, trials, pictures, "minimize", "val_loss")
    row["report, s"] = time.perf_counter() - clock
    row[f"{JOURNAL}, MB"] = size / 2**20
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
