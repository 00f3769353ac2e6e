"""One training step, a pure function of (recipe, state, hparams, batch), and its parts, for a step
of your own. Independent of the loop, of files and of devices."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from dlflax.errors import InputError
from dlflax.models.protocols import CuttingBatches
from dlflax.ops.norm import freeze_norms
from dlflax.train import losses, optim
from dlflax.train.augment import augment_batch
from dlflax.train.batch import Batch, cast
from dlflax.train.hparams import Hparams
from dlflax.train.metrics import batch_sums
from dlflax.train.recipe import NEVER, Recipe, merge_params, model_kwargs, partition_params
from dlflax.train.state import State

HEAD = "logits/"  # path of the head's parameters, which Hparams.backbone_lr_scale does not scale


class Gradient(NamedTuple):
    """The result of `gradient` on one batch of n examples."""

    gradient: Any
    """The gradient of the trainable parameters (`partition_params`), float32."""
    total_loss: jax.Array
    """The value that a step minimizes, a float32 scalar."""
    outputs: jax.Array
    """Outputs of the model, float32 (n, ...)."""
    losses: jax.Array
    """The loss of each example, float32 (n,), without penalties."""
    collections: Any
    """The model's other variables after the forward pass."""


def step(
    recipe: Recipe, state: State, hparams: Hparams, batch: Batch
) -> tuple[State, dict[str, jax.Array]]:
    """Returns (State, sums) after one step, as `update` does. The caller picks jit, map, vmap or
    shard. batch: the data source's arrays and a mask."""
    batch, key = prepare(recipe, state, hparams, batch)
    return update(recipe, state, hparams, batch, gradient(recipe, state, hparams, batch, key))


def prepare(
    recipe: Recipe, state: State, hparams: Hparams, batch: Batch
) -> tuple[dict[str, Any], jax.Array]:
    """Returns (the batch after augmentation, with targets; the key of the model's randomness). All
    randomness of a step comes from `fold_in(state.key, state.step)`."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    return augment_batch(recipe, hparams, batch, augment_key), dropout_key


def gradient(
    recipe: Recipe, state: State, hparams: Hparams, batch: Batch, key: jax.Array
) -> Gradient:
    """Returns the gradient of `total_loss` with respect to the trainable parameters, accumulated
    over micro-batches if the recipe has them. batch, key: as `prepare` returns them."""
    n, size = len(batch["mask"]), recipe.micro_batch
    if not 0 < size < n:
        return _gradient(recipe, state, hparams, batch, key, batch)
    if n % size:
        raise InputError(f"micro_batch {size} must divide the batch of {n} examples.")

    def split(array):  # every micro-batch has examples of all shards of the batch
        return array.reshape(size, n // size, *array.shape[1:]).swapaxes(0, 1)

    def accumulate(carry, micro):
        total, collections = carry
        micro_batch, key = micro
        new = _gradient(
            recipe, state.replace(collections=collections), hparams, micro_batch, key, batch
        )
        total = jax.tree.map(jnp.add, total, (new.gradient, new.total_loss))
        return (total, new.collections), (new.outputs, new.losses)

    zeros = jax.tree.map(jnp.zeros_like, partition_params(recipe, state.params)[0])
    ((gradient, loss), collections), results = lax.scan(
        accumulate, ((zeros, jnp.float32(0)), state.collections),
        (jax.tree.map(split, dict(batch)), jax.random.split(key, n // size)),
    )  # fmt: skip
    outputs, losses = (x.swapaxes(0, 1).reshape(n, *x.shape[2:]) for x in results)
    return Gradient(gradient, loss, outputs, losses, collections)


def _gradient(recipe, state, hparams, batch, key, full_batch) -> Gradient:
    """Returns `gradient` on a micro-batch of the batch `full_batch`, or on all of it."""
    trainable, frozen = partition_params(recipe, state.params)

    def differentiate(inputs):
        def loss(trainable):
            given = merge_params(recipe, trainable, frozen), state.collections, hparams
            return total_loss(recipe, *given, {**batch, "inputs": inputs}, key, full_batch)

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    # a model may cut padding off a batch; the switch encloses the gradient, so that no branch
    # keeps the activations of another
    cuts = None
    if isinstance(recipe.model, CuttingBatches):
        cuts = recipe.model.cuts(batch["inputs"])
    if cuts is None:
        result = differentiate(batch["inputs"])
    else:
        index, branches = cuts
        result = lax.switch(index, [functools.partial(differentiate, cut) for cut in branches])
    (loss, (outputs, losses, collections)), gradient = result
    return Gradient(gradient, loss, outputs, losses, collections)


def total_loss(recipe, params, collections, hparams, batch, key, full_batch=None):
    """Returns (total loss, (outputs float32 (n, ...), losses (n,), new collections)). The total
    loss, a float32 scalar, is the mean loss of the batch, plus the L2 penalty, plus the losses (n,)
    that the model writes to its collection "losses". batch: as for `step`, with MixUp or CutMix
    also `partner` int32 (n,) and `share` float32 (n,). full_batch: the batch that `batch` is a
    micro-batch of; the result is then its share of the total loss."""
    full_batch = batch if full_batch is None else full_batch
    dtype = jnp.dtype(recipe.compute_dtype)
    with freeze_norms(recipe.trainable):
        outputs, collections = recipe.model.apply(
            {"params": cast(params, dtype), **collections},
            cast(batch["inputs"], dtype),
            **model_kwargs(recipe.model, hparams, train=True),
            # "params" serves streams of any other name
            rngs={"dropout": key, "params": jax.random.fold_in(key, 1)},
            mutable=[*collections, "losses"],
        )
    outputs = cast(outputs, jnp.float32)
    loss = recipe.task.loss
    each_loss = loss(outputs, batch, hparams)
    weight = batch["mask"] * batch["weight"] if "weight" in batch else batch["mask"]
    total = jnp.sum(each_loss * weight)
    if "partner" in batch:  # each target's loss has the weight of that target's class
        share, partner = batch["share"], batch["partner"]
        partner_loss = loss(outputs, {**batch, "targets": full_batch["targets"][partner]}, hparams)
        partner_weight = full_batch.get("weight", jnp.ones_like(full_batch["share"]))[partner]
        partner_total = (1 - share) * partner_loss * partner_weight * batch["mask"]
        total = jnp.sum(share * each_loss * weight + partner_total)
        each_loss = share * each_loss + (1 - share) * partner_loss
    if model_losses := jax.tree.leaves(collections.pop("losses", {})):
        total = total + hparams.kl_weight * jnp.sum(sum(model_losses) * weight)
    mean = total / jnp.maximum(full_batch["mask"].sum(), 1.0)
    share = len(batch["mask"]) / len(full_batch["mask"])
    penalty = share * hparams.l2 * losses.l2(partition_params(recipe, params)[0])
    return mean + penalty, (outputs, each_loss, collections)


def update(
    recipe: Recipe, state: State, hparams: Hparams, batch: Batch, result: Gradient
) -> tuple[State, dict[str, jax.Array]]:
    """Returns (State after the optimizer's update, sums). result: as `gradient` returns it. sums:
    `loss` without penalties and `count`, float32; the task's sums; and `first_bad_step`, the
    0-based step if the total loss or the gradient is not finite, else NEVER."""
    params, frozen = partition_params(recipe, state.params)
    rate = recipe.schedule(state.step, hparams)
    optimizer = optim.gradient_transformation(recipe.optimizer, rate, hparams)
    updates, opt_state = optimizer.update(
        result.gradient, state.opt_state, params, value=result.total_loss
    )
    if recipe.trainable:
        updates = {
            path: update if path.startswith(HEAD) else hparams.backbone_lr_scale * update
            for path, update in updates.items()
        }
    params = optax.apply_updates(params, updates)
    ema, ema_collections = state.ema, state.ema_collections
    if recipe.ema:
        # the decay warms up, so that the initial weights soon lose their share in a short run
        decay = jnp.minimum(hparams.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        old, frozen_ema = partition_params(recipe, ema)
        new = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, old, params)
        ema = merge_params(recipe, new, frozen_ema)
        if ema_collections is not None:
            ema_collections = jax.tree.map(
                functools.partial(_average, decay), ema_collections, result.collections
            )

    finite = jnp.isfinite(result.total_loss) & jnp.isfinite(optax.tree.norm(result.gradient))
    sums = {
        **batch_sums(recipe.task.metrics, result.outputs, result.losses, batch),
        "first_bad_step": jnp.where(finite, NEVER, state.step),
    }
    state = state.replace(
        step=state.step + 1, params=merge_params(recipe, params, frozen), opt_state=opt_state,
        ema=ema, collections=result.collections, ema_collections=ema_collections,
    )  # fmt: skip
    return state, sums


def _average(decay, old, new):
    """Returns the moving average of floats, and any other array as `new`. Equal values stay
    bitwise equal."""
    if not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    return old + (1 - decay) * (new - old)


def shift_params(recipe: Recipe, state: State, direction: Any) -> State:
    """Returns the State with `direction` added to the trainable parameters. direction: a tree like
    `Gradient.gradient`."""
    params, frozen = partition_params(recipe, state.params)
    params = jax.tree.map(jnp.add, params, direction)
    return state.replace(params=merge_params(recipe, params, frozen))
