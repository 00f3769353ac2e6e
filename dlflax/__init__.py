"""Deep learning in JAX and Flax, where training is a pure function of its hyperparameters."""

import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    """Loads the trained model of a run folder or of a sweep. `predict` takes arrays, files, texts
    and tables; `evaluate` and `export` are methods too. tta: number of augmented views averaged
    with each input; experiment: --experiment of `predict`."""
    from dlflax.inference.model import (
        Model,  # imported here, as `import dlflax` must not import JAX
    )

    return Model(run_dir, log, tta, experiment)


if NOISY_CACHE and "jax" not in sys.modules:  # later would be too late
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
