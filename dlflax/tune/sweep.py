"""One sweep, from its configuration to its folder: bind, open the study, train the pool, finish."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dlflax import run
from dlflax.config.resume import differences
from dlflax.config.run_folder import check_version, log_version_changes, settings, write_files
from dlflax.errors import InputError
from dlflax.files import write_json
from dlflax.train.layout import use_all_cores
from dlflax.tune.finish import finish, set_aside
from dlflax.tune.launch import open_launcher
from dlflax.tune.pool.pool import Pool
from dlflax.tune.pool.pool_checkpoint import PoolCheckpoint
from dlflax.tune.pool.rules import Budget
from dlflax.tune.pool.sweep_report import Watch, log_plan
from dlflax.tune.pool.trial_models import MOST_TRIALS, Members
from dlflax.tune.pool.workers import Workers
from dlflax.tune.study import Study, load_trials, open_study, without_password
from dlflax.tune.suggest import stopping
from dlflax.tune.suggest.cost import cost
from dlflax.tune.suggest.encoding import Encoding
from dlflax.tune.suggest.samplers import make_sampler
from dlflax.tune.suggest.space import Space, is_within
from dlflax.tune.sweep_config import Bound, Sweep, bind

RESULTS = ("best", "trained", "retrained", "ensemble", "results.json", "report.html")


def run_sweep(
    search: str, experiment: run.Experiment | str, sweep: Sweep,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Runs the sweep, or continues it; tests and saves the best model. Returns the contents of
    results.json. search: the name of the kind of search; sweep.space: words, as `space.space`
    takes them. Raises InputError and RunError."""
    use_all_cores()
    if isinstance(experiment, str):
        experiment = run.Experiment(experiment)
    bound = bind(sweep, search, experiment, log)
    folder = bound.sweep.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--run-dir {folder} cannot be made: {error.strerror}.") from error
    url, name = bound.sweep.storage, bound.sweep.study
    with open_study(folder, url, name, bound.direction) as study:
        bound, saved = _begin(bound, study, log)
        log_plan(bound, len(study.finished_trials()), log)
        # the files of an earlier study in the folder have another digest
        text = json.dumps([saved["config"], saved["data"]["sha256"]], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        most = MOST_TRIALS if bound.sweep.ensemble_size else 1
        members = Members(folder, study.direction, digest, most, log)
        checkpoint = PoolCheckpoint(folder, digest, log)
        with Watch(folder, bound.sweep.trials, saved, study, log) as watch:
            traces = _make_pool(bound, study, members, checkpoint, watch, log).run()
        return finish(bound, study, members, saved, traces, log)


def _begin(bound: Bound, study: Study, log) -> tuple[Bound, dict[str, Any]]:
    """Writes config.json. Returns the population and warm start that the study began with, and the
    contents of config.json. Raises InputError when the study began with another setup."""
    sweep, space = bound.sweep, bound.space
    shown = sweep.storage and without_password(sweep.storage)
    chosen = dataclasses.replace(sweep, storage=shown, population_size=bound.population_size)
    new = settings(bound.experiment, chosen, bound.dataset, bound.examples)
    new |= {"search": bound.search, "devices": len(jax.devices())}
    if sweep.warm_start and not study.trials():  # later they are in the settings
        new["known"] = _known_trials(sweep.warm_start, space, sweep.objective, log)
    first = [] if sweep.sampler == "grid" else space.first_trials()
    saved = study.settings(new, first)
    check_version(saved, f"the study {sweep.study}")
    if not sweep.population_size:
        new["config"]["population_size"] = saved["config"]["population_size"]
    if different := differences(saved, new, sweep):
        raise InputError(
            f"the study {sweep.study} was begun with another setup ({different}): give the same "
            "flags and data to continue it, or another --study NAME."
        )
    log_version_changes(saved, new, log)
    if saved["devices"] != new["devices"]:
        log(f"note: {new['devices']} devices, it began with {saved['devices']}: "
            "the result may not be bitwise the same")  # fmt: skip
    write_json(sweep.run_dir / "config.json", saved)
    write_files(sweep.run_dir, bound.examples)
    if not study.finished_trials():  # it is new, though the folder may not be
        for name in RESULTS:
            set_aside(sweep.run_dir / name)
    space = dataclasses.replace(space, known=saved.get("known", []))
    return bound._replace(space=space, population_size=new["config"]["population_size"]), saved


def _known_trials(study: str, space: Space, objective: str, log) -> list[tuple[dict, float]]:
    """Returns (parameters, value) of the trials of another study in this space, lower is better.

    A parameter that the other study did not search has the number of its trials. study: a folder,
    or a name in runs/sweeps. Raises InputError if fewer than two trials can be used.
    """
    folder = Path(study) if Path(study).exists() else Path("runs") / "sweeps" / study
    if not folder.exists():
        raise InputError(
            f"--warm-start {study}: there is neither {study} nor {folder}: give the folder of a "
            "sweep, or its name."
        )
    saved, trials, direction = load_trials(folder)
    its_objective = saved["config"]["objective"]
    if its_objective != objective:
        raise InputError(
            f"--warm-start {study}: its objective is {its_objective}, not {objective}: values of "
            f"different scores do not compare; use --objective {its_objective}."
        )
    fixed, sign = saved["config"].get("hparams", {}), 1 if direction == "minimize" else -1
    pairs = []
    for trial in trials:
        params = {name: trial.params.get(name, fixed.get(name)) for name in space.distributions}
        fits = all(is_within(space.distributions[name], value) for name, value in params.items())
        if trial.value is not None and fits:
            pairs.append((params, sign * trial.value))
    if sum(math.isfinite(value) for _, value in pairs) < 2:
        raise InputError(
            f"--warm-start {study}: fewer than two of its {len(trials)} trials are finished and "
            f"in this space ({', '.join(space.distributions)}): remove the flag."
        )
    log(f"warm start from {len(pairs)} of the {len(trials)} trials of {folder}, those in this "
        "space")  # fmt: skip
    return pairs


def _make_pool(
    bound: Bound, study: Study, members: Members, checkpoint: PoolCheckpoint, watch: Watch, log
) -> Pool:
    """Returns the pool, whether the sweep is new or continues."""
    sweep, space, job = bound.sweep, bound.space, bound.job()
    costs = {
        recipe: cost(sweep.cost, recipe, sweep.hparams, bound.train["inputs"])
        for recipe in bound.recipes if sweep.cost
    }  # fmt: skip
    launcher = open_launcher(
        sweep.launcher, sweep.workers, sweep.run_dir, platform=jax.default_backend(),
        devices=jax.local_device_count(), options=sweep.options(), log=log,
    )  # fmt: skip
    arrays = {"train": bound.train, "val": bound.val, "pretrained": bound.pretrained or {}}
    encoding = Encoding(space.distributions)

    def reason_to_stop(trials):
        args = encoding, study.direction, sweep.seed, sweep.min_improvement
        return stopping.reason_to_stop(*args, trials) if sweep.auto else None

    def cost_of(params):
        recipe, _ = space.apply(params, bound.recipe, sweep.hparams)
        return {sweep.cost: costs[recipe]} if costs else {}

    return Pool(
        job, study, make_sampler(sweep.search.sampler or sweep.sampler, space, sweep.seed),
        sweep.search, Budget(sweep.trials, sweep.epochs, encoding.size()), bound.population_size,
        Workers(launcher, job, arrays, sweep.run_dir, log), members, checkpoint, watch,
        reason_to_stop=reason_to_stop, costs=cost_of, log=log,
    )  # fmt: skip
