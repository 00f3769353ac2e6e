"""VGG, a deep network of 3x3 convolutions."""

import functools
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import traverse_util
from jaxtyping import Float, ScalarLike

from dlflax.errors import InputError
from dlflax.models.layers import Dropout, ImagesOrFeatures, Implementation, feature_map
from dlflax.models.resnet import SymmetricConv, normalize_imagenet
from dlflax.ops.pooling import max_pool
from dlflax.shapes import AnyArray

FEATURES = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    "11": (1, 1, 2, 2, 2), "13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4),
}  # fmt: skip


class VGG(nn.Module):
    """VGG (Simonyan and Zisserman 2015, table 1: A, B, D, E). 138,357,544 parameters as VGG16 with
    1,000 outputs on 224x224x3.

    Call: inputs (n, h, w, 3) float in 0..1, normalized inside by ImageNet's mean and standard
    deviation, or the output of `features`, (n, dense[-1]) -> logits (n, num_outputs). With features
    `init` only initializes the last layer. `dropout`, which may be traced, acts after the hidden
    dense layers.
    """

    LAST_BLOCKS = r"^(stage5_|dense|logits)"  # parameters that --finetune last-blocks trains

    depth: Literal["11", "13", "16", "19"] = "16"
    """Number of layers with weights."""
    dense: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden dense layers."""
    implementation: Implementation = "auto"
    """Convolutions by the fastest algorithm on a CPU, lax.conv (GPU, TPU), or by platform."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    def setup(self):
        conv = functools.partial(
            SymmetricConv, kernel_size=3, implementation=self.implementation, use_bias=True,
            kernel_init=nn.initializers.he_normal(),
        )  # fmt: skip
        self.convolutions = [
            [conv(width, name=f"stage{i}_conv{k}") for k in range(1, count + 1)]
            for i, width, count in zip(range(1, 6), FEATURES, CONVOLUTIONS[self.depth], strict=True)
        ]
        self.hidden = [nn.Dense(width, name=f"dense{i}") for i, width in enumerate(self.dense, 1)]
        self.logits = nn.Dense(self.num_outputs)
        self.drop = Dropout()

    def features(self, x, train: bool = False, dropout=0.0):
        """Returns the features (n, dense[-1]) of images (n, h, w, 3) in 0..1."""
        if x.shape[-1] != 3 or min(x.shape[1:3]) < 32:
            raise InputError(f"VGG takes RGB images of 32x32 pixels or more, not {x.shape[1:]}.")
        x = normalize_imagenet(x)
        for stage in self.convolutions:
            for layer in stage:
                x = jax.nn.relu(layer(x))
            x = max_pool(x)
        x = feature_map(self, x).reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = self.drop(jax.nn.relu(layer(x)), dropout, train)
        return x

    def __call__(
        self, x: ImagesOrFeatures, *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        x = self.drop(x, dropout, train) if x.ndim == 2 else self.features(x, train, dropout)
        return self.logits(x)


def torch_names(depth: str = "16", timm: bool = False) -> dict[str, str]:
    """Maps paths in the variables ("params/dense1/kernel") to names in torchvision, or in timm."""
    names, index = {}, 0
    for stage, count in enumerate(CONVOLUTIONS[depth], 1):
        for k in range(1, count + 1):
            names[f"stage{stage}_conv{k}"] = f"features.{index}"
            index += 2  # convolution, ReLU
        index += 1  # max-pool
    names |= {
        "dense1": "pre_logits.fc1" if timm else "classifier.0",
        "dense2": "pre_logits.fc2" if timm else "classifier.3",
        "logits": "head.fc" if timm else "classifier.6",
    }
    weights = {f"params/{path}/kernel": f"{name}.weight" for path, name in names.items()}
    return weights | {f"params/{path}/bias": f"{name}.bias" for path, name in names.items()}


def from_torch(state: dict[str, np.ndarray], depth: str = "16") -> dict:
    """Converts a state dict of torchvision or timm to variables {"params"}. Raises KeyError for a
    missing name.

    The first dense layer's inputs are reordered from (c, h, w) to (h, w, c). timm has dense layers
    as convolutions.
    """
    variables = {}
    for path, name in torch_names(depth, timm="pre_logits.fc1.weight" in state).items():
        leaf = state[name]
        if path == "params/dense1/kernel":
            leaf = leaf.reshape(-1, 512, 7, 7).transpose(0, 2, 3, 1)
        if path.startswith("params/stage") and path.endswith("kernel"):
            leaf = leaf.transpose(2, 3, 1, 0)
        elif path.endswith("kernel"):
            leaf = leaf.reshape(len(leaf), -1).T
        variables[path] = jnp.asarray(leaf)
    return traverse_util.unflatten_dict(variables, sep="/")
