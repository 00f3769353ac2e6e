"""Texts: every source, every way a file can be wrong, the split and the tokenizer."""

import collections
import csv
import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from dlflax.config.saved import save_encoder
from dlflax.data import Dataset, Examples, Given, hub, make_splits, published
from dlflax.data.order import stratified_sample
from dlflax.data.text import Text, tokenizers
from dlflax.data.text import source as text
from dlflax.data.text.tokenizers import encode
from dlflax.errors import InputError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "text"
GOOD = [f"a good film number {i}" for i in range(20)]
BAD = [f"a bad film number {i}" for i in range(30)]


pytestmark = pytest.mark.usefixtures("isolated")


def silent(sentence):
    raise AssertionError(f"nothing should be said, but: {sentence}")


def load(path, log=silent, **fields):
    return Text(data=path, **fields).load(log)


def refused(path, **fields):
    """The one sentence with which `path` is refused."""
    with pytest.raises(InputError) as error:
        load(path, **fields)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and message.count(". ") == 0
    assert error.value.__cause__ is None
    return message


def pairs(part, class_names):
    assert part["inputs"].dtype == object and part["targets"].dtype == np.int32
    assert part["inputs"].shape == part["targets"].shape
    return {
        (content, class_names[target])
        for content, target in zip(part["inputs"], part["targets"], strict=True)
    }


def check(dataset, name, good="pos", bad="neg"):
    """All of GOOD and BAD with their classes, a tenth of each in the test."""
    train, test = (pairs(part, dataset.class_names) for part in (dataset.train, dataset.test))
    assert not train & test
    assert train | test == {(each, good) for each in GOOD} | {(each, bad) for each in BAD}
    assert len(test) == 5 and len([label for _, label in test if label == good]) == 2
    assert dataset.name == name and dataset.class_names == tuple(sorted([good, bad]))
    assert len(dataset.checksum) == 64


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(separator=",", good="pos", bad="neg"):
    lines = [f"{each}{separator}{good}" for each in GOOD]
    return "\n".join(lines + [f"{each}{separator}{bad}" for each in BAD]) + "\n"


# Tables


@pytest.mark.parametrize(
    "header", ["text,label", "Review,SENTIMENT", " sms , Class", "\ufefftext,label"]
)
def test_csv(tmp_path, header):
    path = write(tmp_path / "films.CSV", f"{header}\n\n{rows()}")
    dataset = load(path)
    check(dataset, "films")
    assert dataset.source == str(path)


def test_other_columns_and_order(tmp_path):
    cells = [line.split(",") for line in rows().splitlines()]
    lines = [f"{i},{label},{each}" for i, (each, label) in enumerate(cells)]
    check(load(write(tmp_path / "a.csv", "id,label,text\n" + "\n".join(lines))), "a")


@pytest.mark.parametrize("separator", [",", "\t"])
def test_no_header(tmp_path, separator):
    kind = {",": "csv", "\t": "tsv"}[separator]
    check(load(write(tmp_path / f"a.{kind}", rows(separator))), "a")
    swapped = [separator.join(line.split(separator)[::-1]) for line in rows(separator).splitlines()]
    packed = gzip.compress("\n".join(swapped).encode())
    check(load(write(tmp_path / f"b.{kind}.gz", packed)), "b")


@pytest.mark.parametrize("separator", [";", "|", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_other_delimiters(tmp_path, separator, header):
    """A comma in a text does not make it the delimiter, even where it is more frequent."""
    lines = [f"{each}, and, so, on{separator}pos" for each in GOOD]
    lines += [f'"{each}, well{separator} and\nso on"{separator}neg' for each in BAD]
    start = [f"text{separator}label"] if header else []
    dataset = load(write(tmp_path / "a.csv", "\n".join(start + lines)))
    found = pairs(dataset.train, dataset.class_names) | pairs(dataset.test, dataset.class_names)
    assert (f"{GOOD[0]}, and, so, on", "pos") in found and len(found) == 50
    assert (f"{BAD[0]}, well{separator} and\nso on", "neg") in found


def test_a_refused_table_leaves_the_limit_of_cells_as_it_was(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,b,c\na,b\n")
    with pytest.raises(InputError) as refused:  # holds on to the frames where it stopped
        load(path)
    assert "line 2" in str(refused.value) and csv.field_size_limit() == 131_072


def test_quoting(tmp_path):
    """In a .csv a quoted text may have commas and lines; in a .tsv a quotation mark is one."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["text", "label"])
    odd = [
        'commas, "quotes"\nand lines',
        "\0 nul",
        "\U0001f600 \u05e9\u05dc\u05d5\u05dd\u2028\x85end",
        "x" * 1_000_000,
    ]
    writer.writerows([each, "odd"] for each in odd)
    writer.writerows([each, "even"] for each in GOOD)
    dataset = load(write(tmp_path / "a.csv", table.getvalue()))
    both = [*dataset.train["inputs"], *dataset.test["inputs"]]
    assert set(odd) <= set(both)
    assert csv.field_size_limit() == 131_072  # as others expect it
    splits = make_splits(Text(max_length=3, tokenizer="bpe"), dataset, 0.2, 0)
    assert splits.train["inputs"].all(1).any()

    lines = "".join(f'"stray {each}\tpos\n' for each in GOOD) + "".join(
        f"{each}\tneg\n" for each in BAD
    )
    dataset = load(write(tmp_path / "a.tsv", lines))
    assert sum(each.startswith('"stray') for each in dataset.train["inputs"]) == 18


def test_jsonl(tmp_path):
    lines = [json.dumps({"Label": True, "id": [None], "Text": each}) for each in GOOD]
    lines += [json.dumps({"Text": each, "Label": False, "more": 1}) for each in BAD]
    content = "\n".join(lines).encode()
    check(load(write(tmp_path / "a.jsonl", content)), "a", "true", "false")
    check(load(write(tmp_path / "a.jsonl.gz", gzip.compress(content))), "a", "true", "false")


def test_numbers_as_classes(tmp_path):
    content = "text,rating\n" + "".join(
        f"{label} {i},{label}\n" for i in range(6) for label in (10, 9, -1)
    )
    assert load(write(tmp_path / "a.csv", content)).class_names == ("-1", "9", "10")


HEAD = "text,label\n"
JSON = '{"text": "a", "label": "b"}\n'
BAD_TABLES = {
    "empty.csv": ("", "is empty: it should have a text and a label column"),
    "header.csv": (HEAD, "has no examples below its header"),
    "kind.txt": (HEAD + rows(), "must be .csv, .tsv or .jsonl"),
    "few.csv": (HEAD + "a,x\nb,y\n", "has 2 distinct texts: at least 10 are required"),
    "one.csv": (HEAD + rows(good="neg"), "has only the class 'neg', but two or more are required"),
    "classes.csv": (HEAD + "".join(f"{i},{i}\n" for i in range(50)), "one text for each of 50"),
    "label.csv": (HEAD + rows() + "a, \n", "has an empty label for the text 'a'"),
    "ragged.csv": (HEAD + rows() + "a\n", "line 52 has 1 cell for 2 columns"),
    "quote.csv": (HEAD + rows() + '"a,b\n', "line 52 is not valid csv: unexpected end of data"),
    "names.csv": ("id,words,kind\n" + "1,a,b\n" * 20, "the columns 'id', 'words', 'kind', of"),
    "heading.csv": ("words,kind\n" + rows(), "the columns 'words', 'kind', of which"),
    "two.csv": ("text,body,label\n" + "a,b,c\n" * 20, "has the columns 'text', 'body', 'label'"),
    "half.csv": ("text,kind\n" + rows(), "the columns 'text', 'kind', of which"),
    "same.csv": ("".join(f"a{i},b{i}\n" for i in range(20)), "the columns 'a0', 'b0', of which"),
    "greek.csv": (HEAD.encode() + b"caf\x8f,pos\n", "line 2 has the byte 8f, which is not UTF-8"),
    "bom.csv": (b"\xef\xbb\xbf" + HEAD.encode() + b"\xff,pos\n", "line 2 has the byte ff"),
    "plain.csv.gz": (HEAD, "is not gzip data"),
    "cut.csv.gz": (gzip.compress(HEAD.encode())[:-9], "is truncated gzip data"),
    "array.jsonl": (JSON + "[1]\n", "line 2 is not a JSON object in valid Unicode (it is"),
    "json.jsonl": (JSON + "\n{\n", "line 3 is not a JSON object"),
    "deep.jsonl": ("[" * 100_000, "line 1 is not a JSON object"),
    "surrogate.jsonl": (JSON + r'{"text": "\ud83d", "label": 1}', "line 2 is not a JSON object"),
    "missing.jsonl": (
        JSON + '{"text": "a"}', "line 2 has no 'label': every line needs a text and a label"
    ),
    "null.jsonl": (JSON + '{"text": null, "label": 1}', "line 2 has no 'text'"),
    "names.jsonl": ('{"a": 1, "b": 2}\n', "the columns 'a', 'b', of which"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_table(tmp_path, name):
    content, sentence = BAD_TABLES[name]
    path = write(tmp_path / name, content)
    message = refused(path)
    assert sentence in message and str(path) in message


def test_duplicates(tmp_path):
    said = []
    dataset = load(
        write(tmp_path / "a.csv", HEAD + rows() + rows() + f" {GOOD[0]} ,neg\n"), said.append
    )
    good, bad = set(GOOD[1:]), set(BAD)  # the first has two labels
    found = pairs(dataset.train, ("neg", "pos")) | pairs(dataset.test, ("neg", "pos"))
    assert found == {(t, "pos") for t in good} | {(t, "neg") for t in bad}
    assert "3 texts have more than one label" in said[0]
    assert "49 of 101 texts repeat an earlier one" in said[1]
    path = write(tmp_path / "b.csv", HEAD + rows() + f"{GOOD[0]},mixed\n")
    with pytest.raises(InputError, match="no example of the class 'mixed'"):
        load(path, said.append)


# Folders


def by_line(folder, names=("pos.txt", "neg.txt")):
    for name, lines in zip(names, (GOOD, BAD), strict=True):
        write(folder / name, "\r\n\n".join(lines))
    return folder


def by_file(folder, good=GOOD, bad=BAD):
    for label, contents in (("pos", good), ("neg", bad)):
        for i, content in enumerate(contents):
            write(folder / label / f"{i}.txt", content + "\n")
    return folder


def test_class_files(tmp_path):
    folder = by_line(tmp_path / "films")
    for name in ("README.md", "LICENSE", ".hidden"):
        write(folder / name, b"\xff")
    check(load(folder), "films")
    folder = by_line(tmp_path / "x", ("rt-polarity.pos", "rt-polarity.neg"))
    check(load(folder), "rt-polarity")
    check(load(folder / "rt-polarity"), "rt-polarity")
    assert "x/rt does not exist: it should be a .csv, .tsv or" in refused(folder / "rt")


def test_lines(tmp_path):
    """A line ends at a line feed, and nowhere else."""
    write(tmp_path / "a.txt", "\n".join(f"one\x85two\u2028three\x0b{i}" for i in range(10)))
    write(tmp_path / "b.txt", "\n".join(GOOD))
    dataset = load(tmp_path)
    assert len(dataset.train["inputs"]) + len(dataset.test["inputs"]) == 30


def test_class_folders(tmp_path):
    folder = by_file(tmp_path / "films")
    write(folder / "unsup" / "0.txt", "no label")
    write(folder / "pos" / "urls.feat", "no text")
    check(load(folder), "films")


def test_acl_imdb(tmp_path):
    folder = tmp_path / "aclImdb"
    by_file(folder / "train")
    by_file(folder / "test", [f"{t}!" for t in GOOD[:3]], [f"{t}!" for t in BAD[:4]])
    write(folder / "train" / "unsup" / "0_0.txt", "no label")
    write(folder / "train" / "urls_pos.txt", "http://")
    write(folder / "imdbEr.txt", "0.1")
    dataset = load(folder)
    assert pairs(dataset.test, ("neg", "pos")) == {(f"{t}!", "pos") for t in GOOD[:3]} | {
        (f"{t}!", "neg") for t in BAD[:4]
    }
    assert len(dataset.train["inputs"]) == 50 and dataset.class_names == ("neg", "pos")
    write(folder / "test" / "other" / "0.txt", "of no class")
    assert "'neg', 'pos' in train and 'neg', 'other', 'pos' in test" in refused(folder)


def test_bad_folders(tmp_path):
    assert "contains nothing: it should be one data set" in refused(
        write(tmp_path / "a/.b", "").parent
    )
    mixed = by_line(tmp_path / "mixed")
    write(mixed / "sms.tsv", rows("\t"))
    assert "contains 'neg.txt', 'pos.txt', 'sms.tsv': it should be one data set" in refused(mixed)
    mixed = by_line(by_file(tmp_path / "both"))
    assert "contains 'neg.txt', 'pos.txt', 'neg/', 'pos/': it" in refused(mixed)
    empty = by_line(tmp_path / "empty")
    write(empty / "neg.txt", "\n \n")
    assert "neg.txt has no examples: each of its lines" in refused(empty)
    empty = by_file(tmp_path / "folders")
    (empty / "more").mkdir()
    assert "more has no .txt files: a class folder has one per text" in refused(empty)
    half = by_file(tmp_path / "half" / "test").parent
    (half / "train").mkdir()
    assert "train has no folders: it should have one a class" in refused(half)
    one = write(tmp_path / "one" / "pos.txt", "\n".join(GOOD)).parent
    assert "has only the class 'pos'" in refused(one)
    latin = by_file(tmp_path / "latin")
    write(latin / "pos" / "3.txt", b"one\ntwo\ncaf\x8f")
    assert "3.txt: line 3 has the byte 8f" in refused(latin)
    write(latin / "pos" / "3.txt", b"one\ntwo\ncaf\xe9")
    said = []
    assert "one\ntwo\ncafé" in load(latin, said.append).examples.columns["inputs"].tolist()
    assert "3.txt: line 3 has the byte e9, which is not UTF-8, so the file is read as" in said[0]
    for folder in ("nowhere", "no/where"):
        assert f"{folder} does not exist" in refused(tmp_path / folder)


# The test split and the checksum


def test_draw(tmp_path):
    """A tenth of each class of two or more, at least one, whatever --seed."""
    content = HEAD + "".join(
        f"{label} {i},{label}\n"
        for label, n in (("a", 100), ("b", 14), ("c", 2), ("d", 1))
        for i in range(n)
    )
    dataset = load(write(tmp_path / "a.csv", content))
    assert np.bincount(dataset.test["targets"]).tolist() == [10, 1, 1]
    assert np.bincount(dataset.train["targets"]).tolist() == [90, 13, 1, 1]
    # The order of the file is kept, and the draw is the same with every NumPy.
    assert dataset.test["inputs"].tolist() == [
        "a 8",
        "a 9",
        "a 26",
        "a 27",
        "a 53",
        "a 54",
        "a 58",
        "a 85",
        "a 90",
        "a 92",
        "b 3",
        "c 0",
    ]


def test_checksum(tmp_path):
    """Of every text, label, class name and of the split."""
    path = tmp_path / "a.csv"
    sums = {load(write(path, HEAD + rows())).checksum for _ in range(2)}
    assert len(sums) == 1
    for content in (
        rows().replace("a good film number 7,", "a good film number seven,"),
        rows().replace("a good film number 7,pos", "a good film number 7,neg"),
        rows(good="yes"),
        "\n".join(rows().splitlines()[::-1]),
    ):
        sums.add(load(write(path, HEAD + content)).checksum)
    by_file(by_file(tmp_path / "b" / "train") / ".." / "test", ["x", "y"], ["z", "v"])
    sums.add(load(tmp_path / "b").checksum)
    write(tmp_path / "b" / "test" / "pos" / "1.txt", "another")
    sums.add(load(tmp_path / "b").checksum)
    assert len(sums) == 7


# Splitting and encoding


def words(count, label, rng):
    return " ".join(rng.choices([f"{label}{i}" for i in range(20)] + ["the", "film"], k=count))


@pytest.fixture
def films(tmp_path):
    rng = random.Random(0)
    lines = [
        f"{words(8, label, rng)} only{i},{label}" for i in range(60) for label in ("neg", "pos")
    ]
    return load(write(tmp_path / "films.csv", HEAD + "\n".join(lines)))


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_split(films, kind, tmp_path):
    data = Text(vocab_size=300, max_length=12, tokenizer=kind)
    splits = make_splits(data, films, 0.25, seed=1)
    n = len(films.train["inputs"])
    counts = np.bincount(films.train["targets"])
    held_out = int(np.round(counts / 4).sum())  # of each class a fourth
    assert np.bincount(splits.val["targets"]).tolist() == np.round(counts / 4).tolist()
    for part, count in ((splits.train, n - held_out), (splits.val, held_out), (splits.test, 12)):
        assert part["inputs"].shape == (count, 12) and part["inputs"].dtype == np.int32
        assert part["targets"].shape == (count,) and part["targets"].dtype == np.int32
        assert part["inputs"].min() >= 0 and part["inputs"].max() < splits.encoder.vocabulary
        assert (part["inputs"][:, 0] > 0).all()
    assert len(splits.class_names) == 2 and 20 < splits.encoder.vocabulary <= 300
    assert (splits.encoder.length, splits.encoder.tokens) == (12, kind)
    save_encoder(tmp_path, splits.encoder)
    content = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    np.testing.assert_array_equal(
        encode(content, films.test["inputs"].tolist(), 12), splits.test["inputs"]
    )
    whole = make_splits(data, films, 0, seed=1)
    assert whole.val is None and len(whole.train["inputs"]) == n
    np.testing.assert_array_equal(whole.train["targets"], films.train["targets"])
    other = make_splits(data, films, 0.25, seed=2)
    assert (other.val["inputs"] != splits.val["inputs"]).any()


def test_only_training_texts_train_the_tokenizer(tmp_path):
    """A word that only the held-out texts have, however often, is unknown."""
    lines = [f"seen film {i},{'pos' if i % 2 else 'neg'}" for i in range(100)]
    path = write(tmp_path / "a.csv", HEAD + "\n".join(lines))
    data = Text(data=path, max_length=2, tokenizer="word")
    dataset = data.load(silent)
    before = make_splits(data, dataset, 0.2, 3)
    chosen = stratified_sample(dataset.train["targets"], 0.2, 3, 0)
    held_out = set(dataset.train["inputs"][chosen])
    assert len(held_out) == 18
    inputs = dataset.examples.columns["inputs"]
    inputs[:] = [
        content.replace("seen", "unseen") if content in held_out else content for content in inputs
    ]
    splits = make_splits(data, dataset, 0.2, 3)
    assert (splits.val["inputs"][:, 0] == 1).all() and (splits.val["inputs"][:, 1] > 1).all()
    assert (splits.train["inputs"] > 1).all()
    assert splits.encoder == before.encoder
    # With nothing held out it is known.
    assert (make_splits(data, dataset, 0, 3).train["inputs"] > 1).all()


def clauses(rng):
    """Chinese-like: clauses of a small inventory of characters, each with its commas."""
    characters = "天气很好心情坏电影难看精彩房间服务"
    ends = "，，、。"
    return "".join("".join(rng.choices(characters, k=rng.randint(3, 9))) + end for end in ends)


def english(rng):
    """Words by Zipf's law, with punctuation after each third."""
    drawn = rng.choices(range(2000), [1 / (i + 1) for i in range(2000)], k=20)
    return " ".join(f"w{i}x{',!?.;'[i % 5] if i % 3 else ''}" for i in drawn)


def thai(rng):
    return "".join(rng.choices("กขคงจฉชซาิีุู", k=20)) + " 555 !!"


KINDS_OF_TEXTS = {
    "commas": (clauses, "bpe"),
    "commas of ASCII": (lambda rng: clauses(rng).translate(str.maketrans("，、。", ",,.")), "bpe"),
    "thai": (thai, "bpe"),
    "pictographs": (lambda rng: "".join(rng.choices("😀😂🔥👍🎉", k=8)) + " , !", "bpe"),
    "half of them": (lambda rng: rng.choice((clauses, english))(rng), "bpe"),
    "with known words": (lambda rng: f"很好，{clauses(rng)}iPhone 14 不错！", "bpe"),
    "identifiers": (lambda rng: f"v_{rng.random()} = f(({rng.random()}), [()]);", "bpe"),
    "english": (english, "word"),
    "with blanks": (lambda rng: " ".join(clauses(rng)), "word"),
    "code": (lambda rng: f"for i in range({rng.randint(1, 9)}): x[i] += {rng.random()}", "word"),
    "punctuation alone": (lambda rng: "".join(rng.choices("!?.,", k=9)), "word"),
}


def trained_and_tested_on(texts):
    """A Dataset whose training and test texts are the same, of two classes by turns."""
    targets = np.arange(len(texts), dtype=np.int32) % 2
    examples = Examples(
        {"inputs": np.concatenate([texts, texts])}, np.tile(targets, 2), (), ("bad", "good")
    )
    return Dataset(examples, Given(np.repeat([False, True], len(texts))), "notes", "here", "")


@pytest.mark.parametrize("name", KINDS_OF_TEXTS)
def test_words_are_the_tokens_where_most_of_them_are_known(name):
    draw, kind = KINDS_OF_TEXTS[name]
    rng = random.Random(0)
    texts = np.array([draw(rng) for _ in range(400)], object)
    splits = make_splits(Text(), trained_and_tested_on(texts), 0.2, 0)
    assert splits.encoder.tokens == kind
    assert any("are unknown to the tokenizer, so" in note for note in splits.notes) == (
        kind == "bpe"
    )


def test_share_of_unreadable_texts_as_counted_by_hand():
    rng = random.Random(0)
    train, held_out = ([draw(rng) for _ in range(60) for draw in (clauses, english)] for _ in "ab")
    counts = collections.Counter(word for each in train for word in re.findall(r"\w+", each))

    def letters(each, most):
        return sum(len(word) for word in re.findall(r"\w+", each) if counts[word] <= most)

    unreadable = [letters(each, 1) > 2 / 3 * letters(each, 1e9) for each in held_out]
    tokenizer = tokenizers.train(train, "word", 8000, True)
    assert text._unreadable_share(tokenizer, held_out) == pytest.approx(np.mean(unreadable))
    assert 0.5 <= np.mean(unreadable) < 0.9
    assert text._unreadable_share(tokenizer, ["，。!?", ""]) == 0


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_deterministic(films, kind, tmp_path):
    """The same bytes in another process, with another number of threads and hash seed."""
    data = Text(data=tmp_path / "films.csv", vocab_size=280, tokenizer=kind)
    expected = make_splits(data, films, 0.1, 0).encoder.tokenizer
    code = (
        "import sys; from pathlib import Path; from dlflax.data import Text, make_splits\n"
        f"data = Text('', Path({str(tmp_path / 'films.csv')!r}), 280, tokenizer={kind!r})\n"
        "sys.stdout.write(make_splits(data, data.load(), 0.1, 0).encoder.tokenizer)"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert done.stdout == expected
    shuffled = random.Random(5).sample(films.train["inputs"].tolist(), len(films.train["inputs"]))
    same = [
        tokenizers.train(texts, kind, 280, True).to_str()
        for texts in (shuffled, films.train["inputs"].tolist())
    ]
    assert same[0] == same[1]  # nor does the order of the texts matter


def test_encode(films):
    known = tokenizers.train(["the film The FILM caf\u00e9 cafe\u0301"] * 2, "word", 100, True)
    the, film, cafe = (known.token_to_id(word) for word in ("the", "film", "caf\u00e9"))
    rows = {
        "the film": [the, film, 0, 0],
        "THE FILM CAFE\u0301": [the, film, cafe, 0],
        "the the the the the film": [the] * 4,
        "the other film": [the, 1, film, 0],
        "": [1, 0, 0, 0],
        " \n\t": [1, 0, 0, 0],
        "other": [1, 0, 0, 0],
        "\0": [1, 0, 0, 0],
        "[PAD]": [1, 1, 1, 0],  # three words, not padding
    }
    ids = encode(known.to_str(), list(rows), 4)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, list(rows.values()))
    assert encode(known.to_str(), ["the film", ""], 1).tolist() == [[the], [1]]
    assert encode(known.to_str(), [], 4).shape == (0, 4)
    many = encode(known.to_str(), ["the", "film"] * 5000, 1)  # more than one part
    assert (many[::2] == the).all() and (many[1::2] == film).all()
    cased = tokenizers.train(["the film The FILM"] * 2, "word", 100, False)
    assert len(set(encode(cased.to_str(), ["the The film FILM"], 4)[0])) == 4

    pieces = tokenizers.train(films.train["inputs"].tolist(), "bpe", 300, True).to_str()
    for content in ("", "\0", "\U0001f600", "[PAD]", "\u05e9\u05dc\u05d5\u05dd", "x" * 1_000_000):
        assert encode(pieces, [content], 5)[0, 0] > 0

    with pytest.raises(InputError, match=r"the text 'a.ud800' is not valid Unicode"):
        encode(pieces, ["good", "a\ud800"], 5)
    with pytest.raises(InputError, match="tokenizer.json is no file of"):
        encode("{", ["good"], 5)


def test_special_tokens(films):
    for kind in ("word", "bpe"):
        content = json.loads(tokenizers.train(["a b"] * 20, kind, 300, True).to_str())
        vocabulary = content["model"]["vocab"]
        assert (vocabulary["[PAD]"], vocabulary["[UNK]"]) == (0, 1)
        assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    splits = make_splits(Text(vocab_size=10, tokenizer="word"), films, 0.1, 0)
    assert splits.encoder.vocabulary == 10 and splits.train["inputs"].max() == 9


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"vocab_size": 2}, "--vocab-size 2 must be 3 or more for word"),
        (
            {"vocab_size": 257, "tokenizer": "bpe"},
            "--vocab-size 257 must be 258 or more for bpe",
        ),
        ({"max_length": -1}, "--max-length -1 must be 1 or more"),
    ],
)
def test_bad_fields(films, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        make_splits(Text(**fields), films, 0.1, 0)


# VADER


def test_vader(tmp_path):
    said = []
    dataset = Text().load(said.append)
    assert dataset.name == "vader" and dataset.class_names == ("negative", "positive")
    assert "DLFLAX_OFFLINE is set" in said[0] and len(said) == 2
    assert "NOT the IMDB reviews" in said[1] and "--data" in said[1]
    both = pairs(dataset.train, dataset.class_names) | pairs(dataset.test, dataset.class_names)
    assert len(both) == 7494 == len(dataset.train["inputs"]) + len(dataset.test["inputs"])
    for word in (("love", "positive"), ("hate", "negative"), (":)", "positive")):
        assert word in both
    assert len(dataset.test["inputs"]) == 750

    data = Text("vader", max_length=8)
    again = data.load(silent)
    assert again.checksum == dataset.checksum
    splits = make_splits(data, again, 0.1, 0)
    assert splits.encoder.tokens == "bpe"
    assert splits.encoder.model_fields() == {"vocabulary": text.VADER_VOCABULARY}
    unknown = dataset.test["inputs"][(splits.test["inputs"] == 1).any(1)]
    assert unknown.tolist() == ["86"]  # of all words the only one with a 6
    assert (splits.test["inputs"] > 0).sum(1).mean() > 2
    # Only the lexicon itself: not a user's file of that name.
    path = write(tmp_path / "vader.csv", HEAD + rows())
    assert make_splits(Text(data=path), load(path), 0.1, 0).encoder.tokens == "word"


def test_vader_can_be_learnt():
    """Logistic regression on the tokens is far above the majority, 0.56."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    data = Text("vader", max_length=16)
    splits = make_splits(data, data.load(silent), 0, 0)
    bag = CountVectorizer(analyzer=lambda row: row[row > 0].tolist())
    model = LogisticRegression(max_iter=1000)
    model.fit(bag.fit_transform(splits.train["inputs"]), splits.train["targets"])
    assert model.score(bag.transform(splits.test["inputs"]), splits.test["targets"]) > 0.85


def test_unknown_name(tmp_path):
    with pytest.raises(InputError, match=r'"ag_news" is neither .* pass --data with your files'):
        Text("ag_news").load(silent)


# TFDS


TRAIN = {f"train/pos/{i}_9.txt": each for i, each in enumerate(GOOD)}
TRAIN |= {f"train/neg/{i}_1.txt": each for i, each in enumerate(BAD)}
TEST = {"test/pos/0_9.txt": "caf\u00e9 noir", "test/neg/1_2.txt": "a dull test"}


def archive(contents):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()))
    return packed.getvalue()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server with a small archive, in the place of the real one."""
    more = {"README": "about", "train/unsup/0_0.txt": "no label", "train/urls_pos.txt": "http://"}
    path = write(tmp_path / "mirror" / "aclImdb_v1.tar.gz", archive(TRAIN | more | TEST))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files = {f"http://127.0.0.1:{server.server_port}/{path.name}": digest}
        entry = dataclasses.replace(published.DATASETS["imdb_reviews"], files=files)
        monkeypatch.setitem(published.DATASETS, "imdb_reviews", entry)
        monkeypatch.delenv("DLFLAX_OFFLINE")
        yield path
        server.shutdown()
        thread.join()


def check_imdb(dataset):
    assert dataset.name == "imdb_reviews" and dataset.class_names == ("neg", "pos")
    train = {(each, "pos") for each in GOOD} | {(each, "neg") for each in BAD}
    assert pairs(dataset.train, dataset.class_names) == train
    test = {("caf\u00e9 noir", "pos"), ("a dull test", "neg")}
    assert pairs(dataset.test, dataset.class_names) == test
    assert len(dataset.train["inputs"]) == 50 and len(dataset.test["inputs"]) == 2


def test_download(tmp_path, monkeypatch, mirror):
    dataset = Text().load(silent)
    check_imdb(dataset)
    folder = tmp_path / "tfds" / "imdb_reviews" / "plain_text" / "1.0.0"
    assert dataset.source == f"TFDS imdb_reviews:1.0.0 in {folder}"

    # From now on the prepared files do, with no network at all.
    monkeypatch.setattr(hub, "network_error", lambda url: pytest.fail("network"))
    assert Text().load(silent).checksum == dataset.checksum
    assert load(tmp_path / "tfds").checksum == dataset.checksum
    older = tmp_path / "older" / "imdb_reviews"
    older.mkdir(parents=True)
    folder.rename(older / "1.0.0")
    check_imdb(load(tmp_path / "older"))
    (older / "1.0.0").rename(folder)

    import tensorflow_datasets as tfds

    examples = tfds.data_source("imdb_reviews", split="train", data_dir=tmp_path / "tfds")
    assert len(examples) == 50 and b"film" in examples[0]["text"]
    assert "tensorflow" not in sys.modules


def test_download_of_a_wrong_file(tmp_path, monkeypatch, mirror):
    right = mirror.read_bytes()
    mirror.write_bytes(archive(TRAIN))
    said = []
    assert Text().load(said.append).name == "vader"
    assert "aclImdb_v1.tar.gz is not the published file" in said[0] and "NOT the IMDB" in said[1]
    mirror.write_bytes(right)  # the wrong file was not kept
    check_imdb(Text().load(silent))


def test_download_that_fails(mirror):
    mirror.unlink()
    said = []
    assert Text().load(said.append).name == "vader"
    assert "cannot be downloaded: 127.0.0.1 answered HTTP 404" in said[0]


def prepare(root, parts, name="tiny", file_format="array_record", label=("ham", "spam")):
    """A TFDS data set with these parts: {split: [(text, label), ...]}."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(label))
                    if label
                    else tfds.features.Scalar(dtype=np.int64),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(rows) for part, rows in parts.items()}

        def _generate_examples(self, rows):
            for index, (content, target) in enumerate(rows):
                yield index, {"text": content, "label": target}

    Tiny.name = name
    builder = Tiny(data_dir=root)
    builder.download_and_prepare(file_format=file_format)
    return Path(builder.data_dir) / "dataset_info.json"


def test_prepared_tfds_set(tmp_path):
    train = [(f"message {i}", i % 2) for i in range(20)]
    info = prepare(
        tmp_path / "tfds", {"train": train, "validation": [(f"{t}!", k) for t, k in train[:4]]}
    )
    dataset = Text("tiny").load(silent)
    assert dataset.class_names == ("ham", "spam") and dataset.name == "tiny"
    assert pairs(dataset.test, "01") == {(f"{t}!", str(k)) for t, k in train[:4]}
    info.write_text("{")
    with pytest.raises(InputError, match="cannot be read as labelled texts"):
        Text("tiny").load(silent)

    prepare(tmp_path / "a", {"train": train})
    assert len(load(tmp_path / "a", dataset="tiny").test["inputs"]) == 2  # drawn
    prepare(tmp_path / "b", {"train": train, "test": [("unlabelled", -1)]})
    assert "has the label -1, not 0 to 1" in refused(tmp_path / "b", dataset="tiny")
    prepare(tmp_path / "c", {"train": train}, label=None)
    assert "cannot be read as labelled texts" in refused(tmp_path / "c", dataset="tiny")
    assert "contains 'tiny/'" not in refused(tmp_path / "c")  # "imdb_reviews" is not there


def test_unreadable_tfds_set_is_passed_over(tmp_path, monkeypatch, mirror):
    """A damaged or TFRecord folder (here: without TensorFlow) is named, and the set downloaded."""
    find_spec = published.importlib.util.find_spec
    monkeypatch.setattr(
        published.importlib.util,
        "find_spec",
        lambda name: None if name == "tensorflow" else find_spec(name),
    )
    train = [(f"message {i}", i % 2) for i in range(20)]
    info = prepare(tmp_path / "tfds", {"train": train, "test": train}, "imdb_reviews")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    said = []
    dataset = Text().load(said.append)
    check_imdb(dataset)
    assert len(said) == 1 and "tfrecord format, which only TensorFlow reads" in said[0]
    assert str(tmp_path / "cache" / "dlflax" / "tfds") in dataset.source


# Real texts


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the development copy of the texts")
def test_real_texts():
    said = []
    films = load(REAL / "rt-polarity", said.append)
    assert films.name == "rt-polarity" and films.class_names == ("neg", "pos")
    assert len(films.train["inputs"]) + len(films.test["inputs"]) == 10_662 and not said
    assert np.bincount(films.test["targets"]).tolist() == [533, 533]

    sms = load(REAL / "sms-spam.tsv", said.append)
    assert sms.class_names == ("ham", "spam")
    assert len(said) == 1 and "415 of 5,574 texts repeat" in said[0]
    assert np.bincount(sms.train["targets"]).tolist() == [4065, 578]
    assert len(sms.test["inputs"]) == 516
    assert "contains 'rt-polarity.neg', 'rt-polarity.pos', 'sms-spam.tsv'" in refused(REAL)

    splits = make_splits(Text(vocab_size=2000), sms, 0.1, 0)
    assert splits.encoder.model_fields() == {"vocabulary": 2000}
    assert splits.encoder.tokens == "word"
    assert make_splits(Text(), films, 0.1, 0).encoder.tokens == "word"


@pytest.mark.slow
def test_length_0_fits_95_of_100_training_texts():
    words = np.array([" ".join(["good"] * (1 + i % 100)) for i in range(500)], object)
    splits = make_splits(Text(), trained_and_tested_on(words), 0.0, 0)
    assert splits.encoder.length == splits.train["inputs"].shape[1] == 96
    long = trained_and_tested_on(np.array(["good " * 300] * len(words), object))
    assert make_splits(Text(), long, 0.0, 0).encoder.length == 256
