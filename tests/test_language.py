"""The language of the code and the pages; CONTRIBUTING.md has the rules."""

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    p for room in ("dlflax", "experiments", "sweeps") for p in sorted((ROOT / room).rglob("*.py"))
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
         *sorted((ROOT / "guide").glob("*.py"))]  # fmt: skip
KINDS = "first words", "long sentences", "participles", "variables", "phrases"
ALLOWED = {"connection_made"}  # it overrides a method of asyncio

BANNED = {"What", "Where", "Which", "Whether", "Of", "How", "As", "Those"}
PARTICIPLES = {
    "begun", "bound", "built", "chosen", "drawn", "found", "given", "grown", "held", "kept",
    "known", "left", "made", "seen", "sent", "shown", "taken", "thawed", "thrown", "told", "worn",
    "written",
}  # fmt: skip
VERBS = {"bleed", "breed", "embed", "exceed", "feed", "heed", "need", "proceed", "seed", "shed",
         "speed", "succeed", "wed"}  # fmt: skip
VARIABLES = {"found", "each", "own", "whole", "kept", "ours", "there", "of", "what"}
PHRASES = re.compile(
    r"goes? on|taken for|left out|leave it|is told|knows|\blanes?\b|\bpictures?\b|to the bit", re.I
)


def docstrings(tree):
    """Yields (line, text) of every docstring, those of fields among them."""
    bodies = [getattr(node, "body", None) for node in ast.walk(tree)]
    for body in bodies:
        for before, statement in itertools.pairwise(
            [None, *body] if isinstance(body, list) else ()
        ):
            text = ast.get_docstring(ast.Module([statement], []), clean=False)
            if text is not None and isinstance(before, ast.AnnAssign | ast.Assign | None):
                yield statement.lineno, text


def strings(tree):
    """Yields (line, text) of every piece of a string that is no docstring."""
    documented = set(docstrings(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            piece = node.lineno, node.value
            if piece not in documented:
                yield piece


def names(target):
    """Yields the names that an assignment, a loop or a comprehension binds."""
    if isinstance(target, ast.Name):
        yield target.id
    for part in getattr(target, "elts", ()):
        yield from names(part)


def is_participle(name):
    """True if a function is named by a participle, as its last word."""
    word = name.strip("_").split("_")[0 if "_of" in name else -1]
    return word in PARTICIPLES or (word.endswith("ed") and word not in VERBS)


def hits(path):
    """Yields (kind, place) of everything that is counted in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    place = path.relative_to(ROOT)
    for line, text in docstrings(tree):
        words = text.split()
        if words and words[0].strip(":,.") in BANNED:
            yield "first words", f"{place}:{line} {text[:60]!r}"
        first = re.split(r"(?<=[.!?])\s|\n\s*\n|:\n", text.strip())[0]
        if len(first.split()) > 25:
            yield "long sentences", f"{place}:{line} {first[:60]!r}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and is_participle(node.name):
            yield "participles", f"{place}:{node.lineno} {node.name}"
        targets = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.For | ast.comprehension):
            targets = [node.target]
        for name in (name for target in targets for name in names(target)):
            if name in VARIABLES:
                yield "variables", f"{place}:{getattr(node, 'lineno', '')} {name}"
    for line, text in [*strings(tree), *docstrings(tree)]:
        for phrase in PHRASES.findall(text):
            yield "phrases", f"{place}:{line} {phrase!r}"


@functools.cache
def all_hits():
    counted = [hit for path in FILES for hit in hits(path)]
    for page in PAGES:
        for number, text in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            for phrase in PHRASES.findall(text):
                counted.append(("phrases", f"{page.relative_to(ROOT)}:{number} {phrase!r}"))
    return counted


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_keeps_the_rules(kind):
    places = [place for name, place in all_hits() if name == kind]
    places = [place for place in places if place.split()[-1] not in ALLOWED]
    assert not places, "\n".join([f"{len(places)} {kind}:", *places])


def test_what_is_counted(tmp_path, monkeypatch):
    """One of each kind, and what is none."""
    monkeypatch.setattr("test_language.ROOT", tmp_path)
    path = tmp_path / "x.py"
    path.write_text(
        '"""Whether it is."""\n'
        "def told(): ...\n"
        "def embed(): ...\n"
        "def as_taken(found):\n"
        '    """Returns the words."""\n'
        "    each = [own for own in found]\n"
        "    return 'it goes on'\n"
    )
    counted = sorted((kind, place.split()[-1]) for kind, place in hits(path))
    assert counted == [
        ("first words", "is.'"), ("participles", "as_taken"), ("participles", "told"),
        ("phrases", "on'"), ("variables", "each"), ("variables", "own"),
    ]  # fmt: skip
