"""Seconds per epoch of MNIST with the classic CNN: `experiments.mnist`, Keras and PyTorch.

python benchmarks/epoch_speed.py --data FOLDER_WITH_MNIST_IDX_FILES
(pip install tensorflow keras torch; a missing library is skipped)

Every contender is a process of its own, one after the other, on the same 54,000 images, with 6,000
validation images after each epoch: conv 32 3x3, ReLU, max-pool 2x2, dense 64, dense 10, Adam 1e-3.
Prints the median epoch after the first, the process of `--epochs` epochs at each batch size, and
the time from process start to the end of the first step.
"""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from stages import write_rows

FIRST_STEP = """
import sys
from dlflax import data, train
from dlflax.run.exit_codes import compilation_cache
from experiments.mnist import PRESETS
compilation_cache()
config = PRESETS["default"]
train_set, val = data.split(data.load("mnist", sys.argv[1]).train)
train.fit(config.recipe, config.hparams, train_set, val, epochs=1, on_steps=lambda *_: sys.exit())
"""


@dataclasses.dataclass
class Options:
    data: Path
    """Folder with MNIST's four IDX files."""
    batch_sizes: tuple[int, ...] = (32, 128, 256)
    """Batch sizes to compare."""
    epochs: int = 5
    """Epochs per process."""
    contenders: tuple[str, ...] = ("dlflax", "keras", "torch")
    """Libraries to compare."""
    rows: Path | None = None
    """JSON file of the results."""


def dlflax(data_dir: Path, batch_size: int, epochs: int) -> tuple[list[float], float]:
    """Runs the shipped command with report and checkpoints. Caches are empty, so the process time
    includes decoding and compilation."""
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "experiments.mnist", "--data", str(data_dir)]
            + ["--run-dir", f"{folder}/run", "--batch-size", str(batch_size)]
            + ["--epochs", str(epochs)],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "XDG_CACHE_HOME": folder},
        )  # fmt: skip
        seconds = time.perf_counter() - clock
        lines = Path(folder, "run", "metrics.csv").read_text(encoding="utf-8").splitlines()
        column = lines[0].split(",").index("seconds")
        return [float(line.split(",")[column]) for line in lines[1:]], seconds


def arrays(data_dir):
    import numpy as np

    from dlflax import data

    train, val = data.split(data.load("mnist", data_dir, log=lambda _: None).train)
    return [
        (np.float32(part["inputs"]) / np.float32(255), part["targets"]) for part in (train, val)
    ]


def keras(data_dir: Path, batch_size: int, epochs: int) -> list[float]:
    """Trains by Keras on TensorFlow."""
    os.environ["KERAS_BACKEND"], os.environ["TF_CPP_MIN_LOG_LEVEL"] = "tensorflow", "3"
    import keras

    (x, y), val = arrays(data_dir)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    clocks = [time.perf_counter()]
    timer = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: clocks.append(time.perf_counter())
    )
    model.fit(
        x, y, batch_size, epochs, verbose=0, validation_data=val, callbacks=[timer],
        validation_batch_size=256,
    )  # fmt: skip
    return [b - a for a, b in zip(clocks[:-1], clocks[1:], strict=True)]


def torch(data_dir: Path, batch_size: int, epochs: int) -> list[float]:
    """Trains by the usual eager loop, with tensors in memory."""
    import torch
    from torch import nn

    (x, y), (val_x, val_y) = (
        (torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y).long())
        for x, y in arrays(data_dir)
    )
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(14 * 14 * 32, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer, loss = torch.optim.Adam(model.parameters(), 1e-3), nn.CrossEntropyLoss()
    seconds = []
    for _ in range(epochs):
        clock = time.perf_counter()
        for index in torch.randperm(len(y)).split(batch_size):
            optimizer.zero_grad()
            loss(model(x[index]), y[index]).backward()
            optimizer.step()
        with torch.no_grad():
            for a, b in zip(val_x.split(256), val_y.split(256), strict=True):
                loss(model(a), b)
        seconds.append(time.perf_counter() - clock)
    return seconds


def measure(name: str, options: Options, batch_size: int) -> tuple[float, float]:
    """Measures seconds of the median epoch after the first, and of the process."""
    if name == "dlflax":
        epochs, seconds = dlflax(options.data, batch_size, options.epochs)
    else:
        arguments = json.dumps([name, str(options.data), batch_size, options.epochs])
        clock = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--child", arguments],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - clock
        epochs = json.loads(done.stdout.splitlines()[-1])
    return statistics.median(epochs[1:]), seconds


def main(options: Options) -> None:
    names = []
    for name in options.contenders:
        needs = {"dlflax": ("dlflax",), "keras": ("keras", "tensorflow"), "torch": ("torch",)}[name]
        missing = [need for need in needs if importlib.util.find_spec(need) is None]
        if missing:
            print(f"{name} skipped: {' and '.join(missing)} not installed")
        else:
            names.append(name)
    print(
        f"{'batch':>5}  {'contender':9}  {'s/epoch':>8}  {'ratio':>6}  {'process':>8}  {'ratio':>6}"
    )
    rows = []
    for batch_size in options.batch_sizes:
        results = {}
        for name in names:
            epoch, process = results[name] = measure(name, options, batch_size)
            ratios = [epoch / results[names[0]][0], process / results[names[0]][1]]
            rows.append(
                {"batch_size": batch_size, "contender": name, "seconds an epoch": epoch,
                 "times an epoch": ratios[0], "seconds a process": process,
                 "times a process": ratios[1]}
            )  # fmt: skip
            write_rows(options.rows, rows)
            print(
                f"{batch_size:5}  {name:9}  {epoch:8.2f}  {ratios[0]:5.1f}x  {process:6.1f} s  "
                f"{ratios[1]:5.1f}x",
                flush=True,
            )
    seconds = []
    for _ in range(4):  # the first fills the compilation cache
        clock = time.perf_counter()
        subprocess.run([sys.executable, "-c", FIRST_STEP, str(options.data)], check=True)
        seconds.append(time.perf_counter() - clock)
    print(
        f"dlflax, process start to the end of the first step and exit: {seconds[0]:.1f} s, with a "
        f"warm compilation cache {', '.join(f'{s:.1f}' for s in seconds[1:])} s"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, *arguments = json.loads(sys.argv[2])
        print(json.dumps({"keras": keras, "torch": torch}[name](*arguments)))
    else:
        main(tyro.cli(Options, description=__doc__))
