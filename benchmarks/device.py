"""Benchmarks of one accelerator, in ten minutes.

python benchmarks/device.py --out FOLDER         (pip install -e '.[test]' torch timm)

Tests for the device, examples/s and the utilization of the peak beside PyTorch and Keras, sweeps
with many trials at once, and a speed run. Writes results.json and results.md into FOLDER after
every stage. Each stage is a process with a time limit. Data are random, except for the speed run.
"""

import dataclasses
import os
from pathlib import Path
from typing import Literal

import tyro
from stages import Stage, run

MODELS = ("cnn", "resnet", "transformer")
NAMES = (
    "tests", "speed_float32", "speed_bfloat16", "fine_tuning", "sweep_mlp", "sweep_cnn", "mnist",
)  # fmt: skip


@dataclasses.dataclass
class Options:
    out: Path
    """Folder of the results."""
    data: Path | None = None
    """Folder with MNIST's four IDX files, for the speed run."""
    only: tuple[Literal[NAMES], ...] = NAMES
    """Stages to run."""
    at_once: tuple[int, ...] = (64, 1024)
    """Population sizes of the sweeps."""
    batch_size: int = 256
    """Examples per step."""
    seconds: float = 3.0
    """Seconds per measurement."""
    limit: float = 1.0
    """Factor of the stages' time limits, whose sum is ten minutes."""


def stages(options: Options) -> list[Stage]:
    """Returns the stages, the most important first."""
    peers = "--beside", "torch", "torch compiled", "keras"
    common = "--rows", "{rows}", "--seconds", str(options.seconds)
    batch = "--batch-size", str(options.batch_size)

    def speed(name, dtype, models, seconds):
        flags = *common, *batch, "--compute-dtype", dtype, "--model", *models, *peers
        return Stage(name, ("benchmarks/throughput.py", *flags), seconds)

    def sweep(model, seconds):
        most = max(options.at_once)
        return Stage(
            f"sweep_{model}",
            ("benchmarks/sweep_speed.py", "--rows", "{rows}", "--models", model,
             "--population", *map(str, options.at_once), "--trials", str(most),
             "--slow-trials", "3", "--contenders", "dlflax", "torch", "keras"),
            seconds,
        )  # fmt: skip

    tests = "-m", "pytest", "-p", "no:xdist", "-o", "addopts=-q", "tests/test_device.py"
    listed = [
        Stage("tests", tests, 120),
        speed("speed_bfloat16", "bfloat16", MODELS, 110),
        sweep("mlp", 80),
        sweep("cnn", 80),
        speed("speed_float32", "float32", MODELS, 110),
        speed("fine_tuning", "float32", ("efficientnet",), 50),
    ]
    if options.data:
        listed.append(
            Stage(
                "mnist",
                ("benchmarks/speedrun.py", "--data", str(options.data.resolve()),
                 "--rows", "{rows}", "--seeds", "1"),
                50,
            )
        )  # fmt: skip
    return [
        dataclasses.replace(stage, seconds=options.limit * stage.seconds)
        for stage in listed if stage.name in options.only
    ]  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "")  # all, as the tests compare with the CPU
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # PyTorch and Keras need some
    options = tyro.cli(Options, description=__doc__)
    raise SystemExit(min(1, run(stages(options), options.out.resolve())))
