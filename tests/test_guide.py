"""The guide: each chapter is a whole lesson, and its notebook is what running it gives."""

import base64
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import nbformat
import numpy as np
import pytest
from PIL import Image

GUIDE = Path(__file__).parents[1] / "guide"
CHAPTERS = sorted(GUIDE.glob("[0-9][0-9]_*.py"))
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def chapters(function):
    return pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)(function)


def committed(chapter):
    return nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)


def words(chapter) -> str:
    """The text of its cells."""
    cells = jupytext.read(chapter).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@chapters
def test_the_notebook_has_the_script_s_cells(chapter):
    """Whoever changes a chapter runs `python guide/build.py` again."""
    ours, saved = jupytext.read(chapter).cells, committed(chapter).cells
    assert [(c.cell_type, c.source) for c in ours] == [(c.cell_type, c.source) for c in saved]
    assert all(cell.outputs for cell in saved if re.search(r"(?m)^print\(", cell.source)
               and cell.cell_type == "code")  # fmt: skip


@chapters
def test_a_chapter_is_a_lesson(chapter):
    """A question, a picture, a sweep or comparison, exercises with solutions; lines that fit."""
    text = words(chapter)
    assert re.match(rf"# {int(chapter.name[:2])}\. ", text)
    for part in ("> **Guess first.**", "Change this", "Exercises", "Solutions", "The figure"):
        assert part in text, part
    assert re.search(r"python -m (sweeps|experiments\.compare)", text)
    pictures = [
        output for cell in committed(chapter).cells for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]  # fmt: skip
    assert len(pictures) == 1
    assert len(chapter.read_text(encoding="utf-8").splitlines()) < 250


def keras_blocks():
    for chapter in CHAPTERS:
        for block in re.findall(r"```python\n(.*?)```", words(chapter), re.DOTALL):
            yield pytest.param(block, id=chapter.stem)


@pytest.mark.slow
@pytest.mark.parametrize("block", [*keras_blocks()])
def test_keras_gives_the_number_that_is_beside_its_lines(block):
    (promised,) = re.findall(r"print\(.*\)  # (\S+)", block)
    with contextlib.redirect_stdout(io.StringIO()) as said, jax.numpy_rank_promotion("allow"):
        exec(block, {})
    assert said.getvalue().strip() == promised


@pytest.mark.slow
def test_a_chapter_is_a_script_too(tmp_path):
    subprocess.run([sys.executable, CHAPTERS[0]], cwd=tmp_path, check=True, capture_output=True)
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]


def printed(cells) -> str:
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    return "".join(output.get("text", "") for output in outputs)


def picture(notebook) -> np.ndarray:
    """Small and grey, in 0..1."""
    (data,) = (
        output.data["image/png"] for cell in notebook.cells for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    )  # fmt: skip
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("L").resize((64, 24))) / 255


@pytest.mark.slow
@chapters
def test_what_is_committed_is_what_running_it_gives(chapter, tmp_path, monkeypatch):
    """The words to the letter; numbers nearly: another processor rounds otherwise, and training and
    searches go on from there. A chapter that trains for long is shortened, and prints as many
    lines in each cell; with GUIDE=whole in the environment it is not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location("build", GUIDE / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    folder = tmp_path / "place"
    folder.mkdir()
    saved = committed(chapter)
    sources = [cell.source for cell in saved.cells if cell.cell_type == "code"]
    short = os.environ.get("GUIDE") != "whole" and [*map(build.shorten, sources)] != sources
    new = build.executed(chapter, folder, short)
    if short:
        assert picture(new).std() > 0.01
        assert [printed([cell]).count("\n") for cell in new.cells] == [
            printed([cell]).count("\n") for cell in saved.cells
        ]
        return
    words, expected = printed(new.cells), printed(saved.cells)
    assert re.sub(NUMBER, "N", words) == re.sub(NUMBER, "N", expected)
    numbers = ([float(n) for n in re.findall(NUMBER, text)] for text in (words, expected))
    np.testing.assert_allclose(*numbers, rtol=0.1, atol=0.06)
    assert np.abs(picture(new) - picture(saved)).mean() < 0.1
