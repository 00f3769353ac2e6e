"""Residual networks, for photographs and for small images."""

from collections.abc import Callable
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import traverse_util
from jaxtyping import Float, ScalarLike

from dlflax.errors import InputError
from dlflax.models.layers import (
    Conv,
    Dropout,
    ImagesOrFeatures,
    Implementation,
    feature_map,
    is_for_cpu,
)
from dlflax.ops.convolution import convolution, symmetric_pads
from dlflax.ops.norm import BatchNorm
from dlflax.ops.pooling import max_pool
from dlflax.shapes import AnyArray

# of ImageNet's training images, (r, g, b) in 0..1: the normalization of all published weights
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}


class ResNet(nn.Module):
    """ResNet (He et al. 2016, table 1) in the form called v1.5: the stride is on the 3x3
    convolution of a bottleneck, as in torchvision. 25,557,032 parameters as ResNet-50 with 1,000
    outputs.

    Call: inputs (n, h, w, 3) float in 0..1, normalized inside by `MEAN` and `STD`, or the output of
    `features`, (n, 512), or (n, 2048) from depth 50 on -> logits (n, num_outputs). With features
    `init` only initializes the last layer. Padding is symmetric, unlike "SAME" at a stride of 2.
    `dropout`, which may be traced, acts before the last layer. BatchNorm's running statistics are
    in "batch_stats".
    """

    LAST_BLOCKS = r"^(stage4_|logits)"  # parameters that --finetune last-blocks trains

    depth: Literal["18", "34", "50", "101"] = "50"
    """Number of layers with weights."""
    implementation: Implementation = "auto"
    """Convolutions by the fastest algorithm on a CPU, lax.conv (GPU, TPU), or by platform."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    @nn.compact
    def features(self, x, train: bool = False):
        """Returns the features (n, 512 or 2048) of images (n, h, w, 3) in 0..1."""
        if x.shape[-1] != 3:
            raise InputError(f"ResNet takes RGB images, not {x.shape[1:]}.")

        def conv(x, features, kernel_size, stride, name):
            x = SymmetricConv(features, kernel_size, stride, self.implementation, name=name)(x)
            norm = BatchNorm(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")
            return norm(x, use_running_average=not train)

        x = jax.nn.relu(conv(normalize_imagenet(x), 64, 7, 2, "stem"))
        x = max_pool(x, 3, 2, symmetric_pads(3))
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            width = 64 * 2**stage
            for block in range(blocks):
                stride, name = 2 if stage and not block else 1, f"stage{stage + 1}_block{block + 1}"
                if int(self.depth) >= 50:
                    layers = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
                else:
                    layers = ((width, 3, stride), (width, 3, 1))
                y = x
                for i, layer in enumerate(layers, 1):
                    y = conv(y, *layer, f"{name}_conv{i}")
                    y = jax.nn.relu(y) if i < len(layers) else y
                if x.shape != y.shape:
                    x = conv(x, y.shape[-1], 1, stride, f"{name}_shortcut")
                x = jax.nn.relu(x + y)
        return feature_map(self, x).mean((1, 2))

    @nn.compact
    def __call__(
        self, x: ImagesOrFeatures, *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        x = x if x.ndim == 2 else self.features(x, train)
        x = Dropout()(x, dropout, train)
        return nn.Dense(self.num_outputs, name="logits")(x)


def normalize_imagenet(x):
    """Normalizes (n, h, w, 3) float in 0..1 by ImageNet's mean and standard deviation."""
    mean, std = (jnp.array(rgb, x.dtype).reshape(1, 1, 1, 3) for rgb in (MEAN, STD))
    return (x - mean) / std


class SymmetricConv(nn.Module):
    """Convolution padded by (k - 1) // 2 on every side, then the bias, if any."""

    features: int
    kernel_size: int
    stride: int = 1
    implementation: Implementation = "auto"
    use_bias: bool = False
    kernel_init: Callable = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x):
        k, cpu = self.kernel_size, is_for_cpu(self.implementation)
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features))
        y = convolution(x, kernel, self.stride, symmetric_pads(k), cpu=cpu)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).reshape(1, 1, 1, -1)


def torch_names(depth: str = "50") -> dict[str, str]:
    """Maps paths in the variables ("params/stem/kernel") to names in torchvision and timm."""
    names = conv_norm_names("stem", "conv1", "bn1")
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            path, name = f"stage{stage}_block{block + 1}", f"layer{stage}.{block}"
            for i in range(1, 4 if int(depth) >= 50 else 3):
                names |= conv_norm_names(f"{path}_conv{i}", f"{name}.conv{i}", f"{name}.bn{i}")
            if block == 0 and (stage > 1 or int(depth) >= 50):
                shortcut = f"{name}.downsample"
                names |= conv_norm_names(f"{path}_shortcut", f"{shortcut}.0", f"{shortcut}.1")
    return names | {"params/logits/kernel": "fc.weight", "params/logits/bias": "fc.bias"}


def conv_norm_names(path: str, conv: str, norm: str) -> dict[str, str]:
    """Maps a convolution's and its norm's paths in the variables to names in a state dict."""
    return {
        f"params/{path}/kernel": f"{conv}.weight",
        f"params/{path}_norm/scale": f"{norm}.weight",
        f"params/{path}_norm/bias": f"{norm}.bias",
        f"batch_stats/{path}_norm/mean": f"{norm}.running_mean",
        f"batch_stats/{path}_norm/var": f"{norm}.running_var",
    }


def from_torch(state: dict[str, np.ndarray], depth: str = "50") -> dict:
    """Converts a state dict of torchvision or timm to variables {"params", "batch_stats"}.
    Raises KeyError for a missing name."""
    return to_variables(state, torch_names(depth))


def to_variables(state: dict[str, np.ndarray], names: dict[str, str]) -> dict:
    """Converts a state dict to variables by a map from paths to names."""
    variables = {}
    for path, name in names.items():  # PyTorch's kernels are (out, in, k, k), not (k, k, in, out)
        order = (2, 3, 1, 0) if state[name].ndim == 4 else None
        variables[path] = jnp.asarray(state[name].transpose(order))
    return traverse_util.unflatten_dict(variables, sep="/")


class SmallResNet(nn.Module):
    """Small ResNet (He et al. 2016): a 3x3 convolution, stages of residual blocks, global average
    pooling, a dense layer.

    Every stage after the first begins with a 2x2 max-pool, in place of He's stride of 2. Call:
    inputs (n, h, w, c) float -> logits (n, num_outputs). `dropout`, which may be traced, acts
    before the last layer. BatchNorm's running statistics are in "batch_stats".

    The defaults have 175,258 parameters on 32x32x3.
    """

    features: tuple[int, ...] = (16, 32, 64)
    """Width of each stage; every stage after the first halves the image size."""
    depth: int = 2
    """Blocks per stage, of two convolutions each."""
    implementation: Implementation = "auto"
    """Convolutions as matrix products (fast on a CPU), lax.conv (GPU, TPU), or by platform."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n h w c"], *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        halvings = len(self.features) - 1
        if min((*self.features, self.depth), default=0) < 1 or min(x.shape[1:3]) < 2**halvings:
            raise InputError(
                f"--model.features {self.features} and --model.depth {self.depth} must be 1 or "
                f"more, with few enough features to halve {x.shape[1]}x{x.shape[2]} pixels "
                f"{halvings} times."
            )

        def norm(x, name):
            norm = BatchNorm(momentum=0.9, epsilon=1e-5, name=name)
            return norm(x, use_running_average=not train)

        def conv(features, name, pool=False, kernel_size=3):
            return Conv(features, kernel_size, pool, self.implementation, use_bias=False, name=name)

        x = jax.nn.relu(norm(conv(self.features[0], "conv")(x), "norm"))
        for stage, features in enumerate(self.features, 1):
            for block in range(1, self.depth + 1):
                name, pool = f"stage{stage}_block{block}", stage > 1 and block == 1
                shortcut = x
                if pool or x.shape[-1] != features:
                    shortcut = conv(features, f"{name}_shortcut", pool, kernel_size=1)(x)
                    shortcut = norm(shortcut, f"{name}_shortcut_norm")
                y = jax.nn.relu(norm(conv(features, f"{name}_conv1", pool)(x), f"{name}_norm1"))
                y = norm(conv(features, f"{name}_conv2")(y), f"{name}_norm2")
                x = jax.nn.relu(y + shortcut)
        x = Dropout()(feature_map(self, x).mean((1, 2)), dropout, train)
        return nn.Dense(self.num_outputs, name="logits")(x)
