"""Texts: source, encoder, tokenizers, embeddings, and the readers of their files."""

from dlflax.data.text.source import Text

__all__ = ["Text"]
