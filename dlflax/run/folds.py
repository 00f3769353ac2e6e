"""Cross-validation: the same run on every fold of the data, and what it scores on the others."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dlflax import data, train
from dlflax.data.folds import folds
from dlflax.errors import InputError
from dlflax.files import read_json, write_csv, write_json
from dlflax.report import tables
from dlflax.run import baselines
from dlflax.run.config import Config, check, load
from dlflax.run.execute import calibrated, prepared, tested
from dlflax.run.experiment import Experiment
from dlflax.run.folder import run_folder
from dlflax.run.saved import to_json

Log = Callable[[str], None]


def cross_validate(experiment: Experiment, config: Config, log: Log = print) -> dict[str, Any]:
    """Trains once for each of config.folds folds, validates within the others as any run does, and
    tests on the fold, so that every example is tested once. Writes folds.csv and results.json, and
    returns what that holds: mean and standard deviation of each test score. Each fold is saved when
    it is done, and not done again with --resume. Raises InputError and RunError."""
    check(config)
    _refuse(config)
    dataset = load(config.data, log)
    parts = folds(dataset, config.folds, config.seed)
    place = ("run_dir", "resume", "baseline")
    settings = {k: v for k, v in to_json(config).items() if k not in place}
    settings["data_sha256"] = dataset.checksum
    config = dataclasses.replace(config, run_dir=_folder(experiment, config))
    path, each = config.run_dir / "results.json", _done(config, settings)
    results = {
        "experiment": experiment.name,
        "dataset": dataset.name,
        "data_source": dataset.source,
        "folds": config.folds,
        "settings": settings,
    }
    for fold, part in enumerate(parts[len(each) :], len(each) + 1):
        each.append(_of_fold(config, part, log if fold == 1 else lambda _: None))
        write_json(path, {**results, "each": each, "pending": "more folds"})
        test = each[-1]["test"]
        log(
            f"fold {fold} of {config.folds}: "
            + ", ".join(f"{name.replace('_', ' ')} {test[name]:.4f}" for name in list(test)[:4])
        )
    results |= {"model": each[0]["model"], "task": each[0]["task"], **_summary(each)}
    rows = [{"fold": i + 1, **one["examples"], **one["test"]} for i, one in enumerate(each)]
    write_csv(config.run_dir / "folds.csv", rows)
    if "baselines" in results:
        advice = "train longer, tune it with sweeps.bayes_opt, or take what is simpler."
        results["findings"] = baselines.verdict(results, config.recipe.task, advice)
    write_json(path, {**results, "each": each})
    tables.print_folds(results)
    for sentence in results.get("findings", ()):
        log(sentence)
    log(f"scores of each fold: {config.run_dir}")
    return results


def _refuse(config: Config) -> None:
    for name, other in (("shard_state", False), ("distributed", False), ("profile", False),
                        ("devices", 0)):  # fmt: skip
        if getattr(config, name) != other:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} does nothing with --folds: leave it out.")


def _folder(experiment, config):
    folder = run_folder(experiment, config)
    if (folder / "config.json").exists() or (
        (folder / "results.json").exists() and not config.resume
    ):
        raise InputError(f"--run-dir {folder} already holds a run: choose another folder.")
    return folder


def _done(config: Config, settings) -> list[dict[str, Any]]:
    """The folds that are done already."""
    path = config.run_dir / "results.json"
    if not path.exists():
        return []
    try:
        saved = read_json(path)
        same, each = saved["settings"] == settings, list(saved["each"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: choose another --run-dir.") from error
    if not same:
        raise InputError(
            f"--resume: {config.run_dir} is of other flags or data: give the same, or choose "
            "another --run-dir."
        )
    return each[: config.folds]


def _of_fold(config: Config, dataset: data.Dataset, log: Log) -> dict[str, Any]:
    """What one fold scores, JSON values."""
    started = time.perf_counter()
    job = prepared(config, log, dataset)
    recipe, splits, hparams = job.start.recipe, job.start.splits, job.config.hparams
    fit = train.fit(
        recipe, hparams, splits.train, splits.val, epochs=config.epochs, seed=config.seed,
        patience=config.patience, reduce_on_plateau=config.reduce_on_plateau,
        hparams_by_epoch=config.hparams_by_epoch, pretrained=job.start.pretrained,
    )  # fmt: skip
    found = calibrated(recipe, fit.best, hparams, splits.val)
    sums, outputs = jax.device_get(train.evaluate(recipe, fit.best, hparams, splits.test))
    state = job.start.with_backbone(fit.best)
    described = job.config.recipe.task.describe(tested(job, state, sums, outputs, found))
    scores = recipe.task.summary(sums) | described.scores
    beside = {}
    if config.baseline != "none":
        beside = {"baselines": baselines.computed(recipe, hparams, splits, log)}
    parts = {"train": splits.train, "validation": splits.val, "test": splits.test}
    return {
        "model": type(job.config.recipe.model).__name__,
        "task": type(job.config.recipe.task).__name__,
        "examples": {name: data.examples(part) if part else 0 for name, part in parts.items()},
        "epochs_run": len(fit.history),
        "test": {name: value for name, value in scores.items() if isinstance(value, float)},
        "seconds": time.perf_counter() - started,
        **beside,
    }


def _summary(each) -> dict[str, Any]:
    """Means and standard deviations over the folds."""
    test = [one["test"] for one in each]
    found = {"test": _over(np.mean, test), "spread": _over(lambda x: np.std(x, ddof=1), test),
             "seconds": sum(one["seconds"] for one in each)}  # fmt: skip
    if "baselines" in each[0]:
        names = [n for n in each[0]["baselines"] if all(n in one["baselines"] for one in each)]
        found["baselines"] = {
            n: _over(np.mean, [one["baselines"][n] for one in each]) for n in names
        }
    return found


def _over(what, rows) -> dict[str, float]:
    """Of the scores that all have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: float(what([row[name] for row in rows])) for name in names}
