"""Seconds of a search until a validation loss as good as the best of 64 full random trials.

python benchmarks/time_to_tuned.py --data FOLDER
(pip install keras tensorflow tensorboard keras-tuner torch tyro; --python-of is another Python
with these packages)

Alternates between `sweeps.bayes_opt` (full, halving, freeze-thaw), KerasTuner (Bayesian
optimization, Hyperband), and Optuna's TPE with its median pruner and PyTorch, with the same images,
networks and space. The time of dlflax ends when it prints the population, that of the others after
the epoch, where their search ends: their test accuracy is that of the best model so far, dlflax's
that of the best trial, retrained.
"""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from stages import write_rows
from sweep_speed import arrays, keras_network, torch_network, write_subset

DLFLAX = {
    "dlflax": (),
    "dlflax halving": ("--search", "halving"),
    "dlflax freeze-thaw": ("--search", "freeze-thaw"),
}
OTHERS = ("keras bayesian", "keras hyperband", "optuna torch")
BATCH = 32
RANGES = {"learning_rate": (1e-4, 1e-2, True), "dropout": (0.0, 0.5, False),
          "l2": (1e-7, 1e-3, True)}  # fmt: skip


@dataclasses.dataclass
class Options:
    data: Path
    """Folder with Fashion-MNIST's four IDX files."""
    models: tuple[str, ...] = ("mlp", "cnn")
    """mlp: 784-128-10; cnn: convolution 32 3x3, max-pool, dense 64."""
    contenders: tuple[str, ...] = (*DLFLAX, *OTHERS)
    """Searches to compare."""
    seeds: int = 5
    """Repetitions of each search; a random search on the same split sets the goal."""
    images: int = 10_000
    """Training images; a tenth more are for validation."""
    epochs: int = 10
    """Epochs of a full trial."""
    random_trials: int = 64
    """Trials of the random search, whose best is the goal."""
    trials: int = 128
    """Maximum trials of the other searches."""
    limit: float = 3600
    """Time limit of the other libraries in seconds."""
    python_of: str = sys.executable
    """Python with Keras, KerasTuner and PyTorch."""
    rows: Path | None = None
    """JSON file of the results."""


class SearchEnd(BaseException):
    """Ends a search of KerasTuner, which continues after an Exception."""


class Watch:
    """Ends a search at its goal or its time limit."""

    def __init__(self, begin: float, goal: float, limit: float):
        self._begin, self._goal, self._limit = begin, goal, limit
        self.best, self.test = float("inf"), None

    def epoch(self, val_loss: float, test_accuracy) -> None:
        """Checks an epoch. test_accuracy is called if the loss is the best so far."""
        seconds = time.time() - self._begin
        if val_loss < self.best:
            self.best, self.test = val_loss, test_accuracy()
        if self.best <= self._goal or seconds > self._limit:
            self.end(seconds)

    def end(self, seconds: float | None = None) -> None:
        """Prints the result and ends the search."""
        reached = seconds if seconds is not None and self.best <= self._goal else None
        result = {"seconds": reached, "best": self.best, "test_accuracy": self.test}
        print(json.dumps(result), flush=True)
        raise SearchEnd


def write_arrays(folder: str, seed: int) -> None:
    """Writes the splits of a sweep with this seed, for a Python without dlflax."""
    import numpy as np

    from dlflax import data

    test = data.load("fashion_mnist", folder, log=lambda _: None).test
    scaled = np.float32(test["inputs"]) / np.float32(255)
    train, val = arrays(folder, "fashion_mnist", seed)
    np.savez(Path(folder, "arrays.npz"), *train, *val, scaled, test["targets"])


def read_arrays(folder: str):
    """Reads the (inputs, targets) of the train, validation and test split."""
    import numpy as np

    with np.load(Path(folder, "arrays.npz")) as file:
        contents = [file[name] for name in file.files]
    return contents[:2], contents[2:4], contents[4:]


def keras(kind: str, model: str, options: dict, seed: int, watch: Watch, data) -> None:
    """Searches by KerasTuner on TensorFlow."""
    os.environ["KERAS_BACKEND"], os.environ["TF_CPP_MIN_LOG_LEVEL"] = "tensorflow", "3"
    import keras
    import keras_tuner

    (x, y), val, (test_x, test_y) = data

    def build(hp):
        h = {
            name: hp.Float(name, low, high, sampling="log" if log else "linear")
            for name, (low, high, log) in RANGES.items()
        }
        cross_entropy = keras.metrics.SparseCategoricalCrossentropy("entropy", from_logits=True)
        return keras_network(model, h, ["accuracy", cross_entropy])

    class Callback(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            net = self.model
            accuracy = lambda: net.evaluate(test_x, test_y, 256, 0, return_dict=True)["accuracy"]  # noqa: E731
            watch.epoch(logs["val_entropy"], accuracy)

    goal = keras_tuner.Objective("val_entropy", "min")
    common = dict(objective=goal, seed=seed, directory=tempfile.mkdtemp(), overwrite=True)
    if kind == "bayesian":
        tuner = keras_tuner.BayesianOptimization(build, max_trials=options["trials"], **common)
    else:
        tuner = keras_tuner.Hyperband(
            build, max_epochs=options["epochs"], hyperband_iterations=100, **common
        )
    tuner.search(
        x, y, batch_size=BATCH, epochs=options["epochs"], validation_data=val,
        validation_batch_size=256, verbose=0, callbacks=[Callback()],
    )  # fmt: skip
    watch.end()


def torch(model: str, options: dict, seed: int, watch: Watch, data) -> None:
    """Searches by Optuna's TPE and median pruner with PyTorch."""
    import optuna
    import torch
    from torch import nn

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (x, y), (val_x, val_y), (test_x, test_y) = (
        (torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y).long())
        for x, y in data
    )
    cross_entropy = nn.CrossEntropyLoss()

    def objective(trial):
        h = {
            name: trial.suggest_float(name, low, high, log=log)
            for name, (low, high, log) in RANGES.items()
        }
        net = torch_network(model, h["dropout"])
        optimizer = torch.optim.Adam(net.parameters(), h["learning_rate"])
        kernels = [p for p in net.parameters() if p.ndim > 1]

        @torch.no_grad()
        def outputs(x):
            net.eval()
            return torch.cat([net(batch) for batch in x.split(256)])

        best = float("inf")
        for epoch in range(options["epochs"]):
            net.train()
            for index in torch.randperm(len(y)).split(BATCH):
                optimizer.zero_grad()
                penalty = h["l2"] * sum((p**2).sum() for p in kernels)
                (cross_entropy(net(x[index]), y[index]) + penalty).backward()
                optimizer.step()
            loss = float(cross_entropy(outputs(val_x), val_y))
            watch.epoch(loss, lambda: float((outputs(test_x).argmax(1) == test_y).float().mean()))
            best = min(best, loss)
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    torch.manual_seed(seed)
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, options["trials"])
    watch.end()


def child(name: str, folder: str, model: str, options: dict, seed: int, goal: float, begin: float):
    """Searches by another library in this process."""
    watch = Watch(begin, goal, options["limit"])
    data = read_arrays(folder)
    try:
        if name.startswith("keras"):
            keras(name.removeprefix("keras "), model, options, seed, watch, data)
        else:
            torch(model, options, seed, watch, data)
    except SearchEnd:
        return


def dlflax(flags, search: str, folder: str, model: str, options: Options, seed: int, goal: float):
    """Runs a shipped command: {seconds, best, test_accuracy}."""
    with tempfile.TemporaryDirectory() as run_dir:
        begin, reached, best = time.time(), None, float("inf")
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", f"sweeps.{search}", "fashion_mnist", "--model", model]
            + ["--trials", str(options.trials), "--epochs", str(options.epochs), *flags]
            + ["--data", folder, "--run-dir", run_dir, "--seed", str(seed)]
            + ["--batch-size", str(BATCH), "--ensemble-size", "0"]
            + [word for name, (low, high, log) in RANGES.items()
               for word in (f"--space.{name.replace('_', '-')}", str(low), str(high),
                            *(["log"] if log else []))],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        for line in process.stdout:
            if match := re.search(r"best so far ([\d.]+)", line):
                best = float(match[1])
                if reached is None and best <= goal:
                    reached = time.time() - begin
        if process.wait():
            raise SystemExit(f"sweeps.{search} failed")
        results = json.loads(Path(run_dir, "results.json").read_text(encoding="utf-8"))
        seconds = time.time() - begin
    accuracy = results["test"]["accuracy"]
    return {"seconds": reached, "best": best, "test_accuracy": accuracy, "whole_command": seconds}


def measure(name: str, folder: str, model: str, options: Options, seed: int, goal: float):
    if name in DLFLAX:
        return dlflax(DLFLAX[name], "bayes_opt", folder, model, options, seed, goal)
    limits = {n: getattr(options, n) for n in ("trials", "epochs", "limit")}
    arguments = [name, folder, model, limits, seed, goal, time.time()]
    done = subprocess.run(
        [options.python_of, __file__, "--child", json.dumps(arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(seconds: list[float | None]) -> str:
    """Returns median and quartiles; a search that missed the goal counts as infinite."""
    ordered = sorted(float("inf") if s is None else s for s in seconds)
    missed = sum(s is None for s in seconds)
    low, high = (ordered[round(quantile * (len(ordered) - 1))] for quantile in (0.25, 0.75))
    text = f"{statistics.median(ordered):8.1f} s ({low:.1f} to {high:.1f})"
    return text + (f", {missed} of {len(ordered)} missed the goal" if missed else "")


def main(options: Options) -> None:
    rows = []
    print(f"{options.images:,} images, {options.epochs} epochs, batch {BATCH}, "
          f"at most {options.trials} trials, {options.seeds} seeds")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_subset(options, folder, test_images=10_000)
        for model in options.models:
            results: dict[str, list[dict]] = {name: [] for name in options.contenders}
            for seed in range(options.seeds):  # alternating; a seed has its own validation split
                write_arrays(folder, seed)
                random = dataclasses.replace(options, trials=options.random_trials)
                goal = dlflax((), "random_search", folder, model, random, seed, 0.0)["best"]
                print(f"{model}, seed {seed}: the goal is a validation loss of {goal:.4f}")
                for name in options.contenders:
                    result = measure(name, folder, model, options, seed, goal)
                    results[name].append(result)
                    rows.append({"model": model, "contender": name, "seed": seed, "goal": goal,
                                 **result})  # fmt: skip
                    write_rows(options.rows, rows)
                    print(f"  {name}: {result}", flush=True)
            for name, searches in results.items():
                accuracy = statistics.median(search["test_accuracy"] for search in searches)
                seconds = [search["seconds"] for search in searches]
                print(f"{model:4} {name:18} {summary(seconds)}; test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*json.loads(sys.argv[2]))
    else:
        main(tyro.cli(Options, description=__doc__))
