"""The settings that a study is begun with, and that the same command continues with."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax

from dlflax.errors import InputError
from dlflax.files import write_json
from dlflax.run.folder import check_version, log_version_changes, write_files
from dlflax.run.folder import settings as run_settings
from dlflax.run.resume import differences
from dlflax.tune import hints
from dlflax.tune.bind import Bound
from dlflax.tune.config import Sweep
from dlflax.tune.study import Study, without_password

RESULTS = (
    "best",
    "trained",
    "retrained",
    "ensemble",
    "results.json",
    "report.html",
)  # of a finished study


def make_folder(folder: Path) -> None:
    """Makes the folder of a sweep. Raises InputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--run-dir {folder} cannot be made: {error.strerror}.") from error


def begin(
    sweep: Sweep, bound: Bound, search: str, experiment, study: Study, log
) -> tuple[Sweep, Bound, dict[str, Any]]:
    """Returns the sweep and what it is bound to as the study was begun, and the contents of
    config.json, which is written. Raises InputError when it was begun with another setup."""
    shown = sweep.storage and without_password(sweep.storage)  # what is saved is shown around
    chosen = dataclasses.replace(sweep, storage=shown, population=bound.population)
    new = run_settings(experiment, chosen, bound.dataset, bound.examples)
    new |= {"search": search, "devices": len(jax.devices())}
    is_new, space = not study.trials(), bound.space
    if sweep.warm_start and is_new:  # later they are in the settings
        new["known"] = hints.known_trials(sweep.warm_start, space, sweep.objective, log)
    first = [] if sweep.sampler == "grid" else [space.defaults, hints.enqueued(space)]
    saved = study.settings(new, [params for params in first if params])
    check_version(saved, f"the study {sweep.study}")
    sweep = _as_begun(sweep, saved, new, log)
    write_json(sweep.run_dir / "config.json", saved)
    write_files(sweep.run_dir, bound.examples)
    if not study.finished():  # it is new, though the folder may not be
        for name in RESULTS:
            set_aside(sweep.run_dir / name)
    space = dataclasses.replace(space, known=saved.get("known", []))
    return sweep, bound._replace(space=space), saved


def _as_begun(sweep, saved, new, log) -> Sweep:
    """Returns the sweep with the population that the study was begun with, unless a flag says
    another."""
    if not sweep.population:
        sweep = dataclasses.replace(sweep, population=saved["config"]["population"])
        new = {**new, "config": {**new["config"], "population": sweep.population}}
    if different := differences(saved, new, sweep):
        raise InputError(
            f"the study {sweep.study} was begun with another setup ({different}): give the same "
            "flags and data to continue it, or another --study NAME."
        )
    log_version_changes(saved, new, log)
    if saved["devices"] != new["devices"]:
        log(f"note: {new['devices']} devices, it began with {saved['devices']}: "
            "the result may not be bitwise the same")  # fmt: skip
    return sweep


def digest(saved: dict[str, Any]) -> str:
    """Returns what tells a study from another one that was in its folder before."""
    text = json.dumps([saved["config"], saved["data"]["sha256"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def set_aside(path: Path) -> None:
    """Renames what an earlier study left there, if anything, so that nobody predicts with it."""
    if path.exists():
        path.rename(path.with_name(f"{path.stem}_{time.time():.0f}{path.suffix}"))
