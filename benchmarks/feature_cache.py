"""Speed-up by the feature cache of a frozen backbone: cats and dogs with EfficientNet-Lite0.

python benchmarks/feature_cache.py --data FOLDER

FOLDER has a folder of photographs per class. Prints images/s of the features by both algorithms of
the depthwise convolution, and the time of all features; the median epoch of a head with the
features recomputed in every step, and from the cache, with validation; and the wall time of
`python -m sweeps.random_search cats_vs_dogs` in new processes, with an empty cache and with
features and programs on disk. Comparisons alternate, `--rounds` times.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro


@dataclasses.dataclass
class Options:
    data: Path
    """Folder with a folder of photographs per class."""
    weights: str = "imagenet"
    """--weights of the experiment."""
    rounds: int = 3
    """Repetitions of the comparisons."""
    images: int = 64
    """Images per round for the two algorithms."""
    trials: int = 100
    """Trials of the sweep; 0 skips it."""
    epochs: int = 20
    """Epochs of a trial, and of the head trained from the cache."""


def compare_algorithms(options: Options, model, variables, sha256: str, images) -> None:
    """Prints images/s of the features by `depthwise_slices` and `depthwise_lax`."""
    from dlflax.transfer.features import BATCH, Features

    speeds = {"matmul": [], "lax": []}
    for _ in range(options.rounds):
        for name, values in speeds.items():
            with tempfile.TemporaryDirectory() as folder:
                extract = Features(
                    model.clone(implementation=name), variables, sha256, print, Path(folder)
                )
                extract(images[:BATCH])  # compiles
                inputs = images[BATCH : BATCH + options.images]
                clock = time.perf_counter()
                extract(inputs)
                values.append(len(inputs) / (time.perf_counter() - clock))
    slices, grouped = map(statistics.median, speeds.values())
    print(
        f"features by depthwise_slices: {slices:.1f} images/s; by depthwise_lax: {grouped:.1f} "
        f"images/s; {slices / grouped:.1f} times as fast",
        flush=True,
    )


def epochs(options: Options) -> None:
    from dlflax import data, train
    from dlflax.train.check import bind_to_data
    from dlflax.transfer import Features, weights
    from experiments.cats_vs_dogs import PRESETS

    preset = PRESETS["default"]
    source = data.ImageFolder(data=options.data)
    splits = data.make_splits(source, source.load(), preset.val_split, 0)
    recipe = bind_to_data(preset.recipe, preset.hparams, splits)
    variables, sha256, description = weights.read(recipe.model, options.weights, print)
    print(description)
    del variables["params"]["logits"]
    images = {"train": splits.train, "val": splits.val}
    counts = " and ".join(f"{len(split['targets']):,} {name}" for name, split in images.items())
    print(f"{counts} images of {splits.train['inputs'].shape[1]} pixels a side", flush=True)
    compare_algorithms(options, recipe.model, variables, sha256, splits.train["inputs"])

    def compute_features() -> dict:
        with tempfile.TemporaryDirectory() as folder:
            extract = Features(recipe.model, variables, sha256, print, Path(folder))
            return {
                name: {**split, "inputs": extract(split["inputs"])}
                for name, split in images.items()
            }

    def fit(recipe, splits, epochs, pretrained=None):
        return train.fit(
            recipe, preset.hparams, splits["train"], splits["val"], epochs=epochs,
            pretrained=pretrained,
        ).history  # fmt: skip

    head = dataclasses.replace(recipe, trainable="^logits")
    recomputed, once, cached = [], [], []
    for _ in range(options.rounds):
        clock = time.perf_counter()
        features = compute_features()
        once.append(time.perf_counter() - clock)
        first = fit(head, images, 1, variables)
        recomputed.append(first[0]["seconds"])
        cached += [row["seconds"] for row in fit(recipe, features, options.epochs)[1:]]
    second = fit(recipe, features, 1)
    slow, once, fast = map(statistics.median, (recomputed, once, cached))
    print(
        f"an epoch of the head, features in every step: {slow:.2f} s; from the cache: "
        f"{fast:.4f} s; {slow / fast:,.0f} times as fast\n"
        f"features of both splits, computed once: {once:.2f} s\n"
        f"{options.epochs} epochs: {options.epochs * slow:.1f} s (by the median epoch), "
        f"{once + options.epochs * fast:.1f} s with the cache and its computation; "
        f"{options.epochs * slow / (once + options.epochs * fast):.1f} times as fast\n"
        f"validation loss after one epoch: {first[0]['val_loss']:.6f} and "
        f"{second[0]['val_loss']:.6f}",
        flush=True,
    )


def sweep(options: Options, folder: str, name: str) -> None:
    """Runs the shipped command, and prints the times between its lines."""
    command = [sys.executable, "-u", "-m", "sweeps.random_search", "cats_vs_dogs"]
    command += ["--data", str(options.data), "--weights", options.weights]
    command += ["--trials", str(options.trials), "--epochs", str(options.epochs)]
    environment = {**os.environ, "XDG_CACHE_HOME": folder}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    clock = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--run-dir", f"{folder}/{name}"],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    begin, end, lines = 0.0, 0.0, []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("writing "):
            begin = begin or time.perf_counter() - clock
        if line.startswith("trials "):
            end = time.perf_counter() - clock
    if process.wait():
        raise SystemExit("sweeps.random_search failed:\n" + "".join(lines))
    seconds = time.perf_counter() - clock
    print(
        f"sweep of {options.trials} trials, {name}: {seconds:.1f} s, "
        f"{60 * options.trials / seconds:,.0f} trials per minute; {begin:.1f} s before the first "
        f"trial, {end - begin:.1f} s for the trials "
        f"({60 * options.trials / (end - begin):,.0f} per minute), {seconds - end:.1f} s for "
        "retraining the best, its test, the figures and the report",
        flush=True,
    )


def main(options: Options) -> None:
    epochs(options)
    if options.trials:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("empty cache", "warm cache", "warm cache again"):
                sweep(options, folder, name)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
