"""Comparison of several architectures on one task."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dlflax.config.experiment import Experiment
from dlflax.errors import InputError
from dlflax.files import write_csv
from dlflax.report import figures, tables
from dlflax.run.execute import run
from dlflax.run.prepare import read_data
from dlflax.run.train_command import parse


def compare(
    experiment: Experiment,
    models: tuple[str, ...] = (),
    num_seeds: int = 1,
    folder: Path | None = None,
    args: list[str] = (),
) -> list[dict]:
    """Trains the experiment's architectures, or presets if it has none, under several seeds.
    Returns the rows of the table, the best first, and writes comparison.csv and .png. models:
    default all; args: flags of every run. Raises InputError and RunError."""
    architectures = experiment.architectures
    flag, known = ("--model", architectures) if architectures else ("--preset", experiment.presets)
    names = models or tuple(known)
    for name in names:
        if name not in known:
            raise InputError(
                f"--models {name} is not an architecture of {experiment.name}: choose from "
                f"{', '.join(known)}."
            )
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = folder or Path("runs") / "compare" / experiment.name / started
    configs = {name: parse(experiment, [*args, flag, name]) for name in names}
    rows, dataset, results = [], None, []
    for name, config in configs.items():
        dataset = dataset or read_data(config)[1]
        results = []
        for seed in range(config.seed, config.seed + num_seeds):
            run_dir = folder / (f"{name}_seed{seed}" if num_seeds > 1 else name)
            resume = (run_dir / "config.json").exists()
            run_config = replace(config, seed=seed, run_dir=run_dir, resume=resume)
            print(f"training {name}, seed {seed} ({config.epochs:,} epochs), in {run_dir}")
            results.append(run(experiment, run_config, dataset=dataset, brief=True))
        rows.append(_row(name, config.recipe.task, results))
    direction = config.recipe.task.metric(rows[0]["score"]).direction
    rows.sort(key=lambda row: row["mean"] if direction == "min" else -row["mean"])
    write_csv(folder / "comparison.csv", rows)
    figures.draw({"comparison": lambda: figures.comparison(rows)}, folder, print)
    _print(rows, results[-1], dataset.name)
    print(f"table and figure: {folder}")
    return rows


def _row(name, task, results):
    """Returns the row of an architecture. results: of its runs, one a seed."""
    last = results[-1]
    names = [metric.name for metric in task.metrics]
    score = next(name for name in (*names, "loss") if name in last["test"])
    values = [result["test"][score] for result in results]
    return {
        "name": name,
        "score": score,
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
        "parameters": last["parameters"],
        "flops_per_example": last["flops_per_example"],
        "epochs": last["epochs_run"],
        "seconds": float(np.mean([result["seconds"] for result in results])),
    }


def _print(rows, last, dataset):
    """Prints the table, with the baselines of the last run below."""
    score = rows[0]["score"]
    columns = ("model", f"test {score}", "parameters", "FLOPs", "epochs", "seconds")
    lines = [
        (
            row["name"],
            tables.number_text(row["mean"])
            + (f" +- {tables.number_text(row['std'])}" if row["std"] is not None else ""),
            f"{row['parameters']:,}", f"{row['flops_per_example']:,}", str(row["epochs"]),
            f"{row['seconds']:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    for name, scores in last.get("baselines", {}).items():
        if score in scores:
            lines.append((name, tables.number_text(scores[score]), *[""] * 4))
    tables.print_table(f"{dataset}; FLOPs of a forward pass of one example", columns, lines)
