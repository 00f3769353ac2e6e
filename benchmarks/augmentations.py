"""Accuracy at half, once and twice the default strength of each augmentation.

python -m benchmarks.augmentations [DATASET [FOLDER]]

Trains the classic CNN on 6,000 images (of fashion_mnist, say), and prints mean and standard
deviation of the accuracy on 6,000 validation images, two seeds. The test split is not used.
"""

import sys

import numpy as np

from dlflax import data, train
from dlflax.models import CNN
from dlflax.train import Hparams, Recipe
from dlflax.train.augment import AUGMENTATIONS

SEEDS, EPOCHS, IMAGES = (0, 1), 12, 6_000


def accuracies(splits, augment, hparams):
    recipe = Recipe(CNN(num_outputs=10), batch_size=64, augment=augment)
    fits = [train.fit(recipe, hparams, *splits, epochs=EPOCHS, seed=seed) for seed in SEEDS]
    return [100 * max(row["val_accuracy"] for row in fit.history) for fit in fits]


def main(name="fashion_mnist", folder=None):
    images = data.load(name, folder).train
    halves = np.split(data.order(len(images["inputs"]), 0, 0)[: 2 * IMAGES], 2)
    splits = [{key: array[half] for key, array in images.items()} for half in halves]
    print_row("none", {}, accuracies(splits, (), Hparams()))
    for short, augmentation in AUGMENTATIONS.items():
        if not isinstance(augmentation.numbers, dict):
            continue
        for factor in (0.5, 1, 2):
            strengths = {n: factor * value for n, value in augmentation.numbers.items()}
            if "flip_probability" in strengths:
                strengths["flip_probability"] = min(strengths["flip_probability"], 1.0)
            scores = accuracies(splits, (augmentation,), Hparams(**strengths))
            print_row(short, strengths, scores)


def print_row(name, strengths, scores):
    text = " ".join(f"{n} {value:g}" for n, value in strengths.items())
    print(f"{name:12}{text:60}{np.mean(scores):6.2f} +- {np.std(scores, ddof=1):.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
