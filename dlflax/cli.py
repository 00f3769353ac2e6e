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
    elif name == "--version":
        print(f"dlflax {importlib.metadata.version('dlflax')}")
    elif name in modules:
        _run(modules[name], words)
    elif name == "sweep":
        _run_sweep(words)
    elif name != "train":
        commands = ", ".join(["train", "sweep", *modules, "list"])
        _refuse(f"{name} is no command of dlflax: choose one of {commands}.")
    elif words[:1] in (["-h"], ["--help"]):
        print(f"dlflax train EXPERIMENT [FLAGS]\n\n{list_all('dlflax ')}")
    else:
        experiment, *words = words or _refuse("train needs an experiment: dlflax train mnist.")
        shipped = f"experiments.{experiment.replace('-', '_')}"
        _run(experiment if "." in experiment else shipped, words)


def _run_sweep(words: list[str]) -> None:
    """Runs the module of --search; other values of the flag, such as halving, are for bayes_opt."""
    from dlflax.run.flags import parse_known_args  # imports JAX, which the list does not need

    given, others = parse_known_args({"search": str}, words)
    search = given.get("search", "bayes")
    _run(f"sweeps.{SEARCHES.get(search, 'bayes_opt')}", others if search in SEARCHES else words)


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
