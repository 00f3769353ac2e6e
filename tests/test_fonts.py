"""Letters that matplotlib's own font lacks."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from dlflax.report import figures

pytestmark = pytest.mark.figures
FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def letters_of(font):
    return set(font_manager.get_font(FOLDER / font).get_charmap())


def draw(tmp_path, name, said):
    matrix = np.array([[5, 1], [2, 7]])
    drawing = {"matrix": lambda: figures.confusion_matrix(matrix, (name, "dog"))}
    path = figures.draw(drawing, tmp_path, said.append)["matrix"]
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L")).astype(int)


def test_another_installed_font_has_the_letter(tmp_path, monkeypatch):
    letter = chr(min(letters_of("STIXGeneral.ttf") - letters_of("DejaVuSans.ttf")))
    said, family = [], matplotlib.rcParams["font.family"]
    boxes = draw(tmp_path, letter, said)
    (note,) = said
    assert f"matrix.png: Glyph {ord(letter)} " in note and "missing" in note
    monkeypatch.setattr(figures, "FONTS", ("DejaVu Sans", "No such font", "STIXGeneral"))
    letters = draw(tmp_path, letter, said)
    assert said == [note] and boxes.shape == letters.shape and (boxes != letters).any()
    assert matplotlib.rcParams["font.family"] == family
    draw(tmp_path, "Katze, кошка, γάτα", said)
    assert said == [note]


def test_other_warnings_are_not_swallowed(tmp_path):
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        drawing = {"a": lambda: warnings.warn("something else", stacklevel=1)}
        assert figures.draw(drawing, tmp_path, said.append) == {}
    assert said == [f"note: {tmp_path / 'a.png'}: something else"]
