"""The notebook for Colab: its file, and all of its cells run on a CPU, shrunk, on real digits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "colab_tpu.ipynb"
SMALL = {
    "EPOCHS": 2, "TRIALS": 2, "TRIAL_EPOCHS": 1, "POPULATION": 2,
}  # fmt: skip

# Runs {id: code}, read from stdin, as a kernel would, in one namespace. IPython is not needed:
# what is displayed is printed. Then training once more, which is finished already, and, as if on
# Colab, the cells for Drive and the canvas.
KERNEL = """
import base64, builtins, json, sys, types
builtins.get_ipython = lambda: types.SimpleNamespace(run_line_magic=lambda name, line: None)
from pathlib import Path

def shown(filename=None, width=None):
    assert Path(filename).stat().st_size > 100
    return f"picture {Path(filename).name}"

ipython, of_display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
of_display.HTML, of_display.Image = "html {}".format, shown
of_display.display = lambda what: print("displayed", what)
ipython.version_info = (9, 0)  # matplotlib looks
sys.modules |= {"IPython": ipython, "IPython.display": of_display}
names = {"__name__": "__main__"}

def execute(name, code):
    print(f"cell {name}")
    exec(compile(code, f"cell {name}", "exec"), names)

cells = json.load(sys.stdin)
for name, code in cells.items():
    execute(name, code)
execute("training", cells["training"])

google, colab = types.ModuleType("google"), types.ModuleType("google.colab")
colab.drive = types.SimpleNamespace(mount=lambda at: print("mounted", at))
data = base64.b64encode(Path("digit.png").read_bytes()).decode()
colab.output = types.SimpleNamespace(eval_js={"drawn": "data:image/png;base64," + data}.get)
sys.modules |= {"google": google, "google.colab": colab}
Path("digit.png").unlink()
execute("drive", cells["drive"])
execute("draw", cells["draw"])
execute("answer", cells["answer"])
"""


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_cells(notebook) -> dict[str, str]:
    """{id: source}"""
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    return {cell["id"]: "".join(cell["source"]) for cell in cells}


def test_file(notebook):
    """nbformat 4.5, without outputs, for a TPU; short, and without a training loop of its own."""
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["accelerator"] == "TPU"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len(notebook["cells"]) <= 16
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", id_) for id_ in ids)
    for cell in notebook["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is None and cell["outputs"] == []
            keys |= {"execution_count", "outputs"}
        assert set(cell) == keys and cell["cell_type"] in ("code", "markdown")
        assert all(len(line.rstrip("\n")) <= 100 for line in cell["source"])
    cells = code_cells(notebook)
    lines = [line for code in cells.values() for line in code.splitlines() if line.strip()]
    assert len(lines) <= 120
    for word in ("train_steps", "fit(", "grad", "optax", "def ", "for epoch"):
        assert not any(word in line for line in lines)
    tags = {cell["id"]: cell["metadata"].get("tags") for cell in notebook["cells"]}
    assert tags.pop("parameters") == ["parameters"] and not any(tags.values())


INSTALL = """
import importlib.util, json, subprocess, sys, types
from pathlib import Path

ran = []
importlib.util.find_spec = lambda name: None  # a fresh runtime: dlflax is not installed
subprocess.run = lambda words, **_: ran.append(words) or types.SimpleNamespace(stdout="cpu 0.10.1")
if sys.argv[1] == "upload":
    files = types.SimpleNamespace(upload=lambda: Path("dlflax-main.zip").touch())
    sys.modules["google.colab"] = types.SimpleNamespace(files=files)
names = {}
for cell in json.load(sys.stdin):
    exec(cell, names)
print(ran[-1][-1])
"""


@pytest.mark.parametrize(
    ("there", "installed"),
    [
        ("dlflax/dlflax/py.typed", "dlflax"),  # a clone beside it
        ("dlflax/py.typed", "."),  # a clone that it is run in
        ("../dlflax/py.typed", ".."),  # in notebooks/ of a clone
        ("dlflax-main.zip", "dlflax-main.zip"),
        ("my_dlflax-0.2.0.tar.gz", "my_dlflax-0.2.0.tar.gz"),
        ("upload", "dlflax-main.zip"),  # Colab asks for it
        ("dlflax.egg-info/PKG-INFO", None),
    ],
)
def test_finds_what_to_install_without_an_edit(notebook, tmp_path, there, installed):
    folder = tmp_path / "clone" / "place"
    folder.mkdir(parents=True)
    if there != "upload":
        (folder / there).parent.mkdir(parents=True, exist_ok=True)
        (folder / there).touch()
    cells = code_cells(notebook)
    ran = subprocess.run(
        [sys.executable, "-c", INSTALL, there], cwd=folder, text=True, capture_output=True,
        input=json.dumps([cells["parameters"], cells["install"]]),
    )  # fmt: skip
    if installed is None:
        assert "put a clone of dlflax, or an archive, beside this notebook" in ran.stderr
    else:
        assert (
            Path(ran.stdout.strip().replace("[cuda]", "")).resolve()
            == (folder / installed).resolve()
        ), ran.stderr


@pytest.mark.slow
def test_runs_on_a_cpu(notebook, tmp_path):
    cells = code_cells(notebook)
    for name, value in SMALL.items():
        cells["parameters"], n = re.subn(
            rf"^{name} = [^#\n]+", f"{name} = {value!r}  ", cells["parameters"], flags=re.MULTILINE
        )
        assert n == 1
    magic = re.compile(r"^( *)%(\w+) (.*)$", re.MULTILINE)  # IPython's own translation
    cells = {id_: magic.sub(r"\1get_ipython().run_line_magic('\2', '\3')", code)
             for id_, code in cells.items()}  # fmt: skip
    environment = {
        **os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "DLFLAX_OFFLINE": "1",
        "TFDS_DATA_DIR": str(tmp_path / "no_tfds"), "JAX_NUMPY_RANK_PROMOTION": "raise",
        # without a number of devices: the notebook has to see to that in time
        "XLA_FLAGS": re.sub(r"\S+device_count=\d+", "", os.environ["XLA_FLAGS"]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KERNEL], input=json.dumps(cells), text=True,
        cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    said = {}  # by cell; of a cell that ran twice both
    for id_, text in re.findall(r"^cell (\w+)\n(.*?)(?=^cell |\Z)", done.stdout, re.M | re.S):
        said[id_] = said.get(id_, "") + text
    assert set(said) == set(cells) and said["install"] == ""  # nothing to install here

    devices, _, warning = said["devices"].partition("displayed html <h1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert len(devices.splitlines()) == cores and "only a CPU!" in warning

    results = json.loads((tmp_path / "runs/mnist/first/results.json").read_text())
    assert results["epochs_run"] == 2 and results["test"]["accuracy"] > 0.5
    for picture in ("curves", "confusion_matrix"):
        assert f"displayed picture {picture}.png" in said["training"]
    assert "macro F1" in said["training"] and "is finished already" in said["training"]

    folder = tmp_path / "runs/sweeps/first"
    assert json.loads((folder / "results.json").read_text())["complete"] == 2
    assert f"{min(cores, 2)} cpu device(s) shared 2 trials, 2 at once" in said["sweeping"]
    assert 'srcdoc="&lt;!doctype html&gt;' in said["sweeping"]
    assert str(folder / "report.html") in said["tensorboard"]

    mounted = Path("/content/drive")
    assert f"mounted {mounted}" in said["drive"] and str(mounted / "MyDrive") in said["drive"]
    assert "<canvas" in said["draw"]
    answers = re.findall(r"^(\d)  ([\d.]+)%$", said["answer"], re.MULTILINE)
    assert len(answers) == 6 and answers[:3] == answers[3:]  # the same digit, from PIL and a canvas
    assert float(answers[0][1]) >= float(answers[1][1]) > 0
