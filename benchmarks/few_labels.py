"""How far a text network comes with few labels, beside simple models on the same ones.

python benchmarks/few_labels.py --data-dir rt-polarity [--labels 200 --draws 10]

Each draw takes as many texts of each class from the training data, trains on them by
`experiments.sentiment --preset few`, and is tested on the same test data: mean and standard
deviation over the draws. Beside it: a logistic regression on the features of the same encoder as it
is published, and on TF-IDF.
"""

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from dlflax import run, transfer
from dlflax.data import Text
from experiments import sentiment


def drawn(dataset, count: int, draw: int):
    """The Dataset with so many training texts, as many of each class."""
    targets, rng, rows = dataset.train["targets"], np.random.default_rng(draw), []
    for label in range(len(dataset.class_names)):
        own = np.flatnonzero(targets == label)
        rows.append(rng.permutation(own)[: count // len(dataset.class_names)])
    rows = np.sort(np.concatenate(rows))
    return dataclasses.replace(dataset, train={k: v[rows] for k, v in dataset.train.items()})


def frozen_accuracy(config, dataset) -> float:
    """Of a logistic regression on the published encoder's features."""
    head = dataclasses.replace(config, transfer=transfer.Transfer(weights="minilm"))
    splits = head.data.split(dataset, 0.0, 0)
    start = transfer.prepare(head.transfer, head.recipe, head.hparams, splits, log=lambda _: None)
    parts = start.splits
    model = LogisticRegression(max_iter=1000)
    model.fit(parts.train["inputs"], parts.train["targets"])
    return float(model.score(parts.test["inputs"], parts.test["targets"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    source = Text(data_dir=arguments.data_dir, tokenizer="minilm")
    config = dataclasses.replace(sentiment.PRESETS["few"], data=source)
    dataset, rows = source.load(), []
    for draw in range(arguments.draws):
        some = drawn(dataset, arguments.labels, draw)
        folder = Path(tempfile.mkdtemp())
        results = run.run(
            "sentiment", dataclasses.replace(config, run_dir=folder / "run", seed=draw),
            lambda _: None, some,
        )  # fmt: skip
        shutil.rmtree(folder)
        beside = results["baselines"]["TF-IDF and logistic regression"]["accuracy"]
        row = results["test"]["accuracy"], frozen_accuracy(config, some), beside
        rows.append(row)
        print(f"draw {draw}: few {row[0]:.4f}, frozen {row[1]:.4f}, TF-IDF {row[2]:.4f}")
    for name, values in zip(("few", "frozen", "TF-IDF"), np.array(rows).T, strict=True):
        print(f"{name}: {values.mean():.4f} +- {values.std(ddof=1):.4f} ({len(rows)} draws)")


if __name__ == "__main__":
    main()
