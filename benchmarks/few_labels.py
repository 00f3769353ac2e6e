"""How far a text network comes with few labels, beside simple models on the same ones.

python benchmarks/few_labels.py --data-dir rt-polarity [--labels 200 --draws 10]

Each draw takes as many texts of each class from the training data, trains on them by
`experiments.sentiment --preset few`, and is tested on the same test data: mean and standard
deviation over the draws. Beside it: a logistic regression on the features of the same encoder as it
is published, one on TF-IDF, and `--finetune all` in place of the contrastive start.
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

NAMES = ("few", "all", "frozen", "TF-IDF")


def drawn(dataset, count: int, draw: int):
    """The Dataset with so many training texts, as many of each class."""
    parts = split_rows(dataset.examples, dataset.split, 0.0, 0, print)
    targets, rng, rows = dataset.examples.target[parts["train"]], np.random.default_rng(draw), []
    for label in range(len(dataset.class_names)):
        own = np.flatnonzero(targets == label)
        rows.append(rng.permutation(own)[: count // len(dataset.class_names)])
    kept = np.concatenate([parts["train"][np.sort(np.concatenate(rows))], parts["test"]])
    split = Given(np.isin(kept, parts["test"]))
    return dataclasses.replace(dataset, examples=dataset.examples.take(kept), split=split)


def frozen_accuracy(config, dataset) -> float:
    """Of a logistic regression on the published encoder's features."""
    head = dataclasses.replace(config, transfer=transfer.Transfer(weights="minilm"))
    splits = make_splits(head.data, dataset, 0.0, 0)
    start = transfer.prepare(head.transfer, head.recipe, head.hparams, splits, log=lambda _: None)
    parts = start.splits
    model = LogisticRegression(max_iter=1000)
    model.fit(parts.train["inputs"], parts.train["targets"])
    return float(model.score(parts.test["inputs"], parts.test["targets"]))


def trained(config, draw: int, dataset) -> dict:
    """results.json of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, run_dir=Path(folder) / "run", seed=draw)
        return run.run("sentiment", config, lambda _: None, dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    source = Text(data_dir=arguments.data_dir, tokenizer="minilm", length=48)  # one program
    config = dataclasses.replace(sentiment.PRESETS["few"], data=source)
    whole = dataclasses.replace(
        config, transfer=transfer.Transfer(weights="minilm", finetune="all"), epochs=10,
        hparams=config.hparams.replace(learning_rate=1e-3, backbone_rate=0.1),
    )  # fmt: skip
    dataset, rows = source.load(), []
    for draw in range(arguments.draws):
        some = drawn(dataset, arguments.labels, draw)
        results = [trained(each, draw, some) for each in (config, whole)]
        beside = results[0]["baselines"]["TF-IDF and logistic regression"]["accuracy"]
        few, all_of_it = (each["test"]["accuracy"] for each in results)
        rows.append((few, all_of_it, frozen_accuracy(config, some), beside))
        print(f"draw {draw}: " + ", ".join(map("{} {:.4f}".format, NAMES, rows[-1])), flush=True)
    for name, values in zip(NAMES, np.array(rows).T, strict=True):
        print(f"{name}: {values.mean():.4f} +- {values.std(ddof=1):.4f} ({len(rows)} draws)")


if __name__ == "__main__":
    main()
