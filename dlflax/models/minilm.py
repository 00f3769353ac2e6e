"""MiniLM: a small BERT (Devlin et al. 2019; distilled: Wang et al. 2020) with pretrained weights.

The structure is that of sentence-transformers/all-MiniLM-L6-v2 (Reimers and Gurevych 2019), whose
weights `transfer.weights` reads.
"""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from flax import traverse_util
from jaxtyping import Float, Int, ScalarLike

from dlflax.errors import InputError
from dlflax.models.layers import Dropout, pool
from dlflax.models.transformer import Attention
from dlflax.ops.dense import Dense
from dlflax.ops.platform import on_cpu
from dlflax.shapes import AnyArray

DEPTH, WIDTH, HEADS, MLP, MAX_TOKENS = 6, 384, 12, 1536, 512
BUCKETS = 8  # lengths of batches on a CPU


def norm(name):
    return nn.LayerNorm(epsilon=1e-12, name=name)


def gelu(x):
    """GELU, x Phi(x) (Hendrycks and Gimpel 2016), by erf as in PyTorch: on a CPU it is faster than
    the erfc of `jax.nn.gelu`."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class Embeddings(nn.Module):
    """Sum of token, position and segment embeddings, then a LayerNorm. tokens (n, t) int -> (n, t,
    width)."""

    vocabulary: int

    @nn.compact
    def __call__(self, tokens):
        init = nn.initializers.normal(0.02)
        words = nn.Embed(self.vocabulary, WIDTH, embedding_init=init, name="words")(tokens)
        positions = self.param("positions", init, (MAX_TOKENS, WIDTH))
        segments = self.param("kinds", init, (2, WIDTH))  # all text is in the first segment
        return norm("norm")(words + (positions[: tokens.shape[1]] + segments[:1])[None])


class Block(nn.Module):
    """Attention and a two-layer MLP, with a LayerNorm after each residual connection (post-norm).
    x (n, t, width), mask bool (n, t), False for padding -> (n, t, width)."""

    @nn.compact
    def __call__(self, x, mask):
        x = norm("attention_norm")(x + Attention(HEADS, name="attention")(x, mask))
        y = gelu(Dense(MLP, name="mlp1")(x))
        return norm("mlp_norm")(x + Dense(WIDTH, name="mlp2")(y))


def bucket_lengths(max_length: int) -> list[int]:
    """Returns the lengths to which a CPU truncates a batch, the last one being max_length."""
    return sorted({-(-max_length * i // BUCKETS) for i in range(1, BUCKETS + 1)})


class MiniLM(nn.Module):
    """Text encoder of 22 million parameters with mean pooling, then a dense layer.

    Call: token ids of its own tokenizer (--tokenizer minilm), int (n, t), t at most 512, 0 for
    padding, or the output of `features`, float (n, 384) -> (n, num_outputs). `dropout`, which may
    be traced, acts on the features.

    On a CPU a batch is truncated to the bucket of its longest text: a batch of short texts
    (`data.order` groups texts by length) costs less. In training the step does this by `cuts`, as
    the gradient of `lax.switch` would save the residuals of every branch.
    """

    LAST_BLOCKS = r"^(block[56]/|logits/)"  # parameters that --finetune last-blocks trains

    vocabulary: Annotated[int, tyro.conf.Suppress] = 30522  # the tokenizer decides
    num_outputs: Annotated[int, tyro.conf.Suppress] = 2

    def setup(self):
        self.embeddings = Embeddings(self.vocabulary)
        for i in range(DEPTH):
            setattr(self, f"block{i + 1}", Block())
        self.drop, self.logits = Dropout(), nn.Dense(self.num_outputs)

    @nn.nowrap
    def cuts(self, x):
        """Truncates a batch to each bucket length. Returns (index of the shortest batch with all
        tokens, int32 (); batches [(n, t) int]), or None for the full batch."""
        if not jnp.issubdtype(x.dtype, jnp.integer) or not on_cpu() or x.shape[1] == 1:
            return None
        lengths = bucket_lengths(x.shape[1])
        index = jnp.searchsorted(jnp.asarray(lengths), jnp.max(jnp.sum(x > 0, 1)))
        return index, [x[:, :length] for length in lengths]

    def features(self, tokens, train: bool = False):
        """Returns the last block's output, averaged over the tokens: (n, t) int -> (n, 384)."""
        if tokens.shape[1] > MAX_TOKENS:
            raise InputError(
                f"--max-length {tokens.shape[1]} must be at most {MAX_TOKENS} for MiniLM."
            )
        cuts = None if train or self.is_initializing() else self.cuts(tokens)
        if cuts is None:
            return self._encode(tokens)
        index, batches = cuts
        branches = [lambda module, batch=batch: module._encode(batch) for batch in batches]
        return nn.switch(index, branches, self)

    def _encode(self, tokens):
        mask, x = tokens > 0, self.embeddings(tokens)
        for i in range(DEPTH):
            x = getattr(self, f"block{i + 1}")(x, mask)
        return pool(x, mask, "mean")

    def __call__(
        self,
        x: Int[AnyArray, "n t"] | Float[AnyArray, "n d"],
        *,
        train: bool = False,
        dropout: ScalarLike = 0.0,
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = self.features(x, train)
        return self.logits(self.drop(x, dropout, train))


UNUSED = r"^pooler\.|position_ids$|attention\.self\.key\.bias$"  # in a state dict


def torch_names() -> dict[str, str]:
    """Maps paths in the variables to names in a state dict."""
    names = {
        "embeddings/words/embedding": "embeddings.word_embeddings.weight",
        "embeddings/positions": "embeddings.position_embeddings.weight",
        "embeddings/kinds": "embeddings.token_type_embeddings.weight",
    }
    layers = {
        "attention/query": "attention.self.query", "attention/key": "attention.self.key",
        "attention/value": "attention.self.value", "attention/out": "attention.output.dense",
        "mlp1": "intermediate.dense", "mlp2": "output.dense",
    }  # fmt: skip
    norms = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
    names["embeddings/norm/scale"] = "embeddings.LayerNorm.weight"
    names["embeddings/norm/bias"] = "embeddings.LayerNorm.bias"
    for i in range(DEPTH):
        block, torch_block = f"block{i + 1}", f"encoder.layer.{i}"
        for path, name in (layers | norms).items():
            weight = "kernel" if path in layers else "scale"
            names[f"{block}/{path}/{weight}"] = f"{torch_block}.{name}.weight"
            names[f"{block}/{path}/bias"] = f"{torch_block}.{name}.bias"
        del names[f"{block}/attention/key/bias"]  # softmax cancels it: `UNUSED`
    return {f"params/{path}": name for path, name in names.items()}


def from_torch(state) -> dict:
    """Converts a state dict of float32 arrays to variables without the last layer."""
    variables = {
        path: jnp.asarray(state[name].T if path.endswith("kernel") else state[name])
        for path, name in torch_names().items()
    }
    return traverse_util.unflatten_dict(variables, sep="/")
