"""How many epochs a search needs: a table of learning curves, and searches that look them up.

python benchmarks/learning_curves.py            # the searches, on the table that is here
python benchmarks/learning_curves.py --auto     # when --trials auto stops
python benchmarks/learning_curves.py --build    # trains the table anew: 960 configurations of an
                                                # MLP x 27 epochs x 3 seeds on two data sets

The data: scikit-learn's digits (1,000 to train, 500 to validate), and the first 3,000 pictures of
Fashion-MNIST at 14 x 14 (2,000 and 1,000). learning_curves.npz: validation losses, float32
(configurations, seeds, epochs), NaN from where one diverged.
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

from dlflax.tune import stopping
from dlflax.tune.config import Sweep
from dlflax.tune.encoding import Encoding, sobol
from dlflax.tune.rules import Budget, Curve, FreezeThaw, Halving, Stop

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
    auto: bool = False
    """Measure when `--trials auto` stops in place of what the searches find."""
    fashion_mnist: Path | None = None
    """Folder with the IDX files of Fashion-MNIST, to build with (default: it is downloaded)."""
    seeds: int = 20
    """Searches, each with another seed."""
    first_seed: int = 0
    """The first of them."""
    trials: int = 64
    """Whole trials of the search to compare with; the others have a quarter of its epochs."""


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
    from dlflax.train.layout import Layout, use_all_cores
    from dlflax.train.population import Population

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


@functools.cache
def table(name: str) -> np.ndarray:
    """Losses (configurations, seeds, epochs): the best so far, +inf where it diverged."""
    losses = np.load(FILE)[name].astype(np.float64)
    losses = np.where(np.maximum.accumulate(~np.isfinite(losses), axis=2), np.inf, losses)
    diverged = ~np.isfinite(losses[:, :, -1:])
    return np.where(diverged, np.inf, np.minimum.accumulate(losses, axis=2))


def curve(name: str, params: dict[str, float], seed: int) -> np.ndarray:
    """(epochs,) of the nearest configuration of the grid."""
    place = 0
    for number, values in GRID.items():
        scale = np.log if SPACE[number].log else np.asarray
        nearest = np.argmin(np.abs(scale(values) - scale(params[number])))
        place = place * len(values) + int(nearest)
    return table(name)[place, seed % SEEDS]


class Found(NamedTuple):
    """What a search chose."""

    observed: float
    """The least loss that it saw."""
    true: float
    """The mean over the seeds of the table of what that configuration ends with."""


def found(name: str, observed: float, params: dict[str, float]) -> Found:
    ends = [curve(name, params, seed)[-1] for seed in range(SEEDS)]
    return Found(observed, float(np.mean(ends)))


def whole_trials(name: str, seed: int, trials: int, at_once: int):
    """Those that our runner trains to their end, by the Gaussian process."""
    return run(lambda p: curve(name, p, seed)[-1], SPACE, "gp", trials, seed, at_once)


def whole(name: str, seed: int, trials: int, at_once: int) -> Found:
    """Whole trials by the Gaussian process."""
    best = min(whole_trials(name, seed, trials, at_once), key=lambda trial: trial.value)
    return found(name, best.value, best.params)


def by_rule(rule, name: str, seed: int, trials: int, at_once: int, epochs: float) -> Found:
    """New trials from a Sobol sequence, so many at once, and a rule that decides what continues;
    no new ones once so many epochs are spent and all others are over."""
    encoding, curves, spent = Encoding(SPACE), [], 0
    while spent < epochs or not all(each.is_over for each in curves):
        steps = rule.decide(curves, at_once, Budget(trials, EPOCHS))
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
            spent += len(values) - len(curves[number].values)
            curves[number] = curves[number]._replace(values=values, is_over=is_over)
    best = min(curves, key=lambda each: (each.best(), each.number))
    return found(name, best.best(), best.params)


def halving(name: str, seed: int, budget: int, at_once: int = 16) -> Found:
    """Whole populations, halved as `--search halving` does, until so many epochs are spent."""
    return by_rule(Halving(3), name, seed, 10**6, at_once, budget)


def freeze_thaw(name: str, seed: int, budget: int, lanes: int) -> Found:
    """`--search freeze-thaw`, so many at once, with the epochs of so many whole trials."""
    return by_rule(FreezeThaw(), name, seed, budget // EPOCHS, lanes, math.inf)


def compared(job) -> list[Found]:
    name, seed, trials = job
    quarter = trials // 4 * EPOCHS
    return [
        whole(name, seed, trials, 16),
        whole(name, seed, trials // 4, 4),
        halving(name, seed, quarter),
        freeze_thaw(name, seed, quarter, 4),
    ]


def stopped(job) -> tuple[float, float]:
    """(the share of 256 whole trials after which `--trials auto` stops, its least loss as a
    multiple of that of all of them)."""
    name, seed = job
    trials = whole_trials(name, seed, stopping.MOST, 16)
    encoding, ends = Encoding(SPACE), range(16, stopping.MOST, 16)
    tolerance = Sweep.tolerance
    args = encoding, "minimize", seed, tolerance
    found = (n for n in ends if stopping.reason_to_stop(*args, trials[:n]))
    count = next(found, stopping.MOST)
    values = [trial.value for trial in trials]
    return count / stopping.MOST, min(values[:count]) / min(values)


def processes() -> ProcessPoolExecutor:
    """One a core."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))  # JAX has threads


def measure_auto(options: Options) -> None:
    """Prints when `--trials auto` stops, and what it loses."""
    with processes() as pool:
        for name in WIDTHS:
            jobs = [(name, options.first_seed + i) for i in range(options.seeds)]
            shares, losses = np.array(list(pool.map(stopped, jobs))).T
            print(f"{name:8} --trials auto: {shares.mean():.0%} of 256 trials, loss "
                  f"{np.median(losses):.3f} of theirs (mean {losses.mean():.3f}); within 1 %: "
                  f"{np.mean(losses <= 1.01):.0%}", flush=True)  # fmt: skip


def main(options: Options) -> None:
    if options.build:
        build(options)
        return
    if options.auto:
        measure_auto(options)
        return
    n = options.trials
    names = [f"{n} whole trials", f"{n // 4} whole trials", "a quarter, halved",
             "a quarter, freeze-thaw"]  # fmt: skip
    print(f"the loss of what a search chose, as a multiple of that after {n} whole trials (gp, 16 "
          f"at once), {options.seeds} seeds")  # fmt: skip
    print("observed: the least that it saw, median; true: over the table's seeds, median and mean")
    with processes() as pool:
        for name in WIDTHS:
            jobs = [(name, options.first_seed + i, n) for i in range(options.seeds)]
            losses = np.array(list(pool.map(compared, jobs)))
            ratios = losses / losses[:, :1]
            for who, (observed, true) in zip(names, ratios.transpose(1, 2, 0), strict=True):
                print(
                    f"{name:8} {who:24} observed {np.median(observed):.3f}  true "
                    f"{np.median(true):.3f}, mean {true.mean():.3f}; as low: "
                    f"{np.mean(observed <= 1):.0%}, true {np.mean(true <= 1):.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
