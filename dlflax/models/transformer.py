"""The Transformer encoder, for texts, series and pictures."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, ScalarLike, Shaped

from dlflax.errors import InputError
from dlflax.models.dense import Dense
from dlflax.models.layers import Dropout, Embed, pool
from dlflax.shapes import AnyArray


def rotary(x, base: float = 10_000.0):
    """Rotary positions (Su et al. 2021; pairs are the two halves, as in GPT-NeoX). x (n, t, heads,
    d), d even -> the same; the angle of step t and pair i is t / base^(2 i / d)."""
    half = x.shape[-1] // 2
    # NumPy: constants of the program, in float32 whatever x is
    angles = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)[None]
    cos, sin = (f(angles).astype(np.float32)[None, :, None] for f in (np.cos, np.sin))
    cos, sin = (jnp.asarray(each, x.dtype) for each in (cos, sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017). x (n, t, width), mask bool (n, t) or None,
    False for steps that nobody looks at -> (n, t, width)."""

    heads: int
    rotary: bool = False

    @nn.compact
    def __call__(self, x, mask=None):
        width = x.shape[-1]
        split = (*x.shape[:2], self.heads, width // self.heads)
        # no bias for the keys: softmax would cancel it, and it would get no gradient
        q, k, v = (
            Dense(width, use_bias=name != "key", name=name)(x).reshape(split)
            for name in ("query", "key", "value")
        )
        if self.rotary:
            q, k = rotary(q), rotary(k)
        if mask is not None:
            mask = mask[:, None, None, :]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return Dense(width, name="out")(y.reshape(x.shape))


class Block(nn.Module):
    """Attention and a two-layer MLP, each behind a LayerNorm and beside a residual path (pre-norm:
    Xiong et al. 2020)."""

    heads: int
    mlp: int
    rotary: bool = False

    @nn.compact
    def __call__(self, x, mask, dropout, train):
        y = Attention(self.heads, self.rotary, name="attention")(norm("norm1")(x), mask)
        x = x + Dropout()(y, dropout, train)
        y = jax.nn.gelu(Dense(self.mlp, name="mlp1")(norm("norm2")(x)))
        y = Dense(x.shape[-1], name="mlp2")(Dropout()(y, dropout, train))
        return x + Dropout()(y, dropout, train)


def norm(name):
    return nn.LayerNorm(epsilon=1e-6, name=name)


class Transformer(nn.Module):
    """An encoder, pooled over its steps, then a dense layer.

    Call: inputs (n, t, c) float, pictures (n, h, w, c) float cut into patches (ViT: Dosovitskiy et
    al. 2021), or with a `vocabulary` tokens (n, t) int, where 0 is padding -> outputs
    (n, num_outputs). `dropout`, which may be traced, acts on the embedded inputs and on every
    branch.

    The defaults have 105,226 parameters on 28x28x1.
    """

    depth: int = 3
    """Blocks of attention and MLP."""
    width: int = 64
    """Numbers a step, in all blocks."""
    heads: int = 4
    """Attention heads, which share the width."""
    mlp: int = 128
    """Hidden width of the blocks' MLPs."""
    positions: Literal["learned", "rotary"] = "learned"
    """The encoding of positions."""
    pooling: Literal["mean", "max", "cls"] = "mean"
    """The input of the dense layer: the mean or maximum over the steps, or a step of its own."""
    patch: int = 7
    """Side of a picture's patches, in pixels, or steps of a series that become one (PatchTST: Nie
    et al. 2023); what is left at the edge, or the beginning, is not seen."""
    vocabulary: Annotated[int, tyro.conf.Suppress] = 0  # the data decides
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10

    @nn.compact
    def __call__(
        self, x: Shaped[AnyArray, "n t ..."], *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        self._check(x)
        mask = None
        if self.vocabulary:
            x, mask = Embed(self.vocabulary, self.width, name="embedding")(x)
        else:
            cut = patches if x.ndim == 4 else pieces
            x = nn.Dense(self.width, name="embedding")(cut(x, self.patch))
        if self.pooling == "cls":
            cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, self.width))
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], 1)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        if self.positions == "learned":
            x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = Dropout()(x, dropout, train)
        for i in range(self.depth):
            block = Block(self.heads, self.mlp, self.positions == "rotary", name=f"block{i + 1}")
            x = block(x, mask, dropout, train)
        x = norm("norm")(x)
        x = x[:, 0] if self.pooling == "cls" else pool(x, mask, self.pooling)
        return nn.Dense(self.num_outputs, name="logits")(x)

    def _check(self, x):
        if min(self.depth, self.width, self.heads, self.mlp, self.patch) < 1:
            raise InputError(
                f"--model.depth {self.depth}, --model.width {self.width}, --model.heads "
                f"{self.heads}, --model.mlp {self.mlp} and --model.patch {self.patch} must be 1 or "
                "more."
            )
        per_head = 2 if self.positions == "rotary" else 1
        if self.width % (self.heads * per_head):
            even = ", an even number each," if per_head == 2 else ""
            raise InputError(
                f"--model.width {self.width} must be shared by --model.heads {self.heads}{even} "
                "without rest."
            )
        sides = x.shape[1:-1]
        if not self.vocabulary and self.patch > min(sides):
            raise InputError(
                f"--model.patch {self.patch} must be at most {min(sides)} on these data."
            )


def patches(x, side: int):
    """(n, h, w, c) -> (n, h // side * w // side, side * side * c), row by row."""
    n, h, w, c = x.shape
    rows, columns = h // side, w // side
    x = x[:, : rows * side, : columns * side]
    x = x.reshape(n, rows, side, columns, side, c).swapaxes(2, 3)
    return x.reshape(n, rows * columns, side * side * c)


def pieces(x, length: int):
    """(n, t, c) -> (n, t // length, length * c), up to the last step."""
    n, t, c = x.shape
    return x[:, t % length :].reshape(n, t // length, length * c)
