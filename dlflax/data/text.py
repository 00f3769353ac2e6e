"""Texts with a class each: tables, folders, TensorFlow Datasets, a download, or what is installed.

tokenizers and tensorflow_datasets are imported only where they are needed.
"""

import csv
import dataclasses
import hashlib
import importlib.util
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from dlflax.data import idx, sources
from dlflax.data.dataset import Dataset, Splits
from dlflax.data.order import _permutation, split
from dlflax.errors import InputError

# The sum of the TFDS builder of that name.
IMDB_URL = "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
IMDB_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"

TEXT_COLUMNS = [
    "text", "sentence", "review", "sms", "message", "content", "comment", "tweet", "body",
]  # fmt: skip
LABEL_COLUMNS = ["label", "class", "sentiment", "target", "category", "polarity", "rating"]
TEST_SHARE = 0.1
FEWEST = 10
LONGEST = 256  # tokens, where --length is not given

PAD, UNK = 0, 1
SPECIAL_TOKENS = ["[PAD]", "[UNK]"]
VADER_VOCABULARY = 2000  # 86 % by five-fold cross-validation on bags of tokens; 500: 77, 1000: 82

NOT_IMDB = """
**********************************************************************
*  WARNING: these are NOT the IMDB reviews.                          *
*  They could not be downloaded and no --data-dir was given, so      *
*  this run uses the VADER lexicon: about 7,500 single words, each   *
*  rated by ten people, cut into pieces (bpe) whatever the           *
*  tokenizer. Its scores say nothing about reviews. For real texts,  *
*  pass --data-dir with a .csv, .tsv or .jsonl file, a folder with   *
*  one .txt file a class, or aclImdb/.                               *
**********************************************************************"""

_WANTED = (
    "a .csv, .tsv or .jsonl file, a folder with one .txt file or one folder of .txt files a class, "
    "or a TFDS folder"
)
_TABLE = re.compile(r"\.(csv|tsv|jsonl)(\.gz)?$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Text:
    """Labelled texts, as rows of token numbers."""

    dataset: str = "imdb_reviews"
    """imdb_reviews, vader (single words, installed), or any set of texts that TFDS has prepared."""
    data_dir: Path | None = None
    """A .csv, .tsv or .jsonl file, a folder with a .txt file or a folder a class, or TFDS's."""
    vocabulary: int = 8000
    """The most tokens that the tokenizer may have."""
    length: int = 0
    """Tokens that a text is cut or padded to (0: so that 95 of 100 training texts fit, 256 at
    most)."""
    tokenizer: Literal["word", "bpe"] = "word"
    """Whole words, or pieces of words by byte-pair encoding; vader is always cut into pieces."""
    lowercase: bool = True
    """Whether the tokenizer ignores case."""

    def load(self, say: Callable[[str], None] = print) -> Dataset:
        """The texts, from the first source that has them.

        With `data_dir` that is the only source; one of

        - a file .csv, .tsv (without quoting) or .jsonl, also .gz, with a text and a label column;
          see `TEXT_COLUMNS` and `LABEL_COLUMNS`. Without a header there are two columns, and the
          one with fewer different values is the label;
        - a folder with a file NAME.txt a class, an example a line; or NAME.CLASS with one NAME,
          which `data_dir` may also be without any folder: PATH stands for PATH.neg and PATH.pos;
        - a folder train/CLASS/*.txt and test/CLASS/*.txt, as in aclImdb, or CLASS/*.txt;
        - a TFDS folder, from which array_record is read without TensorFlow.

        Without it: a data set prepared by TFDS ($TFDS_DATA_DIR or ~/tensorflow_datasets); for
        imdb_reviews (Maas et al., ACL 2011) a download, never with DLFLAX_OFFLINE=1; and at last
        the VADER lexicon (Hutto and Gilbert, ICWSM 2014; MIT licence), whose words' classes are
        the signs of their mean ratings.

        Where there is no test split, exact duplicates of a text are dropped, so that none is on
        both sides, and a tenth of each class is drawn, the same one in every run. `say` gets that
        and a sentence for each source that failed.

        "inputs" are str in object arrays (n,), without white space around them, "targets" int32
        (n,). Raises InputError, one sentence, when no source has the texts or a file is wrong.
        """
        if self.data_dir is not None:
            return _read_path(Path(self.data_dir).expanduser(), self.dataset, say)
        if self.dataset == "vader":
            return _vader(say)

        # The second folder is for a download, when the first holds a set that cannot be read here.
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        roots = Path(default).expanduser(), sources.cache_folder() / "tfds"
        for root in roots:
            if prepared := _prepared(root, self.dataset):
                try:
                    return _read_tfds(self.dataset, prepared, say)
                except InputError as error:
                    if self.dataset != "imdb_reviews":
                        raise
                    say(str(error))
        if self.dataset != "imdb_reviews":
            raise InputError(
                f'"{self.dataset}" is neither built in (imdb_reviews, vader) nor prepared by TFDS '
                f"in {roots[0]}: pass --data-dir with {_WANTED}."
            )

        free = [root for root in roots if not _prepared(root, self.dataset)]
        if reason := sources._no_network(IMDB_URL):
            say(f"{self.dataset} cannot be downloaded: {reason}.")
        elif free:
            try:
                return _read_tfds(self.dataset, sources._download("imdb_reviews", free[0]), say)
            except Exception as error:  # as in `sources.load`
                reason = sources._first_line(error)
                say(f"{self.dataset} could not be downloaded: {reason}")
        say(NOT_IMDB)
        return _vader(say)

    def split(self, dataset: Dataset, validation: float, seed: int) -> Splits:
        """The share `validation` of the training texts, drawn by `seed`, is held out; what is left
        trains the tokenizer. "inputs" are as `encode` gives them, "targets" int32 (n,).

        Raises InputError when a field or `validation` is out of range.
        """
        # A lexicon's words are single words: as whole ones, those of the test would be unknown.
        lexicon = dataset.name == "vader" and self.data_dir is None
        kind, vocabulary = (
            ("bpe", VADER_VOCABULARY) if lexicon else (self.tokenizer, self.vocabulary)
        )
        fewest = len(SPECIAL_TOKENS) + (256 if kind == "bpe" else 1)  # 256: all bytes
        if vocabulary < fewest:
            raise InputError(
                f"--vocabulary {vocabulary} is too small for the {kind} tokenizer: it needs "
                f"{fewest} or more."
            )
        if self.length < 0:
            raise InputError(f"--length {self.length} must be 1 or more tokens, or 0.")
        train, val = split(dataset.train, validation, seed)
        tokenizer = _train_tokenizer(train["inputs"].tolist(), kind, vocabulary, self.lowercase)
        tokenizer_json = tokenizer.to_str()
        length = self.length
        if not length:
            step = max(1, len(train["inputs"]) // 2000)  # a sample says as much
            sample = tokenizer.encode_batch_fast(train["inputs"][::step].tolist())
            lengths = [len(encoding.ids) for encoding in sample]
            length = min(LONGEST, max(1, math.ceil(np.quantile(lengths, 0.95))))

        def encoded(part):
            inputs = encode(tokenizer_json, part["inputs"].tolist(), length)
            return {"inputs": inputs, "targets": part["targets"]}

        return Splits(
            encoded(train), encoded(val) if val else None, encoded(dataset.test),
            model={
                "num_outputs": len(dataset.class_names),
                "vocabulary": tokenizer.get_vocab_size(),
            },
            info={"length": length, "tokenizer": kind},
            files={"tokenizer.json": tokenizer_json},
        )  # fmt: skip


def encode(tokenizer_json: str, texts: list[str], length: int) -> np.ndarray:
    """The first `length` tokens of each text: int32 (n, length), 0 is padding and 1 unknown.

    A text without any token is one unknown token, so that no row is all padding. Raises InputError
    when `tokenizer_json` is not a tokenizer of the library `tokenizers`, or a text not Unicode.
    """
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises plain ones
        raise InputError(
            f"tokenizer.json is not what `tokenizers` wrote ({sources._first_line(error)}): it "
            "should be as the run saved it."
        ) from None
    tokenizer.encode_special_tokens = True  # "[PAD]" in a text is a word like any other
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PAD, pad_token=SPECIAL_TOKENS[PAD])
    ids = np.zeros((len(texts), length), np.int32)
    for start in range(0, len(texts), 4096):  # in parts, because encodings are large objects
        part = texts[start : start + 4096]
        try:
            encodings = tokenizer.encode_batch_fast(part)
        except TypeError:  # half a surrogate pair is no text to tokenizers
            wrong = next(text for text in part if not _is_unicode(text))
            raise InputError(
                f"the text {_shown(wrong)} is not valid Unicode: give it in UTF-8."
            ) from None
        ids[start : start + len(part)] = [encoding.ids for encoding in encodings]
    ids[ids[:, 0] == PAD, 0] = UNK
    return ids


def _train_tokenizer(texts: list[str], kind: str, vocabulary: int, lowercase: bool):
    """A tokenizers.Tokenizer: its merges and numbers depend on nothing but these arguments."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    settings = {
        "vocab_size": vocabulary,
        "min_frequency": 2,
        "special_tokens": SPECIAL_TOKENS,
        "show_progress": False,
    }
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS[UNK]))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**settings)
    else:
        # On bytes: an alphabet of characters has no bound, and the trainer's own limit on it
        # breaks ties at random.
        tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[UNK]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(**settings)
    steps = [normalizers.NFKC()] + [normalizers.Lowercase()] * lowercase
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _dataset(name, source, class_names, train, test, place, say) -> Dataset:
    """A checked Dataset of (texts, targets) for train and test; without test a part of train.
    `place` names them in messages."""
    train, test = (
        part and ([text.strip() for text in part[0]], np.asarray(part[1], np.int32))
        for part in (train, test)
    )
    if test is None:
        train = _without_duplicates(*train, place, say)
    count = len(train[0]) + (len(test[0]) if test else 0)
    if count < FEWEST:
        different = "" if test else " different"
        raise InputError(f"{place} has {count}{different} texts, but at least {FEWEST} are needed.")
    if len(class_names) < 2:
        raise InputError(
            f"{place} has only the class {_shown(class_names[0])}, but two or more are needed."
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
            f"{place} has no example of the class {_shown(empty)} to train on, but every class "
            "needs one."
        )
    if test is None:
        if counts.max() == 1:
            raise InputError(
                f"{place} has as many classes as texts, {count:,}, so its labels are no classes: "
                "a class needs several texts."
            )
        train, test = _draw_test(*train, counts)
    elif not test[0]:
        raise InputError(f"{place} has no texts to test on: at least one is needed.")

    digest = hashlib.sha256(json.dumps(class_names).encode())
    arrays = []
    for texts, targets in (train, test):
        digest.update(f"{len(texts)} texts".encode())
        for text in texts:
            content = text.encode()
            digest.update(b"%d:" % len(content))  # or "a", "bc" would be as "ab", "c"
            digest.update(content)
        digest.update(targets.astype("<i4").tobytes())
        # Objects: in a NumPy array of strings each takes the room of the longest.
        inputs = np.empty(len(texts), object)
        inputs[:] = texts
        arrays.append({"inputs": inputs, "targets": targets})
    return Dataset(name, source, *arrays, tuple(class_names), digest.hexdigest())


def _without_duplicates(texts, targets, place, say):
    first = {}
    for index, text in enumerate(texts):
        first.setdefault(text, index)
    if dropped := len(texts) - len(first):
        say(
            f"{place}: {dropped:,} of {len(texts):,} texts repeat an earlier one and are left out, "
            "so that none is both in training and in the test."
        )
    return list(first), targets[list(first.values())]


def _draw_test(texts, targets, counts):
    """((texts, targets), (texts, targets)): train, and TEST_SHARE of each class of two or more."""
    share = np.maximum(1, np.round(TEST_SHARE * counts).astype(int)) * (counts > 1)
    shuffled = _permutation(len(texts), 0, 2)  # 0: whatever the run's seed, one test split
    by_class = shuffled[np.argsort(targets[shuffled], kind="stable")]
    rank = np.arange(len(texts)) - np.repeat(np.cumsum(counts) - counts, counts)
    in_test = np.zeros(len(texts), bool)
    in_test[by_class[rank < np.repeat(share, counts)]] = True
    return [
        ([texts[index] for index in np.flatnonzero(chosen)], targets[chosen])
        for chosen in (~in_test, in_test)
    ]


def _read_path(path: Path, dataset: str, say) -> Dataset:
    """What `--data-dir` names, of whatever kind it is; `dataset` is its name in a TFDS folder."""
    place, source = f"--data-dir {path}", str(path.resolve())
    if path.is_file():
        if not (match := _TABLE.search(path.name)):
            raise InputError(f"{place} is none of .csv, .tsv and .jsonl (or one of them with .gz).")
        texts, labels = _read_table(path, match[1].lower())
        class_names = _ordered(set(labels))
        numbers = {label: number for number, label in enumerate(class_names)}
        train = texts, [numbers[label] for label in labels]
        return _dataset(path.name[: match.start()], source, class_names, train, None, place, say)

    if not path.exists():
        start = f"{path.name}."
        there = _listing(path.parent) if path.parent.is_dir() else []
        files = {
            file.name.removeprefix(start): file
            for file in there
            if file.is_file() and file.name.startswith(start) and not _TABLE.search(file.name)
        }
        if len(files) < 2:
            raise InputError(f"{place} does not exist: it should be {_WANTED}.")
        return _read_classes(path.name, f"{source}.*", _class_files(files), None, place, say)

    if prepared := _prepared(path, dataset):
        return _read_tfds(dataset, prepared, say)
    entries = _listing(path)
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    if {"train", "test"} <= set(folders):  # and whatever else: aclImdb has a vocabulary beside them
        train, test = (_class_folders(folders[part]) for part in ("train", "test"))
        if set(train) != set(test):
            raise InputError(
                f"{place} has the classes {_listed(train)} in train and {_listed(test)} in test, "
                "but they should be the same."
            )
        return _read_classes(path.name, source, train, test, place, say)
    files = {entry.name: entry for entry in entries if entry.name not in folders}
    stems = {file.stem for file in files.values()}
    if folders and not files:
        return _read_classes(path.name, source, _class_folders(path), None, place, say)
    if files and not folders and not any(_TABLE.search(name) for name in files):
        if all(file.suffix == ".txt" for file in files.values()):
            files = {file.stem: file for file in files.values()}
            return _read_classes(path.name, source, _class_files(files), None, place, say)
        if len(stems) == 1:
            files = {file.suffix.removeprefix("."): file for file in files.values()}
            return _read_classes(stems.pop(), source, _class_files(files), None, place, say)
    holds = _listed([*files, *(f"{name}/" for name in folders)]) or "nothing"
    raise InputError(f"{place} holds {holds}: it should be one data set, that is {_WANTED}.")


def _read_classes(name, source, train, test, place, say) -> Dataset:
    """A Dataset of {class: texts}."""
    class_names = _ordered(train)
    parts = [
        part
        and (
            [text for label in class_names for text in part[label]],
            np.repeat(np.arange(len(class_names)), [len(part[label]) for label in class_names]),
        )
        for part in (train, test)
    ]
    return _dataset(name, source, class_names, *parts, place, say)


def _class_files(files: dict[str, Path]) -> dict[str, list[str]]:
    """{class: its file's lines}."""
    classes = {}
    for label, file in files.items():
        lines = io.StringIO(_read_text(file), newline="\n")  # nothing else ends a line here
        classes[label] = [text for line in lines if (text := line.strip())]
        if not classes[label]:
            raise InputError(f"{file} has no examples: each of its lines should be one.")
    return classes


def _class_folders(folder: Path) -> dict[str, list[str]]:
    """{class: the texts of its folder's files}."""
    classes = {}
    for entry in _listing(folder):
        if entry.is_dir() and entry.name != "unsup":
            files = [file for file in _listing(entry) if file.suffix == ".txt"]
            if not files:
                raise InputError(
                    f"{entry} has no .txt files, but as a class it should have one a text."
                )
            classes[entry.name] = [_read_text(file) for file in files]
    if not classes:
        raise InputError(f"{folder} has no folders: it should have one a class.")
    return classes


def _listing(folder: Path) -> list[Path]:
    """What is in a folder, by name, without what is hidden or only describes the rest."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from None
    about = (".", "readme", "license")
    return [folder / name for name in names if not name.lower().startswith(about)]


def _read_table(path: Path, kind: str) -> tuple[list[str], list[str]]:
    """(texts, labels) of a file of this kind: csv, tsv or jsonl."""
    content = _read_text(path)
    rows = _json_rows(path, content) if kind == "jsonl" else _csv_rows(path, content, kind)
    line, first = next(rows, (0, None))
    if first is None:
        raise InputError(f"{path} is empty: it should have a text and a label column.")
    lowered = [name.strip().lower() for name in first]
    text_columns, label_columns = (
        [index for index, name in enumerate(lowered) if name in names]
        for names in (TEXT_COLUMNS, LABEL_COLUMNS)
    )
    columns = [[], []]
    if len(text_columns) == len(label_columns) == 1:
        chosen = text_columns[0], label_columns[0]
    elif not text_columns and not label_columns and len(first) == 2 and kind != "jsonl":
        chosen = 0, 1
        columns = [[cell] for cell in first]
    else:
        raise _unknown_columns(path, first)
    for line, row in rows:
        if len(row) != len(first):
            raise InputError(
                f"{path}, line {line} has {_columns(len(row))}, but the first line has "
                f"{_columns(len(first))}."
            )
        for column, index in zip(columns, chosen, strict=True):
            if row[index] is None:
                raise InputError(
                    f"{path}, line {line} has no {_shown(first[index])}: every line needs a text "
                    "and a label."
                )
            column.append(row[index])

    texts, labels = columns
    if not label_columns:
        distinct = [len(set(column)) for column in columns]
        if distinct[0] < distinct[1]:
            texts, labels = labels, texts
        # A first cell of its own among the labels is a heading in words of its own.
        if distinct[0] == distinct[1] or labels[0] not in set(labels[1:]):
            raise _unknown_columns(path, first)
    if not texts:
        raise InputError(f"{path} has no examples below its header.")
    labels = [label.strip() for label in labels]
    if "" in labels:
        raise InputError(
            f"{path} has an empty label for the text {_shown(texts[labels.index('')])}: every text "
            "needs one."
        )
    return texts, labels


def _unknown_columns(path: Path, names: list[str]) -> InputError:
    return InputError(
        f"{path} has the columns {_listed(names)}, and which is the text and which the label is "
        f"not clear: call one of them {', '.join(TEXT_COLUMNS)} and one "
        f"{', '.join(LABEL_COLUMNS)}."
    )


def _csv_rows(path: Path, content: str, kind: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that is not blank."""
    # In a .tsv a quotation mark is one.
    settings = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {}
    limit = csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(content, newline=""), strict=True, **settings)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not valid {kind}: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _json_rows(path: Path, content: str) -> Iterator[tuple[int, list[str | None]]]:
    """As `_csv_rows`: the keys of the first object, and then the values of these in each."""
    keys = None
    for number, line in enumerate(io.StringIO(content, newline="\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("it is no object")
            if "\\u" in line:
                json.dumps(values, ensure_ascii=False).encode()  # half a character: ValueError
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is not a JSON object in valid Unicode "
                f"({sources._first_line(error)})."
            ) from None
        if keys is None:
            keys = list(values)
            yield number, keys
        row = (values.get(key) for key in keys)
        yield (
            number,
            [
                value if value is None or isinstance(value, str) else json.dumps(value)
                for value in row
            ],
        )


def _read_text(path: Path) -> str:
    try:
        return idx.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line} has the byte {error.object[error.start]:02x}, which is not "
            "UTF-8: save the file as UTF-8."
        ) from None


def _prepared(root: Path, name: str) -> Path | None:
    return sources._prepared(root, f"{name}/plain_text") or sources._prepared(root, name)


def _read_tfds(name: str, folder: Path, say) -> Dataset:
    """A prepared TFDS data set; validation is the test split where there is no other."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        text, label = builder.info.supervised_keys or ("text", "label")
        class_names = builder.info.features[label].names
        test = next((part for part in ("test", "validation") if part in builder.info.splits), None)
        parts = [
            part and _read_tfds_split(builder, part, text, label, f"The {part} split in {folder}")
            for part in ("train", test)
        ]
    except InputError:
        raise
    except Exception as error:  # a damaged folder can raise anything from TFDS
        raise InputError(
            f"The TFDS data set in {folder} cannot be read as labelled texts with a train split "
            f"({sources._first_line(error)}): prepare it again, or pass --data-dir."
        ) from None
    source = f"TFDS {name}:{folder.name} in {folder}"
    return _dataset(name, source, class_names, *parts, f"The TFDS data set in {folder}", say)


def _read_tfds_split(builder, part, text, label, place) -> tuple[list[str], list[int]]:
    if builder.info.file_format.value == "array_record":
        examples = builder.as_data_source(part)
    elif importlib.util.find_spec("tensorflow"):
        import tensorflow_datasets as tfds

        examples = tfds.as_numpy(builder.as_dataset(split=part))
    else:
        raise InputError(
            f"{place} is in {builder.info.file_format.value} format, which only TensorFlow reads: "
            'pip install "dlflax[tf]", or prepare it with file_format="array_record".'
        )
    texts, targets = [], []
    for example in examples:
        texts.append(example[text].decode())
        targets.append(int(example[label]))
    return texts, targets


def _vader(say) -> Dataset:
    """The VADER lexicon: a word, its mean rating, the deviation and the ten ratings a line."""
    spec = importlib.util.find_spec("vaderSentiment")  # found, not imported: it imports requests
    if spec is None:
        raise InputError("the VADER lexicon is not installed: pip install vaderSentiment.")
    path = Path(spec.origin).parent / "vader_lexicon.txt"
    ratings = {}
    try:
        for line in _read_text(path).splitlines():
            word, mean, *_ = line.split("\t")
            ratings.setdefault(word.strip(), float(mean))
    except ValueError:  # and InputError, when it cannot be read at all
        raise InputError(f"{path} is not the VADER lexicon: reinstall vaderSentiment.") from None
    words = [word for word, mean in ratings.items() if mean]
    targets = [int(ratings[word] > 0) for word in words]
    source = f"VADER lexicon, {len(words):,} rated words (NOT reviews)"
    return _dataset("vader", source, ("negative", "positive"), (words, targets), None, path, say)


def _ordered(labels) -> list[str]:
    """By number when all are whole numbers, else by name."""
    whole = all(re.fullmatch("-?[0-9]{1,9}", label) for label in labels)
    return sorted(sorted(labels), key=int if whole else None)  # twice: 1 and 01 are two labels


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _listed(names) -> str:
    names = list(names)
    return ", ".join(map(_shown, names[:8])) + (f" and {len(names) - 8} more" * (len(names) > 8))


def _columns(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"
