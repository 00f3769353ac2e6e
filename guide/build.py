"""Makes each chapter's notebook, with its outputs, from its script.

python guide/build.py                       all chapters
python guide/build.py 02_activations        one of them

A chapter is a Python script in jupytext's percent format: `python guide/02_activations.py` runs it
too. Needs `pip install -e '.[guide]'`.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
CHAPTERS = sorted(HERE.glob("[0-9][0-9]_*.py"))
LIMITS = (  # (what stands before a number, the largest such number of a short execution)
    (r"\bepochs ?= ?", 5), (r"--epochs\W+", 1), (r"--trials ", 5), (r"--folds ", 2),
    (r"\bphotographs\(", 32), (r"\(len\(files\)\)\[:", 40),
)  # fmt: skip
FLAGS = {  # words of a command -> flags that a short execution has after them
    "--ensemble-size 0": "--baseline none --population-size 5",  # all searches share a program
    "--data photos": "--image-size 32 --epochs 2",
    "--run-dir tuned": "--baseline none --ensemble-size 0", "--run-dir folds": "--baseline none",
}  # fmt: skip


def shorten(source: str) -> str:
    """Returns a cell that trains less: fewer epochs and trials, smaller images, no baselines. A
    name in place of the number of epochs is bounded, too."""
    for before, limit in LIMITS:
        source = re.sub(
            rf"({before})(\d+)",
            lambda match, limit=limit: f"{match[1]}{min(int(match[2]), limit)}", source,
        )  # fmt: skip
    for words, flags in FLAGS.items():
        source = source.replace(words, f"{words} {flags}")
    source = re.sub(r"\b1([06])00\b", r"1\g<1>0", source)  # photographs: 1000 and 600 of 1600
    return re.sub(r"\bepochs=epochs\b", f"epochs=min(epochs, {LIMITS[0][1]})", source)


def executed(chapter: Path, folder: Path, short: bool = False) -> nbformat.NotebookNode:
    """The chapter as a notebook with its outputs; what it writes goes into `folder`. Raises
    nbclient's CellExecutionError where a cell fails. `short`: with the cells of `shorten`."""
    notebook = jupytext.read(chapter)
    for cell in notebook.cells if short else ():
        if cell.cell_type == "code":
            cell.source = shorten(cell.source)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same at every build
    # a chapter's commands find this clone, and say nothing that depends on the width of a terminal
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "COLUMNS": "100"}
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(folder)}},
        record_timing=False, coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    ).execute(env=environment)  # fmt: skip
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="names of chapters; without any, all of them")
    names = parser.parse_args().chapters
    unknown = set(names) - {path.stem for path in CHAPTERS}
    if unknown:
        parser.error(f"there is no chapter {', '.join(sorted(unknown))}; there are "
                     f"{', '.join(path.stem for path in CHAPTERS)}")  # fmt: skip
    for chapter in CHAPTERS:
        if not names or chapter.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                notebook = executed(chapter, Path(folder))
            nbformat.write(notebook, chapter.with_suffix(".ipynb"))
            print(chapter.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
