"""What to do after a run, as commands that work when they are pasted."""

import importlib.util
import os
import shlex
from pathlib import Path

from dlflax.run.experiment import Experiment

EXTRAS = {"serve": ("starlette", "uvicorn")}  # extra -> the modules that it installs
OWN_DATA = {  # kind of data -> the experiment for a user's own, and what it reads
    "picture": ("image_folder", "a folder with a folder of images for each class"),
    "text": ("sentiment", "a CSV file with a text and a label in each row"),
    "table": ("tabular", "a CSV file"),
    "series": ("forecast", "a CSV file with a row for each time"),
}


def command(module: str, *words: str) -> str:
    """The command line of a module such as "experiments.predict", by the program that this process
    was started as, `dlflax` or python."""
    package, _, name = module.rpartition(".")
    if os.environ.get("DLFLAX_PROGRAM") != "dlflax":
        return shlex.join(["python", "-m", module, *words])
    search = {"bayes_opt": "sweep"}.get(name, name.replace("_", "-"))
    trains = package == "experiments" and name in {each for each, _ in OWN_DATA.values()}
    return shlex.join(["dlflax", *(["train", name] if trains else [search]), *words])


def extra_hint(extra: str) -> str:
    """How an optional extra is installed, where one of its modules is missing."""
    missing = any(importlib.util.find_spec(module) is None for module in EXTRAS[extra])
    return f"   (first: pip install -e '.[{extra}]')" if missing else ""


def next_steps(experiment: Experiment, kind: str, folder: Path, own_data: bool) -> list[str]:
    """One line for each thing to do now. kind: as `data.Splits.kind`; own_data: whether the data
    are the user's already."""
    steps = []
    for name in ("wrong_predictions.png", "wrong_predictions.csv"):
        if (folder / name).exists():
            steps.append(("look at its mistakes", str(folder / name)))
            break
    what = "draw on a page, or give it images" if kind == "picture" else "try it on a page"
    steps.append((what, command("experiments.serve", str(folder)) + extra_hint("serve")))
    steps.append(("search for better settings", command("sweeps.bayes_opt", experiment.argument)))
    if not own_data and kind in OWN_DATA:
        name, reads = OWN_DATA[kind]
        yours = command(f"experiments.{name}", "--data-dir", "PATH")
        steps.append(("take your own data", f"{yours}   ({reads})"))
    width = max(len(what) for what, _ in steps)
    return [f"  {what:{width}}  {line}" for what, line in steps]
