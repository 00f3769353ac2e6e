"""Protocols of abilities that a model may have besides its call.

A model that has the methods and fields of one is one, without inheriting from it.
"""

from typing import Any, Protocol, runtime_checkable

import jax


@runtime_checkable
class Encoding(Protocol):
    """A model with codes, such as an autoencoder: they are predicted, exported and probed."""

    def encode(self, x: jax.Array) -> jax.Array:
        """Returns the codes, float32 (n, k), of inputs float32 (n, ...)."""


@runtime_checkable
class Decoding(Protocol):
    """An encoding model whose codes become inputs again: new ones are drawn."""

    def decode(self, code: jax.Array) -> jax.Array:
        """Returns inputs float32 (n, ...) of codes float32 (n, k)."""


@runtime_checkable
class Variational(Protocol):
    """A decoding model that may be trained towards codes with a standard normal distribution."""

    variational: bool
    """True if it is: new codes are then drawn from that distribution."""


@runtime_checkable
class CuttingBatches(Protocol):
    """A model that is trained on batches cut to their content, such as texts without padding."""

    def cuts(self, inputs: jax.Array) -> tuple[jax.Array, list[jax.Array]] | None:
        """Returns the index of the cut to be taken, int32 (), and all cuts of the inputs; None
        where they are not to be cut. Traced."""


@runtime_checkable
class Backbone(Protocol):
    """A model that starts from pretrained weights."""

    LAST_BLOCKS: str
    """Regular expression of the parameters that --finetune last-blocks trains."""

    def features(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the features, float32 (n, d), that its last layer is given."""


@runtime_checkable
class ReadingTokens(Protocol):
    """A model of texts."""

    vocabulary: int
    """Number of different tokens."""


@runtime_checkable
class Convolving(Protocol):
    """A model whose convolutions are computed as its platform does best."""

    formulation: Any
    """The way that is chosen: `models.convolution`."""
