"""Recurrent networks with simple, GRU or LSTM cells."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from jax import lax
from jaxtyping import Float, ScalarLike, Shaped

from dlflax.errors import InputError
from dlflax.models.layers import Dropout, Embed, pool
from dlflax.ops.platform import is_portable
from dlflax.shapes import AnyArray

Cell = Literal["simple", "gru", "lstm"]
GATES = {"simple": 1, "gru": 3, "lstm": 4}


class Recurrent(nn.Module):
    """One recurrent layer in one direction.

    x (n, t, c), mask bool (n, t) or None -> (outputs (n, t, features), last state (n, features)).
    A masked step does not update the state, so padding at either end has no effect.

    The cells, their parameters and the order of the gates are those of Keras 3: LSTM (Hochreiter
    and Schmidhuber 1997; input, forget, cell, output; forget bias 1), GRU (Cho et al. 2014; update,
    reset, candidate; `reset_after`, as in cuDNN), simple (Elman 1990, tanh).
    """

    features: int
    cell: Cell = "lstm"
    reverse: bool = False

    @nn.compact
    def __call__(self, x, mask=None):
        f, width = self.features, GATES[self.cell] * self.features
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (x.shape[-1], width))
        recurrent = self.param("recurrent_kernel", nn.initializers.orthogonal(), (f, width))
        bias = self.param("bias", _lstm_bias if self.cell == "lstm" else _zeros, (width,))
        hidden_bias = self.param("recurrent_bias", _zeros, (width,)) if self.cell == "gru" else None

        # the product with the inputs of all steps is outside of the scan
        inputs = jnp.swapaxes(x @ kernel + bias.reshape(1, 1, -1), 0, 1)
        steps = None if mask is None else jnp.swapaxes(mask, 0, 1)[:, :, None]
        zero = jnp.zeros((x.shape[0], f), inputs.dtype)

        def step(carry, xs):
            inputs, valid = xs
            h = carry[0]
            hidden = h @ recurrent
            if self.cell == "simple":
                new = (jnp.tanh(inputs + hidden),)
            elif self.cell == "gru":
                hidden += hidden_bias.reshape(1, -1)
                update, reset = (jax.nn.sigmoid(inputs[:, i] + hidden[:, i])
                                 for i in (slice(f), slice(f, 2 * f)))  # fmt: skip
                candidate = jnp.tanh(inputs[:, 2 * f :] + reset * hidden[:, 2 * f :])
                new = (update * h + (1 - update) * candidate,)
            else:
                i, forget, c, o = jnp.split(inputs + hidden, 4, axis=-1)
                memory = jax.nn.sigmoid(forget) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(c)
                new = (jax.nn.sigmoid(o) * jnp.tanh(memory), memory)
            if valid is not None:
                new = tuple(jnp.where(valid, a, b) for a, b in zip(new, carry, strict=True))
            return new, new[0]

        start = (zero, zero) if self.cell == "lstm" else (zero,)
        (last, *_), outputs = _scan(step, start, (inputs, steps), self.reverse)
        return jnp.swapaxes(outputs, 0, 1), last


def _scan(step, init, xs, reverse):
    """`lax.scan`, which flips arrays if portable: ONNX has no reverse scan."""
    if not (reverse and is_portable()):
        return lax.scan(step, init, xs, reverse=reverse)
    last, outputs = lax.scan(step, init, jax.tree.map(lambda x: jnp.flip(x, 0), xs))
    return last, jnp.flip(outputs, 0)


_zeros = nn.initializers.zeros


def _lstm_bias(key, shape, dtype=jnp.float32):
    f = shape[0] // 4
    return jnp.zeros(shape, dtype).at[f : 2 * f].set(1)


class RNN(nn.Module):
    """Recurrent layers, then a dense one.

    Call: inputs (n, t, c) float, images (n, h, w, c) float whose rows are the steps, or with a
    `vocabulary` token ids (n, t) int, 0 for padding -> outputs (n, num_outputs). `dropout`, which
    may be traced, acts on the embedded inputs and between the layers.

    The defaults have 81,674 parameters on 28x28x1: an LSTM of 128 over the rows of an image.
    """

    cell: Cell = "lstm"
    """Type of recurrent cell."""
    features: tuple[int, ...] = (128,)
    """Width of each recurrent layer."""
    bidirectional: bool = False
    """Concatenate a forward and a backward layer (Schuster and Paliwal 1997)."""
    pooling: Literal["last", "mean", "max"] = "last"
    """Input of the dense layer: the last state, or the mean or maximum over the steps."""
    embedding_dim: int = 64
    """Embedding dimension of tokens."""
    vocabulary: Annotated[int, tyro.conf.Suppress] = 0  # the data decides
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10

    @nn.compact
    def __call__(
        self, x: Shaped[AnyArray, "n t ..."], *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        if min((*self.features, self.embedding_dim), default=0) < 1 or not self.features:
            raise InputError(
                f"--model.features {self.features} and --model.embedding-dim {self.embedding_dim} "
                "must be 1 or more."
            )
        mask = None
        if self.vocabulary:
            x, mask = Embed(self.vocabulary, self.embedding_dim, name="embedding")(x)
            x = Dropout()(x, dropout, train)
        else:
            x = x.reshape(x.shape[0], x.shape[1], -1)
        for i, features in enumerate(self.features):
            if i:
                x = Dropout()(x, dropout, train)
            layers = [Recurrent(features, self.cell, name=f"forward{i + 1}")]
            if self.bidirectional:
                layers += [Recurrent(features, self.cell, True, name=f"backward{i + 1}")]
            outputs = [layer(x, mask) for layer in layers]
            x, last = (jnp.concatenate(parts, -1) for parts in zip(*outputs, strict=True))
        x = last if self.pooling == "last" else pool(x, mask, self.pooling)
        x = Dropout()(x, dropout, train)
        return nn.Dense(self.num_outputs, name="logits")(x)
