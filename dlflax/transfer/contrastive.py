"""Contrastive fine-tuning for few labels: an encoder draws examples of one class together, before a
last layer is trained on what it then computes (SetFit: Tunstall et al. 2022)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import train
from dlflax.errors import InputError
from dlflax.models.encoder import Encoder
from dlflax.train.losses import Loss
from dlflax.train.tasks import Task

TEMPERATURE = 0.3


def supervised_contrastive(features, batch, hparams):
    """Returns for each example the distance to those of its class, relative to all others of the
    batch that are no padding (Khosla et al. 2020, eq. 2): features (n, d), targets int (n,) ->
    (n,). 0 for one that is alone of its class."""
    z = features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    classes, others = batch["targets"], ~jnp.eye(len(z), dtype=bool) & (batch["mask"] > 0)[None]
    near = jnp.where(others, z @ z.T / TEMPERATURE, -jnp.inf)
    log_p = near - jax.nn.logsumexp(near, axis=1, keepdims=True)
    same = others & (classes[:, None] == classes[None, :])
    return -jnp.where(same, log_p, 0.0).sum(1) / jnp.maximum(same.sum(1), 1)


@dataclasses.dataclass(frozen=True)
class Contrastive(Task):
    """Features in which examples of a class are near each other: a start for another task."""

    metrics: ClassVar = ()
    loss: Loss = supervised_contrastive

    def answers(self, asked):
        return []


def drawn_together(
    recipe: train.Recipe,
    hparams: train.Hparams,
    variables: dict[str, Any],
    train_set,
    epochs: int,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """The variables of a pretrained model, without its last layer, after so many epochs by the
    contrastive loss, at the learning rate of its backbone. InputError where the targets are no
    classes, or there is one example of each."""
    targets = train_set["targets"]
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise InputError("--finetune contrastive is for classes: use head, last-blocks or all.")
    if np.bincount(targets).max() < 2:
        raise InputError("--finetune contrastive needs several examples of a class.")
    log(f"drawing examples of a class together, {epochs} epochs")
    contrastive = dataclasses.replace(
        recipe, model=Encoder(recipe.model), task=Contrastive(), ema=False, trainable=""
    )
    numbers = hparams.replace(learning_rate=hparams.learning_rate * hparams.backbone_rate)
    nested = {name: {"model": tree} for name, tree in variables.items()}
    fit = train.fit(
        contrastive, numbers, train_set, epochs=epochs, seed=seed, pretrained=nested
    )  # fmt: skip
    log(f"their loss went from {fit.history[0]['train_loss']:.3f} to "
        f"{fit.history[-1]['train_loss']:.3f}")  # fmt: skip
    state = fit.best
    found = {"params": state.params["model"]}
    return {**found, **{name: tree["model"] for name, tree in state.collections.items()}}
