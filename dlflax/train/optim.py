"""Optimizers and learning-rate schedules: frozen dataclasses that are called with the numbers.

An optimizer of your own is any function (learning_rate, hparams) -> optax.GradientTransformation,
a schedule any function (step, hparams) -> learning rate; or frozen dataclasses with such a
`__call__`, whose fields become flags. Both are rebuilt inside every step from traced numbers.
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
    """Decay of the mean of their squares."""
    eps: float = number(1e-8, at_least=1e-30, at_most=1)
    """Added to the denominator."""

    def __call__(self, learning_rate, hparams):
        return optax.adam(learning_rate, self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay of the kernels (Loshchilov and Hutter 2019)."""

    b1: float = number(0.9, at_least=0, below=1)
    """Decay of the mean of the gradients."""
    b2: float = number(0.999, at_least=0, below=1)
    """Decay of the mean of their squares."""
    eps: float = number(1e-8, at_least=1e-30, at_most=1)
    """Added to the denominator."""

    def __call__(self, learning_rate, hparams):
        decay = {"weight_decay": hparams.weight_decay, "mask": _kernels}
        return optax.adamw(learning_rate, self.b1, self.b2, self.eps, **decay)


@dataclasses.dataclass(frozen=True)
class Lion:
    """Lion (Chen et al. 2023): the sign of the momentum. Learning rates are a tenth of Adam's."""

    b1: float = number(0.9, at_least=0, below=1)
    """Weight of the momentum in the update."""
    b2: float = number(0.99, at_least=0, below=1)
    """Decay of the momentum."""

    def __call__(self, learning_rate, hparams):
        decay = {"weight_decay": hparams.weight_decay, "mask": _kernels}
        return optax.lion(learning_rate, self.b1, self.b2, **decay)


@dataclasses.dataclass(frozen=True)
class Muon:
    """Muon (Jordan et al. 2024): orthogonal updates of matrices, Adam for all other parameters
    (`optax.contrib.muon`)."""

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
    "sgd": SGD(),
    "nesterov": SGD(nesterov=True),
    "adam": Adam(),
    "adamw": AdamW(),
    "lion": Lion(),
    "muon": Muon(),
    "rmsprop": RMSprop(),
}
"""Their short names on the command line."""


def after_warmup(step, hparams):
    """(factor of the learning rate, which rises linearly to 1 over the warm-up; share of the steps
    after it that are done, 0 to 1). step: 0-based, may be traced."""
    warmup_steps = hparams.warmup * hparams.total_steps
    rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup_steps, 1.0))
    left = jnp.maximum(hparams.total_steps - warmup_steps, 1.0)
    return rise, jnp.clip((step - warmup_steps) / left, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Constant:
    """The learning rate after the warm-up, to the end."""

    def __call__(self, step, hparams):
        rise, _ = after_warmup(step, hparams)
        return hparams.learning_rate * rise * 1.0


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Falls to 0 along a cosine after the warm-up (Loshchilov and Hutter 2017, no restarts)."""

    def __call__(self, step, hparams):
        rise, done = after_warmup(step, hparams)
        return hparams.learning_rate * rise * (0.5 * (1 + jnp.cos(jnp.pi * done)))


@dataclasses.dataclass(frozen=True)
class Linear:
    """Falls to 0 along a line after the warm-up."""

    def __call__(self, step, hparams):
        rise, done = after_warmup(step, hparams)
        return hparams.learning_rate * rise * (1 - done)


SCHEDULES = {"constant": Constant(), "cosine": Cosine(), "linear": Linear()}
"""Their short names on the command line."""


def transformation(optimizer: Optimizer, learning_rate, hparams) -> optax.GradientTransformation:
    """The optimizer behind gradient clipping by `Hparams.clip_norm`. Takes extra arguments, such as
    `value`, whether the optimizer wants them or not."""
    largest_norm = jnp.where(hparams.clip_norm > 0, hparams.clip_norm, jnp.inf)
    clipped = optax.clip_by_global_norm(largest_norm)
    return optax.with_extra_args_support(optax.chain(clipped, optimizer(learning_rate, hparams)))


def _kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
