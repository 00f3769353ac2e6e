"""List of experiments and commands, with the first sentences of their docstrings."""

import ast
import importlib.util
from pathlib import Path

COMMANDS = ("compare", "find_learning_rate", "predict", "export", "serve")
SEARCHES = ("bayes_opt", "random_search", "grid_search", "report")


def first_sentence(path: Path) -> str:
    """Returns the first sentence of a module's docstring, without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")


def list_all(command: str = "python -m ") -> str:
    """Returns the list as text. command: "python -m ", or "dlflax " for its subcommands."""
    here = Path(__file__).parent
    others = {"__init__", "__main__", "listing", *COMMANDS}
    experiments = [path.stem for path in sorted(here.glob("*.py")) if path.stem not in others]
    short = not command.startswith("python")
    searches = ("report",) if short else SEARCHES
    sweeps = Path(importlib.util.find_spec("sweeps").origin).parent
    return "\n".join([
        "experiments",
        *_lines(f"{command}{'train ' if short else 'experiments.'}", experiments, here),
        "\nwith experiments and their runs",
        *_lines(f"{command}{'' if short else 'experiments.'}", COMMANDS, here, short),
        "\nsweeps",
        *(["  dlflax sweep EXPERIMENT [--search bayes|random|grid]"] * short),
        *_lines(f"{command}{'' if short else 'sweeps.'}", searches, sweeps),
        "\nEach has --help. An experiment may also be a file of your own: my_experiment.py",
    ])  # fmt: skip


def _lines(command: str, names, folder: Path, dashes: bool = False) -> list[str]:
    width = max(len(command + name) for name in names)
    return [
        f"  {command + (name.replace('_', '-') if dashes else name):{width}}  "
        f"{first_sentence(folder / f'{name}.py')}"
        for name in names
    ]
