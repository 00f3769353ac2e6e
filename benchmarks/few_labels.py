"""Accuracy of a text encoder trained on few labels, beside baselines.

python benchmarks/few_labels.py --data rt-polarity [--labels 200 --draws 10]

Each draw samples as many training texts of each class, trains on them by `experiments.sentiment
--preset few`, and is scored on the same test split: mean and standard deviation over the draws.
Baselines: logistic regressions on the features of the published encoder and on TF-IDF, and
`--finetune full` in place of the contrastive loss.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from dlflax import run, transfer
from dlflax.data import Text, make_splits
from dlflax.data.splits import Given, split_rows
from experiments import sentiment

NAMES = ("few", "full", "frozen", "TF-IDF")


def sample(dataset, count: int, draw: int):
    """Returns the Dataset with this number of training texts, as many of each class."""
    splits = split_rows(dataset.examples, dataset.split, 0.0, 0, print)
    targets, rng, rows = dataset.examples.target[splits["train"]], np.random.default_rng(draw), []
    for label in range(len(dataset.class_names)):
        of_class = np.flatnonzero(targets == label)
        rows.append(rng.permutation(of_class)[: count // len(dataset.class_names)])
    rows = np.concatenate([splits["train"][np.sort(np.concatenate(rows))], splits["test"]])
    split = Given(np.isin(rows, splits["test"]))
    return dataclasses.replace(dataset, examples=dataset.examples.take(rows), split=split)


def frozen_accuracy(config, dataset) -> float:
    """Returns the accuracy of a logistic regression on the published encoder's features."""
    head = dataclasses.replace(config, transfer=transfer.Transfer(weights="minilm"))
    splits = make_splits(head.data, dataset, 0.0, 0)
    start = transfer.prepare(head.transfer, head.recipe, head.hparams, splits, log=lambda _: None)
    train, test = start.splits.train, start.splits.test
    model = LogisticRegression(max_iter=1000).fit(train["inputs"], train["targets"])
    return float(model.score(test["inputs"], test["targets"]))


def train(config, draw: int, dataset) -> dict:
    """Returns the results of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, run_dir=Path(folder) / "run", seed=draw)
        return run.run("sentiment", config, lambda _: None, dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    source = Text(data=arguments.data, tokenizer="minilm", max_length=48)  # one program
    config = dataclasses.replace(sentiment.PRESETS["few"], data=source)
    full = dataclasses.replace(
        config, transfer=transfer.Transfer(weights="minilm", finetune="full"), epochs=10,
        hparams=config.hparams.replace(learning_rate=1e-3, backbone_lr_scale=0.1),
    )  # fmt: skip
    dataset, rows = source.load(), []
    for draw in range(arguments.draws):
        subset = sample(dataset, arguments.labels, draw)
        results = [train(configuration, draw, subset) for configuration in (config, full)]
        accuracies = [result["test"]["accuracy"] for result in results]
        baseline = results[0]["baselines"]["TF-IDF of words"]["accuracy"]
        rows.append((*accuracies, frozen_accuracy(config, subset), baseline))
        print(f"draw {draw}: " + ", ".join(map("{} {:.4f}".format, NAMES, rows[-1])), flush=True)
    for name, values in zip(NAMES, np.array(rows).T, strict=True):
        print(f"{name}: {values.mean():.4f} +- {values.std(ddof=1):.4f} ({len(rows)} draws)")


if __name__ == "__main__":
    main()
