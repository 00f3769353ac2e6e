"""The beginning of a sweep, and its continuation: config.json, and the trials of another sweep."""

import dataclasses
import math
import time
from pathlib import Path

import jax

from dlflax.config.resume import differences
from dlflax.config.run_folder import check_version, log_version_changes, settings, write_files
from dlflax.errors import InputError
from dlflax.files import write_json
from dlflax.run.time_limit import PLAN
from dlflax.tune.bind import Bound
from dlflax.tune.pool.pool_checkpoint import PoolCheckpoint
from dlflax.tune.study import Study, load_trials, without_password
from dlflax.tune.suggest.space import Space, is_within

RESULTS = ("best", "trained", "retrained", "ensemble", "members", "results.json", "report.html")


def begin(bound: Bound, study: Study, log) -> None:
    """Writes config.json, with the settings that the study began with. Raises InputError when it
    began with another setup."""
    sweep, folder = bound.sweep, bound.sweep.run_dir
    shown = sweep.storage and without_password(sweep.storage)
    chosen = dataclasses.replace(sweep, storage=shown, population_size=bound.population_size)
    new = settings(bound.experiment, chosen, bound.dataset, bound.examples)
    new |= {"search": bound.search, "devices": len(jax.devices())}
    if not study.trials():
        PoolCheckpoint(folder).clear()  # of an earlier study in the folder
        if (folder / "config.json").exists():
            set_aside(folder / PLAN)
        if sweep.warm_start:  # later they are in the settings
            new["known"] = _known_trials(sweep.warm_start, bound.job.space, sweep.objective, log)
    first = [] if sweep.sampler == "grid" else bound.job.space.first_trials()
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
    write_json(folder / "config.json", saved)
    write_files(folder, bound.examples)
    if not study.finished_trials():  # it is new, though the folder may not be
        for name in RESULTS:
            set_aside(folder / name)


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


def set_aside(path: Path) -> None:
    """Renames what an earlier study wrote there, if anything, so that nobody predicts with it."""
    if path.exists():
        second = round(time.time())
        while (aside := path.with_name(f"{path.stem}_{second}{path.suffix}")).exists():
            second += 1
        path.rename(aside)
