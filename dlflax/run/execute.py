"""Run: reads the data, prepares, trains, tests, and reports to the run folder."""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from dlflax import data, parallel, train
from dlflax.config.config import Config
from dlflax.config.experiment import Experiment
from dlflax.config.run_folder import (
    load_finished_results,
    load_results,
    lock_run_folder,
    write_result_config,
)
from dlflax.config.saved import save_encoder
from dlflax.errors import InputError, Terminated
from dlflax.report import figures, loggers
from dlflax.report.progress import Progress, announcement
from dlflax.run import announce, blend, blend_series
from dlflax.run.average import test_members
from dlflax.run.prepare import Setup, prepare, read_data
from dlflax.run.profile import profile
from dlflax.run.results import Record, report
from dlflax.run.signals import stop_requests
from dlflax.run.time_limit import Clock, measure_epoch, plan_epochs
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
    started: float | None = None,
    trained: blend.Trained | None = None,
) -> dict[str, Any]:
    """Trains, tests once with the best checkpoint, and writes the run folder.

    Returns results.json, {} on hosts but the first. experiment: or a name for presets outside of
    modules; dataset: of config.data, if it is loaded already; brief: omits log lines that the
    caller prints for several runs; started: of time.perf_counter, for the time limit (default:
    now); trained: members of a sweep, which a bag averages. Raises InputError and RunError.
    """
    started = time.perf_counter() if started is None else started
    if config.folds:
        raise InputError("folds must be 0 in `run.run`: `run.cross_validate` takes folds.")
    if config.bag_folds:
        config = blend.check(config, log)
    if isinstance(experiment, str):
        experiment = Experiment(experiment)
    config, dataset = read_data(config, log, dataset)
    config, setup = prepare(config, dataset, log)
    with lock_run_folder(experiment, config, dataset, setup.examples, log) as folder:
        checkpoints = Checkpoints(folder / "checkpoints", setup.start.recipe.task, log)
        run_model = _run_network
        if config.bag_folds:
            run_model = functools.partial(_run_bag, trained=trained)
        clock = Clock(config.time_limit, started)
        return run_model(experiment, config, setup, folder, checkpoints, brief, log, clock)


def _run_network(experiment, config: Config, setup: Setup, folder, checkpoints, brief, log, clock):
    """Trains one network, from the last checkpoint if there is one. Returns results.json."""
    devices = parallel.num_devices(config.devices, config.recipe.batch_size, config.fsdp)
    with parallel.use_devices(devices, config.fsdp):
        measure = functools.partial(measure_epoch, config, setup)
        config = plan_epochs(config, folder, clock, measure, log)
        saved = checkpoints.restore_last(parallel.with_shardings(setup.abstract))
    if results := load_finished_results(config, folder, saved, brief, log):
        return results
    with open_record(experiment, config, setup, folder, saved, devices, brief, log) as record:
        with parallel.use_devices(devices, config.fsdp), stop_requests() as should_stop:
            fit = fit_model(config, setup, checkpoints, saved, should_stop, record)
            with announcement("testing ...", log):
                tested = test(config, setup, fit.best, log)
        main = parallel.is_main()
        results = report(config, setup, fit, tested, record, clock.started) if main else {}
    parallel.barrier("the results are written")
    if main and not brief:
        announce.log_end(experiment, setup, folder, log)
    return results


def _run_bag(
    experiment, config: Config, setup: Setup, folder, checkpoints, brief, log, clock, trained
):
    """Trains a bag and saves its Ensemble as the model of the run. A run that was killed trains
    again, to the same numbers. Returns results.json."""
    if results := load_results(config, folder, brief, log):
        return results
    with open_record(experiment, config, setup, folder, None, 1, brief, log) as record:
        if isinstance(setup.examples.encoder, data.SeriesEncoder):
            bagged = blend_series.fit(config, setup, record, clock)
        else:
            bagged = blend.fit(config, setup, record, clock, trained)
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
        checkpoints.save(train.Checkpoint(bagged.state, [bagged.row]))
        save_encoder(folder, bagged.setup.examples.encoder)
        write_result_config(folder, bagged.config)
        with announcement("testing ...", log):
            tested = test(bagged.config, bagged.setup, bagged.state, log, bagged.calibration)
        finished = SimpleNamespace(history=[bagged.row], compile_seconds=0.0)
        members = test_members(bagged, setup)
        alone = {
            f"{row['name']} alone": row["test"]
            for row, member in zip(members, bagged.members, strict=True)
            if row["weight"] < 1 and member.is_default
        }  # fmt: skip
        results = report(
            bagged.config, bagged.setup, finished, tested, record, clock.started,
            {"members": members, "baselines": alone},
        )  # fmt: skip
    if not brief:
        announce.log_end(experiment, setup, folder, log)
    return results


@contextlib.contextmanager
def open_record(experiment, config: Config, setup: Setup, folder, saved, devices, brief, log):
    """Profiles and logs the start of a run, and yields its Record. saved: checkpoint, or None."""
    if config.profile and parallel.is_main():
        profile(setup.start.recipe, config.hparams, setup.start.splits.train, folder / "profile")
    if not brief:
        announce.log_start(config, setup, folder, devices, log)
    elif devices > 1:
        log(announce.devices_text(devices))
    history = saved.history if saved else []
    step = int(history[-1]["step"]) if history else None
    started = loggers.start(config.logger, experiment.name, folder, step, log)
    with contextlib.closing(started) as board:
        record = Record(experiment, folder, board, log, brief)
        if parallel.is_main() and config.recipe.augment and has_images(setup.examples):
            drawing = {"augmented": lambda: draw_augmentation(config, setup.examples.train)}
            for name, path in figures.draw(drawing, folder, log).items():
                board.figure(name, path, 0)
        if history:  # a kill between checkpoint and log loses the last row
            record.add(history)
        yield record


def draw_augmentation(config: Config, train_set):
    """Returns a Figure of a few images under several random augmentations."""
    batch = {name: array[:8] for name, array in train_set.items()}
    draw, keys = jax.jit(augment_batch, static_argnums=0), map(jax.random.key, range(7))
    draws = [draw(config.recipe, config.hparams, batch, key)["inputs"] for key in keys]
    return figures.augmentations(batch["inputs"], np.stack(draws))


def fit_model(config: Config, setup: Setup, checkpoints, saved, should_stop, record) -> train.Fit:
    """Trains the model, from the saved checkpoint if there is one, and returns the Fit with its
    best State. Raises Terminated after SIGTERM, once the state is saved."""
    recipe, splits = setup.start.recipe, setup.start.splits
    progress = start_progress(config, setup, len(saved.history) if saved else 0, record)

    def on_steps(epoch, done, sums):
        progress.update(epoch, done, additive_scores(recipe.task.metrics, sums))

    def on_epoch(fit):
        # the checkpoint first: metrics can be written again from its history
        checkpoints.save(fit.checkpoint())
        record.add(fit.history)
        best = train.best_epoch(fit.history, recipe.task) + 1 == len(fit.history)
        progress.epoch_end(fit.history[-1], best and splits.val is not None)

    with progress:
        fit = train.fit(
            recipe, config.hparams, splits.train, splits.val,
            epochs=config.epochs, seed=config.seed, patience=config.patience,
            plateau_patience=config.plateau_patience, resume=saved, should_stop=should_stop,
            pretrained=setup.start.pretrained, on_epoch=on_epoch,
            on_steps=on_steps if progress.interactive else None,
        )  # fmt: skip
        if not train.is_complete(fit.history, recipe.task, config.epochs, config.patience):
            if fit.partial:
                checkpoints.save(fit.checkpoint())
            raise Terminated(
                f"terminated; step {int(fit.state.step):,} is saved in {record.folder}: continue "
                "with --resume."
            )
        best = train.best_epoch(fit.history, recipe.task)
        progress.end(fit.history, best, splits.val is not None)
    fit.best = fit.best or checkpoints.restore_best(parallel.with_shardings(setup.abstract))
    score = f"validation {recipe.task.monitor}"
    if len(fit.history) < config.epochs:
        record.say(f"stopped: {config.patience} epochs without a better {score}")
    if best + 1 < len(fit.history):
        record.say(f"epoch {best + 1} had the best {score}: testing with its weights")
    return fit


def start_progress(config: Config, setup: Setup, done: int, record: Record) -> Progress:
    """Returns the progress bar. done: number of epochs of the resumed checkpoint."""
    size, score = setup.start.recipe.batch_size, setup.start.recipe.task.metric().name
    steps = -(-data.num_examples(setup.start.splits.train) // size)
    if done < config.epochs:
        epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs:,} epochs"
        record.say(f"compiling, then training: {epochs} of {steps:,} steps")
    lines = "all" if config.verbose else "none" if record.brief else "some"
    return Progress(config.epochs, steps, size, done, score, lines)


def test(
    config: Config, setup: Setup, state: train.State, log: Log,
    calibration: dict[str, Any] | None = None,
) -> Tested:  # fmt: skip
    """Returns scores, outputs and calibration, by default of the validation split. state: without a
    frozen backbone."""
    recipe, hparams, splits = setup.start.recipe, config.hparams, setup.start.splits
    if calibration is None:
        calibration = calibrate(recipe, state, hparams, splits.val, log)
    scores, outputs = train.evaluate(recipe, state, hparams, splits.test)
    recipe, state = config.recipe, setup.start.merge_backbone(parallel.fetch_variables(state))
    traced = train.as_float32(hparams.evaluation())
    return Tested(
        recipe, hparams, train.variables(recipe, state), setup.examples, outputs,
        lambda inputs: np.asarray(train.predict(recipe, state, traced, inputs)), calibration,
        scores,
    )  # fmt: skip


def calibrate(recipe, state, hparams, val, log: Log) -> dict[str, Any]:
    """Returns the task's calibration on the validation outputs; {} without one, or if it fails."""
    if val is None or type(recipe.task).calibrate is Task.calibrate:
        return {}
    outputs = jax.device_get(train.evaluate_sums(recipe, state, hparams, val)[1])
    try:
        traced, batch = train.as_float32(hparams.evaluation()), train.host_batch(recipe.task, val)
        return recipe.task.calibrate(outputs, batch, traced)
    except Exception as error:  # a user's task can raise anything
        log(f"warning: {type(recipe.task).__name__}.calibrate failed ({type(error).__name__}: "
            f"{error}): the model is not calibrated")  # fmt: skip
        return {}
