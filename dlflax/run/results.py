"""Report of a run: results.json first, then baselines, tables and figures."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlflax import parallel, train, transfer
from dlflax.config.config import Config
from dlflax.config.experiment import Experiment
from dlflax.config.run_folder import CALIBRATION
from dlflax.config.serialize import flatten, to_json
from dlflax.errors import RunError
from dlflax.files import write_csv, write_json
from dlflax.report import figures, loggers, tables
from dlflax.report.progress import announcement
from dlflax.run import baseline_scores
from dlflax.run.announce import count_parameters
from dlflax.run.prepare import Setup
from dlflax.train.tasks import Tested


@dataclasses.dataclass(frozen=True)
class Record:
    """Run folder and loggers that a run writes to, besides its checkpoints."""

    experiment: Experiment
    folder: Path
    board: loggers.Loggers
    log: Callable[[str], None]
    brief: bool
    """True for one of several runs, whose caller prints the scores."""

    def say(self, sentence: str) -> None:
        """Logs a sentence unless the run is brief."""
        if not self.brief:
            self.log(sentence)

    def add(self, history: train.History) -> None:
        """Writes metrics.csv, and logs its last row, on the first host."""
        if parallel.is_main():
            write_csv(self.folder / "metrics.csv", history)
            self.board.scalars(history[-1], int(history[-1]["step"]))


def report(
    config: Config, setup: Setup, fit: train.Fit, tested: Tested, record: Record, started,
    more: dict[str, Any] | None = None,
):  # fmt: skip
    """Saves, prints, logs and draws the results. more: other entries of results.json. Returns the
    contents of results.json."""
    if config.transfer and config.transfer.save_backbone:
        transfer.save_backbone(setup.start.backbone, record.folder)
    results = summarize(config, setup, fit, tested, record, started) | (more or {})
    settings = {**results["hparams"], **flatten(to_json(config.recipe))}
    drawings = describe(tested, results, record)
    if results.get("baselines"):
        findings = baseline_scores.verdict(results, config.recipe.task, in_sweep=record.brief)
        results["findings"] += findings
    elif config.baseline != "none":
        baseline_scores.compare(config, setup, tested, results, record.brief, record.log)
    path = record.folder / "results.json"
    write_json(path, {**results, "pending": "figures"})
    if not record.brief:
        tables.print_results(results, config.verbose)
        for sentence in results["findings"]:
            record.log(sentence)
    scores = {
        f"{split}_{name}": value for split in ("val", "test")
        for name, value in results.get(split, {}).items() if isinstance(value, float)
    }  # fmt: skip
    record.board.hparams(settings, scores)
    if not isinstance(config.recipe.model, train.Ensemble):  # which has no epochs
        score, best = config.recipe.task.metric().name, results["best_epoch"] - 1
        best = best if setup.start.splits.val else None
        drawings = {"curves": lambda: figures.curves(fit.history, score, best), **drawings}
    with announcement("drawing ...", record.log):
        for name, file in figures.draw(drawings, record.folder, record.log).items():
            if name != "curves":
                record.board.figure(name, file, int(fit.history[-1]["step"]))
    write_json(path, results)
    return results


def summarize(config: Config, setup: Setup, fit: train.Fit, tested: Tested, record, started):
    """Returns results.json without the task's description."""
    history, best = fit.history, train.best_epoch(fit.history, config.recipe.task)
    scores = {
        name: values for name in ("train", "val")
        if (values := {key.removeprefix(f"{name}_"): value
                       for key, value in history[best].items() if key.startswith(f"{name}_")})
        or name == "train"
    }  # fmt: skip
    hparams, inputs = to_json(config.hparams), setup.examples.test["inputs"][:1]
    abstract = setup.start.merge_backbone(setup.abstract)
    return {
        "experiment": record.experiment.name,
        "dataset": setup.dataset.name,
        "data_source": setup.dataset.source,
        "data": setup.examples.summary(),
        "model": type(config.recipe.model).__name__,
        "task": type(config.recipe.task).__name__,
        "parameters": sum(count_parameters(setup)),
        "flops_per_example": train.forward_flops(
            setup.start.recipe, abstract, config.hparams, inputs
        ),
        "hparams": {k: v for k, v in hparams.items() if k not in ("total_steps", "class")},
        "seed": config.seed,
        "epochs_run": len(history),
        "best_epoch": best + 1,
        "seconds": sum(row["seconds"] for row in history),
        "process_seconds": time.perf_counter() - started,
        "compile_seconds": fit.compile_seconds,
        "examples_per_second": float(np.mean([row["examples_per_second"] for row in history])),
        **scores,
        "test": dict(tested.scores),
        "findings": list(setup.dataset.findings),
    }


def describe(tested: Tested, results: dict[str, Any], record: Record) -> dict[str, Callable]:
    """Saves results and calibration, adds the task's description, writes its tables and returns its
    figures. Failures of a task are logged."""
    folder, task, drawings = record.folder, tested.recipe.task, {}
    write_json(folder / "results.json", {**results, "pending": "the task's description"})
    if tested.calibration:
        write_json(folder / CALIBRATION, tested.calibration)
    try:
        description = task.describe(tested)
        results["test"] |= description.scores
        results |= description.results
        results["findings"] += description.findings
        write_json(folder / "results.json", {**results, "pending": "tables and figures"})
        if per_class := results["test"].get("per_class"):
            rows = [{"class": name, **scores} for name, scores in per_class.items()]
            write_csv(folder / "per_class.csv", rows)
        drawings = description.figures
        with announcement("writing tables ...", record.log):
            for name, rows in description.tables.items():
                write_csv(folder / f"{name}.csv", rows() if callable(rows) else rows)
    except (RunError, OSError):
        raise
    except Exception as error:  # a user's task can raise anything
        record.log(f"warning: {type(task).__name__}.describe failed ({type(error).__name__}: "
                   f"{error}): results.json lacks its description")  # fmt: skip
    return drawings
