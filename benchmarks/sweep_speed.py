"""Trials per minute of a random search over learning rate, dropout and L2.

python benchmarks/sweep_speed.py --data FOLDER     (pip install torch tensorflow keras)

Contenders: `python -m sweeps.random_search`; the same training without a search; Keras with a new
model per trial (as KerasTuner does, TensorFlow backend); Optuna with jit inside the objective (as
in the usual Flax examples); Optuna with PyTorch. All use Adam, the same images and epochs, and
validate after every epoch. The measurement begins after the first population (or first trial of the
others), without startup and compilation.
"""

import dataclasses
import gzip
import importlib.util
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from stages import write_rows

NEEDS = {"keras": ("keras", "tensorflow"), "torch": ("torch",)}
VALIDATION = 0.1


@dataclasses.dataclass
class Options:
    data: Path | None = None
    """Folder with MNIST's four IDX files (default: random images of the same size)."""
    models: tuple[str, ...] = ("mlp", "cnn")
    """mlp: 784-128-10; cnn: convolution 32 3x3, max-pool, dense 64."""
    trials: tuple[int, ...] = (16, 64)
    """Trials of dlflax and of the training without a search."""
    slow_trials: int = 6
    """Trials of the others, whose speed does not depend on the number."""
    images: int = 10_000
    """Training images; a tenth more are for validation."""
    epochs: int = 1
    """Epochs per trial."""
    contenders: tuple[str, ...] = ("dlflax", "floor", "keras", "jit_inside", "torch")
    """Contenders to compare."""
    population: tuple[int, ...] = (16,)
    """Population sizes of dlflax and of the training without a search."""
    rows: Path | None = None
    """JSON file of the results."""


def write_random_images(options: Options, folder: str) -> None:
    """Writes four IDX files in MNIST's format."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = round(options.images / (1 - VALIDATION))
    for name, count in (("train", images), ("t10k", 1000)):
        pixels, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            Path(folder, f"{name}-{kind}-ubyte").write_bytes(head + np.uint8(array).tobytes())


def write_subset(options, folder: str, test_images: int = 1000) -> None:
    """Writes the four IDX files of options.data with options.images images."""
    images = round(options.images / (1 - VALIDATION))
    for name, count in (("train", images), ("t10k", test_images)):
        for kind, shape in (("images-idx3", (28, 28)), ("labels-idx1", ())):
            (path,) = list(options.data.glob(f"{name}-{kind}-ubyte*"))[:1]
            raw = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
            head = 4 + 4 * (1 + len(shape))
            size = 784 if shape else 1
            cut = raw[:4] + struct.pack(">I", count) + raw[8:head] + raw[head : head + count * size]
            Path(folder, f"{name}-{kind}-ubyte").write_bytes(cut)


def dlflax(folder: str, model: str, trials: int, epochs: int, population: int) -> float:
    """Measures the shipped command, with suggestions, records and event files, from the end of its
    first population to the end of its last."""
    with tempfile.TemporaryDirectory() as run_dir:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "sweeps.random_search", "--model", model]
            + ["--trials", str(trials + population), "--population-size", str(population)]
            + ["--epochs", str(epochs), "--data", folder, "--run-dir", run_dir],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        ends = [time.perf_counter() for line in process.stdout if line.startswith("trials ")]
        if process.wait():
            raise SystemExit("sweeps.random_search failed")
    return 60 * trials / (ends[-1] - ends[0])


def hparams(trials: int):
    import numpy as np

    rng = np.random.default_rng(0)
    return [
        {"learning_rate": 10 ** rng.uniform(-4, -2), "dropout": rng.uniform(0, 0.5),
         "l2": 10 ** rng.uniform(-7, -3)}
        for _ in range(trials)
    ]  # fmt: skip


def floor(folder: str, model: str, trials: int, epochs: int, size: int) -> float:
    """Measures populations without a search."""
    import numpy as np

    from dlflax import data, train
    from dlflax.train import population
    from dlflax.train.layout import layout_for, use_all_cores
    from experiments.mnist import ARCHITECTURES, PRESETS

    use_all_cores()
    splits = data.split(data.load("mnist", folder, log=lambda _: None).train, VALIDATION)
    recipe = dataclasses.replace(PRESETS["default"].recipe, model=ARCHITECTURES[model])
    layout = layout_for(recipe, train.Hparams(), splits[0]["inputs"][:1], size)
    splits = population.put_on_devices(layout, *splits)
    clocks = []
    for first in range(0, trials + size, size):
        batch = [train.Hparams(**h) for h in hparams(trials + size)[first:][:size]]
        seeds = np.arange(first, first + len(batch))[:, None]
        members = population.Population(recipe, batch, seeds, *splits, epochs=epochs, layout=layout)
        members.train(epochs)
        clocks.append(time.perf_counter())
    return 60 * trials / (clocks[-1] - clocks[0])


def arrays(folder, dataset="mnist", seed=0):
    import numpy as np

    from dlflax import data

    splits = data.split(data.load(dataset, folder, log=lambda _: None).train, VALIDATION, seed)
    return [(np.float32(s["inputs"]) / np.float32(255), s["targets"]) for s in splits]


def keras_network(model: str, h, metrics):
    """Returns the compiled network with these hyperparameters."""
    import keras

    layers = keras.layers
    l2 = {"kernel_regularizer": keras.regularizers.L2(h["l2"])}
    stages = [layers.Conv2D(32, 3, padding="same", activation="relu", **l2),
              layers.MaxPooling2D()] if model == "cnn" else []  # fmt: skip
    width = 64 if model == "cnn" else 128
    net = keras.Sequential(
        [*stages, layers.Flatten(), layers.Dense(width, activation="relu", **l2),
         layers.Dropout(h["dropout"]), layers.Dense(10, **l2)]
    )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(h["learning_rate"]), loss, metrics=metrics)
    return net


def torch_network(model: str, dropout: float):
    """Returns the same network in PyTorch."""
    from torch import nn

    drop = nn.Dropout(dropout)
    if model == "cnn":
        stages = nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        return nn.Sequential(*stages, nn.Linear(6272, 64), nn.ReLU(), drop, nn.Linear(64, 10))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), drop, nn.Linear(128, 10))


def keras(folder: str, model: str, trials: int, epochs: int) -> float:
    """Measures Keras with a new model per trial."""
    os.environ["KERAS_BACKEND"], os.environ["TF_CPP_MIN_LOG_LEVEL"] = "tensorflow", "3"
    import keras

    (x, y), val = arrays(folder)

    def train(h):
        keras.backend.clear_session()
        net = keras_network(model, h, ["accuracy"])
        net.fit(x, y, 32, epochs, verbose=0, validation_data=val, validation_batch_size=256)

    return optimize(train, trials)


def jit_inside(folder: str, model: str, trials: int, epochs: int) -> float:
    """Measures a train step that each trial compiles, with constant hyperparameters."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    (x, y), (val_x, val_y) = arrays(folder)

    class Net(nn.Module):
        dropout: float

        @nn.compact
        def __call__(self, x, train):
            if model == "cnn":
                x = nn.max_pool(nn.relu(nn.Conv(32, (3, 3))(x)), (2, 2), (2, 2))
            x = nn.relu(nn.Dense(64 if model == "cnn" else 128)(x.reshape(len(x), -1)))
            return nn.Dense(10)(nn.Dropout(self.dropout, deterministic=not train)(x))

    def train(h):
        net, optimizer = Net(h["dropout"]), optax.adam(h["learning_rate"])
        params = net.init(jax.random.key(0), x[:1], False)
        opt_state = optimizer.init(params)

        def loss_of(params, x, y, key):
            logits = net.apply(params, x, True, rngs={"dropout": key})
            kernels = sum((p**2).sum() for p in jax.tree.leaves(params) if p.ndim > 1)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss + h["l2"] * kernels

        @jax.jit
        def step(params, opt_state, x, y, key):
            gradient = jax.grad(loss_of)(params, x, y, key)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return optax.apply_updates(params, updates), opt_state

        @jax.jit
        def evaluate(params, x, y):
            logits = net.apply(params, x, False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).sum()

        key, rng = jax.random.key(1), np.random.default_rng(0)
        for _ in range(epochs):
            order = rng.permutation(len(y))[: len(y) // 32 * 32].reshape(-1, 32)
            for index in order:
                key, now = jax.random.split(key)
                params, opt_state = step(params, opt_state, x[index], y[index], now)
            total = sum(
                float(evaluate(params, val_x[i : i + 256], jnp.asarray(val_y[i : i + 256])))
                for i in range(0, len(val_y), 256)
            )
        return total / len(val_y)

    return optimize(train, trials)


def torch(folder: str, model: str, trials: int, epochs: int) -> float:
    """The usual eager loop, data in memory as tensors."""
    import torch
    from torch import nn

    (x, y), (val_x, val_y) = (
        (torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y).long())
        for x, y in arrays(folder)
    )

    def train(h):
        net = torch_network(model, h["dropout"])
        optimizer = torch.optim.Adam(net.parameters(), h["learning_rate"])
        cross_entropy = nn.CrossEntropyLoss()
        kernels = [p for p in net.parameters() if p.ndim > 1]
        for _ in range(epochs):
            net.train()
            for index in torch.randperm(len(y)).split(32):
                optimizer.zero_grad()
                penalty = h["l2"] * sum((p**2).sum() for p in kernels)
                (cross_entropy(net(x[index]), y[index]) + penalty).backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                losses = [
                    float(cross_entropy(net(a), b)) * len(b)
                    for a, b in zip(val_x.split(256), val_y.split(256), strict=True)
                ]
        return sum(losses) / len(val_y)

    return optimize(train, trials)


def optimize(train, trials: int) -> float:
    """Measures trials per minute of train(hyperparameters) in Optuna's loop, after the first."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    clocks = []

    def objective(trial):
        value = train(
            {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
             "dropout": trial.suggest_float("dropout", 0, 0.5),
             "l2": trial.suggest_float("l2", 1e-7, 1e-3, log=True)}
        )  # fmt: skip
        clocks.append(time.perf_counter())
        return value or 0.0

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, trials + 1)
    return 60 * trials / (clocks[-1] - clocks[0])


def measure(name: str, *arguments) -> float:
    if name == "dlflax":
        return dlflax(*arguments)
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps([name, *arguments])],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main(options: Options) -> None:
    contenders = []
    for name in options.contenders:
        missing = [n for n in NEEDS.get(name, ()) if importlib.util.find_spec(n) is None]
        if missing:
            print(f"{name} skipped: {' and '.join(missing)} not installed")
        else:
            contenders.append(name)
    print(f"{options.images:,} images, {options.epochs} epochs, batch 32")
    print("model  contender   trials  at once  trials/min  dlflax is")
    with tempfile.TemporaryDirectory() as folder:
        (write_subset if options.data else write_random_images)(options, folder)
        rows = []
        for model in options.models:
            reference = None
            for name, trials, *size in settings(options, contenders):
                speed = measure(name, folder, model, trials, options.epochs, *size)
                reference = speed if name == "dlflax" else reference
                rows.append(
                    {"model": model, "contender": name, "trials": trials,
                     "at_once": size[0] if size else 1, "trials_per_minute": speed,
                     "times as fast as dlflax": speed / reference if reference else None}
                )  # fmt: skip
                write_rows(options.rows, rows)
                is_other = reference and reference != speed
                ratio = f"{reference / speed:.2f} times as fast" if is_other else ""
                print(
                    f"{model:5}  {name:10}  {trials:6}  {rows[-1]['at_once']:7}  {speed:10,.0f}  "
                    f"{ratio}",
                    flush=True,
                )


def settings(options: Options, contenders: list[str]):
    """Yields (name, trials), and for dlflax the population size too."""
    for name in contenders:
        if name in ("dlflax", "floor"):
            yield from ((name, t, p) for p in options.population for t in options.trials)
        else:
            yield name, options.slow_trials


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, *arguments = json.loads(sys.argv[2])
        functions = {"floor": floor, "keras": keras, "jit_inside": jit_inside, "torch": torch}
        print(json.dumps(functions[name](*arguments)))
    else:
        main(tyro.cli(Options, description=__doc__))
