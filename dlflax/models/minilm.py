"""MiniLM: a small BERT (Devlin et al. 2019; distilled: Wang et al. 2020) with pretrained weights.

Structure, names and numbers are those of sentence-transformers/all-MiniLM-L6-v2 (Reimers and
Gurevych 2019), whose weights `transfer.weights` reads.
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
from dlflax.models.dense import Dense
from dlflax.models.layers import Dropout, pool
from dlflax.models.platform import on_cpu
from dlflax.models.transformer import Attention
from dlflax.shapes import AnyArray

DEPTH, WIDTH, HEADS, MLP, STEPS = 6, 384, 12, 1536, 512
LENGTHS = 8  # into so many lengths a CPU cuts batches of tokens


def norm(name):
    return nn.LayerNorm(epsilon=1e-12, name=name)


def gelu(x):
    """x Phi(x) (Hendrycks and Gimpel 2016), in the form that PyTorch has: its erf costs a CPU less
    than the erfc of `jax.nn.gelu`."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class Embeddings(nn.Module):
    """Of tokens, of their places and of the kind of text, behind a LayerNorm. tokens (n, t) int ->
    (n, t, width)."""

    vocabulary: int

    @nn.compact
    def __call__(self, tokens):
        init = nn.initializers.normal(0.02)
        words = nn.Embed(self.vocabulary, WIDTH, embedding_init=init, name="words")(tokens)
        positions = self.param("positions", init, (STEPS, WIDTH))
        kinds = self.param("kinds", init, (2, WIDTH))  # all text is of the first
        return norm("norm")(words + (positions[: tokens.shape[1]] + kinds[:1])[None])


class Block(nn.Module):
    """Attention and a two-layer MLP, each with a LayerNorm behind its residual path. x (n, t,
    width), mask bool (n, t), False for padding -> (n, t, width)."""

    @nn.compact
    def __call__(self, x, mask):
        x = norm("attention_norm")(x + Attention(HEADS, name="attention")(x, mask))
        y = gelu(Dense(MLP, name="mlp1")(x))
        return norm("mlp_norm")(x + Dense(WIDTH, name="mlp2")(y))


def cut_lengths(steps: int) -> list[int]:
    """The lengths that a CPU cuts a batch of so many steps to, the whole one among them."""
    return sorted({-(-steps * i // LENGTHS) for i in range(1, LENGTHS + 1)})


class MiniLM(nn.Module):
    """A text encoder of 22 million parameters, its steps averaged, then a dense layer.

    Call: tokens (n, t) int, t at most 512, 0 for padding, as its own tokenizer gives them
    (--tokenizer minilm) -> (n, num_outputs); `features` stops before the last layer: (n, 384). A
    call with such features, float (n, 384), has only dropout and the last layer. `dropout`, which
    may be traced, acts on the features.

    On a CPU a batch is cut to the length of its longest text, in steps of an eighth: a batch of
    short texts (`data.order` puts texts of like length together) costs less. In training the step
    does it, by `cuts`: a gradient through a choice keeps what every one of its branches would need.
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
        """(int32 (), which of the next is the shortest that has all of the texts; the batch cut to
        each length, [(n, t) int]). None where there is nothing to cut."""
        if not jnp.issubdtype(x.dtype, jnp.integer) or not on_cpu() or x.shape[1] == 1:
            return None
        lengths = cut_lengths(x.shape[1])
        place = jnp.searchsorted(jnp.asarray(lengths), jnp.max(jnp.sum(x > 0, 1)))
        return place, [x[:, :end] for end in lengths]

    def features(self, tokens, train: bool = False):
        """(n, t) int -> (n, 384): the mean of the last block's output over the tokens."""
        if tokens.shape[1] > STEPS:
            raise InputError(f"--length {tokens.shape[1]}: MiniLM reads {STEPS} tokens at most.")
        cuts = None if train or self.is_initializing() else self.cuts(tokens)
        if cuts is None:
            return self._encode(tokens)
        branches = [lambda module, part=part: module._encode(part) for part in cuts[1]]
        return nn.switch(cuts[0], branches, self)

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


UNUSED = r"^pooler\.|position_ids$|attention\.self\.key\.bias$"  # of a state dict


def torch_names() -> dict[str, str]:
    """Path of a variable -> its name in the state dict."""
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
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        names[f"embeddings/norm/{ours}"] = f"embeddings.LayerNorm.{theirs}"
    for i in range(DEPTH):
        block, layer = f"block{i + 1}", f"encoder.layer.{i}"
        for name, there in layers.items():
            names[f"{block}/{name}/kernel"] = f"{layer}.{there}.weight"
            names[f"{block}/{name}/bias"] = f"{layer}.{there}.bias"
        del names[f"{block}/attention/key/bias"]  # softmax cancels it: `UNUSED`
        for name, there in norms.items():
            names[f"{block}/{name}/scale"] = f"{layer}.{there}.weight"
            names[f"{block}/{name}/bias"] = f"{layer}.{there}.bias"
    return {f"params/{ours}": theirs for ours, theirs in names.items()}


def from_torch(state) -> dict:
    """Variables, without a last layer, out of a state dict of float32 arrays."""
    found = {
        path: jnp.asarray(state[name].T if path.endswith("kernel") else state[name])
        for path, name in torch_names().items()
    }
    return traverse_util.unflatten_dict(found, sep="/")
