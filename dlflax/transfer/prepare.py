"""Transfer learning: what is taken from pretrained weights, what is trained, features kept on disk.

A frozen backbone computes the same features in every epoch, so they are computed once: a head is
then trained from numbers instead of pictures, by the same `train.step`.
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
from dlflax.transfer.backbone import placed, read, with_backbone, with_features
from dlflax.transfer.contrastive import drawn_together
from dlflax.transfer.features import Features

# Of vectors of words beside the model's other numbers: rt-polarity's validation loss, 2 seeds, GRU
# and Transformer: 0.461 and 0.508 with half of GloVe's or less, 0.470 and 0.527 with all of it.
VECTOR_SCALE = 0.5


@dataclasses.dataclass(frozen=True)
class Transfer:
    """The use of pretrained weights: which ones, and what of them is trained on."""

    weights: str = "imagenet"
    """imagenet, the name of a published set, a file (.safetensors, .pth), or none: from scratch."""
    finetune: Literal["none", "head", "last-blocks", "all", "contrastive"] = "head"
    """The part of a pretrained model that is trained: its last layer, last blocks too, or all;
    contrastive, for few labels: all, so that examples of a class come together, then its last
    layer; none takes no weights, as --weights none."""
    head_epochs: int = 5
    """--finetune last-blocks and all: so many epochs of the last layer alone come first."""
    contrastive_epochs: int = 10
    """--finetune contrastive: epochs that draw the examples of a class together."""
    views: int = 0
    """--finetune head: so many augmented views (--augment) of every training picture, besides the
    picture itself."""
    self_contained: bool = False
    """--finetune head: save the frozen part with the run too, so that its folder can be copied to a
    machine that has no pretrained weights."""

    @property
    def pretrained(self) -> bool:
        """True if weights are read."""
        return "none" not in (self.weights, self.finetune)

    @property
    def frozen(self) -> bool:
        """True if the last layer alone is trained, from features."""
        return self.pretrained and self.finetune == "head"


@dataclasses.dataclass(frozen=True)
class Start:
    """The beginning of a training, as `prepare` returns it."""

    recipe: train.Recipe
    splits: data.Splits
    """Pictures, or of a frozen backbone their features, float32 (n, d)."""
    pretrained: dict[str, Any] | None = None
    """Variables for `train.init`, which go into the State."""
    backbone: dict[str, Any] | None = None
    """Variables of a frozen backbone, which stay outside of it."""
    head: Callable[[], tuple[dict, np.ndarray]] | None = None
    """Where more than the last layer is trained: the sums and outputs on the test data of that
    layer alone, as `train.evaluate` gives them."""

    def with_backbone(self, state: train.State) -> train.State:
        """A State of all the model, for pictures, whatever was trained."""
        return with_backbone(state, self.backbone)


def check(transfer: Transfer | None, recipe: train.Recipe, hparams: train.Hparams) -> None:
    """InputError for what does not go together."""
    if transfer is None:
        return
    for name in ("head_epochs", "contrastive_epochs", "views"):
        if getattr(transfer, name) < 0:
            flag = f"--{name.replace('_', '-')} {getattr(transfer, name)}"
            raise InputError(f"{flag} must be 0 or more.")
    staged = transfer.pretrained and transfer.finetune in ("last-blocks", "all")
    if transfer.head_epochs != Transfer.head_epochs and not staged:
        raise InputError(
            "--head-epochs is for --finetune last-blocks and all, whose last layer is trained "
            "alone first: leave it out."
        )
    if transfer.self_contained and not transfer.frozen:
        raise InputError(
            "--self-contained is for --finetune head: all other models are saved whole. Leave it "
            "out."
        )
    contrastive = transfer.pretrained and transfer.finetune == "contrastive"
    if transfer.contrastive_epochs != Transfer.contrastive_epochs and not contrastive:
        raise InputError("--contrastive-epochs is for --finetune contrastive: leave it out.")
    if transfer.views and not transfer.frozen:
        raise InputError(
            "--views is for --finetune head, whose features are computed once; elsewhere --augment "
            "changes the pictures in every epoch: leave it out."
        )
    if transfer.views and not recipe.augment:
        raise InputError("--views needs --augment, such as --augment crop flip.")
    if transfer.frozen and recipe.augment and _mixes(recipe.augment, hparams):
        raise InputError(
            "--augment mixup, cutmix and mix have no meaning with --finetune head: leave them out."
        )
    if transfer.pretrained and not isinstance(with_features(recipe.model)[0], Backbone):
        raise InputError(
            f"--weights {transfer.weights}: there are none for a {type(recipe.model).__name__}; "
            "use --weights none to train it from scratch."
        )


def _mixes(augmentations, hparams) -> bool:
    """True if they mix examples, and so need a second picture and its target."""
    picture = {
        "inputs": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
        "targets": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    traced, key = train.as_float32(hparams), jax.random.key(0)
    return "partner" in jax.eval_shape(lambda b: augment(augmentations, key, b, traced), picture)


def numbers_of_start(transfer: Transfer | None, recipe, hparams) -> tuple[str, ...]:
    """Names of the numbers that what `prepare` does goes by: those of augmented views, of which
    features are computed, and the rate of a contrastive start."""
    if transfer is None or not transfer.pretrained:
        return ()
    if transfer.finetune == "contrastive":
        return ("backbone_rate",)
    return (
        tuple(strength_names(recipe.augment, hparams)) if transfer.frozen and transfer.views else ()
    )


def trained(transfer: Transfer | None, recipe: train.Recipe) -> train.Recipe:
    """The recipe of what is trained: which parameters; a frozen backbone's head sees no pictures,
    so there is nothing to augment."""
    if transfer is None or not transfer.pretrained:
        return recipe
    if transfer.frozen:
        return _of_head(recipe)
    chosen = {"last-blocks": recipe.model.LAST_BLOCKS, "contrastive": f"^{HEAD}"}.get(
        transfer.finetune, "."
    )
    return dataclasses.replace(recipe, trainable=recipe.trainable or chosen)


def _of_head(recipe):
    return dataclasses.replace(recipe, augment=(), trainable="")


def prepare(
    transfer: Transfer | None,
    recipe: train.Recipe,
    hparams: train.Hparams,
    splits: data.Splits,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Start:
    """What to train on and from. Reads the weights; computes features, unless they are on disk;
    trains a first head where the rest follows. Raises InputError as `check` and `weights.read` do.
    """
    check(transfer, recipe, hparams)
    if transfer is None or not transfer.pretrained:
        return Start(recipe, splits, pretrained=_with_vectors(recipe, hparams, splits))
    model, path = with_features(recipe.model)
    variables, sha256 = read(transfer.weights, model, splits.train["inputs"][:1], log)
    splits = dataclasses.replace(splits, weights_sha256=sha256)
    if transfer.finetune == "contrastive":
        variables = drawn_together(
            recipe, hparams, variables, splits.train, transfer.contrastive_epochs, seed, log
        )
        pretrained = jax.device_get(variables)
        return Start(trained(transfer, recipe), splits, pretrained=pretrained)
    compute, head_alone = Features(model, variables, sha256, log), None
    if transfer.finetune == "head":
        frozen = _on_features(transfer, recipe, hparams, splits, compute)
        return dataclasses.replace(frozen, backbone=placed(variables, path))
    if transfer.head_epochs:
        frozen = _on_features(
            transfer, recipe, hparams, dataclasses.replace(splits, test=None), compute
        )
        log(f"training the last layer alone, {transfer.head_epochs} epochs")
        head = dataclasses.replace(frozen.recipe, schedule=Constant(), ema=False)
        parts = frozen.splits
        fit = train.fit(
            head, hparams.replace(warmup=0.0), parts.train, parts.val,
            epochs=transfer.head_epochs, seed=seed,
        )  # fmt: skip
        row = fit.history[train.best_epoch(fit.history, recipe.task)]
        score = f"{'val' if parts.val else 'train'}_{recipe.task.metric().name}"
        if score in row:
            log(f"the last layer alone reached a {score.replace('_', ' ')} of {row[score]:.4f}")
        variables = {**variables, "params": {**variables["params"], **fit.best.params}}

        def head_alone():
            test = {**splits.test, "inputs": compute(splits.test["inputs"])}
            return train.evaluate(head, fit.best, hparams, test)

    pretrained = jax.device_get(variables)
    return Start(trained(transfer, recipe), splits, pretrained=pretrained, head=head_alone)


def _with_vectors(recipe, hparams, splits) -> dict[str, Any] | None:
    """The variables that begin with the data's vectors of tokens: an embedding whose other numbers
    are random. None without vectors. InputError where the model has no such embedding."""
    vectors = splits.vectors
    if vectors is None or isinstance(recipe.model, train.Ensemble):  # whose members are trained
        return None
    params = train.abstract(recipe, hparams, splits.train["inputs"][:1]).params
    table = params.get("embedding", {}).get("embedding")
    if table is None or table.ndim != 2 or len(table) != len(vectors):
        raise InputError(
            f"--vectors: a {type(recipe.model).__name__} has no embedding of tokens to begin with."
        )
    if table.shape[1] < vectors.shape[1]:
        raise InputError(
            f"--vectors have {vectors.shape[1]} numbers a word, and the model's embedding "
            f"{table.shape[1]}: give it as many or more."
        )
    wide = np.array(0.1 * jax.random.normal(jax.random.key(0), table.shape), table.dtype)
    known = ~np.isnan(vectors[:, 0])
    wide[known, : vectors.shape[1]] = VECTOR_SCALE * vectors[known]
    return {"params": {"embedding": {"embedding": wide}}}


def _on_features(transfer, recipe, hparams, splits, compute):
    """The head's recipe, without augmentation, on features of all splits."""
    parts = {}
    for name in ("train", "val", "test"):
        part = getattr(splits, name)
        if part is None:
            parts[name] = None
            continue
        rows = [{**part, "inputs": compute(part["inputs"])}]
        for view in range(1, transfer.views + 1) if name == "train" else ():
            seen = compute(part["inputs"], view, recipe.augment, hparams)
            rows.append({**part, "inputs": seen})
        parts[name] = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    return Start(_of_head(recipe), dataclasses.replace(splits, **parts))
