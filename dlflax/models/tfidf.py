"""Linear model of TF-IDF, whose arrays come from another library's."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
import tyro
from jaxtyping import Float, Shaped

from dlflax.shapes import AnyArray


class TfIdf(nn.Module):
    """Linear model of TF-IDF (sublinear, rows of length 1; Salton and Buckley 1988), which
    `baselines.linear` fits: nothing is trained here.

    Call: the ids of each text's terms and then their counts, 0 for padding, (n, 2 t), int or float
    -> logits (n, num_outputs).
    """

    num_terms: int
    num_outputs: Annotated[int, tyro.conf.Suppress] = 2

    @nn.compact
    def __call__(
        self, x: Shaped[AnyArray, "n t"], train: bool = False
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        zeros, size = nn.initializers.zeros, x.shape[1] // 2
        idf = self.param("idf", zeros, (self.num_terms,))
        kernel = self.param("kernel", zeros, (self.num_terms, self.num_outputs))
        bias = self.param("bias", zeros, (self.num_outputs,))
        ids, counts = x[:, :size].astype(jnp.int32), x[:, size:].astype(jnp.float32)
        values = (1 + jnp.log(jnp.maximum(counts, 1))) * jnp.take(idf, ids, axis=0)
        values = jnp.where(counts > 0, values, 0.0)
        norms = jnp.sqrt(jnp.sum(values**2, 1, keepdims=True))
        values = values / jnp.where(norms > 0, norms, 1.0)
        return jnp.einsum("nt,ntk->nk", values, jnp.take(kernel, ids, axis=0)) + bias[None]
