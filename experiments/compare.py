"""Several architectures on one task, side by side: scores, size, cost, time.

python -m experiments.compare mnist

python -m experiments.compare forecast --models mlp rnn --seeds 3

All flags of the experiment but --model, --preset and --resume hold for every architecture, each
with the settings of the preset of its name, if there is one. With --run-dir the same command goes
on with what was stopped.
"""

import importlib
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from dlflax import figures, logs, run
from dlflax.errors import InputError

COMPARABLE = ("mnist", "fashion_mnist", "cifar10", "sentiment", "forecast")
SCORES = ("accuracy", "rmse", "loss")


@dataclass(frozen=True)
class Options:
    """What is compared; every other flag is one of the experiment's."""

    experiment: tyro.conf.Positional[str] = "mnist"
    """mnist, fashion_mnist, cifar10, sentiment or forecast."""
    models: tuple[str, ...] = ()
    """Architectures of that experiment (default: all)."""
    seeds: int = 1
    """Each is trained under this many seeds: --seed, --seed + 1, ..."""
    run_dir: Path | None = None
    """Where all is written (default: runs/compare/EXPERIMENT/TIME)."""


def compare(args: list[str]) -> list[dict]:
    """Trains them all; returns and writes the rows of the table, the best first."""
    options, rest = tyro.cli(
        Options, args=args, description=__doc__, prog="python -m experiments.compare",
        return_unknown_args=True,
    )  # fmt: skip
    if options.experiment not in COMPARABLE:
        raise InputError(
            f"unknown experiment {options.experiment!r}: choose one of {', '.join(COMPARABLE)}."
        )
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds} must be 1 or more.")
    for flag in ("--model", "--preset", "--resume"):
        if flag in rest:
            raise InputError(
                f"{flag} has no meaning here, each of --models is trained: leave it out."
            )
    module = importlib.import_module(f"experiments.{options.experiment}")
    names = options.models or tuple(module.ARCHITECTURES)
    for name in set(names) - set(module.ARCHITECTURES):
        known = ", ".join(module.ARCHITECTURES)
        raise InputError(
            f"--models {name} is no architecture of {options.experiment}: choose from {known}."
        )
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = options.run_dir or Path("runs") / "compare" / options.experiment / started

    configs = {
        name: run.parse(
            options.experiment, module.PRESETS, module.ARCHITECTURES, [*rest, "--model", name]
        )
        for name in names
    }
    rows, dataset = [], None
    for name, config in configs.items():
        dataset = dataset or config.data.load()
        results = []
        for seed in range(config.seed, config.seed + options.seeds):
            place = folder / (f"{name}_seed{seed}" if options.seeds > 1 else name)
            resume = (place / "config.json").exists()
            one = replace(config, seed=seed, run_dir=place, resume=resume)
            print(f"\n{name}, seed {seed}")
            results.append(run.run(options.experiment, one, dataset=dataset))
        rows.append(_row(name, results))
    sign = -1 if rows[0]["score"] == "accuracy" else 1
    rows.sort(key=lambda row: sign * row["mean"])
    logs.write_csv(folder / "comparison.csv", rows)
    figures.save_figure(figures.comparison(rows), folder / "comparison.png")
    _print(rows, results[-1].get("forecasts", {}), dataset.name)
    print(f"table and picture: {folder}")
    return rows


def _row(name, results):
    """One line of the table, from the runs of all seeds."""
    last = results[-1]
    test = {**last["test"], **last.get("forecasts", {}).get("model", {})}
    score = next(score for score in SCORES if score in test)
    values = [{**r["test"], **r.get("forecasts", {}).get("model", {})}[score] for r in results]
    return {
        "name": name,
        "score": score,
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
        "parameters": last["parameters"],
        "flops_per_example": last["flops_per_example"],
        "epochs": last["epochs_run"],
        "seconds": float(np.mean([r["seconds"] for r in results])),
    }


def _print(rows, forecasts, dataset):
    score = rows[0]["score"]
    columns = ("model", f"test {score}", "parameters", "FLOPs", "epochs", "seconds")
    lines = [
        (
            row["name"],
            f"{row['mean']:.4f}" + (f" +- {row['std']:.4f}" if row["std"] is not None else ""),
            f"{row['parameters']:,}", f"{row['flops_per_example']:,}", str(row["epochs"]),
            f"{row['seconds']:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    for name in ("seasonal_naive", "naive"):
        if name in forecasts:
            lines.append((name.replace("_", " "), f"{forecasts[name][score]:.4f}", *[""] * 4))
    logs.print_table(f"{dataset}; FLOPs of a forward pass of one example", columns, lines)


if __name__ == "__main__":
    run.with_exit_codes(
        lambda: compare(sys.argv[1:]),
        again="with --run-dir the same command goes on",
    )
