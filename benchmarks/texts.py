"""Scores of `experiments.sentiment` on files of texts, beside scikit-learn's TF-IDF of words, and
of characters, with logistic regression.

python benchmarks/texts.py --data rt-polarity sms-spam.tsv reviews.csv

appends one row per file, split and model to texts.csv, skips rows that are there already, so it can
run over several days, and prints the means. dlflax is the default with the pretrained encoder,
"dlflax words" the one without it. C of the logistic regressions is chosen by five folds.
"""

import contextlib
import csv
import dataclasses
import io
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

MODELS = "dlflax", "dlflax words", "TF-IDF of words", "TF-IDF of characters"
COLUMNS = "data", "split", "model", "seconds", "error", "log_loss", "calibration_error"


@dataclasses.dataclass(frozen=True)
class Options:
    """Files, splits and models."""

    data: tuple[Path, ...]
    """Files and folders of texts, as of `experiments.sentiment --data`."""
    out: Path = Path("texts.csv")
    """File of the rows."""
    rows: int = 3000
    """Texts of each file, a random sample."""
    splits: int = 1
    """Number of random test splits of 20 %."""
    models: tuple[str, ...] = MODELS


def main(options: Options) -> None:
    done = set()
    if options.out.exists():
        with open(options.out, encoding="utf-8", newline="") as file:
            done = {(row["data"], row["split"], row["model"]) for row in csv.DictReader(file)}
    spawn = multiprocessing.get_context("spawn")
    for split in range(options.splits):
        for path in options.data:
            for model in options.models:
                if (path.stem, str(split), model) not in done:
                    process = spawn.Process(target=measure, args=(options, path, split, model))
                    process.start()
                    process.join()
    summarize(options.out)


def measure(options: Options, path: Path, split: int, model: str) -> None:
    """Appends the row of a model, which a process of its own trains."""
    from dlflax import data

    begun = time.perf_counter()
    dataset = data.Text(data=path).load(lambda line: None)
    rows = np.random.default_rng(split).permutation(len(dataset.examples))[: options.rows]
    examples = dataset.examples.take(rows)
    dataset = dataclasses.replace(dataset, examples=examples, split=data.Share(0.2, split))
    scores = (_run if model.startswith("dlflax") else _scikit_learn)(path, dataset, split, model)
    values = path.stem, split, model, round(time.perf_counter() - begun, 1), *scores
    is_new = not options.out.exists()
    with open(options.out, "a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, values] if is_new else [values])
    print(values, flush=True)


def _run(path, dataset, split, model):
    """Returns error, log loss and calibration error of a run."""
    from dlflax import run
    from dlflax.train.layout import use_all_cores
    from experiments import sentiment

    use_all_cores()
    preset = sentiment.PRESETS["minilm" if model == "dlflax" else "rnn"]
    source = dataclasses.replace(preset.data, data=path)
    if source.tokenizer not in ("auto", "word", "bpe"):
        source_texts = source.load(lambda line: None)  # with the published tokenizer
        style = source_texts.examples.style
        dataset = dataclasses.replace(
            dataset, examples=dataclasses.replace(dataset.examples, style=style)
        )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = dataclasses.replace(
            preset, data=source, run_dir=Path(folder, "run"), baseline="none", seed=split
        )
        test = run.run("sentiment", config, lambda line: None, dataset)["test"]
    return 1 - test["accuracy"], test["loss"], test["calibration_error"]


def _scikit_learn(path, dataset, split, model):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline

    from dlflax.train import metrics

    examples = dataset.examples
    at = dataset.split.rows(examples, 0.0, 0, lambda line: None)
    (x, y), (x_test, y_test) = (
        (examples.columns["inputs"][at[name]], examples.target[at[name]])
        for name in ("train", "test")
    )
    words = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
    characters = {"analyzer": "char_wb", "ngram_range": (1, 5)}
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, min_df=2, **(words if model == "TF-IDF of words" else characters)
    )
    strengths = [1.0, 3.0, 10.0, 30.0, 100.0]
    regression = LogisticRegressionCV(
        Cs=strengths, cv=5, scoring="neg_log_loss", max_iter=200, l1_ratios=(0.0,),
        use_legacy_attributes=False,
    )  # fmt: skip
    p = make_pipeline(vectorizer, regression).fit(x, y).predict_proba(x_test).clip(1e-9, 1)
    log_loss = float(-np.log(p[np.arange(len(p)), y_test]).mean())
    return float(np.mean(p.argmax(1) != y_test)), log_loss, metrics.calibration(y_test, p)["error"]


def summarize(path: Path) -> None:
    """Prints the mean scores on each file."""
    import pandas as pd

    rows = pd.read_csv(path)
    for column in COLUMNS[4:]:
        means = rows.pivot_table(index="data", columns="model", values=column)
        print(f"\n{column}\n{means.to_string(float_format='{:.4g}'.format)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
