"""VGG, the classic deep network of 3x3 convolutions."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dlflax.errors import InputError
from dlflax.models.layers import Dropout, conv_lax, max_pool

FEATURES = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    "11": (1, 1, 2, 2, 2), "13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4),
}  # fmt: skip


class VGG(nn.Module):
    """VGG (Simonyan and Zisserman 2015, table 1: A, B, D, E). 138,357,544 parameters as VGG16 with
    1,000 outputs on 224x224x3.

    Call: inputs (n, h, w, 3) float, already normalized -> logits (n, num_outputs); `features` stops
    before the last layer: (n, dense[-1]). `dropout`, which may be traced, acts after the hidden
    dense layers.
    """

    depth: Literal["11", "13", "16", "19"] = "16"
    """Layers with weights."""
    dense: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden dense layers."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    def setup(self):
        counts = CONVOLUTIONS[self.depth]
        self.convolutions = [
            [Convolution(width, name=f"stage{i}_conv{k + 1}") for k in range(count)]
            for i, width, count in zip(range(1, 6), FEATURES, counts, strict=True)
        ]
        self.hidden = [nn.Dense(width, name=f"dense{i}") for i, width in enumerate(self.dense, 1)]
        self.logits = nn.Dense(self.num_outputs)
        self.drop = Dropout()

    def features(self, x, train: bool = False, dropout=0.0):
        """(n, h, w, 3) -> (n, dense[-1])."""
        if min(x.shape[1:3]) < 32:
            raise InputError(f"VGG takes pictures of 32x32 pixels or more, not {x.shape[1:3]}.")
        for stage in self.convolutions:
            for convolution in stage:
                x = jax.nn.relu(convolution(x))
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = self.drop(jax.nn.relu(layer(x)), dropout, train)
        return x

    def __call__(self, x, *, train: bool = False, dropout=0.0):
        return self.logits(self.features(x, train, dropout))


class Convolution(nn.Module):
    """3x3, SAME, with a bias."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (3, 3, x.shape[-1], self.features)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return conv_lax(x, kernel) + bias.reshape(1, 1, 1, -1)


def from_torch(state: dict[str, np.ndarray], depth: str = "16") -> dict:
    """Variables {"params"} of VGG from a state dict of torchvision or of timm, which keeps the
    dense layers as convolutions. Raises KeyError for one that lacks something.

    Their pictures are (c, h, w), so the first dense layer's inputs are put in our order (h, w, c).
    """
    params, place = {}, 0
    for stage, count in enumerate(CONVOLUTIONS[depth], 1):
        for k in range(1, count + 1):
            params[f"stage{stage}_conv{k}"] = {
                "kernel": jnp.asarray(state[f"features.{place}.weight"].transpose(2, 3, 1, 0)),
                "bias": jnp.asarray(state[f"features.{place}.bias"]),
            }
            place += 2  # convolution, ReLU
        place += 1  # max-pool
    timm = "pre_logits.fc1.weight" in state
    theirs = (
        ("pre_logits.fc1", "pre_logits.fc2", "head.fc") if timm
        else ("classifier.0", "classifier.3", "classifier.6")
    )  # fmt: skip
    for ours, name in zip(("dense1", "dense2", "logits"), theirs, strict=True):
        kernel = state[f"{name}.weight"]
        if ours == "dense1":
            kernel = kernel.reshape(-1, 512, 7, 7).transpose(0, 2, 3, 1)
        kernel = kernel.reshape(len(kernel), -1).T
        params[ours] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(state[f"{name}.bias"])}
    return {"params": params}
