"""Hook of MkDocs: adds each chapter of the guide as a page, with its outputs."""

from pathlib import Path

from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

GUIDE = Path(__file__).parents[1] / "guide"


def on_files(files, config):
    """Adds guide/NAME.md and its figures, from guide/NAME.ipynb."""
    for notebook in sorted(GUIDE.glob("*.ipynb")):
        resources = {"unique_key": notebook.stem, "output_files_dir": notebook.stem}
        text, exported = MarkdownExporter().from_filename(str(notebook), resources)
        note = f"\n*Made by running `guide/{notebook.stem}.py`, which is a notebook, too.*\n"
        title, _, rest = text.partition("\n")
        page = f"guide/{notebook.stem}.md"
        files.append(File.generated(config, page, content=f"{title}\n{note}\n{rest}"))
        for name, figure in exported["outputs"].items():
            files.append(File.generated(config, f"guide/{name}", content=figure))
    return files
