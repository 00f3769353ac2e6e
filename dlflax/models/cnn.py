"""The convolutional classifier."""

from typing import Annotated, Literal

import flax.linen as nn
import tyro
from jaxtyping import Float, ScalarLike

from dlflax.errors import InputError
from dlflax.models.layers import (
    Activation,
    Conv,
    Dropout,
    Implementation,
    Padding,
    activation,
    feature_map,
)  # fmt: skip
from dlflax.shapes import AnyArray


class CNN(nn.Module):
    """Stages of 3x3 convolutions, each ending in a 2x2 max-pool, then dense layers.

    The defaults are the classic MNIST network: conv 32, ReLU, max-pool, dense 64, dense 10;
    402,442 parameters on 28x28x1.

    Call: inputs (n, h, w, c) float -> logits (n, num_outputs). `dropout` is the rate in [0, 1),
    which may be traced; training needs the "dropout" random stream.
    """

    features: tuple[int, ...] = (32,)
    """Width of each stage; every stage halves the image size."""
    convs_per_stage: int = 1
    """Convolutions per stage."""
    dense: tuple[int, ...] = (64,)
    """Widths of the hidden dense layers."""
    kernel_size: int = 3
    """Side of the convolution kernels, in pixels."""
    padding: Padding = "same"
    """same: zero padding, which preserves the image size; valid: no padding."""
    activation: Activation = "relu"
    """Activation of every hidden layer."""
    dropout_after: Literal["dense", "all"] = "dense"
    """Dropout (--hparams.dropout) after the hidden dense layers, or after the stages too."""
    implementation: Implementation = "auto"
    """Convolutions as matrix products (fast on a CPU), lax.conv (GPU, TPU), or by platform."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n h w c"], *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        widths = (*self.features, *self.dense, self.convs_per_stage, self.kernel_size)
        side, lost = min(x.shape[1:3]), self.convs_per_stage * (self.kernel_size - 1)
        for _ in self.features:
            side = (side - (lost if self.padding == "valid" else 0)) // 2
        if min(widths) < 1 or side < 1:
            raise InputError(
                f"--model.features {self.features}, --model.dense {self.dense}, "
                f"--model.convs-per-stage {self.convs_per_stage} and --model.kernel-size "
                f"{self.kernel_size} must be 1 or more, with few enough features to halve "
                f"{x.shape[1]}x{x.shape[2]} pixels once for each."
            )
        act = activation(self.activation)
        for stage, features in enumerate(self.features):
            for i in range(self.convs_per_stage):
                last = i == self.convs_per_stage - 1
                name = f"conv{stage + 1}" + (f"_{i + 1}" if self.convs_per_stage > 1 else "")
                conv = Conv(features, self.kernel_size, last, self.implementation,
                            padding=self.padding, name=name)  # fmt: skip
                x = act(conv(x))
            if self.dropout_after == "all":
                x = Dropout()(x, dropout, train)
        x = feature_map(self, x).reshape(x.shape[0], -1)
        for i, features in enumerate(self.dense):
            x = act(nn.Dense(features, name=f"dense{i + 1}")(x))
            x = Dropout()(x, dropout, train)
        return nn.Dense(self.num_outputs, name="logits")(x)
