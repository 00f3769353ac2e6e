"""Protocols of optional abilities of a model.

A model with the methods and fields of a protocol implements it, without inheritance.
"""

from typing import Any, Protocol, runtime_checkable

import jax


@runtime_checkable
class Encoding(Protocol):
    """A model with latent codes, such as an autoencoder. Codes are predicted, exported, probed."""

    def encode(self, x: jax.Array) -> jax.Array:
        """Returns the codes, float32 (n, k), of inputs float32 (n, ...)."""


@runtime_checkable
class Decoding(Protocol):
    """A model that decodes latent codes, and so generates new inputs."""

    def decode(self, code: jax.Array) -> jax.Array:
        """Returns inputs float32 (n, ...) of codes float32 (n, k)."""


@runtime_checkable
class Variational(Protocol):
    """A decoding model whose codes may have a standard normal prior."""

    variational: bool
    """True if codes have the prior, from which new codes are then sampled."""


@runtime_checkable
class CuttingBatches(Protocol):
    """A model trained on batches truncated to their content, such as texts without padding."""

    def cuts(self, inputs: jax.Array) -> tuple[jax.Array, list[jax.Array]] | None:
        """Returns (index of the batch to use, int32 (); all truncated batches), or None for the
        full batch. Traced."""


@runtime_checkable
class Backbone(Protocol):
    """A model with pretrained weights."""

    LAST_BLOCKS: str
    """Regular expression of the parameters that --finetune last-blocks trains."""

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the features, float32 (n, d): the inputs of the last layer."""


@runtime_checkable
class ReadingTokens(Protocol):
    """A model of token ids."""

    vocabulary: int
    """Vocabulary size."""


@runtime_checkable
class Convolving(Protocol):
    """A model with convolutions, whose algorithms depend on the platform."""

    implementation: Any
    """Selection of the algorithms, see `models.layers.Conv`."""
