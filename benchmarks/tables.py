"""`experiments.tabular` on scikit-learn's tables beside the simple models that a run states: mean
and standard error over seeds, each with a test part of its own.

python benchmarks/tables.py
"""

import contextlib
import dataclasses
import io
import statistics
import tempfile
from pathlib import Path

import tyro

from dlflax import run
from dlflax.data.table import BUNDLED
from experiments import tabular


@dataclasses.dataclass
class Options:
    seeds: int = 5
    """Runs of each, with other rows held out."""
    datasets: tuple[str, ...] = BUNDLED
    """Which tables."""


def scores(dataset: str, seed: int) -> dict[str, float]:
    """Of the network and of each simple model, the test score that approaches are compared by."""
    preset = tabular.PRESETS["default"]
    data = dataclasses.replace(preset.data, dataset=dataset, split_seed=seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = dataclasses.replace(preset, data=data, seed=seed, run_dir=Path(folder, "r"))
        results = run.run("tabular", config, lambda line: None)
    name = "accuracy" if "accuracy" in results["test"] else "rmse"
    found = {"network": results["test"], **results["baselines"]}
    return {f"{who}, {name}": each[name] for who, each in found.items()}


def main(options: Options) -> None:
    for dataset in options.datasets:
        found = [scores(dataset, seed) for seed in range(options.seeds)]
        for who in found[0]:
            values = [each[who] for each in found]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            print(
                f"{dataset:14} {who:40} {statistics.mean(values):8.4f} +- {error:.4f}", flush=True
            )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
