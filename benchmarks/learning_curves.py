"""How many epochs a search needs: a table of learning curves, and searches that look them up.

python benchmarks/learning_curves.py            # the searches, on the table that is here
python benchmarks/learning_curves.py --build    # trains the table anew: 960 configurations of an
                                                # MLP x 27 epochs x 3 seeds on two data sets

The data: scikit-learn's digits (1,000 to train, 500 to validate), and the first 3,000 pictures of
Fashion-MNIST at 14 x 14 (2,000 and 1,000). learning_curves.npz: validation losses, float32
(configurations, seeds, epochs), NaN from where one diverged.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import tyro
from optuna.distributions import FloatDistribution

FILE = Path(__file__).with_suffix(".npz")
EPOCHS, SEEDS = 27, 3
GRID = {
    "learning_rate": np.geomspace(1e-4, 1e-1, 16),
    "dropout": np.linspace(0, 0.8, 5),
    "l2": np.geomspace(1e-7, 1e-2, 4),
    "label_smoothing": np.linspace(0, 0.3, 3),
}
SPACE = {
    name: FloatDistribution(values[0], values[-1], log=name in ("learning_rate", "l2"))
    for name, values in GRID.items()
}
WIDTHS = {"digits": (32, 32), "fashion": (64, 64)}  # of the hidden layer, and the batch


@dataclasses.dataclass
class Options:
    build: bool = False
    """Train the table anew."""
    fashion_mnist: Path | None = None
    """Folder with the IDX files of Fashion-MNIST, to build with (default: it is downloaded)."""
    seeds: int = 20
    """Searches, each with another seed."""


def data(name: str, folder: Path | None):
    """(training, validation) arrays."""
    if name == "digits":
        from sklearn.datasets import load_digits

        images, targets = load_digits(return_X_y=True)
        inputs, sizes = np.float32(images.reshape(-1, 8, 8, 1) / 16), (1000, 1500)
    else:
        from dlflax.data import Images

        loaded = Images(dataset="fashion_mnist", data_dir=folder).load(print)
        pictures, targets = loaded.train["inputs"][:3000], loaded.train["targets"][:3000]
        halves = pictures.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
        inputs, sizes = np.float32(halves / 255), (2000, 3000)
    order = np.random.default_rng(0).permutation(sizes[1])
    parts = order[: sizes[0]], order[sizes[0] :]
    return [{"inputs": inputs[p], "targets": np.int32(targets[p])} for p in parts]


def build(options: Options) -> None:
    """Writes FILE."""
    from dlflax.models import MLP
    from dlflax.train import Hparams, Recipe
    from dlflax.tune.layout import Layout, use_all_cores
    from dlflax.tune.population import Population

    use_all_cores()
    import jax

    devices = len(jax.devices())
    table = {}
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    lanes = 20 * devices
    for name, (features, batch_size) in WIDTHS.items():
        splits = data(name, options.fashion_mnist)
        recipe = Recipe(MLP(features=(features,)), batch_size=batch_size)
        losses = np.full((len(points), SEEDS, EPOCHS), np.nan, np.float32)
        for start in range(0, len(points), lanes):
            numbers = [
                Hparams(**{key: float(value) for key, value in point.items()})
                for point in points[start : start + lanes]
            ]
            seeds = np.arange(len(numbers) * SEEDS, dtype=np.uint32).reshape(-1, SEEDS)
            members = Population(
                recipe, numbers, seeds + start * SEEDS, *splits, epochs=EPOCHS,
                layout=Layout("vmap", devices, lanes * SEEDS),
            )  # fmt: skip
            members.train(EPOCHS)
            for i, row in enumerate(members.histories):
                for j, history in enumerate(row):
                    losses[start + i, j, : len(history)] = [each["val_loss"] for each in history]
            print(f"{name}: {start + len(numbers)} of {len(points)}", flush=True)
        table[name] = losses
    np.savez_compressed(FILE, **table)
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.1f} MB")


def main(options: Options) -> None:
    if options.build:
        build(options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
