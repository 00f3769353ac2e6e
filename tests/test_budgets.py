"""Work has bounds by columns, classes and rows, and what is left undone is said."""

import json
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from dlflax import run
from dlflax.baselines import reference_models as simple
from dlflax.data import Table, make_splits
from dlflax.data.encoder import Plain
from dlflax.data.image import duplicates
from dlflax.errors import InputError
from dlflax.models import MLP
from dlflax.report import figures
from dlflax.run import baseline_scores
from dlflax.train import Hparams, Recipe, importance, metrics
from dlflax.train.metrics import classes as of_classes
from dlflax.train.tasks import Classification, MultiLabel, Regression

RNG = np.random.default_rng(0)
GROUPS = {"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 6), "noise": slice(6, 8)}


def asked(inputs, calls):
    def predict(x):
        calls.append(x.shape)
        return x[:, :1] + 3 * x[:, 2:3] + 0.5 * x[:, 4:5]

    truth = predict(inputs)[:, 0]
    calls.clear()
    return predict, lambda outputs, rows: float(np.mean((outputs[:, 0] - truth[rows]) ** 2))


def test_importance_within_the_budget_is_of_everything():
    inputs, calls = RNG.normal(size=(500, 8)).astype(np.float32), []
    found = importance.permutation(GROUPS, inputs, *asked(inputs, calls))
    assert [row["column"] for row in found] == ["b", "a", "c", "noise"]
    assert found[0]["importance"] == pytest.approx(2 * 9, rel=0.15)  # twice the variance
    assert found[-1]["importance"] == 0
    assert calls == [(500, 8)] * (1 + 4 * importance.REPEATS)
    assert importance.subset_findings(GROUPS, inputs) == []


def test_importance_beyond_it_is_of_fewer_columns_and_rows(monkeypatch):
    inputs, calls = RNG.normal(size=(500, 8)).astype(np.float32), []
    monkeypatch.setattr(importance, "MAX_COLUMNS", 2)
    found = importance.permutation(GROUPS, inputs, *asked(inputs, calls))
    assert [row["column"] for row in found] == ["b", "a"] and len(calls) == 11
    assert importance.subset_findings(GROUPS, inputs) == [
        "importance.csv has 2 of 4 columns, those most correlated with the outputs, permuted "
        "in 500 of 500 test rows."
    ]
    monkeypatch.setattr(importance, "MAX_COLUMNS", 200)
    monkeypatch.setattr(importance, "MAX_ROWS", 400)
    assert importance.subset_findings(GROUPS, inputs)[0].startswith(
        "importance.csv has 4 of 4 columns, permuted in 400 of 500"
    )
    for most in (10, 8_000, 30_000, 10**6):  # numbers in all
        monkeypatch.setattr(importance, "MAX_NUMBERS", most)
        calls.clear()
        importance.permutation(GROUPS, inputs, *asked(inputs, calls))
        spent = 8 * sum(rows for rows, _ in calls[1:])
        assert spent <= max(most, importance.REPEATS * importance.MIN_ROWS * 8)
        assert importance.budget(GROUPS, inputs) == ((len(calls) - 1) // 5, calls[0][0])
    wide = {str(i): slice(17 * i, 17 * i + 17) for i in range(10_000)}
    monkeypatch.undo()
    columns, rows = importance.budget(wide, np.broadcast_to(np.float32(0), (2000, 170_000)))
    assert columns >= 10 and columns * rows * importance.REPEATS * 170_000 <= 2 * 10**9


def test_a_model_of_many_trees_permutes_less():
    groups = {f"column{i}": slice(17 * i, 17 * i + 17) for i in range(48)}
    inputs = np.broadcast_to(np.float32(0), (380, 816))
    assert importance.budget(groups, inputs, 100_000) == (48, 380)
    assert importance.budget(groups, inputs, 2_000_000) == (9, 200)


@pytest.mark.parametrize(("k", "most"), [(3, 60), (60, 60), (1000, 60), (5, 2)])
def test_the_most_confused_classes_are_those_of_the_whole_matrix(k, most):
    targets = RNG.integers(0, k, 3000)
    predicted = np.where(RNG.random(3000) < 0.7, targets, RNG.integers(0, k, 3000))
    counts, chosen = metrics.worst_confusion(predicted, targets, k, most)
    whole = confusion_matrix(targets, predicted, labels=np.arange(k))
    wrong = whole - np.diag(np.diag(whole))
    errors = wrong.sum(0) + wrong.sum(1)
    assert len(chosen) == min(k, most) and (np.diff(chosen) > 0).all()
    assert errors[chosen].sum() == np.sort(errors)[::-1][:most].sum()
    np.testing.assert_array_equal(counts, whole[np.ix_(chosen, chosen)])


def test_a_million_classes_take_no_matrix():
    counts, chosen = metrics.worst_confusion(np.array([5, 7]), np.array([5, 999_999]), 10**6, 3)
    assert counts.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]] and chosen.tolist() == [
        0,
        7,
        999_999,
    ]
    assert figures.confusion_matrix(counts, list("abc"), "a title").axes[0].get_title() == "a title"


def test_curves_of_many_classes_are_of_a_part(monkeypatch):
    targets, logits = np.arange(90) % 3, RNG.normal(size=(90, 3)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    batch = {"targets": targets}
    whole = roc_auc_score(targets, p, multi_class="ovr")
    assert metrics.ROCAUC().compute(logits, batch) == pytest.approx(whole)
    assert metrics.subset_findings(logits) == []
    monkeypatch.setattr(of_classes, "MAX_SCORES", 70)
    some = of_classes._sample(logits)
    assert len(set(some)) == 23 and set(targets[some]) == {0, 1, 2}
    part = roc_auc_score(targets[some], p[some], multi_class="ovr")
    assert metrics.ROCAUC().compute(logits, batch) == pytest.approx(part)
    assert metrics.subset_findings(logits) == [
        "roc_auc and average_precision are of 23 of 90 test examples."
    ]


@pytest.fixture
def table(place):
    """A table of 300 rows, splits by its target."""

    def read(target):
        x = RNG.normal(size=(300, 3))
        lines = ["a,b,c,target"]
        lines += [f"{a},{b},{c},{target(a, i)}" for i, (a, b, c) in enumerate(x.tolist())]
        Path("t.csv").write_text("\n".join(lines))
        source = Table(data=Path("t.csv"))
        return make_splits(source, source.load(lambda _: None), 0.1, 0)

    return read


def noted(task, splits):
    said = []
    recipe = Recipe(MLP(features=(4,), num_outputs=1), task)
    beside = baseline_scores.fit_baselines(recipe, Hparams(), splits, lambda _: None, said.append)
    again = []
    baseline_scores.fit_baselines(recipe, Hparams(), splits, lambda _: None, again.append)
    assert set(again) == set(said)  # though they are on the disk
    return beside, said


@pytest.mark.baselines
def test_baselines_of_classes_have_a_budget(table, monkeypatch):
    splits = table(lambda a, i: "yes" if a > 0 else "no")
    n = len(splits.train["targets"])
    width = splits.train["inputs"].shape[1]
    assert noted(Classification(), splits)[1] == []
    monkeypatch.setattr(simple, "MIN_ROWS", 50)
    monkeypatch.setattr(simple, "MAX_NUMBERS", 100 * width * 2)
    monkeypatch.setattr(simple, "MAX_BOOSTED", (120 + simple.LEAVES_BINS) * 3)
    monkeypatch.setattr(baseline_scores, "VERSION", 0)
    beside, said = noted(Classification(), splits)
    assert said == [
        f"logistic regression is fitted on 100 of {n} training examples.",
        f"histogram gradient boosting is fitted on 120 of {n} training examples.",
    ]
    assert beside["logistic regression"].scores["accuracy"] > 0.8
    monkeypatch.setattr(simple, "MAX_NUMBERS", 10 * width)
    monkeypatch.setattr(simple, "MAX_BOOSTED", 1000)
    monkeypatch.setattr(baseline_scores, "VERSION", -1)
    beside, said = noted(Classification(), splits)
    assert list(beside) == ["majority class"] and said == [
        "No logistic regression baseline: fitting takes too long on "
        f"{width} columns and 2 classes.",
        "No histogram gradient boosting baseline: fitting takes too long on 3 columns.",
    ]


@pytest.mark.baselines
def test_baselines_of_numbers_and_labels_have_a_budget(table, monkeypatch):
    splits = table(lambda a, i: a * 3 + i / 1000)
    n, width = splits.train["inputs"].shape
    monkeypatch.setattr(simple, "MIN_ROWS", 50)
    monkeypatch.setattr(simple, "MAX_PRODUCTS", 110 * width**2)
    monkeypatch.setattr(simple, "MAX_BOOSTED", (120 + simple.LEAVES_BINS) * 3)
    beside, said = noted(Regression(), splits)
    assert said == [
        f"ridge regression is fitted on 110 of {n} training examples.",
        f"histogram gradient boosting is fitted on 120 of {n} training examples.",
    ]
    assert beside["ridge regression"].scores["rmse"] < beside["mean"].scores["rmse"] / 2
    monkeypatch.setattr(simple, "MAX_PRODUCTS", 30 * width)  # few rows, many columns
    monkeypatch.setattr(baseline_scores, "VERSION", 0)
    assert "No ridge regression baseline" in noted(Regression(), splits)[1][0]

    parts = {
        name: {**part, "targets": np.int32(np.stack([part["targets"] > 0] * 3, 1))}
        for name in ("train", "val", "test") if (part := getattr(splits, name))
    }  # fmt: skip
    monkeypatch.setattr(simple, "MAX_NUMBERS", 60 * width * 3)
    beside, said = noted(MultiLabel(), replace(splits, **parts))
    assert said == [f"logistic regression is fitted on 60 of {n} training examples."]


def test_texts_have_a_budget(monkeypatch):
    texts = [f"word{i % 7} {'good' if i % 2 else 'bad'} text" for i in range(60)]
    parts = {
        name: {"inputs": np.zeros((n, 1), np.int32), "targets": np.arange(n) % 2}
        for name, n in (("train", 60), ("test", 4))
    }
    plain = {name: Plain(texts=texts[: len(part["inputs"])]) for name, part in parts.items()}
    splits = types.SimpleNamespace(
        **parts, val=None, class_names=("a", "b"), examples=parts, plain=plain.get
    )
    monkeypatch.setattr(simple, "MIN_ROWS", 10)
    fit = simple.classification(splits, 2)["TF-IDF of words"]
    assert fit().rows == 60
    monkeypatch.setattr(simple.linear, "MAX_CHARACTERS", 3 * 2 * sum(map(len, texts)) // 2)
    fitted = fit()
    assert fitted.rows == 30 and (fitted.outputs.argmax(1) == np.arange(4) % 2).all()


def test_near_duplicates_have_a_budget(monkeypatch):
    pictures = np.float16(RNG.uniform(0, 255, (1200, 3 * duplicates.SIDE**2)))
    pictures += np.linspace(-90, 90, 1200)[:, None].astype(np.float16)
    copies = RNG.permutation(1200)[:40]
    pictures = np.concatenate([pictures, pictures[copies] + np.float16(0.5)])
    n, names = len(pictures), [f"{i}.png" for i in range(len(pictures))]
    arguments = pictures, [str(i) for i in range(n)], ["a"] * n, names
    dropped, report = duplicates.find_repeats(*arguments)
    assert np.flatnonzero(dropped).tolist() == list(range(1200, 1240)) and len(report) == 40
    monkeypatch.setattr(duplicates, "FEWEST_COLUMNS", 600)
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 1)
    dropped, report = duplicates.find_repeats(*arguments)
    assert np.flatnonzero(dropped).tolist() == list(range(1200, 1240))
    assert report[0][:3] == ["all images", "listed", "of too many"]
    assert report[0][3] == "near duplicates: compared with the 600 of nearest brightness"
    monkeypatch.setattr(duplicates, "MOST_NEAR", 5)
    assert "more than 5 pairs" in duplicates.find_repeats(*arguments)[1][0][-1]


def test_scores_are_saved_before_columns_are_shuffled(place, monkeypatch, capsys):
    """And leaks, and what was too much work, are findings."""
    seen, real = [], importance.permutation

    def look(*args):
        seen.append(json.loads(Path("r/results.json").read_text()))
        return real(*args)

    monkeypatch.setattr(importance, "permutation", look)
    monkeypatch.setattr(importance, "MAX_COLUMNS", 3)
    source = Table("wine")
    dataset = replace(source.load(lambda _: None), findings=("proline leaks.",))
    recipe = Recipe(MLP(features=(4,)), Classification(), batch_size=32)
    config = run.Config(recipe, Hparams(), source, epochs=1, run_dir=Path("r"), baseline="none")
    results = run.run("wine", config, print, dataset)
    assert len(seen) == 1 and seen[0]["test"]["accuracy"] == results["test"]["accuracy"]
    assert seen[0]["test"]["per_class"] and seen[0]["pending"]
    assert results["findings"][0] == "proline leaks." and len(results["findings"]) == 2
    assert "importance.csv has 3 of 13 columns" in results["findings"][1]
    assert all(sentence in capsys.readouterr().out for sentence in results["findings"][:1])
    assert len(Path("r/importance.csv").read_text().splitlines()) == 4
    assert json.loads(Path("r/results.json").read_text()) == results


def test_wide_inputs_are_refused_before_they_are_copied(monkeypatch):
    monkeypatch.setattr(simple, "MAX_COLUMNS", 3)
    part = {"inputs": np.zeros((4, 16), np.float32), "targets": np.arange(4) % 2}
    splits = type("S", (), {"train": part, "val": None, "test": part})
    for fit in (simple._sample_points, simple._ridge, simple._points):
        with pytest.raises(InputError, match="fitting takes too long on 16 columns"):
            fit(splits)
    part["inputs"] = part["inputs"][:, :15]
    assert simple._sample_points(splits)[1]["train"].shape == (4, 15)
