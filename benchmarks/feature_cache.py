"""What keeping the features of a frozen backbone saves: cats and dogs with EfficientNet-Lite0.

python benchmarks/feature_cache.py --data-dir FOLDER

FOLDER has a folder of photographs a class. Prints, all from one run: images/s of the features by
both formulations of the depthwise convolution, and what computing all of them once costs; the
median epoch of training the head with the features recomputed in every step, beside that of
training it from the kept ones, validation included; and the wall time of
`python -m sweeps.random_search cats_vs_dogs`, a fresh process each, first with nothing kept, then
with features and programs on disk. Every comparison is made in turns, `--rounds` times.
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
    data_dir: Path
    """Folder with a folder of photographs a class."""
    weights: str = "imagenet"
    """As --weights of the experiment."""
    rounds: int = 3
    """Repetitions of the comparisons."""
    pictures: int = 64
    """Pictures a round for the two formulations."""
    trials: int = 100
    """Trials of the sweep; 0 leaves it out."""
    epochs: int = 20
    """Epochs of each, and of the head trained from kept features."""


def formulations(options: Options, model, variables, sha256: str, images) -> None:
    """(images/s) of `depthwise_slices` and `depthwise_lax` for all of a picture's features."""
    from dlflax.transfer.features import BATCH, Features

    speeds = {"matmul": [], "lax": []}
    for _ in range(options.rounds):
        for name, found in speeds.items():
            with tempfile.TemporaryDirectory() as folder:
                compute = Features(
                    model.clone(formulation=name), variables, sha256, print, Path(folder)
                )
                compute(images[:BATCH])  # compiles
                some = images[BATCH : BATCH + options.pictures]
                clock = time.perf_counter()
                compute(some)
                found.append(len(some) / (time.perf_counter() - clock))
    slices, grouped = (statistics.median(found) for found in speeds.values())
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
    pictures = data.ImageFolder(data_dir=options.data_dir)
    splits = data.make_splits(pictures, pictures.load(), preset.validation, 0)
    recipe = bind_to_data(preset.recipe, preset.hparams, splits)
    variables, sha256, what = weights.read(recipe.model, options.weights, print)
    print(what)
    del variables["params"]["logits"]
    parts = {"train": splits.train, "val": splits.val}
    counts = " and ".join(f"{len(part['targets']):,} {name}" for name, part in parts.items())
    print(f"{counts} pictures of {splits.train['inputs'].shape[1]} pixels a side", flush=True)
    formulations(options, recipe.model, variables, sha256, splits.train["inputs"])

    def compute() -> dict:
        with tempfile.TemporaryDirectory() as folder:
            features = Features(recipe.model, variables, sha256, print, Path(folder))
            return {
                name: {**part, "inputs": features(part["inputs"])} for name, part in parts.items()
            }

    def fit(recipe, parts, epochs, pretrained=None):
        return train.fit(
            recipe, preset.hparams, parts["train"], parts["val"], epochs=epochs,
            pretrained=pretrained,
        ).history  # fmt: skip

    head = dataclasses.replace(recipe, trainable="^logits")
    anew, once, cached = [], [], []
    for _ in range(options.rounds):
        clock = time.perf_counter()
        kept = compute()
        once.append(time.perf_counter() - clock)
        first = fit(head, parts, 1, variables)
        anew.append(first[0]["seconds"])
        cached += [row["seconds"] for row in fit(recipe, kept, options.epochs)[1:]]
    second = fit(recipe, kept, 1)
    slow, once, fast = (statistics.median(found) for found in (anew, once, cached))
    print(
        f"an epoch of the head, features in every step: {slow:.2f} s; from kept features: "
        f"{fast:.4f} s; {slow / fast:,.0f} times as fast\n"
        f"features of both, computed once: {once:.2f} s\n"
        f"{options.epochs} epochs: {options.epochs * slow:.1f} s (by the median epoch) against "
        f"{once + options.epochs * fast:.1f} s with computing them; "
        f"{options.epochs * slow / (once + options.epochs * fast):.1f} times as fast\n"
        f"validation loss after one epoch: {first[0]['val_loss']:.6f} and "
        f"{second[0]['val_loss']:.6f}",
        flush=True,
    )


def sweep(options: Options, folder: str, name: str) -> None:
    """One process of the shipped command, cut at the lines that it prints."""
    command = [sys.executable, "-u", "-m", "sweeps.random_search", "cats_vs_dogs"]
    command += ["--data-dir", str(options.data_dir), "--weights", options.weights]
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
    whole = time.perf_counter() - clock
    print(
        f"sweep of {options.trials} trials, {name}: {whole:.1f} s, "
        f"{60 * options.trials / whole:,.0f} trials a minute; of this {begin:.1f} s before the "
        f"first trial, {end - begin:.1f} s for the trials "
        f"({60 * options.trials / (end - begin):,.0f} a minute), {whole - end:.1f} s for "
        "retraining the best, its test, the pictures and the report",
        flush=True,
    )


def main(options: Options) -> None:
    epochs(options)
    if options.trials:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("nothing kept", "all kept", "all kept again"):
                sweep(options, folder, name)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
