"""Cross-validation: the same run on every fold of the data, and what it scores on the others."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dlflax import data, train
from dlflax.data.folds import folds
from dlflax.data.order import batch_order
from dlflax.errors import InputError, RunError
from dlflax.files import host_memory, read_json, write_csv, write_json
from dlflax.report import tables
from dlflax.report.progress import progress_bar
from dlflax.run import baselines
from dlflax.run.config import Config
from dlflax.run.execute import test
from dlflax.run.experiment import Experiment
from dlflax.run.folder import run_folder
from dlflax.run.prepare import Job, prepare, read_data
from dlflax.run.resume import differences
from dlflax.run.serialize import to_json
from dlflax.train.layout import layout_for
from dlflax.train.population import Population

Log = Callable[[str], None]


def cross_validate(experiment: Experiment, config: Config, log: Log = print) -> dict[str, Any]:
    """Trains once for each of config.folds folds, validates within the others as any run does, and
    tests on the fold, so that every example is tested once: all folds as one population
    where they are of one shape and fit into memory, else one after the other. Writes folds.csv and
    results.json, and returns what that holds: mean and standard deviation of each test score. Each
    fold is saved when it is done, and not done again with --resume. Raises InputError and RunError.
    """
    _refuse(config)
    config, dataset = read_data(config, log)
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
    bound = [prepare(config, part, (lambda _: None) if k else log) for k, part in enumerate(parts)]
    jobs = [job for _, job in bound]
    linear = baselines.is_linear(jobs[0].abstract.params, jobs[0].start.splits.train["inputs"])
    if len(each) < len(jobs) and _fit_together(jobs):
        each, trained = [], _train_together(config, jobs, log)  # all again: the same bits
    else:
        bound = bound[len(each) :]
        trained = (_train_alone(*one) for one in bound)
    for fold, (one, (state, epochs)) in enumerate(zip(bound, trained, strict=True), len(each) + 1):
        each.append(_scored(*one, state, epochs, log))
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
    """True if all folds can be members of one population: one program for all, data that fit into
    memory as often as there are folds, and one start."""
    first, starts = jobs[0].start, [job.start for job in jobs]
    parts = [part for start in starts for part in (start.splits.train, start.splits.val)]
    if None in parts or any(s.pretrained or s.recipe != first.recipe for s in starts):
        return False
    arrays = [array for part in parts for array in part.values()]
    kinds = {tuple((n, a.shape[1:], a.dtype) for n, a in sorted(part.items())) for part in parts}
    steps = {-(-data.num_examples(part) // first.recipe.batch_size) for part in parts[::2]}
    in_memory = all(isinstance(array, np.ndarray) for array in arrays)
    fits = in_memory and sum(array.nbytes for array in arrays) < host_memory() / 4
    return len(kinds) == len(steps) == 1 and fits


def _train_together(config: Config, jobs, log: Log) -> list[tuple[train.State, int]]:
    """Returns the best State of each fold, and its number of epochs, by one population."""
    recipe, hparams = jobs[0].start.recipe, config.hparams
    train_set, train_rows = _concatenate([job.start.splits.train for job in jobs])
    val_set, val_rows = _concatenate([job.start.splits.val for job in jobs])
    layout = layout_for(recipe, hparams, train_set["inputs"][:1], len(jobs))
    log(f"training {len(jobs)} folds as one population, {layout.mode} on {layout.devices} devices")
    population = Population(
        recipe, [hparams] * len(jobs), [[config.seed]] * len(jobs), train_set, val_set,
        epochs=config.epochs, layout=layout, patience=config.patience,
        reduce_on_plateau=config.reduce_on_plateau, keep_best=True,
        orders=[batch_order(train_set, recipe.batch_size, rows) for rows in train_rows],
        val_rows=val_rows,
    )  # fmt: skip
    with progress_bar("epochs", config.epochs) as advance:
        population.train(config.epochs, lambda: advance(1))
    if population.diverged:
        fold, step = min(population.diverged.items())
        raise RunError(
            f"fold {fold + 1}: the loss became NaN or infinite at step {step}: try a smaller "
            "--hparams.learning-rate."
        )
    best = population.best(1)
    return [
        (train.from_variables(best[fold, 0][0]), len(history))
        for fold, (history,) in enumerate(population.histories)
    ]


def _concatenate(parts) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Returns the arrays of all parts one after another, and the rows of each part."""
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.cumsum([data.num_examples(part) for part in parts])
    return arrays, np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])


def _train_alone(config: Config, job: Job) -> tuple[train.State, int]:
    """Trains one fold by itself, as `_train_together` does."""
    start = job.start
    fit = train.fit(
        start.recipe, config.hparams, start.splits.train, start.splits.val, epochs=config.epochs,
        seed=config.seed, patience=config.patience, reduce_on_plateau=config.reduce_on_plateau,
        pretrained=start.pretrained,
    )  # fmt: skip
    return train.from_variables(train.variables(start.recipe, fit.best)), len(fit.history)


def _scored(config: Config, job: Job, state: train.State, epochs: int, log: Log) -> dict[str, Any]:
    """Returns the scores of one fold, JSON values. state: the variables to evaluate with."""
    splits, hparams, task = job.start.splits, config.hparams, config.recipe.task
    recipe = dataclasses.replace(job.start.recipe, ema=False)  # the State has averages alone
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, ema=False))
    job = dataclasses.replace(job, start=dataclasses.replace(job.start, recipe=recipe))
    tested = test(config, job, state, log)
    scores, beside = baselines.all_scores(task, tested.scores, tested), {}
    if config.baseline != "none":
        simple = baselines.fit_baselines(recipe, hparams, splits, log)
        correct = baselines.correct_predictions(task, splits.test, tested.outputs, scores)
        beside["baselines"] = {name: baseline.scores for name, baseline in simple.items()}
        beside["mcnemar"] = baselines.mcnemar_counts(correct, simple)
    parts = {"train": splits.train, "validation": splits.val, "test": splits.test}
    return {
        "model": type(config.recipe.model).__name__,
        "task": type(task).__name__,
        "examples": {name: data.num_examples(part) if part else 0 for name, part in parts.items()},
        "epochs_run": epochs,
        "test": scores,
        **beside,
    }


def _summary(each) -> dict[str, Any]:
    """Means and standard deviations over the folds; McNemar's counts over all examples."""
    test = [one["test"] for one in each]
    found = {"test": _over(np.mean, test), "spread": _over(lambda x: np.std(x, ddof=1), test)}
    if all("baselines" in one for one in each):  # a resume may be with or without them
        names = [n for n in each[0]["baselines"] if all(n in one["baselines"] for one in each)]
        found["baselines"] = {
            n: _over(np.mean, [one["baselines"][n] for one in each]) for n in names
        }
        tests = [one["mcnemar"] for one in each]
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
