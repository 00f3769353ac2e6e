"""Run folder: creation, comparison with a resumed run's settings, and reading."""

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
from dlflax.config.config import Config
from dlflax.config.experiment import Experiment, log_file_change
from dlflax.config.renamed import describe_old_field
from dlflax.config.resume import changes_past_rates, differences
from dlflax.config.saved import check_type, read_run_json, save_encoder
from dlflax.config.serialize import to_json
from dlflax.errors import InputError
from dlflax.files import file_lock, read_json, write_csv, write_json
from dlflax.report import tables

Log = Callable[[str], None]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # in config.json


def run_folder(experiment: Experiment, config: Config) -> Path:
    """Returns the run folder, created if needed. Raises InputError for another run's."""
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
        raise InputError(f"--run-dir {folder} cannot be created: {error.strerror}.") from error
    return folder


@contextlib.contextmanager
def lock_run_folder(experiment, config: Config, dataset: data.Dataset, splits, log: Log):
    """Creates or reopens a run folder, locks it, and yields it on every host."""
    with contextlib.ExitStack() as stack:

        def open_folder():
            folder = run_folder(experiment, config)
            if not stack.enter_context(file_lock(folder / ".lock")):
                raise InputError(
                    f"--run-dir {folder} is being written by another process: wait for it, or "
                    "choose another folder."
                )
            run_config = dataclasses.replace(config, run_dir=folder)
            begin(experiment, run_config, dataset, splits, folder, log)
            return folder

        yield parallel.call_on_main(open_folder)


def settings(
    experiment: Experiment, config: Config, dataset: data.Dataset, splits: data.Splits
) -> dict[str, Any]:
    """Returns the contents of config.json."""
    held_out = len(splits.val["inputs"]) if splits.val else 0
    return {
        "experiment": experiment.name,
        "defined_in": experiment.origin(),
        "config": to_json(dataclasses.replace(config, resume=False)),  # a flag of one process
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "sha256": dataset.checksum,
            "weights_sha256": splits.weights_sha256,
            "train": len(splits.train["inputs"]), "validation": held_out,
            "test": len(splits.test["inputs"]),
        },
        "versions": {
            "dlflax": dlflax.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "platform": f"{jax.default_backend()} {jax.devices()[0].device_kind}",
    }  # fmt: skip


def begin(experiment, config, dataset, splits, folder, log: Callable[[str], None]) -> None:
    """Writes config.json, or compares the settings with those of a resumed run."""
    new = settings(experiment, config, dataset, splits)
    path = folder / "config.json"
    if not path.exists():
        if config.resume:
            log(f"{folder} has no run yet: starting a new one.")
        save_encoder(folder, splits.encoder)
        write_files(folder, splits)
        write_json(path, new)
        return
    old = load_config(folder)
    old["config"] = old.get("requested", old["config"])
    steps = -(-new["data"]["train"] // config.recipe.batch_size)
    epochs = old["config"].get("epochs", Config.epochs)
    if not changes_past_rates(config, epochs, steps):
        old["config"]["epochs"] = config.epochs
    if different := differences(old, new, config):
        raise InputError(
            f"--resume: {folder} was trained with another setup ({different}): give the same flags "
            "and data, or start a new run."
        )
    log_file_change(old.get("defined_in", {}), experiment, log)
    log_version_changes(old, new, log)
    if config.epochs != epochs:
        write_json(path, old)


def write_result_config(folder: Path, config: Config) -> None:
    """Replaces the Config in config.json by that of the resulting model, and keeps the requested
    one, for --resume."""
    saved = load_config(folder)
    requested = saved.get("requested", saved["config"])
    write_json(folder / "config.json",
               {**saved, "config": to_json(config), "requested": requested})  # fmt: skip


def write_files(folder: Path, splits: data.Splits) -> None:
    """Writes columns.csv and files of the data source, such as files_skipped.csv."""
    if rows := splits.encoder.columns_table():
        write_csv(folder / "columns.csv", rows)
    for name, text in splits.files.items():
        (folder / name).write_text(text, encoding="utf-8")


def log_version_changes(old: dict, new: dict, log: Callable[[str], None]) -> None:
    """Logs package versions that have changed since the run began."""
    changed = {n: v for n, v in old["versions"].items() if new["versions"].get(n) != v}
    if changed:
        log(f"note: versions have changed since the run began ({changed}): "
            "the result may not be identical")  # fmt: skip


CALIBRATION = "calibration.json"  # the task's calibration on the validation split
CALIBRATED = {  # fields of it that the shipped tasks write
    "temperature": float, "thresholds": list[float], "coverage": float, "half_width": list[float],
}  # fmt: skip
DATA = {
    "name": str, "source": str, "sha256": str, "weights_sha256": str, "train": int,
    "validation": int, "test": int,
}  # fmt: skip


def check_version(saved: dict[str, Any], path: Any) -> None:
    """Raises InputError for a file of dlflax before 0.3, or with an old name of a field."""
    version = saved["versions"]["dlflax"]
    if version.startswith(("0.1.", "0.2.")):
        raise InputError(
            f"{path} was written by dlflax {version}: read it with commit b547de7 of this project, "
            "or start a new run."
        )
    # every Config since then has val_split; a subclass may have a field with one of the old names
    if "val_split" not in saved["config"] and (reason := describe_old_field(saved["config"])):
        raise InputError(f"{path} {reason}")


def load_config(folder: Path) -> dict[str, Any]:
    """Returns config.json of a run folder. Raises InputError if it is damaged or too old."""
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


def load_finished_results(config: Config, folder: Path, saved, brief: bool, log: Log):
    """Returns and prints results.json of a finished run, else None. saved: last checkpoint."""
    if not saved:
        return None
    if not train.is_complete(saved.history, config.recipe.task, config.epochs, config.patience):
        log(f"resuming after epoch {len(saved.history)}, step {int(saved.state.step):,}")
        return None
    return load_results(config, folder, brief, log)


def load_results(config: Config, folder: Path, brief: bool, log: Log) -> dict[str, Any] | None:
    """Returns and prints results.json; None if it is missing, damaged or incomplete."""
    results = _results(folder)
    if results and not brief:
        log(f"{folder} is finished already; its results:")
        tables.print_results(results, config.verbose)
    return results


def _results(folder: Path) -> dict[str, Any] | None:
    """Returns results.json of a run; None if it is missing, damaged or incomplete."""
    try:
        results = read_json(folder / "results.json")
        test = results["test"]
        scores = results["train"], results.get("val", {}), test
        typeguard.check_type(scores, tuple[dict[str, Any], ...])
        classes, forecasts = test.get("per_class", {}), results.get("forecasts", {})
        for table in (classes, forecasts, results.get("baselines", {})):
            typeguard.check_type(table, dict[str, dict[str, float]])
        for row in classes.values():  # KeyError for keys that tables print
            _ = row["precision"], row["recall"], row["f1"], row["support"]
        for row in forecasts.values():
            _ = row["rmse"], row["mae"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, typeguard.TypeCheckError):
        return None
    return None if "pending" in results else results


def load_calibration(folder: Path) -> dict[str, Any]:
    """Returns calibration.json of a run folder; {} without one."""
    path = Path(folder) / CALIBRATION
    if not path.exists():  # an unfinished run, or an earlier version
        return {}
    calibration = read_run_json(path)
    check_type(calibration, dict[str, float | list[float]], path, "it")
    types = {name: cls for name, cls in CALIBRATED.items() if name in calibration}
    _check_types(calibration, types, path, "")
    if not all(np.isfinite(value).all() for value in calibration.values()):
        raise InputError(f"{path} is damaged: it has a number that is NaN or infinite.")
    return calibration


def _check_types(values: dict, types: dict[str, Any], path: Path, prefix: str) -> None:
    """Raises InputError for a field that is missing or of another type."""
    for name, cls in types.items():
        if name not in values:
            raise InputError(f"{path} is damaged: {prefix}{name} is missing.")
        check_type(values[name], cls, path, prefix + name)
