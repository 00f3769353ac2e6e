"""Fallback fonts for letters that Matplotlib's own font lacks, such as Chinese ones."""

import contextlib
import re
import warnings
from collections.abc import Callable


def draw(drawing: Callable[[], object], save: Callable[[object], None]) -> tuple[object, str]:
    """Draws and saves a figure, with fallback fonts if letters are missing. Returns (figure or
    None, letters that no installed font has)."""
    import matplotlib

    figure, missing = _draw(drawing, save)
    if missing:
        with matplotlib.rc_context({"font.family": ["DejaVu Sans", *_find_families(missing)]}):
            figure, missing = _draw(drawing, save)
    return figure, missing


def _draw(drawing, save):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if (figure := drawing()) is not None:
            save(figure)
    missing = set()
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+) .* missing from", str(warning.message)):
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return figure, "".join(sorted(missing))


def _find_families(letters):
    """Returns the families of installed fonts that have the letters."""
    from matplotlib import font_manager

    families, codes = [], {ord(letter) for letter in letters}
    for path in sorted(font_manager.findSystemFonts()):
        if not codes:
            break
        with contextlib.suppress(Exception):  # damaged fonts raise many kinds
            font = font_manager.get_font(path)
            if covered := codes & font.get_charmap().keys():
                font_manager.fontManager.addfont(path)
                families.append(font.family_name)
                codes -= covered
    return families
