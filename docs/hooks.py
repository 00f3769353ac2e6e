"""What MkDocs does before a build: each chapter of the guide becomes a page, with its outputs."""

from pathlib import Path

from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

GUIDE = Path(__file__).parents[1] / "guide"


def on_files(files, config):
    """Adds guide/NAME.md and its pictures, from guide/NAME.ipynb."""
    for notebook in sorted(GUIDE.glob("*.ipynb")):
        resources = {"unique_key": notebook.stem, "output_files_dir": notebook.stem}
        text, found = MarkdownExporter().from_filename(str(notebook), resources)
        note = f"\n*Made by running `guide/{notebook.stem}.py`, which is a notebook, too.*\n"
        title, _, rest = text.partition("\n")
        page = f"guide/{notebook.stem}.md"
        files.append(File.generated(config, page, content=f"{title}\n{note}\n{rest}"))
        for name, picture in found["outputs"].items():
            files.append(File.generated(config, f"guide/{name}", content=picture))
    return files
