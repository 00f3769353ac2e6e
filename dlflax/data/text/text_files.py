"""Readers of classified texts: tables, folders, TensorFlow Datasets, the VADER lexicon.

tensorflow_datasets is imported only where it is needed.
"""

import collections
import hashlib
import importlib.resources
import json
import os
import re
from pathlib import Path

import numpy as np

from dlflax.data import published
from dlflax.data.dataset import Dataset
from dlflax.data.encoder import Examples
from dlflax.data.image.folder_files import is_hidden, split_of
from dlflax.data.order import stratified_sample
from dlflax.data.splits import Given
from dlflax.data.table.text_tables import TABLE, quote, quote_all, read_table, read_text
from dlflax.errors import InputError

SPLITS = "train", "test", "validation"
TEST_SHARE = 0.1
FEWEST = 10

EXPECTED = (
    "a .csv, .tsv or .jsonl file, a folder with one .txt file or one folder of .txt files a class, "
    "or a TFDS folder"
)


def read_with_classes(path: Path, log) -> tuple[list[str], list[str]]:
    """Returns all texts of a path, and the name of each text's class, without dropping any."""
    _, _, class_names, *splits = _read_raw(path, "", log)
    splits = [split for split in splits if isinstance(split, tuple)]
    labels = [class_names[label] for _, targets in splits for label in targets]
    return [text.strip() for texts, _ in splits for text in texts], labels


def read_path(path: Path, dataset: str, log) -> Dataset:
    """Returns the Dataset of `--data`. dataset: its name in a TFDS folder."""
    return _make_dataset(*_read_raw(path, dataset, log), log=log)


def _read_raw(path: Path, dataset: str, log) -> tuple:
    """Returns the arguments of `_make_dataset`."""
    sentences = []

    def log_first(sentence):  # many files may have the same fault
        if not sentences:
            log(sentence)
        sentences.append(sentence)

    origin, source = f"--data {path}", str(path.resolve())
    if path.is_file():
        if not (match := TABLE.search(path.name)):
            raise InputError(f"{origin} must be .csv, .tsv or .jsonl (or one of them with .gz).")
        name = path.name[: match.start()]
        return _merge_tables(name, source, {"train": path}, origin, log_first)

    if not path.exists():
        start = f"{path.name}."
        siblings = _list_folder(path.parent) if path.parent.is_dir() else []
        files = {
            file.name.removeprefix(start): file
            for file in siblings
            if file.is_file() and file.name.startswith(start) and not TABLE.search(file.name)
        }
        if len(files) < 2:
            raise InputError(f"{origin} does not exist: it should be {EXPECTED}.")
        train = _read_class_files(files, log_first)
        return _merge_classes(path.name, f"{source}.*", train, None, origin)

    if prepared := published.find_tfds(path, dataset):
        return _read_tfds(dataset, prepared)
    entries = _list_folder(path)
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    splits = {split: entry for name, entry in folders.items() if (split := split_of(name))}
    if {"train", "test"} <= set(splits):  # beside other files, such as aclImdb's vocabulary
        train, test = (_read_class_folders(splits[name], log_first) for name in ("train", "test"))
        validation = None
        if "validation" in splits:
            validation = _read_class_folders(splits["validation"], log_first)
        for name, part in (("test", test), ("validation", validation)):
            if part is not None and set(part) != set(train):
                raise InputError(
                    f"{origin} should have the same classes in train and {name}, but has "
                    f"{quote_all(train)} in train and {quote_all(part)} in {name}."
                )
        return _merge_classes(path.name, source, train, test, origin, validation)
    files = [entry for entry in entries if entry.name not in folders]
    tables = {
        split_of(f.name[: match.start()]): f for f in files if (match := TABLE.search(f.name))
    }
    if not folders and "train" in tables and tables.keys() & {"test", "validation"}:
        tables = {split: tables[split] for split in SPLITS if split in tables}
        return _merge_tables(path.name, source, tables, origin, log_first)
    stems = {file.stem for file in files}
    name, are_plain = path.name, not folders and not any(TABLE.search(f.name) for f in files)
    if folders and not files:
        train = _read_class_folders(path, log_first)
    elif files and are_plain and all(file.suffix == ".txt" for file in files):
        train = _read_class_files({file.stem: file for file in files}, log_first)
    elif are_plain and len(stems) == 1:
        train = _read_class_files({file.suffix[1:]: file for file in files}, log_first)
        name = stems.pop()
    else:
        content = quote_all([*(f.name for f in files), *(f"{n}/" for n in folders)]) or "nothing"
        raise InputError(
            f"{origin} contains {content}: it should be one data set, that is {EXPECTED}."
        )
    return _merge_classes(name, source, train, None, origin)


def _merge_tables(name, source, tables: dict[str, Path], origin, log) -> tuple:
    """Returns the arguments of `_make_dataset` for the tables of splits. One without labels, as
    GLUE's test tables are, is dropped; without a test table, the validation table is one."""
    splits: dict[str, tuple[list[str], list[str]]] = {}
    for split, path in tables.items():
        try:
            splits[split] = read_table(path, TABLE.search(path.name)[1].lower(), log)
        except InputError:
            if split != "test" or "validation" not in tables:
                raise
            log(
                f"{path} has no labels to test with: {tables['validation'].name} is the test split."
            )
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    class_names = _sort_classes({label for _, labels in splits.values() for label in labels})
    indices = {label: index for index, label in enumerate(class_names)}
    encoded = {
        split: (texts, [indices[label] for label in labels])
        for split, (texts, labels) in splits.items()
    }
    train, test, validation = (encoded.get(split) for split in SPLITS)
    return name, source, class_names, train, test, origin, validation


def _merge_classes(name, source, train, test, origin, validation=None) -> tuple:
    """Returns the arguments of `_make_dataset` for splits {class: texts}; test and validation may
    be None."""
    class_names = _sort_classes(train)

    def flatten(split) -> tuple[list[str], list[int]]:
        rows = [(text, i) for i, name in enumerate(class_names) for text in split[name]]
        return [text for text, _ in rows], [i for _, i in rows]

    test, validation = (split and flatten(split) for split in (test, validation))
    return name, source, class_names, flatten(train), test, origin, validation


def _read_class_files(files: dict[str, Path], log) -> dict[str, list[str]]:
    """Returns {class: the lines of its file}."""
    classes = {}
    for label, file in files.items():
        lines = read_text(file, log).split("\n")  # no other character ends a line
        classes[label] = [text for line in lines if (text := line.strip())]
        if not classes[label]:
            raise InputError(f"{file} has no examples: each of its lines should be one.")
    return classes


def _read_class_folders(folder: Path, log) -> dict[str, list[str]]:
    """Returns {class: the texts of its folder}."""
    classes = {}
    for entry in _list_folder(folder):
        if entry.is_dir() and entry.name != "unsup":
            files = [file for file in _list_folder(entry) if file.suffix == ".txt"]
            if not files:
                raise InputError(f"{entry} has no .txt files: a class folder has one per text.")
            classes[entry.name] = [read_text(file, log) for file in files]
    if not classes:
        raise InputError(f"{folder} has no folders: it should have one a class.")
    return classes


def _list_folder(folder: Path) -> list[Path]:
    """Lists a folder by name, without hidden files, readme and license."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from None
    about = ("readme", "license")
    names = [name for name in names if not is_hidden(name) and not name.lower().startswith(about)]
    return [folder / name for name in names]


def read_tfds(name: str, folder: Path, log) -> Dataset:
    """Returns a prepared TFDS data set; without a test split, validation is the test split."""
    return _make_dataset(*_read_tfds(name, folder), log=log)


def _read_tfds(name: str, folder: Path) -> tuple:
    class_names, splits = published.read_tfds(folder, "text")
    train, *test = [([text.decode() for text in texts], y) for texts, y in splits.values()]
    source, origin = f"TFDS {name}:{folder.name} in {folder}", f"The TFDS data set in {folder}"
    return name, source, class_names, train, test[0] if test else None, origin


def read_vader(log) -> Dataset:
    """Reads the VADER lexicon: a word, its mean rating, the deviation and the ratings a line."""
    path = importlib.resources.files("dlflax.data") / "embedded" / "vader_lexicon.txt"
    ratings = {}
    for line in path.read_text("utf-8").splitlines():
        word, mean, *_ = line.split("\t")
        ratings.setdefault(_normalize(word), float(mean))
    words = [word for word, mean in ratings.items() if mean]
    train = words, [int(ratings[word] > 0) for word in words]
    source = f"VADER lexicon, {len(words):,} rated words (NOT reviews)"
    return _make_dataset("vader", source, ("negative", "positive"), train, None, path, log=log)


def _sort_classes(labels) -> list[str]:
    """Sorts integers by value, other labels by name."""
    integers = all(re.fullmatch("-?[0-9]{1,9}", label) for label in labels)
    return sorted(sorted(labels), key=int if integers else None)  # twice: 1 and 01 are two labels


def _make_dataset(
    name, source, class_names, train, test, origin, validation=None, *, log
) -> Dataset:
    """Returns a Dataset without duplicates, or raises InputError. A test split is drawn from train
    if it is None. train, test, validation: (texts, indices of classes); origin: for messages."""
    is_drawn, is_given = test is None, validation is not None
    train, test, validation = (
        ([text.strip() for text in texts], np.asarray(targets, np.int32))
        for texts, targets in (train, test or ([], []), validation or ([], []))
    )
    if is_given:
        validation = _drop_duplicates(*validation, test[0], origin, log)
    train = _drop_duplicates(*train, test[0] + validation[0], origin, log)
    count, last = len(train[0]) + len(test[0]), len(class_names) - 1
    if count < FEWEST:
        distinct = " distinct" * is_drawn
        raise InputError(f"{origin} has {count}{distinct} texts: at least {FEWEST} are required.")
    if not last:
        name = quote(class_names[0])
        raise InputError(f"{origin} has only the class {name}, but two or more are required.")
    for _, targets in (train, test, validation):
        if len(invalid := targets[(targets < 0) | (targets > last)]):
            raise InputError(f"{origin} has the label {invalid[0]}, not 0 to {last}.")
    counts = np.bincount(train[1], minlength=len(class_names))
    if not counts.all():
        empty = quote(class_names[int(np.argmin(counts))])
        raise InputError(f"{origin} has no example of the class {empty} in the train split.")
    in_test = np.zeros(len(train[0]), bool)
    if is_drawn:
        if counts.max() == 1:
            raise InputError(
                f"{origin} has one text for each of {count:,} classes: add texts, or name the "
                "right label column."
            )
        in_test = stratified_sample(train[1], TEST_SHARE, 0, 2)  # the same for every seed
    elif not test[0]:
        raise InputError(f"{origin} has an empty test split: at least one text is required.")

    counts = len(train[0]), len(test[0]), len(validation[0])
    in_test = np.concatenate([in_test, np.ones(counts[1], bool), np.zeros(counts[2], bool)])
    in_validation = np.repeat([False, False, True], counts)
    texts = [*train[0], *test[0], *validation[0]]
    targets = np.concatenate([train[1], test[1], validation[1]])
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for rows in (~in_test & ~in_validation, in_test, *(in_validation,) * is_given):
        digest.update(f"{rows.sum()} texts".encode())
        for i in np.flatnonzero(rows):
            content = texts[i].encode()
            digest.update(b"%d:" % len(content))  # tells "a", "bc" from "ab", "c"
            digest.update(content)
        digest.update(targets[rows].astype("<i4").tobytes())
    # Objects: a NumPy array of strings allocates the longest one's size for each.
    inputs, style = np.array(texts, object), {"lexicon": name == "vader"}
    examples = Examples({"inputs": inputs}, targets, texts, tuple(class_names), style)
    split = Given(in_test, in_validation if is_given else None)
    return Dataset(examples, split, name, source, digest.hexdigest())


def _normalize(text: str) -> str:
    """Returns a key that ignores case and blanks."""
    return " ".join(text.casefold().split())


def _drop_duplicates(texts, targets, test, origin, log):
    """Drops repeated texts, ignoring case and blanks, all texts with several labels, and those that
    are in the test split."""
    rows_of = collections.defaultdict(list)
    for row, text in enumerate(texts):
        rows_of[_normalize(text)].append(row)
    first = {key: rows[0] for key, rows in rows_of.items() if len(set(targets[rows])) == 1}
    conflicts = sum(len(rows) for key, rows in rows_of.items() if key not in first)
    if conflicts:
        log(f"{origin}: {conflicts:,} texts have more than one label and are dropped.")
    if repeats := len(texts) - len(first) - conflicts:
        log(f"{origin}: {repeats:,} of {len(texts):,} texts repeat an earlier one and are dropped.")
    test_keys = set(map(_normalize, test))
    rows = [row for key, row in first.items() if key not in test_keys]
    if repeats := len(first) - len(rows):
        some = f"{repeats:,} of {len(first):,} training texts"
        log(f"{origin}: {some} are also held-out texts: dropped.")
    return [texts[row] for row in rows], targets[rows]
