"""The folder of a run: made, compared with what a resume asks for, read."""

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import typeguard

import dlflax
from dlflax import data, parallel, train
from dlflax.errors import InputError
from dlflax.files import locked, read_json, write_csv, write_json
from dlflax.report import tables
from dlflax.run.config import Config
from dlflax.run.experiment import Experiment, note_changes, remember
from dlflax.run.resume import differences, more_epochs_change_the_past
from dlflax.run.saved import check_type, save_encoder
from dlflax.run.serialize import to_json

Log = Callable[[str], None]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # in config.json


def run_folder(experiment: Experiment, config: Config) -> Path:
    """The folder of this run, made if need be. A run that is there already is only resumed."""
    folder = config.run_dir
    if folder is None:
        stem = folder = Path("runs") / experiment.name / time.strftime("%Y-%m-%d_%H-%M-%S")
        for i in range(2, 1000):
            if not folder.exists():
                break
            folder = stem.with_name(f"{stem.name}_{i}")
    elif (folder / "config.json").exists() and not config.resume:
        raise InputError(
            f"--run-dir {folder} already holds a run: add --resume to continue it, or choose "
            "another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--run-dir {folder} cannot be made: {error.strerror}.") from error
    return folder


@contextlib.contextmanager
def claim(experiment: Experiment, config: Config, dataset: data.Dataset, splits, log: Log):
    """Makes or reopens the folder of a run and gives it, on every host. No other process can claim
    it meanwhile."""
    with contextlib.ExitStack() as stack:

        def claim_alone():
            folder = run_folder(experiment, config)
            if not stack.enter_context(locked(folder / ".lock")):
                raise InputError(
                    f"--run-dir {folder} is being written by another process: wait for it, or "
                    "choose another folder."
                )
            here = dataclasses.replace(config, run_dir=folder)
            begin(experiment, here, dataset, splits, folder, log)
            return folder

        yield parallel.from_main(claim_alone)


def settings(
    experiment: Experiment, config: Config, dataset: data.Dataset, splits: data.Splits
) -> dict[str, Any]:
    """Returns what config.json holds."""
    test = splits.test["inputs"]
    held_out = len(splits.val["inputs"]) if splits.val else 0
    return {
        "experiment": experiment.name,
        "defined_in": experiment.defined_in(),
        # --resume is of one start alone
        "config": to_json(dataclasses.replace(config, resume=False)),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "sha256": dataset.checksum,
            "weights_sha256": splits.weights_sha256,
            "train": len(splits.train["inputs"]), "validation": held_out, "test": len(test),
        },
        "versions": {
            "dlflax": dlflax.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "platform": f"{jax.default_backend()} {jax.devices()[0].device_kind}",
    }  # fmt: skip


def begin(experiment, config, dataset, splits, folder, log: Callable[[str], None]) -> None:
    """Writes config.json, or compares with the one that a resumed run has."""
    new = settings(experiment, config, dataset, splits)
    path = folder / "config.json"
    remember(experiment, config)
    if not path.exists():
        if config.resume:
            log(f"{folder} holds no run yet: starting from the beginning.")
        save_encoder(folder, splits.encoder)
        write_files(folder, splits)
        write_json(path, new)
        return
    old = load_config(folder)
    steps = -(-new["data"]["train"] // config.recipe.batch_size)
    epochs = old["config"].get("epochs", Config.epochs)
    if not more_epochs_change_the_past(config, epochs, steps):
        old["config"]["epochs"] = config.epochs
    if different := differences(old, new, config):
        raise InputError(
            f"--resume: {folder} was trained with another setup ({different}): give the same flags "
            "and data, or start a new run."
        )
    note_changes(old.get("defined_in", {}), experiment, log)
    note_versions(old, new, log)
    if config.epochs != epochs:
        write_json(path, old)


def write_files(folder: Path, splits: data.Splits) -> None:
    """Writes what the data source has for the run folder, such as files_skipped.csv, and what was
    inferred of each column of a table, columns.csv."""
    if rows := splits.encoder.columns_table():
        write_csv(folder / "columns.csv", rows)
    for name, text in splits.files.items():
        (folder / name).write_text(text, encoding="utf-8")


def note_versions(old: dict, new: dict, log: Callable[[str], None]) -> None:
    """Says so when packages have other versions than those it began with."""
    changed = {n: v for n, v in old["versions"].items() if new["versions"].get(n) != v}
    if changed:
        log(f"note: versions differ from those it began with ({changed}): "
            "the result may not be the same to the bit")  # fmt: skip


CALIBRATION = "calibration.json"  # what the task fitted on the validation outputs
CALIBRATED = {  # what our tasks fit
    "temperature": float, "thresholds": list[float], "coverage": float, "half_width": list[float],
}  # fmt: skip
DATA = {
    "name": str, "source": str, "sha256": str, "weights_sha256": str, "train": int,
    "validation": int, "test": int,
}  # fmt: skip
LAST = "the commit b547de7"  # that reads the run folders of 0.1 and 0.2


def check_version(saved: dict[str, Any], place: Any) -> None:
    """Raises InputError for settings that a version of dlflax before 0.3 wrote."""
    version = saved["versions"]["dlflax"]
    if version.startswith(("0.1.", "0.2.")):
        raise InputError(
            f"{place} was written by dlflax {version}: {LAST} of this project reads it, this "
            "version begins anew."
        )


def load_config(folder: Path) -> dict[str, Any]:
    """Returns config.json of a run folder. Raises InputError when it is not one of this version."""
    path = Path(folder) / "config.json"
    try:
        saved = read_json(path)
        check_version(saved, folder)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{folder} is not a run folder: no readable config.json in it.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: it is not the JSON that a run writes.") from error
    fields = {"experiment": str, "defined_in": dict[str, str], "config": dict[str, Any],
              "versions": dict[str, str], "data": dict[str, Any]}  # fmt: skip
    _check_types(saved, fields, path, "")
    _check_types(saved["data"], DATA, path, "data.")
    return saved


def finished_results(config: Config, folder: Path, saved, brief: bool, log: Log):
    """Returns results.json of a run that came to its end, and prints it; None where something is
    left to do. saved: its last checkpoint."""
    if not saved:
        return None
    if not train.is_complete(saved.history, config.recipe.task, config.epochs, config.patience):
        log(f"resuming after epoch {len(saved.history)}, step {int(saved.state.step):,}")
        return None
    results = _results(folder)
    if results and not brief:
        log(f"{folder} is finished already; its results:")
        tables.print_results(results, config.verbose)
    return results


def _results(folder: Path) -> dict[str, Any] | None:
    """Returns results.json of a run; None where it is not whole."""
    try:
        results = read_json(folder / "results.json")
        test = results["test"]
        scores = results["train"], results.get("val", {}), test
        for tree, kind in (
            (scores, tuple[dict[str, Any], ...]),
            (test.get("per_class", {}), dict[str, dict[str, float]]),
            (results.get("forecasts", {}), dict[str, dict[str, float]]),
            (results.get("baselines", {}), dict[str, dict[str, float]]),
        ):
            typeguard.check_type(tree, kind)
        for row in test.get("per_class", {}).values():  # what the tables print, or KeyError
            _ = row["precision"], row["recall"], row["f1"], row["support"]
        for row in results.get("forecasts", {}).values():
            _ = row["rmse"], row["mae"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, typeguard.TypeCheckError):
        return None
    return None if "pending" in results else results


def load_calibration(folder: Path) -> dict[str, Any]:
    """calibration.json of a run folder; {} where there is none. InputError for a damaged one."""
    path = Path(folder) / CALIBRATION
    if not path.exists():  # of a run that is not tested yet, or of an earlier version
        return {}
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: it is not the JSON that a run writes.") from error
    check_type(found, dict[str, float | list[float]], path, "it")
    _check_types(found, {n: kind for n, kind in CALIBRATED.items() if n in found}, path, "")
    if not all(np.isfinite(value).all() for value in found.values()):
        raise InputError(f"{path} is damaged: it has a number that is NaN or infinite.")
    return found


def _check_types(values: dict, kinds: dict[str, Any], path: Path, prefix: str) -> None:
    """InputError that names the first field that is not there or of another type."""
    for name, kind in kinds.items():
        if name not in values:
            raise InputError(f"{path} is damaged: {prefix}{name} is missing.")
        check_type(values[name], kind, path, prefix + name)
