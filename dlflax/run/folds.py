"""Cross-validation: the same run on every fold of the data, and what it scores on the others."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dlflax import data, train
from dlflax.data.folds import folds
from dlflax.errors import InputError, RunError
from dlflax.files import host_memory, read_json, write_csv, write_json
from dlflax.report import tables
from dlflax.report.progress import counting
from dlflax.run import baselines
from dlflax.run.config import Config, check, load
from dlflax.run.execute import Job, as_tested, calibrated, prepared
from dlflax.run.experiment import Experiment
from dlflax.run.folder import run_folder
from dlflax.run.resume import differences
from dlflax.run.saved import to_json
from dlflax.run.stand_in import with_stand_in
from dlflax.train.layout import layout_for
from dlflax.train.population import Population

Log = Callable[[str], None]


def cross_validate(experiment: Experiment, config: Config, log: Log = print) -> dict[str, Any]:
    """Trains once for each of config.folds folds, validates within the others as any run does, and
    tests on the fold, so that every example is tested once: all folds as lanes of one population
    where they are of one shape and fit into memory, else one after the other. Writes folds.csv and
    results.json, and returns what that holds: mean and standard deviation of each test score. Each
    fold is saved when it is done, and not done again with --resume. Raises InputError and RunError.
    """
    check(config)
    _refuse(config)
    dataset = load(config.data, log)
    config = with_stand_in(config, dataset, log)
    parts = folds(dataset, config.folds, config.seed)
    settings = {"config": to_json(config), "data": {"sha256": dataset.checksum}}
    config = dataclasses.replace(config, run_dir=_folder(experiment, config))
    path, each = config.run_dir / "results.json", _done(config, settings)
    results = {
        "experiment": experiment.name,
        "dataset": dataset.name,
        "data_source": dataset.source,
        "folds": config.folds,
        "settings": settings,
        "findings": list(dataset.findings),
    }
    # what is said of the first fold is true of all
    jobs = [prepared(config, (lambda _: None) if k else log, part) for k, part in enumerate(parts)]
    linear = baselines.is_linear(jobs[0].abstract.params, jobs[0].start.splits.train["inputs"])
    if len(each) < len(jobs) and _fit_together(jobs):
        each, trained = [], _as_lanes(jobs, log)  # all of them again: to the same bits
    else:
        jobs = jobs[len(each) :]
        trained = map(_alone, jobs)
    for fold, (job, (state, epochs)) in enumerate(zip(jobs, trained, strict=True), len(each) + 1):
        each.append(_scored(job, state, epochs, log))
        write_json(path, {**results, "each": each, "pending": "more folds"})
        test = each[-1]["test"]
        log(
            f"fold {fold} of {config.folds}: "
            + ", ".join(
                f"{name.replace('_', ' ')} {tables.number_text(test[name])}"
                for name in list(test)[:4]
            )
        )
    results |= {"model": each[0]["model"], "task": each[0]["task"], **_summary(each)}
    rows = [{"fold": i + 1, **one["examples"], **one["test"]} for i, one in enumerate(each)]
    write_csv(config.run_dir / "folds.csv", rows)
    if "baselines" in results:
        results["findings"] += baselines.verdict(results, config.recipe.task, linear)
    write_json(path, {**results, "each": each})
    tables.print_folds(results)
    for sentence in results["findings"]:
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
        different = differences(saved["settings"], settings, config)
        each = list(saved["each"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: choose another --run-dir.") from error
    if different:
        raise InputError(
            f"--resume: {config.run_dir} was trained with another setup ({different}): give the "
            "same flags and data, or choose another --run-dir."
        )
    return each[: config.folds]


def _fit_together(jobs) -> bool:
    """True if all folds can be lanes of one population: one program for all, data that fit into
    memory as often as there are folds, and one start."""
    first, parts = jobs[0].start, []
    for start in (job.start for job in jobs):
        if start.splits.val is None or start.pretrained or start.recipe != first.recipe:
            return False
        parts += [start.splits.train, start.splits.val]
    arrays = [part[name] for part in parts for name in part]
    kinds = {
        tuple((name, part[name].shape[1:], part[name].dtype) for name in first.splits.val)
        for part in parts
    }
    steps = {-(-data.examples(part) // first.recipe.batch_size) for part in parts[::2]}
    size = sum(array.nbytes for array in arrays)
    in_memory = all(isinstance(array, np.ndarray) for array in arrays)
    return len(kinds) == len(steps) == 1 and in_memory and size < host_memory() / 4


def _as_lanes(jobs, log: Log) -> list[tuple[train.State, int]]:
    """The best State of each fold, and how many epochs it was trained, by one population."""
    config, recipe, hparams = jobs[0].config, jobs[0].start.recipe, jobs[0].config.hparams
    sets = [[getattr(job.start.splits, name) for job in jobs] for name in ("train", "val")]
    rows = [_places(part) for part in sets]
    whole = [
        {name: np.concatenate([each[name] for each in part]) for name in part[0]} for part in sets
    ]
    inputs = whole[0]["inputs"][:1]
    layout = layout_for(recipe, hparams, inputs, len(jobs))
    log(f"training {len(jobs)} folds as one population, {layout.mode} on {layout.devices} devices")
    population = Population(
        recipe, [hparams] * len(jobs), np.full((len(jobs), 1), config.seed), *whole,
        epochs=config.epochs, layout=layout, patience=config.patience,
        reduce_on_plateau=config.reduce_on_plateau, keep_best=True,
        rows=list(zip(*rows, strict=True)),
    )  # fmt: skip
    with counting("epochs", config.epochs) as advance:
        population.train(config.epochs, lambda: advance(1))
    if population.diverged:
        fold, step = min(population.diverged.items())
        raise RunError(
            f"fold {fold + 1}: the loss became NaN or infinite at step {step}: try a smaller "
            "--hparams.learning-rate."
        )
    best, found = population.best(1), []
    for fold, (history,) in enumerate(population.histories):
        found.append((train.from_variables(best[fold, 0][0]), len(history)))
    return found


def _places(parts) -> list[np.ndarray]:
    """For each of the parts its rows in all of them, one after another."""
    ends = np.cumsum([data.examples(part) for part in parts])
    return [
        np.arange(end - data.examples(part), end, dtype=np.int32)
        for part, end in zip(parts, ends, strict=True)
    ]


def _alone(job: Job) -> tuple[train.State, int]:
    """Trains one fold by itself, as `_as_lanes` does."""
    config, start = job.config, job.start
    fit = train.fit(
        start.recipe, config.hparams, start.splits.train, start.splits.val, epochs=config.epochs,
        seed=config.seed, patience=config.patience, reduce_on_plateau=config.reduce_on_plateau,
        pretrained=start.pretrained,
    )  # fmt: skip
    return train.from_variables(train.variables(start.recipe, fit.best)), len(fit.history)


def _scored(job: Job, state: train.State, epochs: int, log: Log) -> dict[str, Any]:
    """What one fold scores, JSON values. state: the variables to evaluate with."""
    splits, hparams, task = job.start.splits, job.config.hparams, job.config.recipe.task
    recipe = dataclasses.replace(job.start.recipe, ema=False)
    found = calibrated(recipe, state, hparams, splits.val, log)
    scores, outputs = train.evaluate(recipe, state, hparams, splits.test)
    whole = dataclasses.replace(job.config.recipe, ema=False)
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, recipe=whole))
    of_test = as_tested(job, job.start.with_backbone(state), outputs, found)
    scores, beside = baselines.described(task, scores, of_test), {}
    if job.config.baseline != "none":
        simple = baselines.fit_baselines(recipe, hparams, splits, log)
        correct = baselines.correct_predictions(task, splits.test, outputs, scores)
        beside["baselines"] = {name: baseline.scores for name, baseline in simple.items()}
        beside["mcnemar"] = baselines.mcnemar_counts(correct, simple)
    parts = {"train": splits.train, "validation": splits.val, "test": splits.test}
    return {
        "model": type(whole.model).__name__,
        "task": type(task).__name__,
        "examples": {name: data.examples(part) if part else 0 for name, part in parts.items()},
        "epochs_run": epochs,
        "test": scores,
        **beside,
    }


def _summary(each) -> dict[str, Any]:
    """Means and standard deviations over the folds; McNemar's counts over all examples."""
    test = [one["test"] for one in each]
    found = {"test": _over(np.mean, test), "spread": _over(lambda x: np.std(x, ddof=1), test)}
    if "baselines" in each[0]:
        names = [n for n in each[0]["baselines"] if all(n in one["baselines"] for one in each)]
        found["baselines"] = {
            n: _over(np.mean, [one["baselines"][n] for one in each]) for n in names
        }
        tests = [one.get("mcnemar", {}) for one in each]  # not in folds of an earlier version
        found["mcnemar"] = {
            n: {count: sum(test[n][count] for test in tests) for count in tests[0][n]}
            for n in names
            if all(n in test for test in tests)
        }
    return found


def _over(what, rows) -> dict[str, float]:
    """Returns it of the scores that all have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: float(what([row[name] for row in rows])) for name in names}
