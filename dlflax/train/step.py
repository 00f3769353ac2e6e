"""One training step, a pure function of (recipe, state, hparams, batch), and the parts it is made
of, for a step of your own.

    def step(recipe, state, hparams, batch):
        batch, key = prepare(recipe, state, hparams, batch)
        return update(recipe, state, hparams, batch, gradient(recipe, state, hparams, batch, key))

Nothing here knows of the loop, of files or of devices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from dlflax.models.norm import freeze_norms
from dlflax.models.protocols import CuttingBatches
from dlflax.train import losses, optim
from dlflax.train.augment import augment_batch
from dlflax.train.batch import Batch, cast
from dlflax.train.hparams import Hparams
from dlflax.train.metrics import batch_sums
from dlflax.train.recipe import NEVER, Recipe, keywords, merge_params, partition_params
from dlflax.train.state import State

HEAD = "logits/"  # path of the last layer's parameters, which Hparams.backbone_rate leaves alone


class Gradient(NamedTuple):
    """The result of `gradient` on one batch of n examples."""

    gradient: Any
    """Like `partition_params(recipe, params)`, float32."""
    objective: jax.Array
    """The value that is minimized, a float32 scalar."""
    outputs: jax.Array
    """Outputs of the model, float32 (n, ...)."""
    losses: jax.Array
    """The loss of each example, float32 (n,), without the penalty."""
    collections: Any
    """The model's other variables afterwards."""


def step(
    recipe: Recipe, state: State, hparams: Hparams, batch: Batch
) -> tuple[State, dict[str, jax.Array]]:
    """One update. Pure: the caller picks jit, vmap, map or shard.

    batch: as the data source gives it, and its mask. Returns (State, sums) as `update`.
    """
    batch, key = prepare(recipe, state, hparams, batch)
    return update(recipe, state, hparams, batch, gradient(recipe, state, hparams, batch, key))


def prepare(
    recipe: Recipe, state: State, hparams: Hparams, batch: Batch
) -> tuple[dict[str, Any], jax.Array]:
    """(the batch as the model and the loss see it in training, the key of the model's randomness).
    All randomness of a step is of `fold_in(state.key, state.step)`."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    return augment_batch(recipe, hparams, batch, augment_key), dropout_key


def gradient(
    recipe: Recipe, state: State, hparams: Hparams, batch: Batch, key: jax.Array
) -> Gradient:
    """The gradient of the objective on a batch, as `prepare` gives both, at the State's parameters:
    of those that are trained."""
    trained_params, others = partition_params(recipe, state.params)

    def of_inputs(inputs):
        def of_params(trained_params):
            params = merge_params(recipe, trained_params, others)
            whole = {**batch, "inputs": inputs}
            return objective(recipe, params, state.collections, hparams, whole, key)

        return jax.value_and_grad(of_params, has_aux=True)(trained_params)

    # a model may cut a batch to what is in it; chosen out here, a cut keeps nothing of the others
    cuts = None
    if isinstance(recipe.model, CuttingBatches):
        cuts = recipe.model.cuts(batch["inputs"])
    if cuts is None:
        found = of_inputs(batch["inputs"])
    else:
        found = lax.switch(cuts[0], [functools.partial(of_inputs, each) for each in cuts[1]])
    (value, (outputs, each, collections)), gradient = found
    return Gradient(gradient, value, outputs, each, collections)


def objective(recipe, params, collections, hparams, batch, key):
    """Returns what training minimizes, a float32 scalar, and more: the mean loss of the batch, the
    L2 penalty, and what the model puts into its collection "losses", (n,) each.

    batch: as for `step`, and with MixUp or CutMix `partner` int32 (n,) and `share` float32 (n,).
    Returns (objective, (outputs float32 (n, ...), per-example losses (n,), new collections)).
    """
    dtype = jnp.dtype(recipe.compute_dtype)
    with freeze_norms(recipe.trainable):
        outputs, collections = recipe.model.apply(
            {"params": cast(params, dtype), **collections},
            cast(batch["inputs"], dtype),
            **keywords(recipe.model, hparams, train=True),
            # a stream of another name takes "params"
            rngs={"dropout": key, "params": jax.random.fold_in(key, 1)},
            mutable=[*collections, "losses"],
        )
    outputs = cast(outputs, jnp.float32)
    loss = recipe.task.loss
    each = loss(outputs, batch, hparams)
    weight = batch["mask"] * batch["weight"] if "weight" in batch else batch["mask"]
    total = jnp.sum(each * weight)
    if "partner" in batch:  # a target's loss has the weight of that target's class
        share, partner = batch["share"], batch["partner"]
        other = loss(outputs, {**batch, "targets": batch["targets"][partner]}, hparams)
        others = batch.get("weight", jnp.ones_like(share))[partner]
        total = jnp.sum(share * each * weight + (1 - share) * other * others * batch["mask"])
        each = share * each + (1 - share) * other
    if own := jax.tree.leaves(collections.pop("losses", {})):
        total = total + hparams.kl_weight * jnp.sum(sum(own) * weight)
    mean = total / jnp.maximum(batch["mask"].sum(), 1.0)
    penalty = losses.l2(partition_params(recipe, params)[0])
    return mean + hparams.l2 * penalty, (outputs, each, collections)


def update(
    recipe: Recipe, state: State, hparams: Hparams, batch: Batch, found: Gradient
) -> tuple[State, dict[str, jax.Array]]:
    """(State after the optimizer's update with this gradient, sums).

    sums: `loss` without the penalty and `count`, float32; those of the task; and `first_bad_step`,
    the 0-based step if the objective or the gradient is not finite, else a large number.
    """
    params, others = partition_params(recipe, state.params)
    rate = recipe.schedule(state.step, hparams)
    optimizer = optim.transformation(recipe.optimizer, rate, hparams)
    updates, opt_state = optimizer.update(
        found.gradient, state.opt_state, params, value=found.objective
    )
    if recipe.trainable:
        updates = {
            path: update if path.startswith(HEAD) else hparams.backbone_rate * update
            for path, update in updates.items()
        }
    params = optax.apply_updates(params, updates)
    ema, ema_collections = state.ema, state.ema_collections
    if recipe.ema:
        # the warm-up of the decay keeps the initial weights from lingering in a short run
        decay = jnp.minimum(hparams.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        old, kept = partition_params(recipe, ema)
        new = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, old, params)
        ema = merge_params(recipe, new, kept)
        if ema_collections is not None:
            ema_collections = jax.tree.map(
                functools.partial(_average, decay), ema_collections, found.collections
            )

    finite = jnp.isfinite(found.objective) & jnp.isfinite(optax.tree.norm(found.gradient))
    sums = {
        **batch_sums(recipe.task.metrics, found.outputs, found.losses, batch),
        "first_bad_step": jnp.where(finite, NEVER, state.step),
    }
    state = state.replace(
        step=state.step + 1, params=merge_params(recipe, params, others), opt_state=opt_state,
        ema=ema, collections=found.collections, ema_collections=ema_collections,
    )  # fmt: skip
    return state, sums


def _average(decay, old, new):
    """Returns the average of floats, of anything else the newest. Equal values keep their bits."""
    if not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    return old + (1 - decay) * (new - old)


def shift_params(recipe: Recipe, state: State, direction: Any) -> State:
    """Returns the State with `direction`, which is like the gradient, added to the parameters that
    are trained."""
    params, others = partition_params(recipe, state.params)
    params = jax.tree.map(jnp.add, params, direction)
    return state.replace(params=merge_params(recipe, params, others))
