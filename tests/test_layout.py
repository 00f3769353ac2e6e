"""The layout that `pyproject.toml` and the README promise."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("dlflax", "experiments", "sweeps") for path in (ROOT / folder).rglob("*.py")
)


def test_imports_go_one_way():
    """The contracts of import-linter in pyproject.toml."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_linen_is_for_models():
    """Nowhere else but where a saved model is known as one."""
    allowed = {"dlflax/run/saved.py"}
    using = {
        str(path.relative_to(ROOT)) for path in FILES
        if re.search(r"flax\.(linen|training)|from flax import linen", path.read_text())
        and "/models/" not in str(path)
    }  # fmt: skip
    using.discard("dlflax/run/experiment.py")  # as the name of a library, in a tuple
    assert using == allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 80, f"{node.name} has {lines} lines"
