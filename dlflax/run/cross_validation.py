"""Cross-validation: trains and tests the same run once for each fold."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dlflax import data, train
from dlflax.config.config import Config
from dlflax.config.experiment import Experiment
from dlflax.config.resume import differences
from dlflax.config.run_folder import run_folder
from dlflax.config.serialize import to_json
from dlflax.data.folds import folds
from dlflax.errors import InputError
from dlflax.files import host_memory, read_json, write_csv, write_json
from dlflax.report import tables
from dlflax.report.progress import progress_bar
from dlflax.run import baseline_scores
from dlflax.run.execute import test
from dlflax.run.prepare import Setup, prepare, read_data
from dlflax.train.bag import Fold, fit_folds

Log = Callable[[str], None]


def cross_validate(experiment: Experiment, config: Config, log: Log = print) -> dict[str, Any]:
    """Trains once for each fold and tests on that fold, so that every example is tested once.

    Folds are members of one population if their arrays have equal shapes and fit into memory, else
    they train one after another. Writes folds.csv and results.json, and returns the latter: mean
    and standard deviation of each test score. Each fold is saved when it is tested, for --resume.
    Raises InputError and RunError.
    """
    _check_flags(config)
    if config.bag_folds:
        log("note: --folds tests single networks, not the bag of --bag-folds")
        config = dataclasses.replace(config, bag_folds=0)
    config, dataset = read_data(config, log)
    datasets = folds(dataset, config.folds, config.seed)
    settings = {"config": to_json(config), "data": {"sha256": dataset.checksum}}
    config = dataclasses.replace(config, run_dir=_make_folder(experiment, config))
    path, fold_results = config.run_dir / "results.json", _load_finished_folds(config, settings)
    results = {
        "experiment": experiment.name,
        "dataset": dataset.name,
        "data_source": dataset.source,
        "folds": config.folds,
        "settings": settings,
        "findings": list(dataset.findings),
    }
    # the first fold logs for all
    prepared = [
        prepare(config, dataset, (lambda _: None) if i else log)
        for i, dataset in enumerate(datasets)
    ]
    setups = [setup for _, setup in prepared]
    linear = baseline_scores.is_linear(
        setups[0].abstract.params, setups[0].start.splits.train["inputs"]
    )
    if len(fold_results) < len(setups) and _is_one_population(setups):
        # finished folds train again, to the same parameters
        fold_results, trained = [], _train_population(config, setups, log)
    else:
        prepared = prepared[len(fold_results) :]
        trained = (_train_fold(*fold) for fold in prepared)
    for fold, (state, epochs) in zip(prepared, trained, strict=True):
        fold_results.append(_score_fold(*fold, state, epochs, log))
        write_json(path, {**results, "each": fold_results, "pending": "more folds"})
        scores = [
            f"{name.replace('_', ' ')} {tables.number_text(value)}"
            for name, value in fold_results[-1]["test"].items()
        ]
        log(f"fold {len(fold_results)} of {config.folds}: {', '.join(scores[:4])}")
    first = fold_results[0]
    results |= {"model": first["model"], "task": first["task"], **_summary(fold_results)}
    rows = [{"fold": i, **r["examples"], **r["test"]} for i, r in enumerate(fold_results, 1)]
    write_csv(config.run_dir / "folds.csv", rows)
    if "baselines" in results:
        results["findings"] += baseline_scores.verdict(results, config.recipe.task, linear)
    write_json(path, {**results, "each": fold_results})
    tables.print_folds(results)
    for sentence in results["findings"]:
        log(sentence)
    log(f"scores of each fold: {config.run_dir}")
    return results


def _check_flags(config: Config) -> None:
    for name in ("fsdp", "distributed", "profile", "devices", "time_limit"):
        if getattr(config, name):
            raise InputError(
                f"--{name.replace('_', '-')} has no effect with --folds: remove the flag."
            )


def _make_folder(experiment, config):
    folder = run_folder(experiment, config)
    if (folder / "config.json").exists() or (
        (folder / "results.json").exists() and not config.resume
    ):
        raise InputError(f"--run-dir {folder} already holds a run: choose another folder.")
    return folder


def _load_finished_folds(config: Config, settings) -> list[dict[str, Any]]:
    """Returns the results of finished folds."""
    path = config.run_dir / "results.json"
    if not path.exists():
        return []
    try:
        saved = read_json(path)
        different = differences(saved["settings"], settings, config)
        fold_results = list(saved["each"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: choose another --run-dir.") from error
    if different:
        raise InputError(
            f"--resume: {config.run_dir} was trained with another setup ({different}): give the "
            "same flags and data, or choose another --run-dir."
        )
    return fold_results[: config.folds]


def _is_one_population(setups) -> bool:
    """True if all folds can be members of one population. They need equal recipes and array shapes,
    no pretrained weights, and memory for a copy of the data for each."""
    recipe, starts = setups[0].start.recipe, [setup.start for setup in setups]
    splits = [split for start in starts for split in (start.splits.train, start.splits.val)]
    if None in splits or any(s.pretrained or s.recipe != recipe for s in starts):
        return False
    arrays = [array for split in splits for array in split.values()]
    specs = {tuple((n, a.shape[1:], a.dtype) for n, a in sorted(s.items())) for s in splits}
    steps = {-(-data.num_examples(split) // recipe.batch_size) for split in splits[::2]}
    in_memory = all(isinstance(array, np.ndarray) for array in arrays)
    fits = in_memory and sum(array.nbytes for array in arrays) < host_memory() / 4
    return len(specs) == len(steps) == 1 and fits


def _train_population(config: Config, setups, log: Log) -> list[tuple[train.State, int]]:
    """Trains the folds as one population. Returns (best State, number of epochs) of each."""
    train_set, train_rows = _concatenate([setup.start.splits.train for setup in setups])
    val_set, val_rows = _concatenate([setup.start.splits.val for setup in setups])

    def on_begin(layout):
        log(f"training {len(setups)} folds as one population, {layout.mode} on {layout.devices} "
            "devices")  # fmt: skip

    with progress_bar("epochs", config.epochs) as advance:
        population = fit_folds(
            setups[0].start.recipe, config.hparams, train_set, val_set,
            list(map(Fold, train_rows, val_rows)), epochs=config.epochs,
            seeds=[config.seed] * len(setups), patience=config.patience,
            plateau_patience=config.plateau_patience, on_begin=on_begin,
            on_epoch=lambda: advance(1),
        )  # fmt: skip
    best = population.best(1)
    return [
        (train.from_variables(best[0, fold][0]), len(history))
        for fold, history in enumerate(population.histories[0])
    ]


def _concatenate(splits) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Returns (concatenated arrays of all splits, rows of each split)."""
    arrays = {name: np.concatenate([split[name] for split in splits]) for name in splits[0]}
    ends = np.cumsum([data.num_examples(split) for split in splits])
    return arrays, np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])


def _train_fold(config: Config, setup: Setup) -> tuple[train.State, int]:
    """Trains one fold. Returns (best State, number of epochs)."""
    start = setup.start
    fit = train.fit(
        start.recipe, config.hparams, start.splits.train, start.splits.val, epochs=config.epochs,
        seed=config.seed, patience=config.patience, plateau_patience=config.plateau_patience,
        pretrained=start.pretrained,
    )  # fmt: skip
    return train.from_variables(train.variables(start.recipe, fit.best)), len(fit.history)


def _score_fold(config: Config, setup: Setup, state, epochs: int, log: Log) -> dict[str, Any]:
    """Returns the scores of one fold as JSON values. state: with averaged parameters if ema."""
    splits, hparams, task = setup.start.splits, config.hparams, config.recipe.task
    recipe = dataclasses.replace(setup.start.recipe, ema=False)  # the State is averaged already
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, ema=False))
    setup = dataclasses.replace(setup, start=dataclasses.replace(setup.start, recipe=recipe))
    tested = test(config, setup, state, log)
    scores = baseline_scores.all_scores(task, tested.scores, tested)
    named = {"train": splits.train, "validation": splits.val, "test": splits.test}
    result = {
        "model": type(config.recipe.model).__name__,
        "task": type(task).__name__,
        "examples": {
            name: data.num_examples(split) if split else 0 for name, split in named.items()
        },
        "epochs_run": epochs,
        "test": scores,
    }
    if config.baseline != "none":
        fitted = baseline_scores.fit_baselines(recipe, hparams, splits, log)
        correct = baseline_scores.correct_predictions(task, splits.test, tested.outputs, scores)
        result["baselines"] = {name: baseline.scores for name, baseline in fitted.items()}
        result["mcnemar"] = baseline_scores.mcnemar_counts(correct, fitted)
    return result


def _summary(results) -> dict[str, Any]:
    """Returns means and standard deviations over the folds, McNemar's counts over all examples."""
    scores = [result["test"] for result in results]
    summary = {
        "test": _reduce(np.mean, scores),
        "spread": _reduce(lambda values: np.std(values, ddof=1), scores),
    }
    if all("baselines" in result for result in results):  # --baseline may change with --resume
        fitted, counts = ([result[key] for result in results] for key in ("baselines", "mcnemar"))
        names = _common(fitted)
        summary["baselines"] = {n: _reduce(np.mean, [fold[n] for fold in fitted]) for n in names}
        summary["mcnemar"] = {
            n: {key: sum(fold[n][key] for fold in counts) for key in counts[0][n]}
            for n in names
            if all(n in fold for fold in counts)
        }
    return summary


def _common(rows: list[dict]) -> list[str]:
    """Returns the keys that all rows have."""
    return [name for name in rows[0] if all(name in row for row in rows)]


def _reduce(reduction, rows) -> dict[str, float]:
    """Returns the reduction, such as the mean, of each score that all rows have."""
    return {name: float(reduction([row[name] for row in rows])) for name in _common(rows)}
