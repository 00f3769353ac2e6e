"""The console command `dlflax`, on the same code as the modules.

dlflax train mnist --epochs 3               is   python -m experiments.mnist --epochs 3

dlflax sweep mnist --search random          is   python -m sweeps.random_search mnist

dlflax predict RUN digit.png                is   python -m experiments.predict RUN digit.png
"""

import importlib.metadata
import os
import runpy
import sys
from pathlib import Path

from experiments.listing import COMMANDS, list_all

SEARCHES = {"bayes": "bayes_opt", "random": "random_search", "grid": "grid_search"}


def main() -> None:
    """Runs what the words of the command line name; exits 2 where they name nothing."""
    os.environ["DLFLAX_PROGRAM"] = "dlflax"  # commands that are printed begin as this one
    name, *words = sys.argv[1:] or ["list"]
    known = {each.replace("_", "-"): f"experiments.{each}" for each in COMMANDS}
    if name in ("list", "-h", "--help"):
        print(list_all("dlflax "))
    elif name in known:
        _run(known[name], words)
    elif name == "report":
        _run("sweeps.report", words)
    elif name == "--version":
        print(f"dlflax {importlib.metadata.version('dlflax')}")
    elif name == "train" and words[:1] in (["-h"], ["--help"]):
        print("dlflax train EXPERIMENT [FLAGS]\n")
        print(list_all("dlflax "))
    elif name == "train":
        experiment, *words = words or _refuse("train needs an experiment: dlflax train mnist.")
        shipped = f"experiments.{experiment.replace('-', '_')}"
        _run(experiment if "." in experiment else shipped, words)
    elif name == "sweep":
        _run(f"sweeps.{_search(words)}", words)
    else:
        there = ", ".join(["train", "sweep", *known, "report", "list"])
        _refuse(f"{name} is no command of dlflax: there are {there}.")


def _search(words: list[str]) -> str:
    """The module of --search, which is taken out of the words; the Bayesian one's own flag of that
    name, such as --search freeze-thaw, stays."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        value = value or (words[i + 1] if i + 1 < len(words) else "")
        if flag == "--search" and value in SEARCHES:
            del words[i : i + (1 if equals else 2)]
            return SEARCHES[value]
    return SEARCHES["bayes"]


def _run(name: str, words: list[str]) -> None:
    """A module, or a file, as `python -m` runs it."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            _refuse(f"{name} is not a file.")
        sys.argv = [name, *words]
        sys.path.insert(0, str(Path(name).parent))
        runpy.run_path(name, run_name="__main__")
        return
    sys.argv = [name, *words]
    sys.path.append("")  # last: no file of the current folder stands in for a library
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except ImportError as error:
        if name not in str(error):
            raise
        _refuse(f"there is no experiment {name.rpartition('.')[2]}: dlflax list shows them.")


def _refuse(sentence: str):
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
