"""Texts with a class each, as files hold them: folders, TensorFlow Datasets, the VADER lexicon.

tensorflow_datasets is imported only where it is needed.
"""

import hashlib
import importlib.resources
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.data import download
from dlflax.data.dataset import Dataset
from dlflax.data.encoder import Examples
from dlflax.data.folder_files import is_hidden, part_of
from dlflax.data.order import stratified_sample
from dlflax.data.splits import Given
from dlflax.data.text_tables import TABLE, listed, read_table, read_text, shown
from dlflax.errors import InputError

TEST_SHARE = 0.1
FEWEST = 10

WANTED = (
    "a .csv, .tsv or .jsonl file, a folder with one .txt file or one folder of .txt files a class, "
    "or a TFDS folder"
)


def read_with_classes(path: Path, log) -> tuple[list[str], list[str]]:
    """Returns all texts that a path names, and the name of the class of each: none is dropped."""

    def pairs(name, source, class_names, train, test, place, log):
        found = [part for part in (train, test) if part]
        texts = [text.strip() for part in found for text in part[0]]
        return texts, [class_names[number] for part in found for number in part[1]]

    return read_path(path, "", log, pairs)


def read_path(path: Path, dataset: str, log, make=None) -> Any:
    """Returns the Dataset that `--data-dir` names, of whatever kind it is; `dataset` is its name in
    a TFDS folder. make: makes something else of what is read, with the arguments of `_dataset`."""
    make = make or _dataset
    sentences: list[str] = []

    def note(sentence):  # of many files one is enough
        sentences.append(sentence)
        if len(sentences) == 1:
            log(sentence)

    place, source = f"--data-dir {path}", str(path.resolve())
    if path.is_file():
        if not (match := TABLE.search(path.name)):
            raise InputError(f"{place} is none of .csv, .tsv and .jsonl (or one of them with .gz).")
        texts, labels = read_table(path, match[1].lower(), log)
        class_names = _ordered(set(labels))
        numbers = {label: number for number, label in enumerate(class_names)}
        train = texts, [numbers[label] for label in labels]
        return make(path.name[: match.start()], source, class_names, train, None, place, log)

    if not path.exists():
        start = f"{path.name}."
        there = _listing(path.parent) if path.parent.is_dir() else []
        files = {
            file.name.removeprefix(start): file
            for file in there
            if file.is_file() and file.name.startswith(start) and not TABLE.search(file.name)
        }
        if len(files) < 2:
            raise InputError(f"{place} does not exist: it should be {WANTED}.")
        train = _class_files(files, note)
        return _read_classes(make, path.name, f"{source}.*", train, None, place, log)

    if found := prepared(path, dataset):
        return read_tfds(dataset, found, log)
    entries = _listing(path)
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    parts = {part: entry for name, entry in folders.items() if (part := part_of(name))}
    if {"train", "test"} <= set(parts):  # and whatever else: aclImdb has a vocabulary beside them
        train, test = (_class_folders(parts[part], note) for part in ("train", "test"))
        if "validation" in parts:
            log(
                f"{place}: {parts['validation'].name}/ is added to the training texts, of which "
                "--validation holds out a share."
            )
            for label, texts in _class_folders(parts["validation"], note).items():
                train.setdefault(label, []).extend(texts)
        if set(train) != set(test):
            raise InputError(
                f"{place} has the classes {listed(train)} in train and {listed(test)} in test, "
                "but they should be the same."
            )
        return _read_classes(make, path.name, source, train, test, place, log)
    files = {entry.name: entry for entry in entries if entry.name not in folders}
    stems = {file.stem for file in files.values()}
    if folders and not files:
        return _read_classes(make, path.name, source, _class_folders(path, note), None, place, log)
    if files and not folders and not any(TABLE.search(name) for name in files):
        if all(file.suffix == ".txt" for file in files.values()):
            train = _class_files({file.stem: file for file in files.values()}, note)
            return _read_classes(make, path.name, source, train, None, place, log)
        if len(stems) == 1:
            files = {file.suffix.removeprefix("."): file for file in files.values()}
            train = _class_files(files, note)
            return _read_classes(make, stems.pop(), source, train, None, place, log)
    holds = listed([*files, *(f"{name}/" for name in folders)]) or "nothing"
    raise InputError(f"{place} holds {holds}: it should be one data set, that is {WANTED}.")


def _read_classes(make, name, source, train, test, place, log):
    """Makes something of {class: texts}."""
    class_names = _ordered(train)
    parts = [
        part
        and (
            [text for label in class_names for text in part[label]],
            np.repeat(np.arange(len(class_names)), [len(part[label]) for label in class_names]),
        )
        for part in (train, test)
    ]
    return make(name, source, class_names, *parts, place, log)


def _class_files(files: dict[str, Path], log) -> dict[str, list[str]]:
    """{class: its file's lines}."""
    classes = {}
    for label, file in files.items():
        lines = io.StringIO(read_text(file, log), newline="\n")  # nothing else ends a line here
        classes[label] = [text for line in lines if (text := line.strip())]
        if not classes[label]:
            raise InputError(f"{file} has no examples: each of its lines should be one.")
    return classes


def _class_folders(folder: Path, log) -> dict[str, list[str]]:
    """{class: the texts of its folder's files}."""
    classes = {}
    for entry in _listing(folder):
        if entry.is_dir() and entry.name != "unsup":
            files = [file for file in _listing(entry) if file.suffix == ".txt"]
            if not files:
                raise InputError(
                    f"{entry} has no .txt files, but as a class it should have one a text."
                )
            classes[entry.name] = [read_text(file, log) for file in files]
    if not classes:
        raise InputError(f"{folder} has no folders: it should have one a class.")
    return classes


def _listing(folder: Path) -> list[Path]:
    """What is in a folder, by name, without what is hidden or only describes the rest."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from None
    about = ("readme", "license")
    names = [name for name in names if not is_hidden(name) and not name.lower().startswith(about)]
    return [folder / name for name in names]


def prepared(root: Path, name: str) -> Path | None:
    return download.prepared(root, f"{name}/plain_text") or download.prepared(root, name)


def read_tfds(name: str, folder: Path, log) -> Dataset:
    """A prepared TFDS data set; validation is the test split where there is no other."""
    with download.builder_of(folder, "texts with a train split") as builder:
        text, label = builder.info.supervised_keys or ("text", "label")
        class_names = builder.info.features[label].names
        test = next((part for part in ("test", "validation") if part in builder.info.splits), None)
        parts = [
            part and _read_tfds_split(builder, part, text, label, f"The {part} split in {folder}")
            for part in ("train", test)
        ]
    source = f"TFDS {name}:{folder.name} in {folder}"
    return _dataset(name, source, class_names, *parts, f"The TFDS data set in {folder}", log)


def _read_tfds_split(builder, part, text, label, place) -> tuple[list[str], list[int]]:
    texts, targets = [], []
    for example in download.prepared_examples(builder, part, place):
        texts.append(example[text].decode())
        targets.append(int(example[label]))
    return texts, targets


def vader(log) -> Dataset:
    """The VADER lexicon: a word, its mean rating, the deviation and the ten ratings a line."""
    path = importlib.resources.files("dlflax.data") / "embedded" / "vader_lexicon.txt"
    ratings = {}
    for line in path.read_text("utf-8").splitlines():
        word, mean, *_ = line.split("\t")
        ratings.setdefault(_key(word), float(mean))
    words = [word for word, mean in ratings.items() if mean]
    targets = [int(ratings[word] > 0) for word in words]
    source = f"VADER lexicon, {len(words):,} rated words (NOT reviews)"
    return _dataset("vader", source, ("negative", "positive"), (words, targets), None, path, log)


def _ordered(labels) -> list[str]:
    """By number when all are whole numbers, else by name."""
    whole = all(re.fullmatch("-?[0-9]{1,9}", label) for label in labels)
    return sorted(sorted(labels), key=int if whole else None)  # twice: 1 and 01 are two labels


def _dataset(name, source, class_names, train, test, place, log) -> Dataset:
    """A checked Dataset of (texts, targets) for train and test; without test a part of train.
    `place` names them in messages."""
    train, test = (
        part and ([text.strip() for text in part[0]], np.asarray(part[1], np.int32))
        for part in (train, test)
    )
    train = _without_duplicates(*train, place, log)
    if test is not None:
        train = _without_those_of_the_test(*train, test[0], place, log)
    count = len(train[0]) + (len(test[0]) if test else 0)
    if count < FEWEST:
        different = "" if test else " different"
        raise InputError(f"{place} has {count}{different} texts, but at least {FEWEST} are needed.")
    if len(class_names) < 2:
        raise InputError(
            f"{place} has only the class {shown(class_names[0])}, but two or more are needed."
        )
    for _, targets in (train, test or train):
        wrong = targets[(targets < 0) | (targets >= len(class_names))]
        if len(wrong):
            raise InputError(
                f"{place} has the label {wrong[0]}, but labels are 0 to {len(class_names) - 1}."
            )
    counts = np.bincount(train[1], minlength=len(class_names))
    if not counts.all():
        empty = class_names[int(np.argmin(counts))]
        raise InputError(
            f"{place} has no example of the class {shown(empty)} to train on, but every class "
            "needs one."
        )
    in_test = np.zeros(len(train[0]), bool)
    if test is None:
        if counts.max() == 1:
            raise InputError(
                f"{place} has as many classes as texts, {count:,}, so its labels cannot be "
                "classes: a class needs several texts."
            )
        in_test = stratified_sample(train[1], TEST_SHARE, 0, 2)  # the same for all seeds of a run
        test = [], np.zeros(0, np.int32)
    elif not test[0]:
        raise InputError(f"{place} has no texts to test on: at least one is needed.")

    in_test = np.concatenate([in_test, np.ones(len(test[0]), bool)])
    texts, targets = [*train[0], *test[0]], np.concatenate([train[1], test[1]])
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for chosen in (~in_test, in_test):
        digest.update(f"{chosen.sum()} texts".encode())
        for i in np.flatnonzero(chosen):
            content = texts[i].encode()
            digest.update(b"%d:" % len(content))  # or "a", "bc" would be as "ab", "c"
            digest.update(content)
        digest.update(targets[chosen].astype("<i4").tobytes())
    # Objects: in a NumPy array of strings each takes the room of the longest.
    inputs = np.empty(len(texts), object)
    inputs[:] = texts
    style = {"lexicon": name == "vader"}
    examples = Examples({"inputs": inputs}, targets, texts, tuple(class_names), style)
    return Dataset(examples, Given(in_test), name, source, digest.hexdigest())


def _key(text: str) -> str:
    """Equal for texts that differ in nothing but case and blanks."""
    return " ".join(text.casefold().split())


def _without_duplicates(texts, targets, place, log):
    """The first of the texts that are equal but for case and blanks; none of those that have
    several labels, whichever row comes first."""
    first, labels = {}, {}
    for index, text in enumerate(texts):
        key = _key(text)
        first.setdefault(key, index)
        labels.setdefault(key, set()).add(int(targets[index]))
    contradictory = {key for key, found in labels.items() if len(found) > 1}
    kept = [index for key, index in first.items() if key not in contradictory]
    if contradictory:
        count = sum(_key(text) in contradictory for text in texts)
        log(f"{place}: {count:,} texts have more than one label and are left out.")
    if dropped := len(texts) - len(kept) - (count if contradictory else 0):
        log(
            f"{place}: {dropped:,} of {len(texts):,} texts repeat an earlier one and are left out, "
            "so that none is both in training and in the test."
        )
    return [texts[index] for index in kept], targets[kept]


def _without_those_of_the_test(texts, targets, test, place, log):
    """The training texts that are not in the test, given as it is."""
    tested = set(map(_key, test))
    kept = [index for index, text in enumerate(texts) if _key(text) not in tested]
    if dropped := len(texts) - len(kept):
        log(
            f"{place}: {dropped:,} of {len(texts):,} training texts are in the test too and are "
            "left out of training."
        )
    return [texts[index] for index in kept], targets[kept]
