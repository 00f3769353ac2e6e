"""Which strength of each augmentation helps, of half, once and twice the one that it suggests?

python -m benchmarks.augmentations [DATASET [FOLDER]]

Trains the classic CNN on 6,000 pictures (of fashion_mnist, say), and prints the validation accuracy
on 6,000 others, mean and spread of two seeds. The test split is not touched.
"""

import sys

import numpy as np

from dlflax import data, train
from dlflax.models import CNN
from dlflax.train import Hparams, Recipe
from dlflax.train.augment import AUGMENTATIONS

SEEDS, EPOCHS, PICTURES = (0, 1), 12, 6_000


def accuracies(parts, augment, hparams):
    recipe = Recipe(CNN(num_outputs=10), batch_size=64, augment=augment)
    fits = [train.fit(recipe, hparams, *parts, epochs=EPOCHS, seed=seed) for seed in SEEDS]
    return [100 * max(row["val_accuracy"] for row in fit.history) for fit in fits]


def main(name="fashion_mnist", folder=None):
    pictures = data.load(name, folder).train
    chosen = data.order(len(pictures["inputs"]), 0, 0)[: 2 * PICTURES]
    halves = np.split(chosen, 2)
    parts = [{key: array[half] for key, array in pictures.items()} for half in halves]
    show("none", "", accuracies(parts, (), Hparams()))
    for short, augmentation in AUGMENTATIONS.items():
        suggested = augmentation.numbers
        if not isinstance(suggested, dict):
            continue
        for factor in (0.5, 1, 2):
            numbers = {n: factor * value for n, value in suggested.items()}
            if "flip" in numbers:
                numbers["flip"] = min(numbers["flip"], 1.0)
            shown = " ".join(f"{n} {value:g}" for n, value in numbers.items())
            show(short, shown, accuracies(parts, (augmentation,), Hparams(**numbers)))


def show(name, numbers, found):
    print(f"{name:12}{numbers:36}{np.mean(found):6.2f} +- {np.std(found, ddof=1):.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
