"""Epochs of a search, measured on a table of learning curves.

python benchmarks/learning_curves.py            # the searches, on learning_curves.npz
python benchmarks/learning_curves.py --auto     # the trials at which --trials auto stops
python benchmarks/learning_curves.py --build    # trains the table: 960 configurations of an MLP x
                                                # 27 epochs x 3 seeds on two data sets

Data: scikit-learn's digits (1,000 for training, 500 for validation), and the first 3,000 images of
Fashion-MNIST at 14 x 14 (2,000 and 1,000). learning_curves.npz: validation losses, float32
(configurations, seeds, epochs), NaN after a divergence.
"""

import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from optuna.distributions import FloatDistribution
from yardsticks import run

from dlflax.tune.pool.rules import Budget, Curve, FreezeThaw, Halving, Stop
from dlflax.tune.suggest import stopping
from dlflax.tune.suggest.encoding import Encoding, sobol
from dlflax.tune.sweep_config import Sweep

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
WIDTHS = {"digits": (32, 32), "fashion": (64, 64)}  # (hidden width, batch size)


@dataclasses.dataclass
class Options:
    build: bool = False
    """Train the table again."""
    auto: bool = False
    """Measure the trials at which `--trials auto` stops, instead of the searches."""
    fashion_mnist: Path | None = None
    """Folder with the IDX files of Fashion-MNIST for --build (default: download)."""
    seeds: int = 20
    """Searches, each with another seed."""
    first_seed: int = 0
    """First seed."""
    trials: int = 64
    """Full trials of the reference search; the others have a quarter of its epochs."""


def data(name: str, folder: Path | None):
    """Returns (training, validation) arrays."""
    if name == "digits":
        from sklearn.datasets import load_digits

        images, targets = load_digits(return_X_y=True)
        inputs, sizes = np.float32(images.reshape(-1, 8, 8, 1) / 16), (1000, 1500)
    else:
        from dlflax.data import Images

        loaded = Images(dataset="fashion_mnist", data=folder).load(print)
        images, targets = loaded.train["inputs"][:3000], loaded.train["targets"][:3000]
        halves = images.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
        inputs, sizes = np.float32(halves / 255), (2000, 3000)
    order = np.random.default_rng(0).permutation(sizes[1])
    splits = order[: sizes[0]], order[sizes[0] :]
    return [{"inputs": inputs[rows], "targets": np.int32(targets[rows])} for rows in splits]


def build(options: Options) -> None:
    """Trains the table and writes FILE."""
    from dlflax.models import MLP
    from dlflax.train import Hparams, Recipe
    from dlflax.train.layout import Layout, use_all_cores
    from dlflax.train.population import Population

    use_all_cores()
    import jax

    devices = len(jax.devices())
    table = {}
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    size = 20 * devices
    for name, (features, batch_size) in WIDTHS.items():
        splits = data(name, options.fashion_mnist)
        recipe = Recipe(MLP(features=(features,)), batch_size=batch_size)
        losses = np.full((len(points), SEEDS, EPOCHS), np.nan, np.float32)
        for start in range(0, len(points), size):
            hparams = [
                Hparams(**{key: float(value) for key, value in point.items()})
                for point in points[start : start + size]
            ]
            seeds = np.arange(len(hparams) * SEEDS, dtype=np.uint32).reshape(-1, SEEDS)
            members = Population(
                recipe, hparams, seeds + start * SEEDS, *splits, epochs=EPOCHS,
                layout=Layout("vmap", devices, size * SEEDS),
            )  # fmt: skip
            members.train(EPOCHS)
            for i, row in enumerate(members.histories):
                for j, history in enumerate(row):
                    losses[start + i, j, : len(history)] = [epoch["val_loss"] for epoch in history]
            print(f"{name}: {start + len(hparams)} of {len(points)}", flush=True)
        table[name] = losses
    np.savez_compressed(FILE, **table)
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.1f} MB")


@functools.cache
def table(name: str) -> np.ndarray:
    """Returns the best losses so far (configurations, seeds, epochs), +inf for a divergence."""
    losses = np.load(FILE)[name].astype(np.float64)
    losses = np.where(np.maximum.accumulate(~np.isfinite(losses), axis=2), np.inf, losses)
    diverged = ~np.isfinite(losses[:, :, -1:])
    return np.where(diverged, np.inf, np.minimum.accumulate(losses, axis=2))


def curve(name: str, params: dict[str, float], seed: int) -> np.ndarray:
    """Returns the curve (epochs,) of the nearest configuration of the grid."""
    index = 0
    for param, values in GRID.items():
        scale = np.log if SPACE[param].log else np.asarray
        nearest = np.argmin(np.abs(scale(values) - scale(params[param])))
        index = index * len(values) + int(nearest)
    return table(name)[index, seed % SEEDS]


class Result(NamedTuple):
    """The losses of a search's best configuration."""

    observed: float
    """The least loss of the search."""
    true: float
    """The mean final loss over the table's seeds."""


def result(name: str, observed: float, params: dict[str, float]) -> Result:
    ends = [curve(name, params, seed)[-1] for seed in range(SEEDS)]
    return Result(observed, float(np.mean(ends)))


def full_trials(name: str, seed: int, trials: int, population: int):
    """Runs full trials by the Gaussian process."""
    return run(lambda p: curve(name, p, seed)[-1], SPACE, "gp", trials, seed, population)


def full(name: str, seed: int, trials: int, population: int) -> Result:
    """Searches by full trials."""
    best = min(full_trials(name, seed, trials, population), key=lambda trial: trial.value)
    return result(name, best.value, best.params)


def by_rule(rule, name: str, seed: int, trials: int, population: int, epochs: float) -> Result:
    """Searches by trials from a Sobol sequence, and a rule that continues or stops them. No trial
    begins once these epochs are used and all others are over."""
    encoding, curves, used = Encoding(SPACE), [], 0
    while used < epochs or not all(c.is_over for c in curves):
        steps = rule.decide(curves, population, Budget(trials, EPOCHS))
        if not steps:
            break
        for step in steps:
            if isinstance(step, Stop):
                curves[step.trial] = curves[step.trial]._replace(is_over=True)
                continue
            number = len(curves) if step.trial is None else step.trial
            if step.trial is None:
                curves.append(Curve(number, sobol(encoding, seed, number), []))
            values = [float(v) for v in curve(name, curves[number].params, seed)[: step.until]]
            is_over = len(values) == EPOCHS or not np.isfinite(values[-1])
            used += len(values) - len(curves[number].values)
            curves[number] = curves[number]._replace(values=values, is_over=is_over)
    best = min(curves, key=lambda c: (c.best(), c.number))
    return result(name, best.best(), best.params)


def halving(name: str, seed: int, budget: int, population: int = 16) -> Result:
    """Searches by successive halving (`--search halving`) with a budget of epochs."""
    return by_rule(Halving(3), name, seed, 10**6, population, budget)


def freeze_thaw(name: str, seed: int, budget: int, population: int) -> Result:
    """Searches by `--search freeze-thaw` with a budget of epochs."""
    return by_rule(FreezeThaw(), name, seed, budget // EPOCHS, population, math.inf)


def compare_searches(job) -> list[Result]:
    name, seed, trials = job
    quarter = trials // 4 * EPOCHS
    return [
        full(name, seed, trials, 16),
        full(name, seed, trials // 4, 4),
        halving(name, seed, quarter),
        freeze_thaw(name, seed, quarter, 4),
    ]


def stop_early(job) -> tuple[float, float]:
    """Returns (the fraction of 256 full trials at which `--trials auto` stops, its least loss as a
    multiple of that of all trials)."""
    name, seed = job
    trials = full_trials(name, seed, stopping.MOST, 16)
    encoding, ends = Encoding(SPACE), range(16, stopping.MOST, 16)
    min_improvement = Sweep.min_improvement
    stops = (
        n
        for n in ends
        if stopping.reason_to_stop(encoding, "minimize", seed, min_improvement, trials[:n])
    )
    count = next(stops, stopping.MOST)
    values = [trial.value for trial in trials]
    return count / stopping.MOST, min(values[:count]) / min(values)


def process_pool() -> ProcessPoolExecutor:
    """Returns a pool with one process per core."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))  # JAX has threads


def measure_auto(options: Options) -> None:
    """Prints the trials at which `--trials auto` stops, and the loss."""
    with process_pool() as pool:
        for name in WIDTHS:
            jobs = [(name, options.first_seed + i) for i in range(options.seeds)]
            fractions, losses = np.array(list(pool.map(stop_early, jobs))).T
            print(f"{name:8} --trials auto: {fractions.mean():.0%} of 256 trials, loss "
                  f"{np.median(losses):.3f} times that of 256 (mean {losses.mean():.3f}); within "
                  f"1 %: {np.mean(losses <= 1.01):.0%}", flush=True)  # fmt: skip


def main(options: Options) -> None:
    if options.build:
        build(options)
        return
    if options.auto:
        measure_auto(options)
        return
    n = options.trials
    searches = [f"{n} full trials", f"{n // 4} full trials", "a quarter, halving",
                "a quarter, freeze-thaw"]  # fmt: skip
    print(f"loss of a search's best configuration, as a multiple of that after {n} full trials (gp,"
          f" 16 at once), {options.seeds} seeds")  # fmt: skip
    print("observed: least loss of the search, median; true: over the table's seeds, median, mean")
    with process_pool() as pool:
        for name in WIDTHS:
            jobs = [(name, options.first_seed + i, n) for i in range(options.seeds)]
            losses = np.array(list(pool.map(compare_searches, jobs)))
            ratios = losses / losses[:, :1]
            for search, (observed, true) in zip(searches, ratios.transpose(1, 2, 0), strict=True):
                print(
                    f"{name:8} {search:24} observed {np.median(observed):.3f}  true "
                    f"{np.median(true):.3f}, mean {true.mean():.3f}; as low: "
                    f"{np.mean(observed <= 1):.0%}, true {np.mean(true <= 1):.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
