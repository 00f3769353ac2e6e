"""Simple models beside the network: as scikit-learn's own, said, kept, never in the way."""

import csv
import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import dlflax
from dlflax import run, train
from dlflax.baselines import reference_models as simple
from dlflax.data import Arrays, Series, Text, make_splits
from dlflax.errors import InputError
from dlflax.models import CNN, MLP, RNN, Autoencoder, ResNet
from dlflax.report import progress
from dlflax.run import baseline_scores
from dlflax.train import Hparams, Recipe
from dlflax.train.tasks import Classification, Forecast, MultiLabel, Reconstruction, Regression

pytestmark = [pytest.mark.usefixtures("place"), pytest.mark.baselines]


def computed(task, source, model=None, validation=0.2, log=print):
    """(the baselines' scores, the splits)."""
    splits = make_splits(source, source.load(lambda line: None), validation, 0)
    recipe = Recipe(model or MLP(features=(4,)), task)
    beside = baseline_scores.fit_baselines(recipe, Hparams(), splits, log)
    return {name: baseline.scores for name, baseline in beside.items()}, splits


def digits(dtype=np.uint8):
    images, targets = load_digits(return_X_y=True)
    images = (images * 255 / 16).reshape(-1, 8, 8, 1).astype(dtype)
    parts = (
        {"inputs": images[part], "targets": targets[part].astype(np.int32)}
        for part in (slice(0, 1000), slice(1000, None))
    )
    return Arrays(*parts, class_names=tuple("0123456789"))


def test_pictures_beside_scikit_learns_own():
    found, splits = computed(Classification(), digits())
    assert list(found) == ["majority class", "logistic regression on pixels"]
    flat = {n: getattr(splits, n)["inputs"].reshape(-1, 64) / 255 for n in ("train", "test")}
    scores = {}  # the loss on validation data -> the score on test data
    flat["val"] = splits.val["inputs"].reshape(-1, 64) / 255
    for c in simple.STRENGTHS:
        own = LogisticRegression(C=c, max_iter=2000).fit(flat["train"], splits.train["targets"])
        loss = log_loss(splits.val["targets"], own.predict_proba(flat["val"]))
        scores[loss] = own.score(flat["test"], splits.test["targets"])
    right = scores[min(scores)]
    assert found["logistic regression on pixels"]["accuracy"] == pytest.approx(right, abs=0.003)
    common = np.bincount(splits.train["targets"]).argmax()
    share = np.mean(splits.test["targets"] == common)
    assert found["majority class"]["accuracy"] == pytest.approx(share)


def test_large_pictures_are_averaged_down():
    images = np.arange(2 * 130 * 100 * 3, dtype=np.uint32).reshape(2, 130, 100, 3) % 251
    splits = type("S", (), {"train": {"inputs": images.astype(np.uint8)}, "val": None,
                            "test": {"inputs": images.astype(np.uint8)}})  # fmt: skip
    found = simple._points(splits)["train"]
    assert found.shape[1] <= simple.MAX_COLUMNS
    blocks = images[:, :128, :100].reshape(2, 32, 4, 25, 4, 3).mean((2, 4)) / 255
    np.testing.assert_allclose(found, blocks.reshape(2, -1), rtol=1e-5)


def test_classes_that_are_nowhere_in_training_and_one_class_alone():
    source, task = digits(), Classification()
    splits = make_splits(source, source.load(), 0.2, 0)

    def fitted(classes):
        parts = {name: getattr(splits, name) for name in ("train", "val")}
        parts = {
            name: {n: leaf[np.isin(part["targets"], classes)] for n, leaf in part.items()}
            for name, part in parts.items()
        }
        beside = baseline_scores.fit_baselines(
            Recipe(MLP(features=(4,)), task), Hparams(), replace(splits, **parts)
        )
        return beside["logistic regression on pixels"].scores["accuracy"]

    assert fitted([0, 1, 2]) < 0.35
    assert fitted([1]) == pytest.approx(np.mean(splits.test["targets"] == 1))
    few = source.train["targets"] < 3  # such a split comes of no data source
    part = {n: leaf[few] for n, leaf in source.train.items()}
    with pytest.raises(InputError, match="the class '3' has no example to train on"):
        computed(task, replace(source, train=part))


def texts():
    rng = np.random.default_rng(0)
    words = "fine good great happy", "bad poor sad awful"
    rows = []
    for i in range(240):
        said = (
            rng.choice(words[i % 2].split(), 2).tolist() + rng.choice(list("abcdefgh"), 6).tolist()
        )
        rows.append((" ".join(rng.permutation(said)), "no" if i % 2 else "yes"))
    with open("notes.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return Text(data=Path("notes.csv"))


def test_texts_beside_scikit_learns_own():
    found, splits = computed(Classification(), texts())
    assert list(found) == ["majority class", "TF-IDF of words", "TF-IDF of characters"]
    plain = {name: splits.plain(name).texts for name in ("train", "val", "test")}
    assert list(map(len, plain.values())) == [
        len(part["targets"]) for part in (splits.train, splits.val, splits.test)
    ]
    reader = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, min_df=2
    )
    reader.fit([*plain["train"], *plain["val"]])
    x = reader.transform(plain["train"])
    scores = [
        LogisticRegression(C=c).fit(x, splits.train["targets"])
        .score(reader.transform(plain["test"]), splits.test["targets"]) for c in (1, 3, 10, 30, 100)
    ]  # fmt: skip
    mine = found["TF-IDF of words"]["accuracy"]
    assert min(abs(mine - score) for score in scores) < 1e-6


def test_numbers_labels_series_and_inputs():
    data = load_diabetes()
    parts = ({"inputs": np.float32(data.data[p]), "targets": np.float32(data.target[p])}
             for p in (slice(0, 350), slice(350, None)))  # fmt: skip
    found, splits = computed(Regression(), Arrays(*parts))
    assert list(found) == ["mean", "ridge regression"]
    deviation = np.sqrt(np.mean((splits.test["targets"] - splits.train["targets"].mean()) ** 2))
    assert found["mean"]["rmse"] == pytest.approx(deviation, rel=1e-4)
    assert found["ridge regression"]["rmse"] < 0.8 * deviation

    source = digits()
    labels = ({**part, "targets": np.stack([part["targets"] % 2, part["targets"] > 4], 1)}
              for part in (source.train, source.test))  # fmt: skip
    found, splits = computed(MultiLabel(), Arrays(*labels, class_names=("odd", "large")))
    shares = splits.train["targets"].mean(0)
    losses = [log_loss(truth, np.full(len(truth), share))
              for truth, share in zip(splits.test["targets"].T, shares, strict=True)]  # fmt: skip
    assert found["share of each label"]["loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert found["logistic regression on pixels"]["accuracy"] > 0.85
    assert found["share of each label"]["accuracy"] == pytest.approx(0.5, abs=0.05)

    found, _ = computed(Forecast(), Series(window=104, horizon=12))
    assert found["ridge autoregression"]["rmse"] < 0.5 * found["the last season again"]["rmse"]

    found, splits = computed(Reconstruction(), source, Autoencoder(latent_dim=8))
    flat = {n: getattr(splits, n)["inputs"].reshape(-1, 64) / 255 for n in ("train", "test")}
    middle = flat["train"].mean(0)
    axes = np.linalg.svd(flat["train"] - middle, full_matrices=False)[2][:8]
    back = middle + (flat["test"] - middle) @ axes.T @ axes
    scores = found["8 principal components"]
    assert scores["loss"] == pytest.approx(np.mean((flat["test"] - back) ** 2), rel=1e-3)
    assert 0.7 < scores["linear_probe_accuracy"] < 1


def test_of_many_examples_some_are_used(monkeypatch):
    monkeypatch.setattr(simple, "MAX_ROWS", 300)
    for task, model in ((Reconstruction(), Autoencoder(latent_dim=8)), (Classification(), None)):
        found, _ = computed(task, digits(), model)
        assert all(np.isfinite(list(scores.values())).all() for scores in found.values())
        assert len(found) == (1 if model else 2)


def trained(features=(4,), learning_rate=1e-5, epochs=1, **options):
    recipe = Recipe(MLP(features=features), batch_size=128)
    hparams = Hparams(learning_rate=learning_rate)
    config = run.Config(recipe, hparams, digits(), epochs=epochs, run_dir=Path("r"), **options)
    lines = []
    return run.run("digits", config, lines.append), lines


def test_a_run_says_that_three_lines_do_better(capsys):
    results, lines = trained()
    said = [line for line in lines if "is not better than logistic regression on pixels" in line]
    assert len(said) == 1 and results["findings"] == said
    saved = json.loads(Path("r/results.json").read_text())
    assert saved["baselines"] == results["baselines"] and saved["findings"] == said
    assert "test: logistic regression on pixels" in capsys.readouterr().out

    # computed once for these data and this split, and anew where what is kept is damaged
    fits, real = [], simple._logistic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple, "_logistic", lambda *args: fits.append(1) or real(*args))
        assert computed(Classification(), digits(), validation=0.1)[0] == results["baselines"]
        assert not fits
        computed(Classification(), digits(), validation=0.3)
        assert len(fits) == 1
        for file in Path("cache/dlflax/baselines").glob("*.json"):
            file.write_text("{damaged")
        assert computed(Classification(), digits(), validation=0.1)[0] == results["baselines"]
        assert len(fits) == 2


def test_none_skips_it():
    results, lines = trained(baseline="none")
    assert "baselines" not in results and not any("not better" in line for line in lines)


@pytest.mark.parametrize(("alone", "p"), [((0, 0), 1), ((3, 8), 0.2265625), ((0, 9), 0.00390625)])
def test_mcnemar_is_a_sum_of_binomial_coefficients(alone, p):
    few, n = min(alone), sum(alone)
    tail = 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    assert min(1, tail) == p
    counts = {"network_alone": alone[0], "baseline_alone": alone[1], "examples": 100}
    assert baseline_scores.mcnemar_p(counts) == pytest.approx(p)


@pytest.mark.parametrize(
    ("network", "alone", "sentence"),
    [
        (0.9, None, "The network, accuracy 0.9000, is better than a, 0.8000."),
        (0.8, None, "as good as a, accuracy 0.8000: train"),
        (0.7, None, "The network, accuracy 0.7000, is not better than a, 0.8000: train longer, or"),
        (0.8, (7, 7), "as good as a, accuracy 0.8000: train"),
        (0.75, (3, 8), "network, accuracy 0.7500, and a, 0.8000, are not different on 1,000 exa"),
        (0.75, (3, 8), "(McNemar's test, p = 0.23): train"),
        (0.85, (8, 3), "not different on 1,000 examples (McNemar's test, p = 0.23)."),
        (0.7, (0, 9), "The network, accuracy 0.7000, is not better than a, 0.8000: train"),
        (0.9, (9, 0), "The network, accuracy 0.9000, is better than a, 0.8000."),
    ],
)
def test_verdict(network, alone, sentence):
    results = {
        "test": {"accuracy": network},
        "baselines": {"b": {"accuracy": 0.6}, "a": {"accuracy": 0.8}, "c": {"loss": 1.0}},
    }
    if alone:
        counts = dict(zip(("network_alone", "baseline_alone"), alone, strict=True))
        results["mcnemar"] = {"a": {**counts, "examples": 1000}}
    (said,) = baseline_scores.verdict(results, Classification(), in_sweep=True)
    assert sentence in said


def test_verdict_on_scores_that_are_to_be_low():
    lower = {"baselines": {"a": {"rmse": 0.8}, "b": {"rmse": 0.5}}, "test": {"rmse": 0.6}}
    assert (
        "than b, 0.5000: train longer, tune it with sweeps.bayes_opt, or"
        in baseline_scores.verdict(lower, Regression())[0]
    )
    lower["test"]["rmse"] = 0.499999
    assert "as good as b, rmse 0.5000: " in baseline_scores.verdict(lower, Regression())[0]
    lower["baselines"]["b"]["rmse"], lower["test"]["rmse"] = 1.21e-5, 1.24e-5  # no tie
    assert "rmse 1.24e-05, is not better" in baseline_scores.verdict(lower, Regression())[0]
    lower["baselines"]["b"]["rmse"], lower["test"]["rmse"] = 0.5, 0.4
    assert (
        "rmse 0.4000, is better than b, 0.5000." in baseline_scores.verdict(lower, Regression())[0]
    )
    del lower["baselines"]["a"], lower["baselines"]["b"]
    assert baseline_scores.verdict(lower, Regression()) == []


@pytest.mark.slow
def test_counts_of_a_run_are_those_of_its_predictions():
    results, _ = trained((32,), 1e-2, epochs=4)
    source = digits()
    splits = make_splits(source, source.load(), 0.1, 0)
    x = {n: getattr(splits, n)["inputs"].reshape(-1, 64) / 255 for n in ("train", "test")}
    own = LogisticRegression(max_iter=1000).fit(x["train"], splits.train["targets"])
    truth = splits.test["targets"]
    answers = dlflax.load(Path("r")).predict(splits.test["inputs"])
    answers = np.array([int(answer["class"]) for answer in answers])
    network, beside = answers == truth, own.predict(x["test"]) == truth
    assert network.mean() == pytest.approx(results["test"]["accuracy"])
    counts = results["mcnemar"]["logistic regression on pixels"]
    assert counts["examples"] == len(truth)
    assert counts["network_alone"] == pytest.approx(np.sum(network & ~beside), abs=6)
    assert counts["baseline_alone"] == pytest.approx(np.sum(beside & ~network), abs=6)
    common = truth == np.bincount(splits.train["targets"]).argmax()
    assert results["mcnemar"]["majority class"] == {
        "network_alone": np.sum(network & ~common), "baseline_alone": np.sum(common & ~network),
        "examples": len(truth),
    }  # fmt: skip


def test_baselines_of_another_season_are_others():
    """Though the arrays are the same: what is on disk is told apart by all that decides it."""
    year, month = (
        computed(Forecast(), Series("sunspots", window=22, horizon=11, seasonality=period))[0]
        for period in (11, 1)
    )
    name = "the last season again"
    assert year[name] != month[name]
    assert (
        month[name]
        == computed(Forecast(), Series("sunspots", window=22, horizon=11, seasonality=1))[0][name]
    )  # from the disk


def test_correct_examples_are_on_disk_too():
    recipe, source = Recipe(MLP(features=(4,)), Classification()), digits()
    splits = make_splits(source, source.load(), 0.1, 0)
    first, again = (baseline_scores.fit_baselines(recipe, Hparams(), splits) for _ in "ab")
    assert list(first) == list(again)
    for name, baseline in first.items():
        assert baseline.scores == again[name].scores
        np.testing.assert_array_equal(baseline.correct, again[name].correct)
        assert baseline.correct.mean() == pytest.approx(baseline.scores["accuracy"])


def test_no_verdict_where_the_network_is_the_baseline():
    results, _ = trained(features=(), learning_rate=1e-3, epochs=8)
    beside = results["baselines"]
    assert results["test"]["accuracy"] < beside["logistic regression on pixels"]["accuracy"]
    assert results["test"]["accuracy"] > beside["majority class"]["accuracy"]
    assert results["findings"] == []
    # other simple models are compared
    results["baselines"]["histogram gradient boosting"] = {"accuracy": 0.99}
    (said,) = baseline_scores.verdict(results, Classification(), linear=True)
    assert "not better than histogram gradient boosting" in said


@pytest.mark.parametrize(
    ("model", "shape", "linear"),
    [
        (MLP(features=()), (8, 8, 1), True),
        (MLP(features=(4,)), (8, 8, 1), False),
        (CNN(features=(), dense=()), (8, 8, 1), True),
        (CNN(), (8, 8, 1), False),
        (ResNet("18"), (512,), True),  # features, of which the head is trained
        (ResNet("18"), (32, 32, 3), False),
        (RNN(), (8, 3), False),
    ],
)
def test_which_networks_are_linear(model, shape, linear):
    inputs = np.zeros((1, *shape), np.float32)
    params = train.abstract(Recipe(model), Hparams(), inputs).params
    assert baseline_scores.is_linear(params, inputs) == linear


def test_a_model_that_fails_does_not_stop_the_run(monkeypatch):
    def failing(*_):
        raise MemoryError("too much")

    monkeypatch.setattr(simple, "_logistic", failing)
    results, lines = trained()
    assert list(results["baselines"]) == ["majority class"]
    said = "warning: the logistic regression on pixels baseline failed (MemoryError: too much)"
    assert said in lines


def test_scores_of_any_outputs_are_the_loops_own():
    source = digits(np.float32)
    splits = make_splits(source, source.load(), 0.1, 0)
    recipe = Recipe(MLP(features=(4,), num_outputs=10))
    fit = train.fit(recipe, Hparams(), splits.train, splits.val, epochs=1)
    scores, outputs = train.evaluate(recipe, fit.state, Hparams(), splits.test)
    assert train.scores(recipe.task, Hparams(), splits.test, outputs) == scores


def test_a_slow_fit_is_announced(monkeypatch):
    announced, lines, real = threading.Event(), [], simple._logistic

    def log(line):
        lines.append(line)
        announced.set()

    monkeypatch.setattr(progress, "SILENT_SECONDS", 600)
    computed(Classification(), digits(), log=log)
    assert lines == []
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.01)
    monkeypatch.setattr(simple, "_logistic", lambda *args: announced.wait(60) and real(*args))
    computed(Classification(), digits(), validation=0.3, log=log)
    assert "fitting logistic regression on pixels ..." in lines
