"""The README's Python blocks run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def test_library_example(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    exec("\n".join(BLOCKS[1:]), {})
    assert "'accuracy': 0." in capsys.readouterr().out


def test_own_experiment(tmp_path):
    (tmp_path / "products.py").write_text(BLOCKS[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "products.py", "--epochs", "20", "--run-dir", "run"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["task"] == "Regression" and results["test"]["r2"] > 0.3
