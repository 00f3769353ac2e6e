"""The README and the site: their Python runs as it stands, their commands and flags are there."""

import importlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlflax import run
from experiments import mnist

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "guide/README.md"]


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text("utf-8")
    if path.suffix == ".py":  # a chapter of the guide
        text = re.sub(r"(?m)^# ?", "", text)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= 150


@pytest.mark.slow
def test_a_loaded_model(place):
    (loaded,) = (block for block in blocks(ROOT / "docs/deploy.md", "python") if "load(" in block)
    folder = re.search(r'load\("(.*?)"', loaded)[1]
    flags = ["--dataset", "digits", "--model", "mlp", "--model.features", "32", "--epochs", "1"]
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*flags, "--run-dir", folder])
    pixels = np.full((40, 40), 255, np.uint8)
    pixels[8:32, 17:23] = 0
    Image.fromarray(pixels).save("digit.png")
    names = {}
    shown = loaded.replace("model.predict", "answers = model.predict")
    exec("\n".join(line for line in shown.splitlines() if "evaluate" not in line), names)
    (answer,) = names["answers"]
    assert Path(folder, "model.stablehlo").exists()
    assert answer["file"] == "digit.png" and set(answer["probabilities"]) == set("0123456789")


SLOW = pytest.mark.slow


@pytest.mark.parametrize("page", ["README.md", pytest.param("docs/library.md", marks=SLOW)])
def test_library_example(isolated, monkeypatch, capsys, page):
    exec("\n".join(blocks(ROOT / page, "python")), {})
    assert "'accuracy': 0." in capsys.readouterr().out


@pytest.mark.slow
def test_own_experiment(tmp_path):
    own = blocks(ROOT / "docs/your_own_experiment.md", "python")[0]
    (tmp_path / "products.py").write_text(own)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "products.py", "--epochs", "20", "--run-dir", "run"]
    command += ["--baseline", "none"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["task"] == "Regression" and results["test"]["r2"] > 0.3


@pytest.mark.slow
def test_own_search(tmp_path):
    sampler, rule = blocks(ROOT / "docs/your_own_search.md", "python")
    (tmp_path / "mutation.py").write_text(sampler)
    (tmp_path / "pbt.py").write_text(rule)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    sweep = "-m sweeps.bayes_opt mnist --model mlp --model.features 32 --epochs 1 --trials 4 "
    sweep += "--population-size 1 --baseline none --ensemble-size 0 "
    sweep += "--sampler mutation:Mutation --study own"
    for command in ("pbt.py", sweep):
        command = [sys.executable, *command.split()]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    results = json.loads((tmp_path / "runs/sweeps/digits_pbt/results.json").read_text())
    assert results["trials"] == 8 + 3 * 4 and results["test"]["accuracy"] > 0.9
    assert json.loads((tmp_path / "runs/sweeps/own/results.json").read_text())["trials"] == 4


@pytest.mark.slow
def test_the_gaussian_process_in_plain_optuna(capsys):
    names = {}
    exec("\n".join(blocks(ROOT / "docs/sweeps.md", "python")), names)
    assert "'x': " in capsys.readouterr().out and names["study"].best_value < 1


def commands(path: Path):
    """(module, words) of each `python -m experiments.X ...` in a page's blocks, without those of
    files that a reader writes."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"python -m ((?:experiments|sweeps)[.\w]*)(.*)", line)
            if found and not re.search(r"\w\.py\b|my_package|mutation:", found[2]):
                yield found[1], shlex.split(re.sub(r"[|;&].*", "", found[2]), comments=True)


class Reached(Exception):
    """A command has understood its words."""


class Stop:
    """In the place of what a command would do."""

    def __init__(self, *_, **__):
        raise Reached


def every(paths):
    known = {(module, tuple(words)): path for path in paths for module, words in commands(path)}
    return [
        pytest.param(module, words, id=f"{path.stem}-{module}-{' '.join(words)}"[:80])
        for (module, words), path in known.items()
    ]


def check_command(monkeypatch, module, words):
    for name in ("export", "model", "serve"):  # while the class is replaced, they would keep `Stop`
        importlib.import_module(f"dlflax.inference.{name}")
    for place in (
        "dlflax.run.train_command.run", "dlflax.run.train_command.cross_validate",
        "dlflax.tune.sweep_command.run_sweep", "dlflax.inference.predict.Predictor",
        "dlflax.tune.pool.sweep_report.write_report", "dlflax.run.compare.compare",
        "dlflax.run.find_learning_rate.find_learning_rate", "experiments.listing.list_all",
    ):  # fmt: skip
        monkeypatch.setattr(place, Stop)
    monkeypatch.setattr(sys, "argv", [module, *words])
    if "--resume" in words:  # of a run that is not there
        return
    with pytest.raises((Reached, SystemExit)) as ended, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        runpy.run_module(module, run_name="__main__")
    assert ended.type is Reached or "--help" in words or "--help-all" in words


@pytest.mark.parametrize(("module", "words"), every([README]))
def test_commands_of_the_readme(place, monkeypatch, module, words):
    check_command(monkeypatch, module, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "words"), every([*PAGES, *sorted((ROOT / "guide").glob("[0-9]*.py"))])
)
def test_commands_of_the_site(place, monkeypatch, module, words):
    check_command(monkeypatch, module, words)


@pytest.mark.parametrize("path", [README, *PAGES], ids=lambda path: path.name)
def test_files_that_are_named_are_there(path):
    """Links to files of the repository, and commands that run one of them."""
    text = path.read_text("utf-8")
    links = {link for link in re.findall(r"\]\(([^)#:\s]+)[)#\s]", text)}
    links = {link for link in links if not link.startswith("guide/")}  # pages that are made
    assert all((path.parent / link).exists() for link in links), links
    scripts = re.findall(r"(?:python|pytest) ((?:benchmarks|guide|tests)/\w+\.py)", text)
    scripts += [
        f"{name.replace('.', '/')}.py" for name in re.findall(r"-m (benchmarks\.\w+)", text)
    ]
    assert all((ROOT / script).exists() for script in scripts), scripts


def test_how_tos_for_hardware_that_was_never_at_hand_say_so():
    for name in ("gpus_and_tpus", "many_machines"):
        first = (ROOT / f"docs/{name}.md").read_text("utf-8").split("\n\n")[1]
        assert re.fullmatch(r"\*.*(not yet|yet:).*\*", first, re.DOTALL), name


@pytest.mark.slow
def test_types_of_the_public_functions():
    """mypy, on a program that uses them: [tool.mypy] in pyproject.toml."""
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", os.devnull],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    """Its commands run from it, in an empty folder, with the page of `serve` and the data."""
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "*.egg-info", "tests")
    )
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
    )
    (wheel,) = tmp_path.glob("dlflax-*.whl")
    files = {
        path.relative_to(ROOT).as_posix()
        for name in ("dlflax", "experiments", "sweeps") for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    assert {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n} == files
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    empty.mkdir()
    environment = {
        **os.environ, "PYTHONPATH": str(site), "DLFLAX_OFFLINE": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "TFDS_DATA_DIR": str(tmp_path / "no_tfds"),
    }  # fmt: skip
    for command in (
        "-c 'import dlflax; print(dlflax.__file__)'",
        "-m dlflax.cli list",
        "-m experiments.forecast --model mlp --epochs 1 --baseline none --run-dir run",
        "-m experiments.export run --to stablehlo",
        "-m sweeps.random_search mnist --model mlp --model.features 32 --epochs 1 --trials 2"
        " --baseline none --ensemble-size 0 --run-dir sweep",
    ):
        ran = subprocess.run(
            [sys.executable, *shlex.split(command)],
            cwd=empty, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert "import dlflax" not in command or ran.stdout.startswith(str(site))
    assert (site / "dlflax/py.typed").exists() and (site / "dlflax/inference/serve.html").exists()


def test_an_editable_install_comes_before_the_folder_of_the_clone(tmp_path):
    """A script beside a clone finds the package in it, not the clone itself, which has its name."""
    build = f"import hatchling.build; hatchling.build.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("dlflax-*.whl")
    site, beside = tmp_path / "site", tmp_path / "beside"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.suffix for path in site.iterdir()} == {".pth", ".dist-info"}
    (beside / "dlflax" / "dlflax").mkdir(parents=True)
    script = beside / "script.py"
    script.write_text(
        f"import site; site.addsitedir({str(site)!r})\n"
        "import dlflax, experiments, sweeps; print(dlflax.load, dlflax.__file__)"
    )
    # without those that are installed here: -S reads none of their .pth files
    installed = Path(importlib.util.find_spec("jaxlib").origin).parents[1]
    ran = subprocess.run(
        [sys.executable, "-S", script], env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout.endswith(f"{ROOT / 'dlflax' / '__init__.py'}\n"), ran.stderr


def test_a_sweep_s_command_for_a_cloud_is_understood(place, monkeypatch):
    text = (ROOT / "docs/cluster/sweep.sky.yaml").read_text("utf-8")
    (line,) = re.findall(r"python -m (sweeps\.\w+)(.*)", text)
    check_command(monkeypatch, line[0], shlex.split(line[1]))
