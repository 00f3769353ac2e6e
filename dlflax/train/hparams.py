"""Hparams: the traced hyperparameters of a run, each with its valid range."""

import dataclasses
import math
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Self

import jax
import numpy as np
import tyro
from flax import struct

MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Range:
    """The valid values of a hyperparameter, all of them finite in float32."""

    at_least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf

    def __contains__(self, value: float) -> bool:
        inside = self.at_least <= value <= self.at_most and self.above < value < self.below
        return inside and abs(value) <= MAX_FLOAT32

    def __str__(self) -> str:
        """Returns the end of a message: "must be ..."."""
        if self.at_least > -math.inf and self.at_most < math.inf:
            return f"from {self.at_least:g} to {self.at_most:g}"
        words = [f"above {self.above:g}"] * (self.above > -math.inf)
        words += [f"{self.at_least:g} or more"] * (self.at_least > -math.inf)
        words += [f"{self.at_most:g} or less"] * (self.at_most < math.inf)
        words += [f"below {self.below:g}" if self.below < math.inf else "finite"]
        return " and ".join(words)


def number(default: float, **limits: float) -> float:
    """Returns a dataclass field with the limits of `Range`: gamma: float = number(2.0, at_least=0).
    For `Hparams`, optimizers, schedules, losses, metrics and augmentations."""
    return field(default=default, metadata={"range": Range(**limits)})


@struct.dataclass
class Hparams:
    """Traced hyperparameters of a run: another value needs no new compilation. A subclass, with the
    same decorator, adds fields of its own. The loss, optimizer, schedule, augmentations and step
    read them from `hparams`; a model gets those that are keywords of its call. They are flags,
    saved, resumed and searched like the others."""

    learning_rate: float = number(1e-3, above=0)
    """Step size (its peak, under a schedule)."""
    dropout: float = number(0.0, at_least=0, below=1)
    """Dropout rate, 0 to below 1."""
    l2: float = number(0.0, at_least=0)
    """L2 penalty as in Keras: adds l2 * the sum of squared kernels to the loss."""
    weight_decay: float = number(0.0, at_least=0)
    """Decoupled weight decay of the kernels (adamw, lion and muon only)."""
    momentum: float = number(0.9, at_least=0, below=1)
    """Momentum of sgd and nesterov."""
    label_smoothing: float = number(0.0, at_least=0, below=1)
    """Share of the target spread evenly over the classes."""
    backbone_lr_scale: float = number(0.1, at_least=0)
    """--finetune last-blocks, full and contrastive: learning rate of the backbone, as a fraction of
    the head's."""
    clip_norm: float = number(0.0, at_least=0)
    """Largest global gradient norm; 0 does not clip."""
    warmup_fraction: float = number(0.0, at_least=0, below=1)
    """Share of the training steps over which the learning rate rises linearly from 0."""
    ema_decay: float = number(0.999, at_least=0, below=1)
    """Decay of the weights' moving average at each step (--ema)."""
    translate_pixels: float = number(0.0, at_least=0)
    """--augment affine: largest shift, in pixels."""
    rotate_degrees: float = number(0.0, at_least=0)
    """--augment affine: largest rotation, in degrees."""
    zoom_fraction: float = number(0.0, at_least=0, below=1)
    """--augment affine: largest zoom, as a fraction (0.1: 0.9 to 1.1 times)."""
    crop_pixels: float = number(0.0, at_least=0)
    """--augment crop: largest shift of an image padded by reflection, in pixels."""
    flip_probability: float = number(0.5, at_least=0, at_most=1)
    """--augment flip: probability of a horizontal flip."""
    brightness: float = number(0.0, at_least=0)
    """--augment brightness: largest offset, where black is 0 and white is 1."""
    contrast: float = number(0.0, at_least=0)
    """--augment contrast: largest change, as a fraction."""
    cutout_fraction: float = number(0.0, at_least=0, at_most=1)
    """--augment cutout: side of the blackened square, as a fraction of the image's shorter side."""
    mixup_alpha: float = number(0.0, at_least=0)
    """--augment mixup or mix: alpha of the Beta distribution of the mixing shares; 0 is off."""
    cutmix_alpha: float = number(0.0, at_least=0)
    """--augment cutmix or mix: alpha of the Beta distribution of the mixing shares; 0 is off."""
    noise_std: float = number(0.0, at_least=0)
    """--augment noise: standard deviation of Gaussian noise on the inputs."""
    kl_weight: float = number(1.0, at_least=0)
    """Weight of a variational autoencoder's KL divergence."""
    total_steps: Annotated[float, tyro.conf.Suppress] = number(1.0, at_least=0)
    """Length of the schedule in steps; `fit` sets it from the epochs."""

    if TYPE_CHECKING:  # flax.struct adds it

        def replace(self, **fields: Any) -> Self:
            """Returns a copy with other values of these fields."""

    def evaluation(self) -> "Hparams":
        """Returns the hparams of evaluation: without label smoothing. A subclass overrides it if a
        field of its own acts in training alone."""
        return self.replace(label_smoothing=0.0)


def hparam_names(hparams) -> tuple[str, ...]:
    """Returns the names of the fields that a user may set. hparams: an instance or a class."""
    return tuple(f.name for f in dataclasses.fields(hparams) if f.name != "total_steps")


def as_float32(hparams: Hparams) -> Hparams:
    """Returns hparams with float32 scalars, so that 1 and 1.0 share one compiled program."""
    return jax.tree.map(
        lambda value: value if isinstance(value, jax.Array) else np.float32(value), hparams
    )
