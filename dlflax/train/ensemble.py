"""Several trained models as one model: a weighted mean of what they say.

It is a Linen module like any other, so what evaluates, saves, tests, predicts with and draws a
model does the same with an ensemble.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax

from dlflax.train.hparams import Hparams
from dlflax.train.recipe import model_kwargs


class Ensemble(nn.Module):
    """The mean of its members' outputs by `Task.mean`, divided by the temperature (Guo et al.
    2017)."""

    members: tuple[nn.Module, ...]
    hparams: tuple[Hparams, ...]
    """Each member's numbers: a model may read some of them when it is evaluated."""
    weights: tuple[float, ...]
    """Each member's share; they add up to 1."""
    task: Any
    temperature: float = 1.0
    shared: bool = False
    """All have the first one's `features`, a frozen backbone: it is computed once."""

    def __call__(self, inputs, train: bool = False):
        if self.shared and inputs.ndim > 2:
            inputs = self.features(inputs)
        outputs = [
            member(inputs, **model_kwargs(member, numbers, train))
            for member, numbers in zip(self.members, self.hparams, strict=True)
        ]
        outputs = self.task.mean(jnp.stack(outputs), jnp.float32(self.weights))
        return outputs / self.temperature

    def features(self, inputs):
        """What the members' heads see, where they share a backbone."""
        return self.members[0].features(inputs)


@dataclasses.dataclass(frozen=True)
class NoOptimizer:
    """The optimizer of a model that is not trained: keeps no numbers, changes none."""

    def __call__(self, learning_rate, hparams):
        return optax.set_to_zero()
