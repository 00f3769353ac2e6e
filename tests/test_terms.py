"""Linear models of texts: terms and TF-IDF beside scikit-learn's, in a run and after it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import dlflax
from dlflax import automl, run
from dlflax.baselines import linear
from dlflax.data import Text, make_splits
from dlflax.data.infer import Inferred
from dlflax.data.text import terms
from dlflax.errors import InputError
from dlflax.models.tfidf import TfIdf
from dlflax.run.prepare import split_data
from experiments import sentiment

RNG = np.random.default_rng(0)
TEXTS = [
    f"{'a good' if i % 2 else 'no'} film, 第{i % 3}部 {'very ' * (i % 4)}{i % 7}" for i in range(60)
]
CLASSES = np.arange(60) % 2 + (np.arange(60) % 5 == 0)


@pytest.mark.parametrize("analyzer", ["word", "char_wb"])
def test_a_member_is_scikit_learn_s_model(analyzer):
    fold_of = np.repeat([-1, 0], 30)
    fits = linear.fit_texts(analyzer, TEXTS, CLASSES, fold_of, 3)
    tfidf = TfidfVectorizer(
        analyzer=analyzer, ngram_range=(1, terms.LONGEST[analyzer]), min_df=2, sublinear_tf=True,
        token_pattern=r"(?u)\b\w+\b" if analyzer == "word" else None,
    )  # fmt: skip
    x = tfidf.fit_transform(TEXTS)
    assert set(fits.terms.vocabulary) == set(tfidf.vocabulary_)
    decisions, losses = {}, {}
    for strength in linear.TEXT_STRENGTHS:
        model = LogisticRegression(C=strength).fit(x[:30], CLASSES[:30])
        p = model.predict_proba(x[30:])
        losses[strength] = -np.log(p[np.arange(30), CLASSES[30:]]).mean()
        decisions[strength] = model.decision_function(x[30:])
    best = min(losses, key=losses.get)
    np.testing.assert_allclose(fits.outputs[30:], decisions[best], atol=2e-3)
    new = ["", "a 第1部 film", *TEXTS]
    expected = LogisticRegression(C=best).fit(x, CLASSES).decision_function(tfidf.transform(new))
    model = TfIdf(len(fits.terms.vocabulary), num_outputs=3)
    outputs = jax.jit(model.apply)({"params": fits.params}, fits.terms.inputs(new))
    np.testing.assert_allclose(outputs, fits.logits(new), atol=1e-5)
    np.testing.assert_allclose(outputs, expected, atol=2e-3)  # another order of terms in L-BFGS
    assert not fits.outputs[:30].any()


def test_the_model_is_the_decision_function():
    """The same arrays in scikit-learn's own transformer and classifier."""
    words = terms.fit_terms("word", TEXTS)
    tfidf = TfidfVectorizer(
        vocabulary=words.vocabulary, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b",
        sublinear_tf=True,
    )  # fmt: skip
    model = LogisticRegression(C=30).fit(tfidf.fit_transform(TEXTS), CLASSES)
    params = {"idf": tfidf.idf_, "kernel": model.coef_.T, "bias": model.intercept_}
    params = {name: np.float32(array) for name, array in params.items()}
    outputs = TfIdf(len(words.vocabulary), 3).apply({"params": params}, words.inputs(TEXTS))
    np.testing.assert_allclose(outputs, model.decision_function(tfidf.transform(TEXTS)), atol=1e-5)


def test_a_long_text_keeps_its_most_frequent_terms(monkeypatch):
    monkeypatch.setattr(terms, "MAX_LENGTH", 3)
    words = terms.fit_terms("word", TEXTS)
    assert words.length == 3
    ids, counts = words.inputs(["film film a 6 good", ""]).reshape(2, 2, 3).swapaxes(0, 1)
    assert ids[0].tolist() == sorted(ids[0]) and words.vocabulary[ids[0, 0]] == "film"
    assert counts[0, 0] == 2 and not counts[1].any()
    saved = terms.from_json(terms.to_json([words]))
    assert saved == (words,)
    with pytest.raises(InputError, match="no word or character occurs in two"):
        terms.fit_terms("word", ["a", "b"])
    monkeypatch.setattr(linear, "MAX_CHARACTERS", 1000)
    with pytest.raises(InputError, match="takes too long on"):
        linear.fit_texts("word", TEXTS, CLASSES, np.zeros(60, int), 3)
    with pytest.raises(InputError, match="one class"):
        linear.fit_folds(csr_matrix(np.eye(4)), np.int32([0, 1, 1, 1]), np.int32([0, 1, 1, 1]), 2)


@pytest.mark.slow
def test_a_run_of_texts_blends_linear_models(zoo, place):
    folder = zoo("notes")
    results = json.loads((folder / "results.json").read_text())
    members = {member["name"]: member for member in results["members"]}
    assert set(members) == {"network", "TF-IDF of words", "TF-IDF of characters"}
    assert members["TF-IDF of words"]["test"]["accuracy"] == 1
    losses = [member["val"]["loss"] for member in members.values()]
    assert results["val"]["loss"] <= min(losses) + 1e-3  # the least of smoothed targets
    model = dlflax.load(folder, log=lambda _: None)
    answers = model.predict(["a good day", "a poor day"])
    assert [answer["class"] for answer in answers] == ["1", "0"]
    # the saved model is the one that was tested
    lines = (folder / "wrong_predictions.csv").read_text().splitlines()
    assert len(lines) - 1 == round((1 - results["test"]["accuracy"]) * results["data"]["test"])
    copy = model.save("copy")
    again = dlflax.load(copy, log=lambda _: None).predict(["a good day", "a poor day"])
    assert again == answers
    spec = json.loads((folder / "encoder.json").read_text())
    width = spec["length"] + 2 * sum(spec["terms_length"])
    assert model.input_shape == (width,)
    raw = model._predictor.encoder.raw(model._predictor.encoder.parse(["a good day"]))
    assert model.predict(raw)[0]["probability"] == answers[0]["probability"]
    (Path("copy") / "terms.json").unlink()
    with pytest.raises(InputError, match=r"terms\.json is missing"):
        dlflax.load("copy")


@pytest.mark.slow
def test_a_finished_run_of_texts_is_not_trained_again(zoo, place, capsys, monkeypatch):
    shutil.copytree(zoo("notes"), place / "r")
    config = json.loads(Path("r/config.json").read_text())
    monkeypatch.setattr("dlflax.run.blend.fit", None)
    flags = ["--run-dir", "r", "--resume", "--data", config["requested"]["data"]["data"]]
    run.main("sentiment", sentiment.PRESETS, sentiment.ARCHITECTURES, flags)
    assert "finished already" in capsys.readouterr().out


@pytest.mark.slow
def test_export(zoo, tmp_path):
    pytest.importorskip("jax2onnx")
    model = dlflax.load(zoo("notes"), log=lambda _: None)
    for kind in ("stablehlo", "onnx"):
        path = model.export(kind, tmp_path / f"model.{kind}")
        assert json.loads(Path(f"{path}.json").read_text())["difference"] < 1e-4


def tables(place, labels=True, validation=True):
    """train.tsv, dev.tsv and test.tsv, as GLUE's are."""
    lines = [f"{'good' if i % 2 else 'poor'} day number {i}\t{i % 2}" for i in range(90)]
    parts = {"train": lines[:60], "dev": lines[60:75], "test": lines[75:]}
    if not labels:
        parts["test"] = [line.partition("\t")[0] for line in parts["test"]]
    for name, part in parts.items():
        if name != "dev" or validation:
            header = "sentence\tlabel" if "\t" in part[0] else "sentence"
            path = place / "glue" / f"{name}.tsv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join([header, *part, part[0]]), encoding="utf-8")
    return Text(data=place / "glue")


def test_tables_of_splits_are_read(place):
    said = []
    dataset = tables(place).load(said.append)
    splits = make_splits(Text(), dataset, 0.1, 0)
    parts = splits.train, splits.val, splits.test
    assert [len(part["targets"]) for part in parts] == [60, 15, 16]
    assert sorted(splits.plain("val").texts)[0] == "good day number 61"
    assert "repeat an earlier one" in " ".join(said)
    said = []
    dataset = tables(place, labels=False).load(said.append)
    assert "test.tsv has no labels to test with: dev.tsv is the test split." in said[0]
    assert dataset.split.in_test.sum() == 16 and dataset.split.in_validation is None
    (place / "glue" / "dev.tsv").unlink()
    with pytest.raises(InputError, match=r"test\.tsv has the columns 'sentence'"):
        Text(data=place / "glue").load(said.append)
    dataset = tables(place, validation=False).load(said.append)
    assert dataset.split.in_validation is None and dataset.split.in_test.sum() == 16


def test_many_texts_have_a_validation_split(place, monkeypatch):
    """A given one stays one."""
    config = run.Config(data=Text(), recipe=sentiment.WORDS.recipe, bag_folds=3)
    paths = {tables(place).data / "train.tsv": (48, 6), tables(place).data: (60, 15)}
    for most, held_out in ((50, True), (60, False)):
        monkeypatch.setattr(Text, "max_bag", most)
        for path, counts in paths.items():
            _, splits = split_data(config, Text(data=path).load(lambda _: None), lambda _: None)
            if held_out or path.is_dir():
                sizes = len(splits.train["targets"]), len(splits.val["targets"])
                assert sizes == counts
            else:
                assert splits.val is None


@pytest.mark.slow
def test_a_given_validation_split_is_the_only_fold(place, capsys):
    flags = ["--model", "rnn", "--model.features", "8", "--batch-size", "8", "--epochs", "1",
             "--baseline", "none", "--run-dir", "r", "--data", str(tables(place).data)]  # fmt: skip
    run.main("sentiment", sentiment.PRESETS, sentiment.ARCHITECTURES, flags)
    assert "training one network" in capsys.readouterr().out
    results = json.loads(Path("r/results.json").read_text())
    assert {m["name"]: m["models"] for m in results["members"]} == {
        "network": 1, "TF-IDF of words": 1, "TF-IDF of characters": 1,
    }  # fmt: skip
    assert results["data"]["validation"] == 15


def test_the_preset_of_fit_has_its_tokenizer(place, monkeypatch):
    """The pretrained encoder where it is on disk and the time is long enough, else words."""
    source, said = Text(data=tables(place).data), []
    for preset in ("minilm", "rnn"):
        monkeypatch.setitem(sentiment.PRESETS, "default", sentiment.PRESETS[preset])
        _, config = automl.choose_preset(source, said.append)
        assert config.data == replace(source, tokenizer=sentiment.PRESETS[preset].data.tokenizer)
    assert not said
    monkeypatch.setitem(sentiment.PRESETS, "default", sentiment.HEADS)
    _, config = automl.choose_preset(source, said.append, is_short=True)
    assert config.transfer is None and config.data == source
    assert "words are learned instead" in said[0]
    size = sum(file.stat().st_size for file in source.data.iterdir())
    for limit, is_short in ((0, False), (size / 1e4 + 1, False), (size / 1e4 - 1, True)):
        monkeypatch.setattr(automl, "ENCODED", 2e4)
        assert automl._is_short(Inferred(source), limit) == (is_short and limit > 0)


@pytest.mark.slow
def test_fit_of_a_list_of_texts(place, monkeypatch):
    monkeypatch.setattr(automl, "ENCODED", 1)
    texts = [f"{'good' if i % 2 else 'poor'} day number {i}" for i in range(100)]
    labels = ["yes" if i % 2 else "no" for i in range(100)]
    model = dlflax.fit(texts, labels, log=None, epochs=2, batch_size=8)
    answers = model.predict(["a good day", "poor"])
    assert [answer["class"] for answer in answers] == ["yes", "no"]
    assert {row["model"].partition(" x ")[2] for row in model.leaderboard()} >= {
        "network", "TF-IDF of words", "TF-IDF of characters",
    }  # fmt: skip
    assert dlflax.load(model.save("copy")).predict("poor")[0]["class"] == "no"
