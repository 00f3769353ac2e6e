"""Letters that matplotlib's own font lacks, such as Chinese ones: drawn by a font of this machine.

matplotlib is imported where it is used: start-up time counts.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator

OWN = "DejaVu Sans"  # matplotlib's


def drawn(drawing: Callable[[], object], save: Callable[[object], None]) -> tuple[object, str]:
    """(what `drawing` returns, the letters that no font here has, "" where all are drawn); a
    Figure was given to `save`, with fonts that have its letters."""
    figure, missing = _tried(drawing, save)
    if missing:
        with _fallback(missing):
            figure, missing = _tried(drawing, save)
    return figure, missing


def _tried(drawing, save):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if (figure := drawing()) is not None:
            save(figure)
    missing = set()
    for each in said:
        if found := re.match(r"Glyph (\d+) .* missing from", str(each.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return figure, "".join(sorted(missing))


@contextlib.contextmanager
def _fallback(letters: str) -> Iterator[None]:
    """Text is drawn by matplotlib's font, and these letters by others, as few as have them."""
    import matplotlib
    from matplotlib import font_manager

    names, left = [], set(letters)
    for path in sorted(font_manager.findSystemFonts()):
        try:
            font = font_manager.get_font(path)
            has = left & {chr(code) for code in font.get_charmap()}
            if has:
                font_manager.fontManager.addfont(path)
                names, left = [*names, font.family_name], left - has
        except Exception:  # a damaged font, of which there are many kinds
            continue
        if not left:
            break
    with matplotlib.rc_context({"font.family": [OWN, *names]}):
        yield
