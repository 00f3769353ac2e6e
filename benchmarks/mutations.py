"""Mutation testing: the fraction of one-line faults that the tests detect.

python benchmarks/mutations.py --count 40 --tests tests
python benchmarks/mutations.py --count 40 --tests ../older/tests --marks "slow or not slow"

samples faults by a seed in train/, data/, tune/pool/rules.py, tune/suggest/samplers.py,
tune/pool/pool.py, inference/predict.py and transfer/features.py: another operator, constant or
comparison, or a missing statement. Runs the test files that import the changed module, with -x, in
a copy of the repository. Prints a line for each fault, and the number of detected faults.
"""

import argparse
import ast
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
PATTERNS = ("train/**/*.py", "data/**/*.py", "tune/pool/rules.py", "tune/suggest/samplers.py",
            "tune/pool/pool.py", "inference/predict.py", "transfer/features.py")  # fmt: skip
SWAPS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "==": "!=", "!=": "==", "and": "or", "or": "and", "is": "is not", "is not": "is",
    "in": "not in", "not in": "in",
}  # fmt: skip
DROPPED = ast.AugAssign | ast.Raise | ast.Expr


def faults(text):
    """Yields (start, stop, replacement) of every fault of a source text."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node):
        return (starts[node.lineno - 1] + node.col_offset,
                starts[node.end_lineno - 1] + node.end_col_offset)  # fmt: skip

    def between(left, right):
        start, stop = span(left)[1], span(right)[0]
        match = re.search(r"not in|is not|and|or|in|is|//|[<>=!]=|[-+*/<>]", text[start:stop])
        if match and match[0] in SWAPS:
            yield start + match.start(), start + match.end(), SWAPS[match[0]]

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.BinOp) and not _is_text(node):
            yield from between(node.left, node.right)
        elif isinstance(node, ast.BoolOp):
            yield from between(*node.values[:2])
        elif isinstance(node, ast.Compare):
            yield from between(node.left, node.comparators[0])
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            yield *span(node), repr(value)
        elif isinstance(node, DROPPED) and not isinstance(
            getattr(node, "value", None), ast.Constant | ast.Yield | ast.YieldFrom
        ):
            yield *span(node), "pass"


def _is_text(node):
    return any(isinstance(side, ast.JoinedStr | ast.Constant) and not isinstance(
        getattr(side, "value", None), int | float) for side in (node.left, node.right))  # fmt: skip


def sample(count, seed):
    """Samples faults: (file, start, stop, replacement)."""
    rng, samples = random.Random(seed), []
    files = sorted({path for pattern in PATTERNS for path in (ROOT / "dlflax").glob(pattern)})
    texts = [path.read_text(encoding="utf-8") for path in files]
    while len(samples) < count:
        ((path, text),) = rng.choices([*zip(files, texts, strict=True)], list(map(len, texts)))
        if text.isascii() and (candidates := list(faults(text))):
            samples.append((path, *rng.choice(candidates)))
    return samples


def files_for(path, tests):
    """Returns the test files that import the module of a source file, else its package."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    package, _, name = module.rpartition(".")
    package, module = re.escape(package), re.escape(module)
    direct = rf"(from|import) {module}\b|from {package} import (\([^)]*|[^\n]*)\b{name}\b"
    texts = {file: file.read_text(encoding="utf-8") for file in sorted(tests.glob("test_*.py"))}
    return [file for file, text in texts.items() if re.search(direct, text)] or [
        file for file, text in texts.items() if re.search(rf"(from|import) {package}\b", text)
    ]


def run(path, start, stop, new, tests, marks, seconds):
    """Runs pytest with this fault in a copy of the repository. Returns (exit code, seconds)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", "tests")
        shutil.copytree(ROOT, copy, ignore=ignored)
        shutil.copytree(tests, copy / "tests")
        text = path.read_text(encoding="utf-8")
        changed = copy / path.relative_to(ROOT)
        changed.write_text(text[:start] + new + text[stop:], encoding="utf-8")
        files = [f"tests/{file.name}" for file in files_for(path, tests)]
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-x", "-m", marks, *files]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        try:
            code = subprocess.run(
                command, cwd=copy, capture_output=True, timeout=seconds, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            code = 1  # a fault that hangs is detected
        code = 1 if code == 2 else code  # pytest-xdist exits with 2 after -x
        return code, time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of faults to run")
    parser.add_argument("--tests", type=pathlib.Path, default=ROOT / "tests")
    parser.add_argument("--marks", default="not slow", help="pytest -m")
    parser.add_argument("--seconds", type=int, default=900, help="limit per fault")
    parser.add_argument("--list", action="store_true", help="list the faults without running them")
    options = parser.parse_args()
    detected = count = 0
    for number, fault in enumerate(sample(options.count, options.seed)):
        if options.only is not None and number not in options.only:
            continue
        path, start, stop, new = fault
        text = path.read_text(encoding="utf-8")
        line = text.count("\n", 0, start) + 1
        where = f"{path.relative_to(ROOT)}:{line}: {text[start:stop].splitlines()[0]} -> {new}"
        if options.list:
            print(f"{number:3} {where}")
            continue
        tests = options.tests.resolve()
        code, seconds = run(*fault, tests, options.marks, options.seconds)
        detected, count = detected + (code == 1), count + 1
        verdict = {0: "MISSED", 1: "detected"}.get(code, f"code {code}")
        print(f"{number:3} {verdict:9} {seconds:5.0f} s  {where}", flush=True)
    print(f"{detected} of {count} detected")


if __name__ == "__main__":
    main()
