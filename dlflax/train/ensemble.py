"""Ensemble: a Linen module that averages the outputs of several trained models.

Evaluation, saving, testing, prediction and figures treat it like any other model. `choose` selects
members on validation data: greedy selection with replacement (Caruana, Niculescu-Mizil, Crew and
Ksikes 2004), then a temperature (Guo, Pleiss, Sun and Weinberger 2017).
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlflax.models import calibration
from dlflax.train.hparams import Hparams
from dlflax.train.recipe import Recipe, model_kwargs


class Ensemble(nn.Module):
    """Mean of the members' outputs by `Task.mean`, divided by a temperature (Guo et al. 2017)."""

    members: tuple[nn.Module, ...]
    hparams: tuple[Hparams, ...]
    """Hparams of each member: a model may read some of them in evaluation."""
    weights: tuple[float, ...]
    """Weight of each member; they sum to 1."""
    task: Any
    temperature: float = 1.0
    temperatures: tuple[float, ...] = ()
    """Temperature of each member, before the mean; () is 1 for all."""
    shared: bool = False
    """True if the networks share a frozen backbone, `features` of the first: computed once."""
    columns: tuple[int, ...] = ()
    """Columns at the end of the inputs that each member alone reads, such as terms of texts; 0: it
    reads the columns before those. () is 0 for all."""

    def __call__(self, inputs, train: bool = False):
        if self.shared and (inputs.ndim > 2 or jnp.issubdtype(inputs.dtype, jnp.integer)):
            inputs = self.features(inputs)
        temperatures = self.temperatures or (1.0,) * len(self.members)
        outputs = [
            member(part, **model_kwargs(member, hparams, train)) / temperature
            for member, part, hparams, temperature in zip(
                self.members, self.parts(inputs), self.hparams, temperatures, strict=True
            )
        ]
        outputs = self.task.mean(jnp.stack(outputs), jnp.float32(self.weights))
        return outputs / self.temperature

    @nn.nowrap
    def parts(self, inputs):
        """Returns the inputs of each member."""
        if not any(self.columns):
            return [inputs] * len(self.members)
        stop = inputs.shape[1] - sum(self.columns)
        parts, first = [], inputs[:, :stop]
        for width in self.columns:
            parts.append(inputs[:, stop : stop + width] if width else first)
            stop += width
        return parts

    def features(self, inputs):
        """Returns the features of the shared backbone, before the columns of other members."""
        features = self.members[0].features(self.parts(inputs)[0])
        if not any(self.columns):
            return features
        others = inputs[:, inputs.shape[1] - sum(self.columns) :]
        return jnp.concatenate([features, others.astype(features.dtype)], 1)


@dataclasses.dataclass(frozen=True)
class NoOptimizer:
    """Optimizer of a model that is not trained: no state, no updates."""

    def __call__(self, learning_rate, hparams):
        return optax.set_to_zero()


def ensemble_recipe(
    recipe: Recipe, members: Sequence[tuple[nn.Module, Hparams]], weights: Sequence[float],
    temperature: float = 1.0, shared: bool = False, temperatures: Sequence[float] = (),
    columns: Sequence[int] = (),
) -> Recipe:  # fmt: skip
    """Returns the Recipe of an `Ensemble` for the task of a member's recipe."""
    model = Ensemble(
        # copies: Flax gives one object in two fields, or in two of their fields, one set of params
        members=tuple(copy.deepcopy(model) for model, _ in members),
        hparams=tuple(hparams for _, hparams in members),
        weights=tuple(weights), task=recipe.task, temperature=temperature, shared=shared,
        temperatures=tuple(temperatures), columns=tuple(columns),
    )  # fmt: skip
    return Recipe(model, recipe.task, NoOptimizer(), batch_size=recipe.batch_size)


def nest_variables(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the variables of an `Ensemble` from those of its members."""
    return {
        name: {f"members_{i}": tree[name] for i, tree in enumerate(members) if tree.get(name)}
        for name in {name for tree in members for name in tree}
    }


FIRST = 5  # models at most to begin with: as many of the best as are best together
ROUNDS = 30


class Chosen(NamedTuple):
    """The result of `choose`."""

    weights: list[float]  # the share of each model, 0 for most
    temperature: float
    loss: float  # of the ensemble on the validation data, with its temperature
    alone: float  # of the best model alone


def choose(task, hparams, outputs, batch, most: int) -> Chosen:
    """Returns the greedy selection of at most `most` different models. outputs: of all models,
    float32 (models, n, ...), on a batch of n examples."""
    nothing = jnp.zeros_like(outputs[0])
    alone = np.asarray(_losses(task, hparams, nothing, jnp.float32(0), outputs, batch))
    order = np.argsort(np.nan_to_num(alone, nan=np.inf), kind="stable")[: min(FIRST, most)]
    prefixes = [(float(alone[order[0]]), outputs[order[0]])]
    for done, added in enumerate(order[1:], 1):
        mean = _add(task, prefixes[-1][1], outputs[added], jnp.float32(done))
        prefixes.append((float(task.loss(mean, batch, hparams).mean()), mean))
    size = int(np.nanargmin([loss for loss, _ in prefixes]))
    counts = np.bincount(order[: size + 1], minlength=len(outputs))
    best, ensemble = (prefixes[size][0], counts.copy(), prefixes[size][1]), prefixes[size][1]
    for done in range(size + 1, ROUNDS):
        new = np.asarray(_losses(task, hparams, ensemble, jnp.float32(done), outputs, batch))
        new = np.nan_to_num(new, nan=math.inf)  # of a model that diverged
        if np.sum(counts > 0) >= most:
            new = np.where(counts > 0, new, math.inf)
        added = int(np.argmin(new))
        counts[added] += 1
        ensemble = _add(task, ensemble, outputs[added], jnp.float32(done))
        if new[added] < best[0]:
            best = float(new[added]), counts.copy(), ensemble
    loss, counts, ensemble = best
    temperature = 1.0
    if task.logits:
        temperature, loss = calibration.temperature(task.loss, hparams, ensemble, batch)
    weights = [float(count) for count in counts / counts.sum()]
    return Chosen(weights, temperature, loss, float(np.nanmin(alone)))


def _add(task, ensemble, added, done):
    """Returns the outputs of an ensemble of `done` models with one more."""
    shares = jnp.stack([done, jnp.float32(1)]) / (done + 1)
    return task.mean(jnp.stack([ensemble, added]), shares)


@functools.partial(jax.jit, static_argnums=0)
def _losses(task, hparams, ensemble, done, outputs, batch):
    """Returns the mean loss of the ensemble with each of the models added, float32 (models,)."""

    def one(added):
        return task.loss(_add(task, ensemble, added, done), batch, hparams).mean()

    return jax.lax.map(one, outputs)
