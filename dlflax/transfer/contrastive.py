"""Contrastive fine-tuning of an encoder on few examples (SetFit: Tunstall et al. 2022)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import train
from dlflax.errors import InputError
from dlflax.models.feature_extractor import Encoder
from dlflax.train.losses import Loss
from dlflax.train.tasks import Task

TEMPERATURE = 0.3


def supervised_contrastive(features, batch, hparams):
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2): features (n, d), targets int (n,) ->
    (n,). Padding is masked; an example without others of its class has a loss of 0."""
    z = features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    classes, others = batch["targets"], ~jnp.eye(len(z), dtype=bool) & (batch["mask"] > 0)[None]
    similarity = jnp.where(others, z @ z.T / TEMPERATURE, -jnp.inf)
    log_p = similarity - jax.nn.logsumexp(similarity, axis=1, keepdims=True)
    positives = others & (classes[:, None] == classes[None, :])
    return -jnp.where(positives, log_p, 0.0).sum(1) / jnp.maximum(positives.sum(1), 1)


@dataclasses.dataclass(frozen=True)
class Contrastive(Task):
    """Task of an encoder: examples of one class get similar features."""

    metrics: ClassVar = ()
    loss: Loss = supervised_contrastive

    def answers(self, asked):
        return []


def pretrain_contrastive(
    recipe: train.Recipe,
    hparams: train.Hparams,
    variables: dict[str, Any],
    train_set,
    epochs: int,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Trains a pretrained model without its last layer by the contrastive loss, at the learning
    rate of the backbone. Returns its variables. InputError if the targets are not classes, or no
    class has two examples."""
    targets = train_set["targets"]
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise InputError("--finetune contrastive needs classes: use head, last-blocks or full.")
    if np.bincount(targets).max() < 2:
        raise InputError("--finetune contrastive needs a class with several examples.")
    log(f"contrastive fine-tuning of the encoder, {epochs} epochs")
    contrastive = dataclasses.replace(
        recipe, model=Encoder(recipe.model), task=Contrastive(), ema=False, trainable="",
        micro_batch=0,  # the loss compares all examples of a batch
    )  # fmt: skip
    hparams = hparams.replace(learning_rate=hparams.learning_rate * hparams.backbone_lr_scale)
    nested = {name: {"model": tree} for name, tree in variables.items()}
    fit = train.fit(
        contrastive, hparams, train_set, epochs=epochs, seed=seed, pretrained=nested
    )  # fmt: skip
    first, last = (fit.history[epoch]["train_loss"] for epoch in (0, -1))
    log(f"the contrastive loss was {first:.3f} in the first epoch, {last:.3f} in the last")
    collections = {"params": fit.best.params, **fit.best.collections}
    return {name: tree["model"] for name, tree in collections.items()}
