"""The residual network for small pictures."""

from typing import Annotated

import flax.linen as nn
import jax
import tyro

from dlflax.errors import InputError
from dlflax.models.layers import Conv, Dropout, Formulation


class ResNet(nn.Module):
    """A 3x3 convolution, then stages of residual blocks with BatchNorm (He et al. 2016), the mean
    over the picture, and a dense layer.

    Every stage after the first begins with a 2x2 max-pool, in place of He's stride of 2. Call:
    inputs (n, h, w, c) float -> logits (n, num_outputs). `dropout`, which may be traced, acts
    before the last layer. The running statistics are in the collection "batch_stats".

    The defaults have 175,258 parameters on 32x32x3.
    """

    features: tuple[int, ...] = (16, 32, 64)
    """Width of each stage; every stage after the first halves the picture."""
    depth: int = 2
    """Blocks a stage, of two convolutions each."""
    formulation: Formulation = "auto"
    """Convolutions as matrix products (fast on CPU), lax.conv (GPU, TPU), or by platform."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    @nn.compact
    def __call__(self, x, *, train: bool = False, dropout=0.0):
        halvings = len(self.features) - 1
        if min((*self.features, self.depth), default=0) < 1 or min(x.shape[1:3]) < 2**halvings:
            raise InputError(
                f"--model.features {self.features} and --model.depth {self.depth} must be 1 or "
                f"more, with few enough features to halve {x.shape[1]}x{x.shape[2]} pixels "
                f"{halvings} times."
            )

        def norm(name):
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name)

        def conv(features, name, pool=False, kernel_size=3):
            return Conv(features, kernel_size, pool, self.formulation, use_bias=False, name=name)

        x = jax.nn.relu(norm("norm")(conv(self.features[0], "conv")(x)))
        for stage, features in enumerate(self.features, 1):
            for block in range(1, self.depth + 1):
                name, pool = f"stage{stage}_block{block}", stage > 1 and block == 1
                shortcut = x
                if pool or x.shape[-1] != features:
                    shortcut = conv(features, f"{name}_shortcut", pool, kernel_size=1)(x)
                    shortcut = norm(f"{name}_shortcut_norm")(shortcut)
                y = jax.nn.relu(norm(f"{name}_norm1")(conv(features, f"{name}_conv1", pool)(x)))
                y = norm(f"{name}_norm2")(conv(features, f"{name}_conv2")(y))
                x = jax.nn.relu(y + shortcut)
        x = Dropout()(x.mean((1, 2)), dropout, train)
        return nn.Dense(self.num_outputs, name="logits")(x)
