"""Console command `dlflax`, short for the modules of experiments and sweeps.

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
    """Runs a subcommand; exits 2 for an unknown one."""
    os.environ["DLFLAX_PROGRAM"] = "dlflax"  # for commands in messages
    name, *words = sys.argv[1:] or ["list"]
    modules = {command.replace("_", "-"): f"experiments.{command}" for command in COMMANDS}
    modules["report"] = "sweeps.report"
    if name in ("list", "-h", "--help"):
        print(list_all("dlflax "))
    elif name in modules:
        _run(modules[name], words)
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
        commands = ", ".join(["train", "sweep", *modules, "list"])
        _refuse(f"{name} is no command of dlflax: choose one of {commands}.")


def _search(words: list[str]) -> str:
    """Returns the module of --search, and removes the flag from the words, unless its value is for
    sweeps.bayes_opt, such as freeze-thaw."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        value = value or (words[i + 1] if i + 1 < len(words) else "")
        if flag == "--search" and value in SEARCHES:
            del words[i : i + (1 if equals else 2)]
            return SEARCHES[value]
    return SEARCHES["bayes"]


def _run(name: str, words: list[str]) -> None:
    """Runs a module or a file as `python -m` does."""
    sys.argv = [name, *words]
    if name.endswith(".py"):
        if not Path(name).is_file():
            _refuse(f"{name} is not a file.")
        sys.path.insert(0, str(Path(name).parent))
        runpy.run_path(name, run_name="__main__")
        return
    sys.path.append("")  # last, so that no file of the current folder shadows a library
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
