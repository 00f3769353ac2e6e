"""One run from its Config to its folder, in five steps: data, prepare, train, test, report."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dlflax import data, parallel, train
from dlflax.errors import InputError, Terminated
from dlflax.report import figures, loggers
from dlflax.report.progress import Progress, announcement
from dlflax.run import announce
from dlflax.run.config import Config
from dlflax.run.exit_codes import stop_requests
from dlflax.run.experiment import Experiment
from dlflax.run.folder import claim, finished_results
from dlflax.run.prepare import Job, prepare, read_data
from dlflax.run.profile import profile
from dlflax.run.results import Record, report
from dlflax.train.augment import augment_batch
from dlflax.train.checkpoint import Checkpoints
from dlflax.train.metrics import additive_scores
from dlflax.train.tasks import Task, Tested
from dlflax.train.tasks.task import has_images

Log = Callable[[str], None]


def run(
    experiment: Experiment | str,
    config: Config,
    log: Log = print,
    dataset: data.Dataset | None = None,
    brief: bool = False,
) -> dict[str, Any]:
    """Trains, tests once with the best checkpoint, and writes the run folder. Returns the contents
    of results.json, {} on other hosts than the first. experiment: or its name, of presets that no
    module has; dataset: what config names, if it is loaded already; brief: for a run within
    something larger, which says what the data are and prints the scores of all. Raises InputError
    and RunError."""
    started = time.perf_counter()
    if config.folds:
        raise InputError("folds are for `run.cross_validate`: leave them out.")
    if isinstance(experiment, str):
        experiment = Experiment(experiment)
    config, dataset = read_data(config, log, dataset)
    config, job = prepare(config, dataset, log)
    count = parallel.devices(config.devices, config.recipe.batch_size, config.shard_state)
    with claim(experiment, config, dataset, job.examples, log) as folder:
        checkpoints = Checkpoints(folder / "checkpoints", job.start.recipe.task, log)
        with parallel.use(count, config.shard_state):
            saved = checkpoints.restore_last(parallel.placed(job.abstract))
        if results := finished_results(config, folder, saved, brief, log):
            return results
        with start_record(experiment, config, job, folder, saved, count, brief, log) as record:
            with parallel.use(count, config.shard_state), stop_requests() as should_stop:
                fit = fit_model(config, job, checkpoints, saved, should_stop, record)
                with announcement("testing ...", log):
                    tested = test(config, job, fit.best, log)
            main = parallel.is_main()
            results = report(config, job, fit, tested, record, started) if main else {}
        parallel.wait("the results are written")
        if main and not brief:
            announce.log_end(experiment, job, folder, log)
        return results


@contextlib.contextmanager
def start_record(experiment, config: Config, job: Job, folder, saved, count, brief, log):
    """Logs what is to be trained on how many devices, and profiles it. Gives the Record, whose
    loggers log the last row of the saved history again."""
    if config.profile and parallel.is_main():
        profile(job.start.recipe, config.hparams, job.start.splits.train, folder / "profile")
    if not brief:
        announce.log_start(config, job, folder, count, log)
    elif count > 1:
        log(announce.devices_text(count))
    history = saved.history if saved else []
    step = int(history[-1]["step"]) if history else None
    with contextlib.closing(loggers.start(config.log, experiment.name, folder, step, log)) as board:
        record = Record(experiment, folder, board, log, brief)
        if parallel.is_main() and config.recipe.augment and has_images(job.examples):
            drawing = {"augmented": lambda: draw_augmentation(config, job.examples.train)}
            for name, path in figures.draw(drawing, folder, log).items():
                board.figure(name, path, 0)
        if history:  # the kill may have come between its checkpoint and its row
            record.add(history)
        yield record


def draw_augmentation(config: Config, train_set):
    """Returns a Figure of what training makes of a few images."""
    batch = {name: array[:8] for name, array in train_set.items()}
    draw, keys = jax.jit(augment_batch, static_argnums=0), map(jax.random.key, range(7))
    draws = [draw(config.recipe, config.hparams, batch, key)["inputs"] for key in keys]
    return figures.augmentations(batch["inputs"], np.stack(draws))


def fit_model(config: Config, job: Job, checkpoints, saved, should_stop, record) -> train.Fit:
    """Trains to the end, from the saved checkpoint on if there is one. Returns the Fit, whose best
    State may come from its checkpoint. Raises Terminated when SIGTERM came, after saving."""
    recipe, splits, monitor = job.start.recipe, job.start.splits, job.start.recipe.task.monitor
    progress = start_progress(config, job, len(saved.history) if saved else 0, record)

    def on_steps(epoch, done, sums):
        progress.update(epoch, done, additive_scores(recipe.task.metrics, sums))

    def on_epoch(fit):
        # the checkpoint first: everything else can be written again from its history
        checkpoints.save(fit.saved())
        record.add(fit.history)
        best = train.best_epoch(fit.history, recipe.task) + 1 == len(fit.history)
        progress.epoch_end(fit.history[-1], best and splits.val is not None)

    with progress:
        fit = train.fit(
            recipe, config.hparams, splits.train, splits.val,
            epochs=config.epochs, seed=config.seed, patience=config.patience,
            reduce_on_plateau=config.reduce_on_plateau, resume=saved, should_stop=should_stop,
            pretrained=job.start.pretrained, on_epoch=on_epoch,
            on_steps=on_steps if progress.interactive else None,
        )  # fmt: skip
        if not train.finished(fit.history, recipe.task, config.epochs, config.patience):
            if fit.partial:
                checkpoints.save(fit.saved())
            raise Terminated(
                f"terminated; step {int(fit.state.step):,} is saved in {record.folder}: continue "
                "with --resume."
            )
        best = train.best_epoch(fit.history, recipe.task)
        progress.end(fit.history, best, splits.val is not None)
    fit.best = fit.best or checkpoints.restore_best(parallel.placed(job.abstract))
    if len(fit.history) < config.epochs:
        record.say(f"stopped: {config.patience} epochs without a better validation {monitor}")
    if best + 1 < len(fit.history):
        record.say(f"epoch {best + 1} had the best validation {monitor}: testing with its weights")
    return fit


def start_progress(config: Config, job: Job, done: int, record: Record) -> Progress:
    """Returns the bar, or the lines, of a training of which `done` epochs are done."""
    size, score = job.start.recipe.batch_size, job.start.recipe.task.metric().name
    steps = -(-data.num_examples(job.start.splits.train) // size)
    if done < config.epochs:
        epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs:,} epochs"
        record.say(f"compiling, then training: {epochs} of {steps:,} steps")
    lines = "all" if config.verbose else "none" if record.brief else "some"
    return Progress(config.epochs, steps, size, done, score, lines)


def test(config: Config, job: Job, state: train.State, log: Log) -> Tested:
    """Returns scores and outputs of the test data, and what the task fits on the validation data.
    state: of what was trained."""
    recipe, hparams, splits = job.start.recipe, config.hparams, job.start.splits
    calibration = calibrate(recipe, state, hparams, splits.val, log)
    scores, outputs = train.evaluate(recipe, state, hparams, splits.test)
    recipe, state = config.recipe, job.start.with_backbone(parallel.fetch(state))
    numbers = train.as_traced(hparams.evaluation())
    return Tested(
        recipe, hparams, train.variables(recipe, state), job.examples, outputs,
        lambda inputs: np.asarray(train.predict(recipe, state, numbers, inputs)), calibration,
        scores,
    )  # fmt: skip


def calibrate(recipe, state, hparams, val, log: Log) -> dict[str, Any]:
    """Returns what the task fits on the validation outputs; {} where there are none, or it fits
    nothing or fails, which is logged."""
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
