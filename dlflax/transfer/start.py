"""Start of a training: pretrained weights, trainable parameters, cached features.

A frozen backbone computes the same features in every epoch, so they are computed once, and the head
is trained on features by the same `train.step`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import data, train
from dlflax.errors import InputError
from dlflax.models.protocols import Backbone
from dlflax.train.augment import augment, strength_names
from dlflax.train.optim import Constant
from dlflax.train.step import HEAD
from dlflax.transfer.backbone import backbone_module, merge_backbone, nest_variables, read
from dlflax.transfer.contrastive import pretrain_contrastive
from dlflax.transfer.features import Features

# Scale of word vectors. Validation loss on rt-polarity, 2 seeds, GRU and Transformer: 0.461 and
# 0.508 at half of GloVe's scale or less, 0.470 and 0.527 at GloVe's scale.
VECTOR_SCALE = 0.5


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Pretrained weights, and the parameters that are fine-tuned."""

    weights: str = "imagenet"
    """imagenet, the name of a published set, a file (.safetensors, .pth), or none: from scratch."""
    finetune: Literal["none", "head", "last-blocks", "full", "contrastive"] = "head"
    """Parameters to train: the last layer, the last blocks too, or all (full). contrastive, for few
    labels: all by a contrastive loss, then the last layer. none: no pretrained weights."""
    freeze_epochs: int = 5
    """--finetune last-blocks and full: epochs in which the last layer alone is trained first."""
    contrastive_epochs: int = 10
    """--finetune contrastive: epochs by the contrastive loss."""
    num_views: int = 0
    """--finetune head: augmented views (--augment) of every training image besides the image."""
    save_backbone: bool = False
    """--finetune head: save the frozen backbone in the run folder, for machines without the
    pretrained weights."""

    @property
    def has_weights(self) -> bool:
        """True if weights are read."""
        return "none" not in (self.weights, self.finetune)

    @property
    def is_frozen(self) -> bool:
        """True if the last layer alone is trained, on features."""
        return self.has_weights and self.finetune == "head"


@dataclasses.dataclass(frozen=True)
class Start:
    """Start of a training, as `prepare` returns it."""

    recipe: train.Recipe
    splits: data.Splits
    """Images, or the features of a frozen backbone, float32 (n, d)."""
    pretrained: dict[str, Any] | None = None
    """Variables for `train.init`, which become part of the State."""
    backbone: dict[str, Any] | None = None
    """Variables of a frozen backbone, which are not part of the State."""
    head: Callable[[], tuple[dict, np.ndarray]] | None = None
    """Evaluates a head trained first, before fine-tuning, on the test split (`train.evaluate`)."""

    def merge_backbone(self, state: train.State) -> train.State:
        """Returns the State of the whole model, whose inputs are images."""
        return merge_backbone(state, self.backbone)


def check(transfer: Transfer | None, recipe: train.Recipe, hparams: train.Hparams) -> None:
    """Raises InputError for incompatible flags."""
    if transfer is None:
        return
    for name in ("freeze_epochs", "contrastive_epochs", "num_views"):
        if getattr(transfer, name) < 0:
            flag = f"--{name.replace('_', '-')} {getattr(transfer, name)}"
            raise InputError(f"{flag} must be 0 or more.")
    finetune = transfer.finetune if transfer.has_weights else "none"
    if transfer.freeze_epochs != Transfer.freeze_epochs and finetune not in ("last-blocks", "full"):
        raise InputError("--freeze-epochs is for --finetune last-blocks and full: remove it.")
    if transfer.save_backbone and not transfer.is_frozen:
        raise InputError(
            "--save-backbone is for --finetune head; other runs save all parameters: remove it."
        )
    if transfer.contrastive_epochs != Transfer.contrastive_epochs and finetune != "contrastive":
        raise InputError("--contrastive-epochs is for --finetune contrastive: remove it.")
    if transfer.num_views and not transfer.is_frozen:
        raise InputError(
            "--num-views is for --finetune head; otherwise --augment changes the images in every "
            "epoch: remove it."
        )
    if transfer.num_views and not recipe.augment:
        raise InputError("--num-views needs --augment, such as --augment crop flip.")
    if transfer.is_frozen and recipe.augment and _mixes_examples(recipe.augment, hparams):
        raise InputError(
            "--augment mixup, cutmix and mix cannot be combined with --finetune head: remove them."
        )
    if transfer.has_weights and not isinstance(backbone_module(recipe.model)[0], Backbone):
        raise InputError(
            f"--weights {transfer.weights}: there are none for a {type(recipe.model).__name__}; "
            "use --weights none to train it from scratch."
        )


def _mixes_examples(augmentations, hparams) -> bool:
    """True if an augmentation mixes examples and their targets."""
    batch = {
        "inputs": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
        "targets": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    traced, key = train.as_float32(hparams), jax.random.key(0)
    return "partner" in jax.eval_shape(lambda b: augment(augmentations, key, b, traced), batch)


def start_hparams(transfer: Transfer | None, recipe, hparams) -> tuple[str, ...]:
    """Names of the Hparams that `prepare` uses: strengths of augmented views, and the learning rate
    of contrastive fine-tuning."""
    if transfer is None or not transfer.has_weights:
        return ()
    if transfer.finetune == "contrastive":
        return ("backbone_lr_scale",)
    return (
        tuple(strength_names(recipe.augment, hparams))
        if transfer.is_frozen and transfer.num_views
        else ()
    )


def trainable_recipe(transfer: Transfer | None, recipe: train.Recipe) -> train.Recipe:
    """Returns the recipe with its trainable parameters; that of a head, without augmentation, for a
    frozen backbone."""
    if transfer is None or not transfer.has_weights:
        return recipe
    if transfer.is_frozen:
        return _head_recipe(recipe)
    trainable = {"last-blocks": recipe.model.LAST_BLOCKS, "contrastive": f"^{HEAD}"}.get(
        transfer.finetune, "."
    )
    return dataclasses.replace(recipe, trainable=recipe.trainable or trainable)


def _head_recipe(recipe):
    return dataclasses.replace(recipe, augment=(), trainable="")


def prepare(
    transfer: Transfer | None,
    recipe: train.Recipe,
    hparams: train.Hparams,
    splits: data.Splits,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Start:
    """Reads the weights, computes features that are not on disk, and trains a head before
    fine-tuning. Raises InputError as `check` and `weights.read` do."""
    check(transfer, recipe, hparams)
    if transfer is None or not transfer.has_weights:
        return Start(recipe, splits, pretrained=_init_embedding(recipe, hparams, splits))
    model, path = backbone_module(recipe.model)
    variables, sha256 = read(transfer.weights, model, splits.train["inputs"][:1], log)
    splits = dataclasses.replace(splits, weights_sha256=sha256)
    if transfer.finetune == "contrastive":
        variables = pretrain_contrastive(
            recipe, hparams, variables, splits.train, transfer.contrastive_epochs, seed, log
        )
        return Start(trainable_recipe(transfer, recipe), splits, jax.device_get(variables))
    extract, evaluate_head = Features(model, variables, sha256, log), None
    if transfer.finetune == "head":
        frozen = _start_on_features(transfer, recipe, hparams, splits, extract)
        return dataclasses.replace(frozen, backbone=nest_variables(variables, path))
    if transfer.freeze_epochs:
        frozen = _start_on_features(
            transfer, recipe, hparams, dataclasses.replace(splits, test=None), extract
        )
        log(f"training the last layer alone, {transfer.freeze_epochs} epochs")
        head = dataclasses.replace(frozen.recipe, schedule=Constant(), ema=False)
        train_set, val_set = frozen.splits.train, frozen.splits.val
        fit = train.fit(
            head, hparams.replace(warmup_fraction=0.0), train_set, val_set,
            epochs=transfer.freeze_epochs, seed=seed,
        )  # fmt: skip
        row = fit.history[train.best_epoch(fit.history, recipe.task)]
        score = f"{'val' if val_set else 'train'}_{recipe.task.metric().name}"
        if score in row:
            log(f"the last layer alone reached a {score.replace('_', ' ')} of {row[score]:.4f}")
        variables = {**variables, "params": {**variables["params"], **fit.best.params}}

        def evaluate_head():
            test = {**splits.test, "inputs": extract(splits.test["inputs"])}
            return train.evaluate(head, fit.best, hparams, test)

    pretrained = jax.device_get(variables)
    return Start(trainable_recipe(transfer, recipe), splits, pretrained, head=evaluate_head)


def _init_embedding(recipe, hparams, splits) -> dict[str, Any] | None:
    """Returns an embedding initialized from the data's token vectors, random where they are missing
    or too short. None without vectors; InputError for a model without a matching embedding."""
    vectors = splits.vectors
    if vectors is None or isinstance(recipe.model, train.Ensemble):  # its members are trained
        return None
    params = train.abstract(recipe, hparams, splits.train["inputs"][:1]).params
    table = params.get("embedding", {}).get("embedding")
    if table is None or table.ndim != 2 or len(table) != len(vectors):
        raise InputError(f"--embeddings: a {type(recipe.model).__name__} has no token embedding.")
    dim = vectors.shape[1]
    if table.shape[1] < dim:
        raise InputError(
            f"--embeddings have {dim} dimensions, and the model's embedding {table.shape[1]}: it "
            f"must have {dim} or more."
        )
    embedding = np.array(0.1 * jax.random.normal(jax.random.key(0), table.shape), table.dtype)
    present = ~np.isnan(vectors[:, 0])
    embedding[present, :dim] = VECTOR_SCALE * vectors[present]
    return {"params": {"embedding": {"embedding": embedding}}}


def _start_on_features(transfer, recipe, hparams, splits, extract):
    """Returns the Start of a head: its recipe, and features of all splits."""
    features = {}
    for name in ("train", "val", "test"):
        if (split := getattr(splits, name)) is None:
            continue
        inputs = [extract(split["inputs"])]
        for view in range(1, transfer.num_views + 1) if name == "train" else ():
            inputs.append(extract(split["inputs"], view, recipe.augment, hparams))
        features[name] = {
            key: np.concatenate(inputs if key == "inputs" else [array] * len(inputs))
            for key, array in split.items()
        }
    return Start(_head_recipe(recipe), dataclasses.replace(splits, **features))
