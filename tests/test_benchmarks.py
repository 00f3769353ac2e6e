"""The runner of benchmarks, whose stages may hang or fail; kills, which change no bit."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import stages

    monkeypatch.setattr(stages, "environment", lambda: {"machine": "this one"})
    return stages


@pytest.mark.slow
def test_a_stage_that_hangs_is_stopped_with_its_children(stages, tmp_path):
    child = tmp_path / "child"
    hang = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', \"import time, pathlib; time.sleep(3); "
        f'pathlib.Path({str(child)!r}).touch()"])\n'
        "print('so far', flush=True)\n"
        "time.sleep(60)"
    )
    write = "import sys; open(sys.argv[1], 'w').write('[{\"speed\": 1234.5, \"of\": null}]')"
    listed = [
        stages.Stage("hangs", ("-c", hang), 1.5),
        stages.Stage("fails", ("-c", "raise SystemExit('no data')"), 30),
        stages.Stage("works", ("-c", write, "{rows}"), 30),
    ]
    assert stages.run(listed, tmp_path / "out") == 2
    found = json.loads((tmp_path / "out/results.json").read_text())["stages"]
    assert [name for name in found] == ["hangs", "fails", "works"]
    assert found["hangs"]["outcome"] == "stopped at its limit of 2 s"
    assert "so far" in found["hangs"]["printed"]
    assert (found["fails"]["outcome"], found["fails"]["printed"]) == (
        "failed with exit code 1", "no data\n"
    )  # fmt: skip
    assert found["works"]["rows"] == [{"speed": 1234.5, "of": None}]
    page = (tmp_path / "out/results.md").read_text()
    assert "| 1,234 |  |" in page and "this one" in page and "no data" in page
    time.sleep(3)
    assert not child.exists()


def test_every_stage_is_a_file_that_takes_its_flags(stages, tmp_path):
    import all as every
    import device

    out = tmp_path / "out"
    of_all = every.stages(every.Options(tmp_path, out, tmp_path, tmp_path))
    of_device = device.stages(device.Options(out, tmp_path))
    assert {stage.name for stage in of_device} == set(device.NAMES)
    assert sum(stage.seconds for stage in of_device) <= 600
    root = Path(__file__).parents[1]
    for stage in [*of_all, *of_device]:
        first = stage.arguments[0]
        name = stage.arguments[1].replace(".", "/") + ".py" if first == "-m" else first
        assert name == "pytest.py" or (root / name).exists()
        text = (root / name).read_text() if name != "pytest.py" else ""
        for flag in {flag for flag in stage.arguments if flag.startswith("--") and text}:
            field = flag.removeprefix("--").replace("-", "_")
            assert f"\n    {field}:" in text, (name, flag)
    sys.modules.pop("all")


@pytest.fixture
def kills(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import kills

    return kills


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("folds", ""), ("sweep", " --trials 8")])
def test_what_is_killed_ends_as_what_is_not(kills, name, more, tmp_path):
    """Of a run see tests/test_run.py, which kills it at chosen moments."""
    flags = "--model mlp --model.features 32 --epochs 3 --baseline none"
    options = kills.Options(kills=1, seed=166, flags=flags + more, repeat=False)
    assert kills.measure(name, options, tmp_path)


@pytest.mark.slow
def test_kills_see_one_bit_and_no_times(kills, zoo, tmp_path):
    folder = Path(shutil.copytree(zoo("digits"), tmp_path / "run"))
    values = kills.contents(folder)
    name = next(name for name in values if "['params']['logits']['bias']" in name)
    changed = values[name].copy()
    changed.view(np.int32)[3] ^= 1
    assert kills.differences(values, {**values, name: changed}) == [f"{name}: 1 of 10 numbers"]

    results = json.loads((folder / "results.json").read_text())
    results["seconds"] += 1
    results["test"]["loss"] = np.nextafter(results["test"]["loss"], 1)
    (folder / "results.json").write_text(json.dumps(results))
    (difference,) = kills.differences(values, kills.contents(folder))
    assert difference.startswith("results.json test loss: ")
    (folder / "metrics.csv").unlink()
    assert len(kills.differences(values, kills.contents(folder))) > 20


@pytest.mark.slow
def test_workers_and_drivers_that_are_killed_change_nothing(monkeypatch, tmp_path):
    """14 seconds of benchmarks/worker_kills.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import worker_kills

    options = worker_kills.Options(workers=2, seconds=14, every=4, driver_kills=1, trials=40)
    assert worker_kills.compare(options, "random", "local", tmp_path / "sweep")
