"""The encoder of texts."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dlflax.data import encoder
from dlflax.data.encoder import Encoder, Examples, Form, Limits, Plain, Spec, TooMuch, Upload
from dlflax.data.target import Classes
from dlflax.data.text import terms as text_terms
from dlflax.data.text import text_files, tokenizers
from dlflax.data.text.terms import Terms
from dlflax.data.text.tokenizers import PAD
from dlflax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextEncoder(Encoder):
    """Encoder of texts as token ids, and, for linear models, as the ids and counts of terms."""

    form: ClassVar = Form(
        "text", "texts", {"type": "string"}, ("text/plain",), files=False, widget="text",
        upload="text",
        experiment=("sentiment", "a CSV file with a text and a label in each row"),
    )  # fmt: skip

    target: Classes
    tokenizer: str = dataclasses.field(metadata={"file": "tokenizer.json"})
    """JSON of the library `tokenizers`."""
    length: int
    """Tokens that a text is truncated or padded to."""
    tokens: str
    """Kind of the tokenizer: word, bpe, or published."""
    vocabulary: int
    """Number of distinct tokens."""
    terms: str = dataclasses.field(default="", metadata={"file": "terms.json"})
    """Vocabularies of `terms.to_json`, "" without linear models."""
    terms_length: tuple[int, ...] = ()
    """Distinct terms of a text, at most, of each vocabulary."""

    def __post_init__(self):
        vocabularies = text_terms.from_json(self.terms) if self.terms else ()
        if tuple(item.length for item in vocabularies) != self.terms_length:
            raise InputError("terms.json is missing, or of another run: copy the run folder again.")

    def with_terms(self, vocabularies: Sequence[Terms]) -> "TextEncoder":
        """Returns the encoder of inputs with terms, besides tokens."""
        lengths = tuple(item.length for item in vocabularies)
        text = text_terms.to_json(vocabularies)
        return dataclasses.replace(self, terms=text, terms_length=lengths)

    @property
    def _width(self) -> int:
        """Numbers of an example."""
        return self.length + 2 * sum(self.terms_length)

    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Reads a text, a list of texts, bytes of UTF-8, or an array of `raw`."""
        if isinstance(given, Upload):
            given = given.content.decode("utf-8")
        if isinstance(given, np.ndarray):
            return self._from_tokens(given)
        given = encoder.column_values(given)
        texts = [given] if isinstance(given, str) else given
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError("pass one or more texts, in quotes, after the run folder.")
        if blank := [i for i, text in enumerate(texts, 1) if not text.strip()]:
            name = f"text {blank[0]} of {len(texts)}" if len(texts) > 1 else "the text"
            raise InputError(f"{name} is empty: give predict texts with a word or more.")
        if limits and sum(map(len, texts)) > limits.characters:
            raise TooMuch(f"the texts of a request may have {limits.characters:,} characters.")
        return self._from_texts(list(map(_decode_argument, texts)))

    def _from_texts(self, texts: list[str], target=None) -> Examples:
        return Examples({"inputs": np.array(texts, object)}, target, texts)

    def parse_with_targets(self, given: Any) -> Examples:
        """Reads a file or folder of texts with their classes, without dropping any."""
        if (path := encoder.as_path(given)) is None:
            return super().parse_with_targets(given)
        texts, labels = text_files.read_with_classes(path, lambda sentence: None)
        return self._from_texts(texts, self.target.numbers(labels))

    def _from_tokens(self, array: np.ndarray) -> Examples:
        array = array[None] if array.shape == (self._width,) else array
        if array.dtype.kind not in "iu" or array.shape[1:] != (self._width,):
            raise InputError(
                f"predict takes token ids in shape ('n', {self._width}), not {array.dtype} in "
                f"shape {array.shape}."
            )
        tokens = array[:, : self.length]
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            raise InputError(
                f"predict takes token ids from 0 to {self.vocabulary - 1}, not from {tokens.min()} "
                f"to {tokens.max()}."
            )
        return Examples({"inputs": array.astype(np.int32)}, None, list(map(str, range(len(array)))))

    def raw(self, examples: Examples) -> np.ndarray:
        """Returns token ids, then `Terms.inputs` of each vocabulary: int32 (n, width)."""
        inputs = examples.columns["inputs"]
        if inputs.dtype != object:
            return inputs
        texts = inputs.tolist()
        parts = [tokenizers.encode(self.tokenizer, texts, self.length)]
        if self.terms:
            parts += [item.inputs(texts) for item in text_terms.from_json(self.terms)]
        return np.concatenate(parts, 1)

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        if self.tokens != "published":
            return {"inputs": raw}
        # Pretrained models are large: batches of similar lengths save padding.
        length = (raw[:, : self.length] != PAD).sum(1).astype(np.int32)
        return {"inputs": raw, "length": length}

    def spec(self) -> Spec:
        meaning = f"{self.length} token ids by the run's tokenizer.json, 0 after the text"
        for length in self.terms_length:
            meaning += f", then {length} ids by the next vocabulary of terms.json and their counts"
        return Spec((self._width,), "int32", meaning)

    def model_fields(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary}

    def describe(self) -> str:
        return f"texts of up to {self.length} tokens"

    def plain(self, examples: Examples) -> Plain | None:
        inputs = examples.columns["inputs"]
        return Plain(texts=inputs.tolist()) if inputs.dtype == object else None


def _decode_argument(argument: str) -> str:
    """Decodes a command-line argument as UTF-8, whatever the locale."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:  # `encode` raises InputError
        return argument
