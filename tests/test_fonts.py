"""Letters that matplotlib's own font lacks."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from dlflax.report import figures, fonts

pytestmark = pytest.mark.figures
FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def letters_of(font):
    return set(font_manager.get_font(FOLDER / font).get_charmap())


@pytest.fixture(scope="module")
def letter():
    """One that a second font has and matplotlib's own has not."""
    return chr(min(letters_of("STIXGeneral.ttf") - letters_of("DejaVuSans.ttf")))


def draw(tmp_path, name, said):
    matrix = np.array([[5, 1], [2, 7]])
    drawing = {"matrix": lambda: figures.confusion_matrix(matrix, (name, "dog"))}
    path = figures.draw(drawing, tmp_path, said.append)["matrix"]
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L")).astype(int)


def test_another_font_has_the_letter(tmp_path, monkeypatch, letter):
    """A damaged one before it is passed over."""
    broken = tmp_path / "a.ttf"
    broken.write_bytes(b"no font")
    said, family = [], matplotlib.rcParams["font.family"]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    boxes = draw(tmp_path, letter, said)
    (note,) = said
    assert letter in note and "no installed font" in note and "matrix.png" in note
    found = [str(broken), str(FOLDER / "STIXGeneral.ttf")]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    letters = draw(tmp_path, letter, said)
    assert said == [note] and boxes.shape == letters.shape and (boxes != letters).any()
    assert matplotlib.rcParams["font.family"] == family


def test_only_missing_letters_cost_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: pytest.fail("searched"))
    said = []
    draw(tmp_path, "Katze, кошка, γάτα", said)
    assert not said


def test_other_warnings_are_not_swallowed():
    with pytest.warns(UserWarning, match="something else"):
        fonts.draw(lambda: warnings.warn("something else", stacklevel=1), print)
