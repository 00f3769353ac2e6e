"""Deep learning in JAX and Flax, where training is a pure function of its hyperparameters."""

import importlib
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlflax.automl import fit as fit
    from dlflax.estimators import DLClassifier as DLClassifier
    from dlflax.estimators import DLRegressor as DLRegressor
    from dlflax.inference.model import Model

__version__ = "0.3.0"

STARTED = time.perf_counter()
"""Start of the process, almost, for --time-limit."""

NOISY_CACHE = tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 12)
"""True if jaxlib writes 3 KB to stderr for every cached CPU program that it loads ("Loading XLA:CPU
AOT result. Target machine feature +prefer-no-gather is not supported")."""


def load(
    run_dir: str | Path, log: Callable[[str], None] = print, tta: int = 0,
    experiment: str | None = None,
) -> "Model":  # fmt: skip
    """Loads the trained model of a run folder, a sweep, or a folder of `Model.save`.
    "hf:OWNER/NAME" is a repository of `Model.push` on the Hugging Face hub. tta: number of
    augmented views averaged with each input; experiment: file or module of a run with code outside
    of dlflax."""
    from dlflax.inference import model, share  # here, as `import dlflax` must not import JAX

    if isinstance(run_dir, str) and run_dir.startswith(share.HUB):
        run_dir = share.download(run_dir)
    return model.Model(run_dir, log, tta, experiment)


def __getattr__(name: str) -> Any:
    """Imports what needs JAX when it is used: `import dlflax` takes milliseconds."""
    homes = {"fit": "automl", "DLClassifier": "estimators", "DLRegressor": "estimators"}
    if name not in homes:
        raise AttributeError(f"module 'dlflax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dlflax.{homes[name]}"), name)


if NOISY_CACHE and "jax" not in sys.modules:  # later would be too late
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
