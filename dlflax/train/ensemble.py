"""Ensemble: a Linen module that averages the outputs of several trained models.

Evaluation, saving, testing, prediction and figures treat it like any other model.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax

from dlflax.train.hparams import Hparams
from dlflax.train.recipe import model_kwargs


class Ensemble(nn.Module):
    """Mean of the members' outputs by `Task.mean`, divided by a temperature (Guo et al. 2017)."""

    members: tuple[nn.Module, ...]
    hparams: tuple[Hparams, ...]
    """Hparams of each member: a model may read some of them in evaluation."""
    weights: tuple[float, ...]
    """Weight of each member; they sum to 1."""
    task: Any
    temperature: float = 1.0
    shared: bool = False
    """True if all members share a frozen backbone, `features` of the first: computed once."""

    def __call__(self, inputs, train: bool = False):
        if self.shared and inputs.ndim > 2:
            inputs = self.features(inputs)
        outputs = [
            member(inputs, **model_kwargs(member, hparams, train))
            for member, hparams in zip(self.members, self.hparams, strict=True)
        ]
        outputs = self.task.mean(jnp.stack(outputs), jnp.float32(self.weights))
        return outputs / self.temperature

    def features(self, inputs):
        """Returns the features of the shared backbone."""
        return self.members[0].features(inputs)


@dataclasses.dataclass(frozen=True)
class NoOptimizer:
    """Optimizer of a model that is not trained: no state, no updates."""

    def __call__(self, learning_rate, hparams):
        return optax.set_to_zero()
