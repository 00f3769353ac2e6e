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


def test_no_file_name_stands_twice():
    """A name finds its file; source.py and encoder.py are those of each kind of data."""
    names = [path.name for path in (ROOT / "dlflax").rglob("*.py")]
    twice = {name for name in names if names.count(name) > 1}
    assert twice <= {"__init__.py", "source.py", "encoder.py"}


def test_linen_is_for_models():
    """Only in models/ and ops/, in an ensemble, and where a saved model is recognized."""
    allowed = {"dlflax/config/saved.py", "dlflax/config/serialize.py", "dlflax/train/ensemble.py"}
    using = {
        str(path.relative_to(ROOT)) for path in FILES
        if re.search(r"flax\.(linen|training)|from flax import linen", path.read_text())
        and not re.search("/(models|ops)/", str(path))
    }  # fmt: skip
    using.discard("dlflax/config/experiment.py")  # as the name of a library, in a tuple
    assert using == allowed


def test_files_and_functions_are_short():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        most = 40 if path.name == "execute.py" else 80  # a run is read from top to bottom
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= most, f"{path}: {node.name} has {lines} lines"


def test_every_refusal_is_one_sentence_about_something():
    """It names a flag, or what a placeholder holds (a file, a field, a value), in one line."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError"):
                continue
            (message,) = node.args
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            words = [each.value if isinstance(each, ast.Constant) else "{}" for each in parts]
            text, place = "".join(words), f"{path.name}:{node.lineno}"
            assert "\n" not in text, place
            assert text.endswith((".", "?", "{}")), f"{place}: {text}"
            named = r"\{\}|--[a-z]|\.json|predict|evaluate|files|texts|inputs|column|fold|^(was|un)"
            assert re.search(named, text), f"{place} names nothing: {text}"


def test_data_and_report_import_nothing_heavy():
    heavy = "PIL flax jax matplotlib requests rich sklearn tensorboardX tensorflow"
    heavy += " tensorflow_datasets tokenizers vaderSentiment"
    names = "dlflax.data, dlflax.data.text.source, dlflax.report.figures, dlflax.report.progress"
    code = f"import sys, {names}; print(set('{heavy}'.split()) & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


START = """
import contextlib, io, runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    runpy.run_module(module, run_name="__main__")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        (("experiments.mnist", "--help"), set()),
        (("sweeps.random_search", "mnist", "--help"), {"optuna", "safetensors", "sqlalchemy"}),
        pytest.param(
            ("experiments.mnist", "--epochs", "1", "--run-dir", "run", "--baseline", "none"),
            {"orbax", "tensorboardX", "matplotlib", "PIL"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_start_imports_what_it_needs(place, flags, more):
    """Of all that is heavy."""
    heavy = {
        "PIL", "array_record", "grain", "huggingface_hub", "keras", "matplotlib", "optuna", "orbax",
        "pandas", "pytest", "safetensors", "scipy", "sklearn", "sqlalchemy", "tensorboard",
        "tensorboardX", "tensorflow", "tensorflow_datasets", "tokenizers", "torch",
    }  # fmt: skip
    command = [sys.executable, "-c", START, *flags]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert heavy & set(ran.stdout.split()) == more


def test_tensorboard_leaves_torch_alone(tmp_path):
    """It is installed beside dlflax on Colab, and takes seconds to import."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "board.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from dlflax.report.loggers import TensorBoard\n"
        "TensorBoard('mnist', Path('board')).close()\n"
        "print('torch' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "board.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False"]
    assert list(tmp_path.glob("board/tensorboard/events*"))
