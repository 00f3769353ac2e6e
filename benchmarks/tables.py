"""Scores of `experiments.tabular` and its baselines on scikit-learn's tables.

python benchmarks/tables.py

prints mean and standard error over seeds, each with its own test split.
"""

import contextlib
import dataclasses
import io
import statistics
import tempfile
from pathlib import Path

import tyro

from dlflax import run
from dlflax.data.table.source import BUNDLED
from experiments import tabular


@dataclasses.dataclass
class Options:
    seeds: int = 5
    """Runs per table, each with another test split."""
    datasets: tuple[str, ...] = BUNDLED
    """Tables to measure."""


def scores(dataset: str, seed: int) -> dict[str, float]:
    """Returns the test scores of the network and of each baseline."""
    preset = tabular.PRESETS["default"]
    data = dataclasses.replace(preset.data, dataset=dataset, split_seed=seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = dataclasses.replace(preset, data=data, seed=seed, run_dir=Path(folder, "r"))
        results = run.run("tabular", config, lambda line: None)
    name = "accuracy" if "accuracy" in results["test"] else "rmse"
    models = {"network": results["test"], **results["baselines"]}
    return {f"{model}, {name}": test[name] for model, test in models.items()}


def main(options: Options) -> None:
    for dataset in options.datasets:
        runs = [scores(dataset, seed) for seed in range(options.seeds)]
        for name in runs[0]:
            values = [run_scores[name] for run_scores in runs]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            print(
                f"{dataset:14} {name:40} {statistics.mean(values):8.4f} +- {error:.4f}", flush=True
            )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
