"""The README's Python blocks run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dlflax import run
from experiments import mnist

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
LOADED, OWN, *EXAMPLE = BLOCKS


def test_a_loaded_model(place):
    folder = re.search(r'load\("(.*?)"', LOADED)[1]
    flags = ["--dataset", "digits", "--model", "mlp", "--epochs", "1", "--run-dir", folder]
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*flags, "--baseline", "none"])
    pixels = np.full((40, 40), 255, np.uint8)
    pixels[8:32, 17:23] = 0
    Image.fromarray(pixels).save("digit.png")
    names = {}
    shown = LOADED.replace("model.predict", "answers = model.predict")
    exec("\n".join(line for line in shown.splitlines() if "evaluate" not in line), names)
    (answer,) = names["answers"]
    assert Path(folder, "model.stablehlo").exists()
    assert answer["file"] == "digit.png" and set(answer["probabilities"]) == set("0123456789")


def test_library_example(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    exec("\n".join(EXAMPLE), {})
    assert "'accuracy': 0." in capsys.readouterr().out


def test_own_experiment(tmp_path):
    (tmp_path / "products.py").write_text(OWN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "products.py", "--epochs", "20", "--run-dir", "run"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["task"] == "Regression" and results["test"]["r2"] > 0.3
