"""Training examples/s of a model on one device, and their fraction of its peak.

python benchmarks/throughput.py --model cnn efficientnet --batch-size 256 --compute-dtype bfloat16
python benchmarks/throughput.py --model cnn resnet vgg --beside torch keras

Runs `train.train_steps`, the loop of every run, on random data on the device, and prints
examples/s, FLOPs per example, FLOP/s and model FLOP utilisation (Chowdhery et al. 2022):

    MFU = examples/s * 3 * forward FLOPs per example / peak FLOP/s

3, as a backward pass has about twice the FLOPs of the forward pass. `dlflax.ops.flops` counts
the model's FLOPs, independent of the algorithms. The peak is the published dense one of a known
device, --peak-tflops, or else the speed of a large matrix product.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from peers import SHAPES, Peer
from peers import speed as peer_speed
from stages import write_rows

from dlflax import models, train
from dlflax.report import tables
from dlflax.run.exit_codes import compilation_cache

# (model, shape of an example), as in the experiments, and as usual for photographs
MODELS = {
    "cnn": (models.CNN(num_outputs=10), (28, 28, 1)),
    "mlp": (models.MLP(num_outputs=10), (28, 28, 1)),
    "transformer": (
        models.Transformer(patch_size=4, hidden_dim=128, depth=6, mlp_dim=256, num_outputs=10),
        (32, 32, 3),
    ),
    "small_resnet": (models.SmallResNet(num_outputs=10), (32, 32, 3)),
    "resnet18": (models.ResNet(depth="18", num_outputs=1000), (224, 224, 3)),
    "vgg": (models.VGG(num_outputs=1000), (224, 224, 3)),
    "resnet": (models.ResNet(num_outputs=1000), (224, 224, 3)),
    "efficientnet": (models.EfficientNetLite0(num_outputs=1000), (224, 224, 3)),
}  # fmt: skip

# Peak TFLOP/s, dense, of (bfloat16, float32) matrix products at JAX's default precision: float32 is
# bfloat16 on a TPU, TF32 on an Ampere or later GPU. T4 and V100 have no bfloat16. A JAX device of a
# TPU v2 or v3 is one of two cores of a chip. Sources: Google Cloud's "TPU system architecture"
# (cloud.google.com/tpu/docs), NVIDIA's data sheets, whose values "with sparsity" are halved. Keys:
# prefixes of device_kind; the first match counts.
PEAKS = {
    "TPU v2": (22.5, 22.5),
    "TPU v3": (61.5, 61.5),
    "TPU v4": (275.0, 275.0),
    "TPU v5 lite": (197.0, 197.0),
    "TPU v5e": (197.0, 197.0),
    "TPU v5": (459.0, 459.0),  # v5p
    "TPU v6": (918.0, 918.0),
    "NVIDIA H200": (989.0, 494.0),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100 NVL": (835.0, 417.0),
    "NVIDIA H100": (989.0, 494.0),
    "NVIDIA A100": (312.0, 156.0),
    "NVIDIA L40S": (362.0, 183.0),
    "NVIDIA L4": (121.0, 60.0),
    "Tesla T4": (8.1, 8.1),
    "Tesla V100-SXM2": (15.7, 15.7),
    "Tesla V100-PCIE": (14.0, 14.0),
}


@dataclasses.dataclass
class Options:
    model: tuple[Literal[tuple(MODELS)], ...] = ("cnn", "transformer", "small_resnet")
    """Models to train."""
    batch_size: int = 128
    """Examples per step."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation."""
    seconds: float = 10.0
    """Seconds per measurement after compilation; at least five calls."""
    peak_tflops: float | None = None
    """The device's peak in --compute-dtype (default: published or measured)."""
    beside: tuple[Peer, ...] = ()
    """Libraries to measure too, if they have the same network."""
    rows: Path | None = None
    """JSON file of the results."""


def peak(options: Options, device) -> tuple[float, str]:
    """Returns (peak FLOP/s, source)."""
    if options.peak_tflops:
        return 1e12 * options.peak_tflops, "--peak-tflops"
    for kind, tflops in PEAKS.items():
        if device.device_kind.startswith(kind):
            return 1e12 * tflops[options.compute_dtype == "float32"], "published, dense"
    n = 2048 if device.platform == "cpu" else 8192
    return matmul(n, options.compute_dtype), f"measured, the best of a {n} x {n} product"


def matmul(n: int, dtype: str) -> float:
    """Measures FLOP/s of the fastest of ten products."""
    a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in (0, 1))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    seconds = []
    for _ in range(10):
        clock = time.perf_counter()
        jax.block_until_ready(product(a, b))
        seconds.append(time.perf_counter() - clock)
    return 2 * n**3 / min(seconds)


def measure(options: Options, model, shape) -> tuple[float, int]:
    """Returns (examples/s by the median call, FLOPs of an example's forward pass)."""
    recipe = train.Recipe(model, batch_size=options.batch_size, compute_dtype=options.compute_dtype)
    hparams = train.as_float32(train.Hparams())
    rng = np.random.default_rng(0)
    n = 4 * options.batch_size
    inputs = rng.integers(0, 256, (n, *shape), np.uint8)
    targets = rng.integers(0, model.num_outputs, n, np.int32)
    data = jax.device_put({"inputs": inputs, "targets": targets})
    steps = 1024
    batches = jax.device_put(rng.integers(0, n, (steps, options.batch_size), np.int32))
    init = jax.jit(lambda key: train.init(recipe, hparams, inputs[:1], key))
    state = init(jax.random.key(0))
    forward = train.forward_flops(recipe, state, hparams, inputs[:1])

    def call(state, count):
        clock = time.perf_counter()
        zero, count = train.zero_sums(recipe, hparams, data), np.int32(count)
        state, sums = train.train_steps(
            recipe, state, hparams, data, batches, zero, np.int32(0), count
        )
        jax.block_until_ready((state, sums))
        return state, time.perf_counter() - clock

    for _ in range(2):  # the first compiles
        state, seconds = call(state, 1)
    count = min(steps, max(1, round(options.seconds / 10 / seconds)))
    speeds, begin = [], time.perf_counter()
    while len(speeds) < 5 or time.perf_counter() - begin < options.seconds:
        state, seconds = call(state, count)
        speeds.append(count * options.batch_size / seconds)
    return statistics.median(speeds), forward


def compare(options: Options, top: float) -> list[dict]:
    """Measures a row for each model and contender. top: the device's peak, FLOP/s."""
    rows = []
    for name in options.model:
        dlflax, forward = measure(options, *MODELS[name])
        speeds = {"dlflax": dlflax}
        for peer in options.beside if name in SHAPES else ():
            arguments = name, options.batch_size, options.compute_dtype, options.seconds
            speeds[peer] = peer_speed(peer, *arguments)
        rows += [
            {"model": name, "contender": contender, "compute_dtype": options.compute_dtype,
             "batch_size": options.batch_size, "examples_per_second": speed,
             "forward_flops": forward, "mfu": speed * 3 * forward / top, "times": speed / dlflax}
            for contender, speed in speeds.items() if speed
        ]  # fmt: skip
        write_rows(options.rows, rows)
    return rows


def main(options: Options) -> None:
    device = jax.devices()[0]
    top, source = peak(options, device)
    print(
        f"{device.device_kind} (one of {len(jax.devices())}), {options.compute_dtype}, batch "
        f"{options.batch_size}\npeak: {top / 1e12:.4g} TFLOP/s ({source})\n"
        "MFU = examples/s * 3 * forward FLOPs per example / peak FLOP/s"
    )
    lines = []
    for row in compare(options, top):
        speed, name = row["examples_per_second"], f"{row['model']} {row['contender']}"
        lines.append(
            (name, f"{speed:,.0f}" if speed > 100 else f"{speed:.1f}",
             f"{row['forward_flops']:,}", f"{speed * 3 * row['forward_flops'] / 1e9:,.1f}",
             f"{row['mfu']:.1%}", f"{row['times']:.2f}")
        )  # fmt: skip
    columns = ("", "examples/s", "forward FLOPs", "GFLOP/s", "MFU", "times dlflax")
    tables.print_table(None, columns, lines)


if __name__ == "__main__":
    compilation_cache()
    main(tyro.cli(Options, description=__doc__))
