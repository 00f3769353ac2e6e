"""Strict on purpose: silent broadcasting and warnings fail a test; two CPU devices."""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import importlib.metadata
import io
import os
import re
import shutil
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit all of it
    # what one test compiled, another need not, nor the next session: pytest --cache-clear clears it
    programs = Path(__file__).parents[1] / ".pytest_cache" / "d" / "programs"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # no lines of Python in programs
    # a test's programs run for milliseconds: what compiles them soonest
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
        + " --xla_cpu_parallel_codegen_split_count=1"
    )
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end at this flag
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    for library in ("OMP", "OPENBLAS"):  # a worker has a core: threads would wait for each other
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # see dlflax.NOISY_CACHE
os.environ["KERAS_BACKEND"] = "jax"  # the independent implementation that tests compare with
os.environ["DLFLAX_OFFLINE"] = "1"

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# the shapes that signatures state are checked
SHAPED = ["dlflax.data.splits", "dlflax.data.target", "dlflax.models", "dlflax.ops",
          "dlflax.train.augment", "dlflax.train.losses", "dlflax.train.metrics"]  # fmt: skip
checker = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # 0 is a float
jaxtyping.install_import_hook(SHAPED, checker)

from dlflax.report.figures import draw as DRAW  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
    """The libraries stay; what tests leave behind is looked for less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def programs_are_freed():
    """Programs take memory, and memory maps, of which Linux lets a process have 65,530: beyond, XLA
    crashes. So they are kept for other tests of the same shapes, but not without end."""
    yield
    status = Path("/proc/self/status")
    kilobytes = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) if status.exists() else 0
    if not kilobytes or kilobytes > 3e6 or Path("/proc/self/maps").read_bytes().count(b"\n") > 3e4:
        jax.clear_caches()
        with contextlib.suppress(OSError, AttributeError):  # else glibc keeps what it has freed
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """No network, no proxy, and neither the user's TFDS folder nor the user's cache."""
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setenv("DLFLAX_OFFLINE", "1")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Own run and cache folders; no network, so that MNIST is scikit-learn's digits; the folder."""
    from dlflax.run import exit_codes

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_tfds"))
    monkeypatch.setattr(exit_codes, "compilation_cache", lambda: None)
    return tmp_path


@pytest.fixture(autouse=True)
def no_figures_no_baselines(request, monkeypatch):
    """Both take longer than such runs: they are made where a test is marked with `figures`, or with
    `baselines`."""
    from dlflax.report import figures
    from dlflax.run import baseline_scores

    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr(figures, "draw", lambda *_: {})
    if not request.node.get_closest_marker("baselines"):
        monkeypatch.setattr(baseline_scores, "fit_baselines", lambda *_: {})


ZOO = {  # name -> (experiment, its flags)
    "digits": ("mnist", "--dataset digits --model.features 8 --epochs 3"),
    "texts": ("sentiment", "--model rnn --bag-folds 0 --data {root}/notes.csv --model.features 8"
              " --hparams.dropout 0 --epochs 3 --batch-size 8"),
    "notes": ("sentiment", "--model rnn --data {root}/notes.csv --model.features 8 --batch-size 8"),
    "table": ("tabular", "--data {root}/table.csv --bag-folds 0"),
    "wine": ("tabular", "--dataset wine --bag-folds 0"),
    "bag": ("tabular", "--data {root}/table.csv --bag-folds 3 --model.features 8"),
    "series": ("forecast", "--data {root}/series.csv --target y --future-covariates day"
               " --window 14 --horizon 7 --seasonality 7 --bag-folds 0"),
    "sunspots": ("forecast", "--dataset sunspots --window 22 --horizon 11 --bag-folds 2"),
}  # fmt: skip


def write_zoo_data():
    """notes.csv, table.csv and series.csv: texts, a table with gaps and words, a series."""
    rng = np.random.default_rng(0)
    notes = [f"{'good' if i % 2 else 'poor'} day number {i},{i % 2}" for i in range(200)]
    numbers = ["" if i % 9 == 0 else str(rng.normal()) for i in range(120)]
    cells = [f"{n},{'red' if i % 3 else 'blue'},{0.3 * i + i % 3}" for i, n in enumerate(numbers)]
    steps = [f"{i},{np.sin(i / 3) + i / 50:.4f},{i % 7}" for i in range(600)]
    for name, header, lines in (
        ("notes", "text,label", notes), ("table", "a,colour,price", cells),
        ("series", "t,y,day", steps),
    ):  # fmt: skip
        Path(f"{name}.csv").write_text("\n".join([header, *lines]), encoding="utf-8")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """name -> the folder of a finished run, as in ZOO, with its figures: trained once for all
    workers, by the first that asks. Never written to: copy it."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "zoo"
    root.mkdir(exist_ok=True)

    def run_of(name):
        from dlflax import run
        from dlflax.report import figures

        folder = root / name
        with open(root / f"{name}.lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / f"{name}.done").exists():
                patch.chdir(root)
                patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
                patch.setattr("dlflax.run.exit_codes.compilation_cache", lambda: None)
                patch.setattr(figures, "draw", DRAW)
                write_zoo_data()
                experiment, flags = ZOO[name]
                module = importlib.import_module(f"experiments.{experiment}")
                words = ["--epochs", "2", "--baseline", "none", "--run-dir", str(folder)]
                words += flags.format(root=root).split()
                with contextlib.redirect_stdout(io.StringIO()):  # no test's output
                    run.main(
                        experiment, module.PRESETS, getattr(module, "ARCHITECTURES", {}), words
                    )
                (root / f"{name}.done").touch()
        return folder

    return run_of


def write_trials(bound, study, *_):
    """In place of `finish`: the best trial is neither tested nor trained again."""
    from dlflax.tune import finish

    path, trials = bound.sweep.run_dir / "trials.csv", study.finished_trials()
    finish.ranking.write_trials_csv(path, trials, study.direction, bound.sweep.objective)


@pytest.fixture
def trials_alone(monkeypatch):
    """A sweep ends with its table of trials."""
    monkeypatch.setattr("dlflax.tune.sweep.finish", write_trials)


@pytest.fixture
def browser():
    """Chromium; the test is skipped where there is none."""
    if not (chromium := shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    options = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()
