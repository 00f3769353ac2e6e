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
