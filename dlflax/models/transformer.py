"""Transformer encoder for texts, series and images."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, ScalarLike, Shaped

from dlflax.errors import InputError
from dlflax.models.layers import Dropout, Embed, pool
from dlflax.ops.dense import Dense
from dlflax.shapes import AnyArray


def rotary(x, base: float = 10_000.0):
    """Rotary position encoding (Su et al. 2021; pairs as in GPT-NeoX). x (n, t, heads, d), d even
    -> the same shape; the angle of step t and pair i is t / base^(2 i / d)."""
    half = x.shape[-1] // 2
    # NumPy: constants of the program, rounded to float32 for any dtype of x
    angles = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)[None]
    cos, sin = (
        jnp.asarray(f(angles).astype(np.float32)[None, :, None], x.dtype) for f in (np.cos, np.sin)
    )
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017). x (n, t, width), mask bool (n, t) or None,
    False for padding -> (n, t, width)."""

    num_heads: int
    rotary: bool = False

    @nn.compact
    def __call__(self, x, mask=None):
        width = x.shape[-1]
        split = (*x.shape[:2], self.num_heads, width // self.num_heads)
        # no bias for the keys: softmax cancels it, so its gradient would be zero
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
    """Attention and a two-layer MLP, each with a LayerNorm before it and a residual connection
    (pre-norm: Xiong et al. 2020)."""

    num_heads: int
    mlp_dim: int
    rotary: bool = False

    @nn.compact
    def __call__(self, x, mask, dropout, train):
        y = Attention(self.num_heads, self.rotary, name="attention")(norm("norm1")(x), mask)
        x = x + Dropout()(y, dropout, train)
        y = jax.nn.gelu(Dense(self.mlp_dim, name="mlp1")(norm("norm2")(x)))
        y = Dense(x.shape[-1], name="mlp2")(Dropout()(y, dropout, train))
        return x + Dropout()(y, dropout, train)


def norm(name):
    return nn.LayerNorm(epsilon=1e-6, name=name)


class Transformer(nn.Module):
    """Transformer encoder with pooling over the steps, then a dense layer.

    Call: inputs (n, t, c) float, images (n, h, w, c) float, which become patches (ViT: Dosovitskiy
    et al. 2021), or with a `vocabulary` token ids (n, t) int, 0 for padding -> outputs
    (n, num_outputs). `dropout`, which may be traced, acts on the embedded inputs and on every
    residual branch.

    The defaults have 105,226 parameters on 28x28x1.
    """

    depth: int = 3
    """Number of blocks of attention and MLP."""
    hidden_dim: int = 64
    """Hidden dimension of all blocks."""
    num_heads: int = 4
    """Number of attention heads, which share the hidden dimension."""
    mlp_dim: int = 128
    """Hidden dimension of the MLPs."""
    positions: Literal["learned", "rotary"] = "learned"
    """Position encoding."""
    pooling: Literal["mean", "max", "cls"] = "mean"
    """Input of the dense layer: the mean or maximum over the steps, or a class token."""
    patch_size: int = 7
    """Side of an image's patches in pixels, or time steps per patch of a series (PatchTST: Nie et
    al. 2023); a remainder at the edge, or the beginning, is dropped."""
    vocabulary: Annotated[int, tyro.conf.Suppress] = 0  # the data decides
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10

    @nn.compact
    def __call__(
        self, x: Shaped[AnyArray, "n t ..."], *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        self._check(x)
        mask = None
        if self.vocabulary:
            x, mask = Embed(self.vocabulary, self.hidden_dim, name="embedding")(x)
        else:
            patches = (image_patches if x.ndim == 4 else series_patches)(x, self.patch_size)
            x = nn.Dense(self.hidden_dim, name="embedding")(patches)
        if self.pooling == "cls":
            cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, self.hidden_dim))
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.hidden_dim)), x], 1)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        if self.positions == "learned":
            x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = Dropout()(x, dropout, train)
        for i in range(self.depth):
            is_rotary = self.positions == "rotary"
            block = Block(self.num_heads, self.mlp_dim, is_rotary, name=f"block{i + 1}")
            x = block(x, mask, dropout, train)
        x = norm("norm")(x)
        x = x[:, 0] if self.pooling == "cls" else pool(x, mask, self.pooling)
        return nn.Dense(self.num_outputs, name="logits")(x)

    def _check(self, x):
        if min(self.depth, self.hidden_dim, self.num_heads, self.mlp_dim, self.patch_size) < 1:
            raise InputError(
                f"--model.depth {self.depth}, --model.hidden-dim {self.hidden_dim}, "
                f"--model.num-heads {self.num_heads}, --model.mlp-dim {self.mlp_dim} and "
                f"--model.patch-size {self.patch_size} must be 1 or more."
            )
        per_head = 2 if self.positions == "rotary" else 1
        if self.hidden_dim % (self.num_heads * per_head):
            twice = "twice " if per_head == 2 else ""
            raise InputError(
                f"--model.hidden-dim {self.hidden_dim} must be a multiple of "
                f"{twice}--model.num-heads {self.num_heads}."
            )
        if not self.vocabulary and self.patch_size > (side := min(x.shape[1:-1])):
            raise InputError(
                f"--model.patch-size {self.patch_size} must be at most {side} on these data."
            )


def image_patches(x, side: int):
    """Splits images (n, h, w, c) into patches (n, h // side * w // side, side * side * c)."""
    n, h, w, c = x.shape
    rows, columns = h // side, w // side
    x = x[:, : rows * side, : columns * side]
    x = x.reshape(n, rows, side, columns, side, c).swapaxes(2, 3)
    return x.reshape(n, rows * columns, side * side * c)


def series_patches(x, length: int):
    """Splits series (n, t, c) into patches (n, t // length, length * c), up to the last step."""
    n, t, c = x.shape
    return x[:, t % length :].reshape(n, t // length, length * c)
