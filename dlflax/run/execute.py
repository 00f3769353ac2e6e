"""One experiment from its Config to its run folder: data, fit, test, results."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dlflax import data, parallel, train, transfer
from dlflax.errors import InputError, RunError, Terminated
from dlflax.files import locked, write_csv, write_json
from dlflax.report import figures, loggers, tables
from dlflax.report.progress import Progress, announcement
from dlflax.run import announce, baselines
from dlflax.run.config import (
    Config,
    check,
    check_batch_size,
    load,
    prepare_data,
    refuse_unused,
    unused_numbers,
    weighted,
)
from dlflax.run.exit_codes import stop_requests
from dlflax.run.experiment import Experiment
from dlflax.run.folder import CALIBRATION, begin, results_of, run_folder
from dlflax.run.profile import forward_flops, profile
from dlflax.run.serialize import flat, to_json
from dlflax.run.stand_in import with_stand_in
from dlflax.train.augment import augment_batch
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.metrics import additive_scores
from dlflax.train.tasks import Task, Tested
from dlflax.train.tasks.task import has_images

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Job:
    """All that training needs, ready."""

    config: Config
    """Its recipe has the model as the data and the task want it."""
    dataset: data.Dataset
    examples: data.Splits
    """The splits as the data source made them."""
    start: transfer.Start
    """The training's beginning; its splits may be features of the examples."""
    abstract: train.State
    """Shapes of the State that is trained."""
    brief: bool = False
    """Whether it is part of something larger, which says what the data are and prints the scores of
    all."""


def run(
    experiment: Experiment | str,
    config: Config,
    log: Log = print,
    dataset: data.Dataset | None = None,
    brief: bool = False,
) -> dict[str, Any]:
    """Trains, tests once with the best checkpoint, and writes the run folder. Returns the contents
    of results.json. experiment: or its name, of presets that no module has; dataset: what config
    names, if it is loaded already; brief: as in `Job`. Raises InputError and RunError."""
    started = time.perf_counter()
    if config.folds:
        raise InputError("folds are for `run.cross_validate`: leave them out.")
    if isinstance(experiment, str):
        experiment = Experiment(experiment)
    job = prepared(config, log, dataset)
    count = parallel.devices(config.devices, config.recipe.batch_size)
    if config.shard_state and count == 1:
        raise InputError("--shard-state is for several devices, and one is used: leave it out.")
    folder = parallel.from_main(lambda: run_folder(experiment, job.config))
    config = dataclasses.replace(job.config, run_dir=folder)
    job = dataclasses.replace(job, config=config, brief=brief)
    lock = locked(folder / ".lock") if parallel.is_main() else contextlib.nullcontext(True)
    with lock as free:
        if parallel.any_host(not free):
            raise InputError(
                f"--run-dir {folder} is being written by another process: wait for it, or choose "
                "another folder."
            )
        return _run(experiment, job, count, started, log)


def _run(experiment, job, count, started, log) -> dict[str, Any]:
    """`run` in a folder that no other process writes."""
    config, task, main = job.config, job.config.recipe.task, parallel.is_main()
    folder = config.run_dir
    parallel.from_main(lambda: begin(experiment, config, job.dataset, job.examples, folder, log))
    checkpoints = Checkpoints(folder / "checkpoints", task, log)
    with parallel.use(count, config.shard_state):
        saved = checkpoints.restore_last(parallel.placed(job.abstract))
    over = saved and train.finished(saved.history, task, config.epochs, config.patience)
    if over and (results := results_of(folder)):
        if not job.brief:
            log(f"{folder} is finished already; its results:")
            tables.print_results(results, config.verbose)
        return results

    resumed = None if over else saved
    if resumed:
        log(f"resuming after epoch {len(saved.history)}, step {int(saved.state.step):,}")
    if config.profile and main:
        recipe, examples = job.start.recipe, job.start.splits.train
        profile(recipe, config.hparams, examples, folder / "profile")
    if not job.brief:
        announce.log_start(job, count, log)
    elif count > 1:
        log(announce.devices_text(count))
    board = None
    if main:
        board = loggers.start(config.log, experiment.name, folder, _last_step(saved), log)
    with contextlib.closing(board) if main else contextlib.nullcontext():
        if main and config.recipe.augment and has_images(job.examples):
            draw = {"augmented": lambda: _augmented_picture(config, job.examples.train)}
            for name, path in figures.draw(draw, folder, log).items():
                board.picture(name, path, 0)
        fit, state, tests, found = _train_and_test(job, saved, count, checkpoints, board, log)
        if main:
            if config.transfer and config.transfer.self_contained:
                transfer.save(job.start.backbone, folder)
            results = _results(experiment, job, fit, tests[0], started)
            _report(job, fit, as_tested(job, state, tests[1], found), results, board, log)
    parallel.wait("the results are written")
    if not main:
        return {}
    if not job.brief:
        announce.log_end(experiment, job, log)
    return results


def prepared(config: Config, log: Log = print, dataset: data.Dataset | None = None) -> Job:
    """Reads the data, splits them, fits the model to them, and prepares pretrained weights. Raises
    InputError for what does not go together."""
    check(config)
    if dataset is None:
        with announcement("reading the data ...", log):
            dataset = load(config.data, log)
    config = with_stand_in(config, dataset, log)
    dataset, examples, recipe = prepare_data(config, log, dataset)
    config = dataclasses.replace(config, recipe=recipe)
    check_batch_size(recipe.batch_size, data.examples(examples.train))
    start = transfer.prepare(config.transfer, recipe, config.hparams, examples, config.seed, log)
    splits = weighted(config.class_weights, recipe.task, start.splits)
    start = dataclasses.replace(start, splits=splits)
    views = transfer.numbers_of_start(config.transfer, config.recipe, config.hparams)
    names = {flag.partition(".")[2] for flag in config.given}
    unused = unused_numbers(names, [start.recipe], config.hparams, splits.train)
    refuse_unused(config.given, unused - {*views}, start.recipe)
    abstract = train.abstract(start.recipe, config.hparams, splits.train["inputs"][:1])
    examples = dataclasses.replace(examples, weights_sha256=splits.weights_sha256)
    return Job(config, dataset, examples, start, abstract)


def _last_step(saved) -> int | None:
    return int(saved.history[-1]["step"]) if saved and saved.history else None


def _train_and_test(job, saved, count, checkpoints, board, log):
    """(Fit, the best State for the whole model, its scores and outputs on the test data, what the
    task fits on the validation data). Terminated when SIGTERM came, after saving."""
    config, recipe, splits = job.config, job.start.recipe, job.start.splits
    folder, task, main = config.run_dir, recipe.task, parallel.is_main()
    if main and saved and saved.history:  # the kill may have come between the two
        write_csv(folder / "metrics.csv", saved.history)
        board.scalars(saved.history[-1], _last_step(saved))
    steps = -(-data.examples(splits.train) // recipe.batch_size)
    done = len(saved.history) if saved else 0
    lines = "all" if config.verbose else "none" if job.brief else "some"
    progress = Progress(config.epochs, steps, recipe.batch_size, done, task.metric().name, lines)
    if main and done < config.epochs and not job.brief:
        epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs:,} epochs"
        log(f"compiling, then training: {epochs} of {steps:,} steps")

    def on_steps(epoch, done, sums):
        progress.update(epoch, done, additive_scores(task.metrics, sums))

    def on_epoch(fit):
        # the checkpoint first: everything below can be written again from its history
        checkpoints.save(fit.saved())
        if not main:
            return
        row = fit.history[-1]
        write_csv(folder / "metrics.csv", fit.history)
        board.scalars(row, int(row["step"]))
        best = train.best_epoch(fit.history, task) + 1 == row["epoch"]
        progress.epoch_end(row, best and splits.val is not None)

    with parallel.use(count, config.shard_state), stop_requests() as should_stop, progress:
        fit = train.fit(
            recipe, config.hparams, splits.train, splits.val,
            epochs=config.epochs, seed=config.seed, patience=config.patience,
            reduce_on_plateau=config.reduce_on_plateau, resume=saved, should_stop=should_stop,
            pretrained=job.start.pretrained, on_epoch=on_epoch,
            on_steps=on_steps if progress.interactive else None,
        )  # fmt: skip
        if not train.finished(fit.history, task, config.epochs, config.patience):
            if fit.partial:
                checkpoints.save(fit.saved())
            raise Terminated(
                f"terminated; step {int(fit.state.step):,} is saved in {folder}: continue with "
                "--resume."
            )
        best = train.best_epoch(fit.history, task)
        if main:
            progress.end(fit.history, best, splits.val is not None)
        state = fit.best or checkpoints.restore_best(parallel.placed(job.abstract))
        if len(fit.history) < config.epochs and not job.brief:
            log(f"stopped: {config.patience} epochs without a better validation {task.monitor}")
        if best + 1 < len(fit.history) and not job.brief:
            log(f"epoch {best + 1} had the best validation {task.monitor}: testing with its "
                "weights")  # fmt: skip
        with announcement("testing ...", log):
            found = calibrated(recipe, state, config.hparams, splits.val, log)
            tests = train.evaluate(recipe, state, config.hparams, splits.test)
        return fit, job.start.with_backbone(parallel.fetch(state)), tests, found


def calibrated(recipe, state, hparams, val, log: Log) -> dict[str, Any]:
    """What the task fits on the validation outputs; {} where it does not, there are none, or it
    fails, which is said."""
    if val is None or type(recipe.task).calibrate is Task.calibrate:
        return {}
    outputs = jax.device_get(train.evaluate_sums(recipe, state, hparams, val)[1])
    try:
        numbers, batch = train.as_traced(hparams.evaluation()), train.host_batch(recipe.task, val)
        return recipe.task.calibrate(outputs, batch, numbers)
    except Exception as error:  # a task of one's own can raise anything
        log(f"warning: {type(recipe.task).__name__}.calibrate failed ({type(error).__name__}: "
            f"{error}): nothing is fitted on the validation data")  # fmt: skip
        return {}


def _results(experiment, job, fit, test_scores, started) -> dict[str, Any]:
    """results.json without what the task describes."""
    config, task, history = job.config, job.config.recipe.task, fit.history
    best = train.best_epoch(history, task)
    names = ("train", "val") if job.start.splits.val else ("train",)
    scores = {
        name: {key.removeprefix(f"{name}_"): value
               for key, value in history[best].items() if key.startswith(f"{name}_")}
        for name in names
    }  # fmt: skip
    state = job.start.with_backbone(job.abstract)
    return {
        "experiment": experiment.name,
        "dataset": job.dataset.name,
        "data_source": job.dataset.source,
        "data": job.examples.summary(),
        "model": type(config.recipe.model).__name__,
        "task": type(task).__name__,
        "parameters": sum(announce.count_parameters(job)),
        "flops_per_example": forward_flops(
            job.start.recipe, state, config.hparams, job.examples.train["inputs"][:1]
        ),
        "hparams": _hparams(config),
        "seed": config.seed,
        "epochs_run": len(history),
        "best_epoch": best + 1,
        "seconds": sum(row["seconds"] for row in history),
        "process_seconds": time.perf_counter() - started,
        "compile_seconds": fit.compile_seconds,
        "examples_per_second": float(np.mean([row["examples_per_second"] for row in history])),
        **scores,
        "test": test_scores,
    }


def as_tested(job: Job, state: train.State, outputs, calibration) -> Tested:
    """What the task describes: a State of the whole model, and what it gave for the test data."""
    config, recipe = job.config, job.config.recipe
    numbers = train.as_traced(config.hparams.evaluation())
    return Tested(
        recipe, config.hparams, train.variables(recipe, state), job.examples, outputs,
        lambda inputs: np.asarray(train.predict(recipe, state, numbers, inputs)), calibration,
    )  # fmt: skip


def _report(job, fit, tested, results, board, log) -> None:
    """Writes results.json, first of all, adds what the task describes and prints it; then
    TensorBoard and pictures, none of which can stop it. results is changed."""
    config, recipe, folder = job.config, job.config.recipe, job.config.run_dir
    path = folder / "results.json"
    write_json(path, {**results, "pending": "what the task describes"})
    if tested.calibration:
        write_json(folder / CALIBRATION, tested.calibration)
    drawn, results["findings"] = {}, list(job.dataset.findings)
    try:
        described = recipe.task.describe(tested)
        results["test"] |= described.scores
        results |= described.results
        results["findings"] += described.findings
        write_json(path, {**results, "pending": "tables and pictures"})
        if per_class := results["test"].get("per_class"):
            rows = [{"class": name, **scores} for name, scores in per_class.items()]
            write_csv(folder / "per_class.csv", rows)
        drawn = described.figures
        with announcement("writing tables ...", log):
            for name, rows in described.tables.items():
                write_csv(folder / f"{name}.csv", rows() if callable(rows) else rows)
    except (RunError, OSError):
        raise
    except Exception as error:  # a task of one's own can raise anything
        log(f"warning: {type(recipe.task).__name__}.describe failed ({type(error).__name__}: "
            f"{error}): results.json has what came before")  # fmt: skip
    _compare(job, tested, results, log)
    write_json(path, {**results, "pending": "pictures"})
    if not job.brief:
        tables.print_results(results, config.verbose)
        for sentence in results["findings"]:
            log(sentence)
    plain = {
        f"{split}_{name}": value for split in ("val", "test")
        for name, value in results.get(split, {}).items() if isinstance(value, float)
    }  # fmt: skip
    board.hparams({**_hparams(config), **flat(to_json(recipe))}, plain)
    score = recipe.task.metric().name
    best = train.best_epoch(fit.history, recipe.task) if job.start.splits.val else None
    drawings = {"curves": lambda: figures.curves(fit.history, score, best), **drawn}
    if isinstance(recipe.model, train.Ensemble):  # which has no epochs
        del drawings["curves"]
    with announcement("drawing ...", log):
        for name, picture in figures.draw(drawings, folder, log).items():
            if name != "curves":
                board.picture(name, picture, int(fit.history[-1]["step"]))
    write_json(path, results)


def _compare(job, tested, results, log) -> None:
    """Adds simple models, and what they say of the network, to the results."""
    config, start, task = job.config, job.start, job.config.recipe.task
    if config.baseline == "none":
        return
    findings = results["findings"]
    beside = baselines.fit_baselines(
        start.recipe, config.hparams, start.splits, log, findings.append
    )
    if start.head:
        scores, outputs = start.head()
        head = dataclasses.replace(tested, outputs=outputs, calibration={})
        scores = baselines.described(task, scores, head)
        correct = baselines.correct_predictions(task, start.splits.test, outputs, scores)
        beside["the last layer alone"] = baselines.Baseline(scores, correct)
    if not beside:
        return
    results["baselines"] = {name: baseline.scores for name, baseline in beside.items()}
    correct = baselines.correct_predictions(
        task, start.splits.test, tested.outputs, results["test"]
    )
    results["mcnemar"] = baselines.mcnemar_counts(correct, beside)
    linear = baselines.is_linear(job.abstract.params, start.splits.train["inputs"])
    findings += baselines.verdict(results, task, linear, job.brief)


def _augmented_picture(config, train_set):
    """Figure: what training makes of a few pictures."""
    batch = {name: array[:8] for name, array in train_set.items()}
    draw = jax.jit(augment_batch, static_argnums=0)
    draws = [
        draw(config.recipe, config.hparams, batch, jax.random.key(i))["inputs"] for i in range(7)
    ]
    return figures.augmented(batch["inputs"], np.stack(draws))


def _hparams(config: Config) -> dict[str, float]:
    values = to_json(config.hparams)
    return {k: v for k, v in values.items() if k not in ("total_steps", "class")}
