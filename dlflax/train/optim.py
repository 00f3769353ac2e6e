"""Optimizers and learning-rate schedules: frozen dataclasses, called with traced hparams.

Your own optimizer is a function (learning_rate, hparams) -> optax.GradientTransformation, a
schedule a function (step, hparams) -> learning rate; or frozen dataclasses with such a `__call__`,
whose fields become flags. Every step builds both anew from its traced hparams.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dlflax.train.hparams import number

Optimizer = Callable  # (learning_rate, hparams) -> optax.GradientTransformation
Schedule = Callable  # (step, hparams) -> learning rate

# b1, b2 and eps are structure: optax does not trace them reliably (optax issue 1532).


@dataclasses.dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with `Hparams.momentum` (`optax.sgd`)."""

    nesterov: bool = False
    """Look ahead along the momentum (Sutskever et al. 2013)."""

    def __call__(self, learning_rate, hparams):
        return optax.sgd(learning_rate, momentum=hparams.momentum, nesterov=self.nesterov)


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015; `optax.adam`)."""

    b1: float = number(0.9, at_least=0, below=1)
    """Decay of the mean of the gradients."""
    b2: float = number(0.999, at_least=0, below=1)
    """Decay of the mean of the squared gradients."""
    eps: float = number(1e-8, at_least=1e-30, at_most=1)
    """Added to the denominator."""

    def __call__(self, learning_rate, hparams):
        return optax.adam(learning_rate, self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay of the kernels (Loshchilov and Hutter 2019)."""

    def __call__(self, learning_rate, hparams):
        decay = {"weight_decay": hparams.weight_decay, "mask": _kernels}
        return optax.adamw(learning_rate, self.b1, self.b2, self.eps, **decay)


@dataclasses.dataclass(frozen=True)
class Lion:
    """Lion (Chen et al. 2023): the sign of the momentum. Needs a tenth of Adam's learning rate."""

    b1: float = number(0.9, at_least=0, below=1)
    """Weight of the momentum in the update."""
    b2: float = number(0.99, at_least=0, below=1)
    """Decay of the momentum."""

    def __call__(self, learning_rate, hparams):
        decay = {"weight_decay": hparams.weight_decay, "mask": _kernels}
        return optax.lion(learning_rate, self.b1, self.b2, **decay)


@dataclasses.dataclass(frozen=True)
class Muon:
    """Muon (Jordan et al. 2024; `optax.contrib.muon`): orthogonalized updates of matrices, Adam for
    all other parameters."""

    beta: float = number(0.95, at_least=0, below=1)
    """Decay of the momentum."""
    nesterov: bool = True
    """Look ahead along the momentum."""

    def __call__(self, learning_rate, hparams):
        return optax.contrib.muon(
            learning_rate, beta=self.beta, nesterov=self.nesterov,
            weight_decay=hparams.weight_decay, weight_decay_mask=_kernels,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RMSprop:
    """RMSprop (Tieleman and Hinton 2012; `optax.rmsprop`), without momentum, as Keras' default."""

    decay: float = number(0.9, at_least=0, below=1)
    """Decay of the mean of the squared gradients."""
    eps: float = number(1e-7, at_least=1e-30, at_most=1)
    """Added to the denominator."""

    def __call__(self, learning_rate, hparams):
        return optax.rmsprop(learning_rate, self.decay, self.eps)


OPTIMIZERS = {
    "sgd": SGD(), "nesterov": SGD(nesterov=True), "adam": Adam(), "adamw": AdamW(), "lion": Lion(),
    "muon": Muon(), "rmsprop": RMSprop(),
}  # fmt: skip
"""Optimizers by their short names on the command line."""


def warmup_and_progress(step, hparams):
    """Returns (warm-up factor of the learning rate, share of the steps after the warm-up so far).
    The factor rises linearly to 1. step: 0-based, may be traced."""
    warmup_steps = hparams.warmup_fraction * hparams.total_steps
    factor = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup_steps, 1.0))
    later_steps = jnp.maximum(hparams.total_steps - warmup_steps, 1.0)
    return factor, jnp.clip((step - warmup_steps) / later_steps, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Constant:
    """Constant learning rate after the warm-up."""

    def __call__(self, step, hparams):
        factor, _ = warmup_and_progress(step, hparams)
        return hparams.learning_rate * factor * 1.0


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Cosine decay to 0 after the warm-up (Loshchilov and Hutter 2017, no restarts)."""

    def __call__(self, step, hparams):
        factor, progress = warmup_and_progress(step, hparams)
        return hparams.learning_rate * factor * (0.5 * (1 + jnp.cos(jnp.pi * progress)))


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear decay to 0 after the warm-up."""

    def __call__(self, step, hparams):
        factor, progress = warmup_and_progress(step, hparams)
        return hparams.learning_rate * factor * (1 - progress)


SCHEDULES = {"constant": Constant(), "cosine": Cosine(), "linear": Linear()}
"""Schedules by their short names on the command line."""


def gradient_transformation(
    optimizer: Optimizer, learning_rate, hparams
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer after gradient clipping by `Hparams.clip_norm`. It accepts extra
    arguments, such as `value`, even if the optimizer does not."""
    max_norm = jnp.where(hparams.clip_norm > 0, hparams.clip_norm, jnp.inf)
    clip = optax.clip_by_global_norm(max_norm)
    return optax.with_extra_args_support(optax.chain(clip, optimizer(learning_rate, hparams)))


def _kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
