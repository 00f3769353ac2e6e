"""Strict on purpose: silent broadcasting and warnings fail a test; two CPU devices."""

import atexit
import os
import shutil
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit all of it
    # what one test compiled, another need not
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dlflax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    # level 0: a test's programs run for milliseconds, and compiling them would take seconds
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    )
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # see dlflax.NOISY_CACHE
os.environ["KERAS_BACKEND"] = "jax"  # the independent implementation that tests compare with
os.environ["DLFLAX_OFFLINE"] = "1"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def programs_are_freed():
    """Programs take memory maps, of which Linux lets a process have 65,530: beyond, XLA crashes."""
    yield
    jax.clear_caches()


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


@pytest.fixture(scope="session")
def small_run():
    """(folder, module of an experiment, flags): trains two epochs of it into the folder, which has
    the experiment's name."""
    from dlflax import run

    def train(folder, module, *flags):
        words = ["--epochs", "2", "--baseline", "none", "--run-dir", str(folder), *flags]
        run.main(folder.name, module.PRESETS, getattr(module, "ARCHITECTURES", {}), words)

    return train
