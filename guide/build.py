"""Makes each chapter's notebook, with its outputs, from its script.

python guide/build.py                       all chapters
python guide/build.py 02_activations        one of them

A chapter is a Python script in jupytext's percent format: `python guide/02_activations.py` runs it
too. Needs `pip install -e '.[guide]'`.
"""

import argparse
import os
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
CHAPTERS = sorted(HERE.glob("[0-9][0-9]_*.py"))


def executed(chapter: Path, folder: Path) -> nbformat.NotebookNode:
    """The chapter as a notebook with its outputs; what it writes goes into `folder`. Raises
    nbclient's CellExecutionError where a cell fails."""
    notebook = jupytext.read(chapter)
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
