"""The README's Python block runs as it stands."""

import re
from pathlib import Path


def test_library_example(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    codes = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec("\n".join(codes), {})
    assert "'accuracy': 0." in capsys.readouterr().out
