"""Training examples/s of the same network in PyTorch (eager or compiled) and Keras.

python benchmarks/peers.py torch cnn --batch-size 128        (pip install torch timm, or keras)

Data are random and on the device. `throughput.py` and `device.py` print these speeds beside those
of dlflax, and skip networks that a library does not have.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import tyro

SHAPES = {"cnn": (28, 28, 1), "mlp": (28, 28, 1), "resnet18": (224, 224, 3),
          "resnet": (224, 224, 3), "vgg": (224, 224, 3), "efficientnet": (224, 224, 3)}  # fmt: skip
TIMM = {"resnet18": "resnet18", "resnet": "resnet50", "vgg": "vgg16",
        "efficientnet": "efficientnet_lite0"}  # fmt: skip
Peer = Literal["torch", "torch compiled", "keras"]


@dataclasses.dataclass
class Options:
    peer: tyro.conf.Positional[Peer]
    """Library."""
    model: tyro.conf.Positional[Literal[tuple(SHAPES)]]
    """Network."""
    batch_size: int = 128
    """Examples per step."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: PyTorch's autocast, Keras' mixed_bfloat16."""
    seconds: float = 10.0
    """Seconds of the measurement, after two steps."""


def measure(step: Callable[[], object], batch_size: int, seconds: float) -> float:
    """Measures examples/s by the median of a blocking step."""
    step()
    step()
    speeds, begin = [], time.perf_counter()
    while len(speeds) < 5 or time.perf_counter() - begin < seconds:
        clock = time.perf_counter()
        step()
        speeds.append(batch_size / (time.perf_counter() - clock))
    return statistics.median(speeds)


def torch(options: Options) -> float:
    """Measures Adam with cross-entropy, channels last (the faster layout for convolutions)."""
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    height, width, channels = SHAPES[options.model]
    if options.model == "cnn":
        model = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(14 * 14 * 32, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
    elif options.model == "mlp":
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    else:
        import timm

        model = timm.create_model(TIMM[options.model], num_classes=1000)
    layout = {"memory_format": torch.channels_last}
    model = model.to(device, **layout).train()
    classes = 10 if options.model in ("cnn", "mlp") else 1000
    x = torch.rand(options.batch_size, channels, height, width).to(device, **layout)
    y = torch.randint(classes, (options.batch_size,), device=device)
    optimizer, loss = torch.optim.Adam(model.parameters(), 1e-3), nn.CrossEntropyLoss()
    half = options.compute_dtype == "bfloat16"

    def forward(x, y):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return loss(model(x), y)

    if options.peer == "torch compiled":
        forward = torch.compile(forward)

    def step():
        optimizer.zero_grad()
        forward(x, y).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return measure(step, options.batch_size, options.seconds)


def keras(options: Options) -> float:
    """Measures `train_on_batch` of a compiled model on the default backend."""
    import keras

    if options.compute_dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    layers, shape = keras.layers, SHAPES[options.model]
    if options.model in ("cnn", "mlp"):
        stages = [layers.Conv2D(32, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
        stages, width = (stages, 64) if options.model == "cnn" else ([], 128)
        dense = [layers.Dense(width, activation="relu"), layers.Dense(10)]
        model = keras.Sequential([keras.Input(shape), *stages, layers.Flatten(), *dense])
    else:
        make = {"resnet": keras.applications.ResNet50, "vgg": keras.applications.VGG16}
        if options.model not in make:
            raise SystemExit(f"Keras has no {options.model}")
        model = make[options.model](weights=None, classifier_activation=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    rng = np.random.default_rng(0)
    x = np.float32(rng.random((options.batch_size, *shape)))
    y = rng.integers(0, model.output_shape[-1], options.batch_size)
    return measure(lambda: model.train_on_batch(x, y), options.batch_size, options.seconds)


def speed(peer: Peer, model: str, batch_size: int, dtype: str, seconds: float) -> float | None:
    """Measures examples/s in a new process; None if it fails (a library is missing, say)."""
    done = subprocess.run(
        [sys.executable, __file__, peer, model, "--batch-size", str(batch_size)]
        + ["--compute-dtype", dtype, "--seconds", str(seconds)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        print(f"{peer} {model} skipped: {reason}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    print(json.dumps((keras if options.peer == "keras" else torch)(options)))
