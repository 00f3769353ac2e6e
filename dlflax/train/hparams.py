"""Hparams: the numbers of a training run, with the range that each may have."""

import dataclasses
import math
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Self

import jax
import numpy as np
import tyro
from flax import struct

MOST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a number may have. Always finite ones, as float32 too."""

    at_least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf

    def __contains__(self, value: float) -> bool:
        inside = self.at_least <= value <= self.at_most and self.above < value < self.below
        return inside and abs(value) <= MOST

    def __str__(self) -> str:
        """For "must be ..."."""
        if self.at_least > -math.inf and self.at_most < math.inf:
            return f"from {self.at_least:g} to {self.at_most:g}"
        words = [f"above {self.above:g}"] * (self.above > -math.inf)
        words += [f"{self.at_least:g} or more"] * (self.at_least > -math.inf)
        words += [f"{self.at_most:g} or less"] * (self.at_most < math.inf)
        words += [f"below {self.below:g}" if self.below < math.inf else "finite"]
        return " and ".join(words)


def number(default: float, **limits: float) -> float:
    """A field with the limits of `Range`, of `Hparams` or of an optimizer, a schedule, a loss:
    gamma: float = number(2.0, at_least=0)."""
    return field(default=default, metadata={"range": Range(**limits)})


@struct.dataclass
class Hparams:
    """The numbers of a training run. Traced: another value costs no compilation.

    Subclass it, with the same decorator, to add numbers of your own. They reach the loss, the
    optimizer, the schedule, the augmentations and the step as fields of `hparams`, and the model
    as the keyword of its call that has their name; they are flags, saved, resumed and searched as
    the others are.
    """

    learning_rate: float = number(1e-3, above=0)
    """Step size (its peak, under a schedule)."""
    dropout: float = number(0.0, at_least=0, below=1)
    """Dropout rate, 0 to below 1."""
    l2: float = number(0.0, at_least=0)
    """Keras' L2 penalty: l2 * sum of squared kernels is added to the loss."""
    weight_decay: float = number(0.0, at_least=0)
    """Decoupled weight decay of the kernels (adamw, lion and muon only)."""
    momentum: float = number(0.9, at_least=0, below=1)
    """Momentum of sgd and nesterov."""
    label_smoothing: float = number(0.0, at_least=0, below=1)
    """Share of the target spread evenly over the classes."""
    backbone_rate: float = number(0.1, at_least=0)
    """--finetune last-blocks, all and contrastive: learning rate of the pretrained parameters, as a
    fraction of that of the last layer."""
    clip_norm: float = number(0.0, at_least=0)
    """Largest global gradient norm; 0 does not clip."""
    warmup: float = number(0.0, at_least=0, below=1)
    """Share of the training steps over which the learning rate rises linearly from 0."""
    ema_decay: float = number(0.999, at_least=0, below=1)
    """Decay a step of the weights' moving average (--ema)."""
    translate: float = number(0.0, at_least=0)
    """--augment affine: largest shift, in pixels."""
    rotate: float = number(0.0, at_least=0)
    """--augment affine: largest rotation, in degrees."""
    zoom: float = number(0.0, at_least=0, below=1)
    """--augment affine: largest zoom, as a fraction (0.1: 0.9 to 1.1 times)."""
    crop: float = number(0.0, at_least=0)
    """--augment crop: largest shift of a picture padded by reflection, in pixels."""
    flip: float = number(0.5, at_least=0, at_most=1)
    """--augment flip: probability of a horizontal flip."""
    brightness: float = number(0.0, at_least=0)
    """--augment brightness: largest amount added, of 1 between black and white."""
    contrast: float = number(0.0, at_least=0)
    """--augment contrast: largest change, as a fraction."""
    cutout: float = number(0.0, at_least=0, at_most=1)
    """--augment cutout: side of the blackened square, as a fraction of the picture's."""
    mixup: float = number(0.0, at_least=0)
    """--augment mixup or mix: alpha of the Beta distribution of the shares; 0 is off."""
    cutmix: float = number(0.0, at_least=0)
    """--augment cutmix or mix: alpha likewise."""
    noise: float = number(0.0, at_least=0)
    """--augment noise: standard deviation of Gaussian noise on the inputs."""
    kl_weight: float = number(1.0, at_least=0)
    """Weight of a variational autoencoder's KL divergence."""
    total_steps: Annotated[float, tyro.conf.Suppress] = number(1.0, at_least=0)
    """Length of the schedule in steps; `fit` sets it from the epochs."""

    if TYPE_CHECKING:  # flax.struct adds it

        def replace(self, **numbers: Any) -> Self:
            """A copy with other numbers."""

    def evaluation(self) -> "Hparams":
        """The numbers to score with: the loss then has no label smoothing. Override it where a
        number of your own acts in training alone."""
        return self.replace(label_smoothing=0.0)


def numbers(hparams) -> tuple[str, ...]:
    """The names that a user may set, of an instance or a class."""
    return tuple(f.name for f in dataclasses.fields(hparams) if f.name != "total_steps")


def as_traced(hparams: Hparams) -> Hparams:
    """Every number as a float32 scalar, so that 1 and 1.0 are the same program."""
    return jax.tree.map(
        lambda value: value if isinstance(value, jax.Array) else np.float32(value), hparams
    )
