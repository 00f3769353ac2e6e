"""Residual networks, for photographs and for small pictures."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import traverse_util
from jaxtyping import Float, ScalarLike

from dlflax.errors import InputError
from dlflax.models.convolution import convolution, symmetric
from dlflax.models.layers import (
    Conv,
    Dropout,
    Formulation,
    PicturesOrFeatures,
    feature_map,
    for_cpu,
)
from dlflax.models.norm import BatchNorm
from dlflax.models.pooling import max_pool
from dlflax.shapes import AnyArray

# of ImageNet's training pictures, (r, g, b) in 0..1: what all published weights were trained with
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}


class ResNet(nn.Module):
    """ResNet (He et al. 2016, table 1) in the form called v1.5: the stride is on the 3x3
    convolution of a bottleneck, as in torchvision. 25,557,032 parameters as ResNet-50 with 1,000
    outputs.

    Call: inputs (n, h, w, 3) float in 0..1 -> logits (n, num_outputs); `features` stops before the
    last layer: (n, 512), or (n, 2048) from depth 50 on. A call with such features has only dropout
    and the last layer, and `init` then only makes that layer's parameters. Inputs are normalized
    inside, by `MEAN` and `STD`. Padding is symmetric, which is not what "SAME" does at a stride of
    2. `dropout`, which may be traced, acts before the last layer. BatchNorm's running statistics
    are in "batch_stats".
    """

    LAST_BLOCKS = r"^(stage4_|logits)"  # parameters that --finetune last-blocks trains

    depth: Literal["18", "34", "50", "101"] = "50"
    """Layers with weights."""
    formulation: Formulation = "auto"
    """Convolutions in what is fastest on a CPU for their size, as lax.conv (GPU, TPU), or by
    platform."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    @nn.compact
    def features(self, x, train: bool = False):
        """(n, h, w, 3) in 0..1 -> (n, 512 or 2048)."""
        if x.shape[-1] != 3:
            raise InputError(f"ResNet takes RGB pictures, not {x.shape[1:]}.")

        def conv(x, features, kernel_size, stride, name):
            x = SymmetricConv(features, kernel_size, stride, self.formulation, name=name)(x)
            norm = BatchNorm(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")
            return norm(x, use_running_average=not train)

        x = jax.nn.relu(conv(normalized(x), 64, 7, 2, "stem"))
        x = max_pool(x, 3, 2, symmetric(3))
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            width = 64 * 2**stage
            for block in range(blocks):
                stride, name = 2 if stage and not block else 1, f"stage{stage + 1}_block{block + 1}"
                if int(self.depth) >= 50:
                    plan = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
                else:
                    plan = ((width, 3, stride), (width, 3, 1))
                y = x
                for i, (features, kernel_size, each) in enumerate(plan, 1):
                    y = conv(y, features, kernel_size, each, f"{name}_conv{i}")
                    y = jax.nn.relu(y) if i < len(plan) else y
                if x.shape != y.shape:
                    x = conv(x, y.shape[-1], 1, stride, f"{name}_shortcut")
                x = jax.nn.relu(x + y)
        return feature_map(self, x).mean((1, 2))

    @nn.compact
    def __call__(
        self, x: PicturesOrFeatures, *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        x = x if x.ndim == 2 else self.features(x, train)
        x = Dropout()(x, dropout, train)
        return nn.Dense(self.num_outputs, name="logits")(x)


def normalized(x):
    """(n, h, w, 3) float in 0..1, by ImageNet's mean and standard deviation."""
    mean, std = (jnp.array(each, x.dtype).reshape(1, 1, 1, 3) for each in (MEAN, STD))
    return (x - mean) / std


class SymmetricConv(nn.Module):
    """Convolution without bias, padded by (k - 1) // 2 on every side."""

    features: int
    kernel_size: int
    stride: int = 1
    formulation: Formulation = "auto"

    @nn.compact
    def __call__(self, x):
        k = self.kernel_size
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, (k, k, x.shape[-1], self.features))
        cpu = for_cpu(self.formulation)
        return convolution(x, kernel, self.stride, symmetric(k), cpu=cpu)


def torch_names(depth: str = "50") -> dict[str, str]:
    """Path in the variables, "params/stem/kernel", -> name in torchvision and timm."""
    names = {}

    def put(ours, conv, norm):
        names[f"params/{ours}/kernel"] = f"{conv}.weight"
        names[f"params/{ours}_norm/scale"] = f"{norm}.weight"
        names[f"params/{ours}_norm/bias"] = f"{norm}.bias"
        names[f"batch_stats/{ours}_norm/mean"] = f"{norm}.running_mean"
        names[f"batch_stats/{ours}_norm/var"] = f"{norm}.running_var"

    put("stem", "conv1", "bn1")
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            ours, theirs = f"stage{stage}_block{block + 1}", f"layer{stage}.{block}"
            for i in range(1, 4 if int(depth) >= 50 else 3):
                put(f"{ours}_conv{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if block == 0 and (stage > 1 or int(depth) >= 50):
                put(f"{ours}_shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    return names | {"params/logits/kernel": "fc.weight", "params/logits/bias": "fc.bias"}


def from_torch(state: dict[str, np.ndarray], depth: str = "50") -> dict:
    """Variables {"params", "batch_stats"} of ResNet from a state dict of torchvision or timm.
    Raises KeyError for one that lacks something."""
    variables = {ours: state[theirs] for ours, theirs in torch_names(depth).items()}
    for path, leaf in variables.items():  # kernels are (out, in, k, k) there, (k, k, in, out) here
        order = (2, 3, 1, 0) if leaf.ndim == 4 else range(leaf.ndim)[::-1]
        variables[path] = jnp.asarray(leaf.transpose(order))
    return traverse_util.unflatten_dict(variables, sep="/")


class SmallResNet(nn.Module):
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
            return Conv(features, kernel_size, pool, self.formulation, use_bias=False, name=name)

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
