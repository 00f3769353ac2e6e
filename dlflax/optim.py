"""Hparams, learning-rate schedules and optimizers: everything about the update that is a number."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import struct

from dlflax.errors import InputError

Optimizer = Literal["sgd", "nesterov", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "linear"]


@struct.dataclass
class Hparams:
    """The numbers of a training run. Traced: another value costs no compilation."""

    learning_rate: float = 1e-3
    """Step size (its peak, under a schedule)."""
    dropout: float = 0.0
    """Dropout rate, 0 to below 1."""
    l2: float = 0.0
    """Keras' L2 penalty: l2 * sum of squared kernels is added to the loss."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the kernels (adamw only)."""
    momentum: float = 0.9
    """Momentum of sgd and nesterov."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""
    backbone_rate: float = 0.1
    """--finetune last-blocks and all: learning rate of the pretrained parameters, as a fraction of
    that of the last layer."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 does not clip."""
    warmup: float = 0.0
    """Share of the training steps over which the learning rate rises linearly from 0."""
    ema_decay: float = 0.999
    """Decay a step of the weights' moving average (--ema)."""
    translate: float = 0.0
    """--augment affine: largest shift, in pixels."""
    rotate: float = 0.0
    """--augment affine: largest rotation, in degrees."""
    zoom: float = 0.0
    """--augment affine: largest zoom, as a fraction (0.1: 0.9 to 1.1 times)."""
    crop: float = 0.0
    """--augment crop: largest shift of a picture padded by reflection, in pixels."""
    flip: float = 0.5
    """--augment flip: probability of a horizontal flip."""
    brightness: float = 0.0
    """--augment brightness: largest amount added, of 1 between black and white."""
    contrast: float = 0.0
    """--augment contrast: largest change, as a fraction."""
    cutout: float = 0.0
    """--augment cutout: side of the blackened square, as a fraction of the picture's."""
    mixup: float = 0.0
    """--augment mixup: alpha of the Beta distribution of the shares; 0 is off."""
    cutmix: float = 0.0
    """--augment cutmix: alpha likewise."""
    noise: float = 0.0
    """--augment noise: standard deviation of Gaussian noise on the inputs."""
    kl_weight: float = 1.0
    """Weight of a variational autoencoder's KL divergence."""
    total_steps: Annotated[float, tyro.conf.Suppress] = 1.0
    """Length of the schedule in steps; `fit` sets it from the epochs."""


def learning_rate(schedule: Schedule, hparams: Hparams, step):
    """The learning rate of 0-based `step`, a scalar; every argument but `schedule` may be traced.

    Warm-up rises linearly to the peak, which the first step after it uses; cosine (Loshchilov and
    Hutter 2017, without restarts) and linear then fall to 0 at `total_steps`.
    """
    warmup_steps = hparams.warmup * hparams.total_steps
    rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup_steps, 1.0))
    left = jnp.maximum(hparams.total_steps - warmup_steps, 1.0)
    done = jnp.clip((step - warmup_steps) / left, 0.0, 1.0)
    fall = {"constant": 1.0, "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)), "linear": 1 - done}
    return hparams.learning_rate * rise * fall[schedule]


def optimizer(name: Optimizer, hparams: Hparams, rate) -> optax.GradientTransformation:
    """The optax optimizer with these (possibly traced) numbers; built anew inside every step.

    b1, b2 and eps stay static at 0.9, 0.999 and 1e-8 (optax cannot trace them reliably).
    """
    largest_norm = jnp.where(hparams.clip_norm > 0, hparams.clip_norm, jnp.inf)
    update = {
        "sgd": lambda: optax.sgd(rate, momentum=hparams.momentum),
        "nesterov": lambda: optax.sgd(rate, momentum=hparams.momentum, nesterov=True),
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=hparams.weight_decay, mask=_kernels),
    }[name]()
    return optax.chain(optax.clip_by_global_norm(largest_norm), update)


def _kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


# half-open ranges: least and the value that is too much; a rate of 0 would train nothing
_RANGES = {
    "learning_rate": (0.0, float("inf")),
    "dropout": (0.0, 1.0),
    "l2": (0.0, float("inf")),
    "weight_decay": (0.0, float("inf")),
    "momentum": (0.0, 1.0),
    "label_smoothing": (0.0, 1.0),
    "backbone_rate": (0.0, float("inf")),
    "clip_norm": (0.0, float("inf")),
    "warmup": (0.0, 1.0),
    "ema_decay": (0.0, 1.0),
    "translate": (0.0, float("inf")),
    "rotate": (0.0, float("inf")),
    "zoom": (0.0, 1.0),
    "crop": (0.0, float("inf")),
    "brightness": (0.0, float("inf")),
    "contrast": (0.0, float("inf")),
    "cutout": (0.0, float("inf")),
    "mixup": (0.0, float("inf")),
    "cutmix": (0.0, float("inf")),
    "noise": (0.0, float("inf")),
    "kl_weight": (0.0, float("inf")),
}


def check(hparams: Hparams) -> None:
    """InputError for a number outside its range. For plain numbers, not traced ones."""
    for name, (least, end) in _RANGES.items():
        value = getattr(hparams, name)
        if not least <= value < end or (name == "learning_rate" and value == 0):
            right = "above 0" if name == "learning_rate" else f"{least:g} or more"
            right += f" and below {end:g}" if end < float("inf") else " and finite"
            raise InputError(f"--hparams.{name.replace('_', '-')} {value:g} must be {right}.")
    if not 0 <= hparams.flip <= 1:
        raise InputError(f"--hparams.flip {hparams.flip:g} must be from 0 to 1.")
