"""The encoder of texts."""

import dataclasses
import os
from typing import Any, ClassVar

import numpy as np

from dlflax.data import encoder, text_files, tokenizers
from dlflax.data.encoder import Encoder, Examples, Form, Limits, Plain, Spec, TooMuch, Upload
from dlflax.data.target import Classes
from dlflax.data.tokenizers import PAD
from dlflax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextEncoder(Encoder):
    """Texts, as rows of token numbers."""

    form: ClassVar = Form(
        "text", "texts", {"type": "string"}, ("text/plain",), files=False, widget="text",
        upload="text",
        experiment=("sentiment", "a CSV file with a text and a label in each row"),
    )  # fmt: skip

    target: Classes
    tokenizer: str = dataclasses.field(metadata={"file": "tokenizer.json"})
    """JSON of the library `tokenizers`."""
    length: int
    """Tokens that a text is cut or padded to."""
    tokens: str
    """word, bpe, or published."""
    vocabulary: int
    """Number of different tokens."""

    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Takes a text, a list of texts, bytes of UTF-8, or token numbers (n, length)."""
        if isinstance(given, Upload):
            given = given.content.decode("utf-8")
        if isinstance(given, np.ndarray):
            return self._of_tokens(given)
        given = encoder.column_values(given)
        texts = [given] if isinstance(given, str) else given
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError("name one or more texts, in quotes, after the run folder.")
        if blank := [i for i, text in enumerate(texts, 1) if not text.strip()]:
            which = f"text {blank[0]} of {len(texts)}" if len(texts) > 1 else "the text"
            raise InputError(f"{which} is empty: give predict texts with a word or more.")
        if limits and sum(map(len, texts)) > limits.characters:
            raise TooMuch(f"the texts of a request may have {limits.characters:,} characters.")
        return self._of_texts(list(map(_as_utf8, texts)))

    def _of_texts(self, texts: list[str], target=None) -> Examples:
        inputs = np.empty(len(texts), object)
        inputs[:] = texts
        return Examples({"inputs": inputs}, target, texts)

    def parse_with_targets(self, given: Any) -> Examples:
        """Reads a file or folder of texts with their classes, all of them."""
        if (path := encoder.as_path(given)) is None:
            return super().parse_with_targets(given)
        texts, labels = text_files.read_with_classes(path, lambda sentence: None)
        return self._of_texts(texts, self.target.numbers(labels))

    def _of_tokens(self, array: np.ndarray) -> Examples:
        array = array[None] if array.shape == (self.length,) else array
        if array.dtype.kind not in "iu" or array.shape[1:] != (self.length,):
            raise InputError(
                f"predict takes tokens in shape ('n', {self.length}), no {array.dtype} in shape "
                f"{array.shape}."
            )
        if array.size and not 0 <= array.min() <= array.max() < self.vocabulary:
            raise InputError(
                f"predict takes tokens from 0 to {self.vocabulary - 1}: there are others."
            )
        return Examples({"inputs": array.astype(np.int32)}, None, list(map(str, range(len(array)))))

    def raw(self, examples: Examples) -> np.ndarray:
        """Returns tokens, int32 (n, length)."""
        inputs = examples.columns["inputs"]
        if inputs.dtype != object:
            return inputs
        return tokenizers.encode(self.tokenizer, inputs.tolist(), self.length)

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        if self.tokens != "published":
            return {"inputs": raw}
        # pretrained models are large: texts of like length together
        return {"inputs": raw, "length": (raw != PAD).sum(1).astype(np.int32)}

    def spec(self) -> Spec:
        return Spec(
            (self.length,), "int32",
            f"numbers of {self.length} tokens by the run's tokenizer.json, 0 behind the text",
        )  # fmt: skip

    def model_fields(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary}

    def describe(self) -> str:
        return f"texts of up to {self.length} tokens"

    def plain(self, examples: Examples) -> Plain | None:
        inputs = examples.columns["inputs"]
        return Plain(texts=inputs.tolist()) if inputs.dtype == object else None


def _as_utf8(argument: str) -> str:
    """An argument of the command line whose bytes the locale could not read: they are UTF-8."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:  # said by `encode`
        return argument
