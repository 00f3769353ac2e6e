"""One training step, a pure function of (recipe, state, hparams, batch), and the parts it is made
of, for a step of your own.

    def step(recipe, state, hparams, batch):
        batch, key = prepare(recipe, state, hparams, batch)
        return update(recipe, state, hparams, batch, gradient(recipe, state, hparams, batch, key))

Nothing here knows of the loop, of files or of devices.
"""

import functools
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import lax

from dlflax.errors import InputError
from dlflax.models.norm import frozen_norms
from dlflax.train import losses, optim
from dlflax.train.augment import augment
from dlflax.train.hparams import Hparams, numbers

if TYPE_CHECKING:  # they import this file
    from dlflax.train.recipe import Recipe, State

HEAD = "logits/"  # path of the last layer's parameters, which Hparams.backbone_rate leaves alone
NEVER = np.int32(2**31 - 1)  # first_bad_step where all were good


class Gradient(NamedTuple):
    """What `gradient` computes on one batch of n examples."""

    gradient: Any
    """Like `trained(recipe, params)`, float32."""
    objective: jax.Array
    """What is minimized, a float32 scalar."""
    outputs: jax.Array
    """Of the model, float32 (n, ...)."""
    losses: jax.Array
    """Of each example, float32 (n,), without the penalty."""
    collections: Any
    """The model's other variables afterwards."""


def step(
    recipe: "Recipe", state: "State", hparams: Hparams, batch: Mapping[str, Any]
) -> "tuple[State, dict[str, jax.Array]]":
    """One update. Pure: the caller picks jit, vmap, map or shard.

    batch: inputs (n, ...), uint8 pictures or floats or ints; targets (n, ...), as the task wants
    them; mask float32 (n,), 0 for padding; maybe weight float32 (n,), what an example's loss
    counts. Returns (State, sums) as `update`.
    """
    batch, key = prepare(recipe, state, hparams, batch)
    return update(recipe, state, hparams, batch, gradient(recipe, state, hparams, batch, key))


def prepare(
    recipe: "Recipe", state: "State", hparams: Hparams, batch: Mapping[str, Any]
) -> tuple[dict[str, Any], jax.Array]:
    """(the batch as the model and the loss see it in training, the key of the model's randomness).
    All randomness of a step is of `fold_in(state.key, state.step)`."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    return augmented(recipe, hparams, batch, augment_key), dropout_key


def augmented(
    recipe: "Recipe", hparams: Hparams, batch: Mapping[str, Any], key: jax.Array
) -> dict[str, Any]:
    """The batch as the model and the loss see it in training."""
    batch = {**batch, "inputs": floats(batch["inputs"])}
    batch = augment(recipe.augment, key, batch, hparams)
    batch = {**batch, "targets": recipe.task.targets(batch)}
    return augment(recipe.augment, key, batch, hparams, corrupt=True)


def floats(inputs: Any) -> Any:
    """Pictures are kept as bytes until a step uses them: uint8 0..255 -> float32 0..1."""
    return inputs.astype(jnp.float32) / 255.0 if inputs.dtype == jnp.uint8 else inputs


def cast(tree, dtype):
    """The tree with all its floats in this dtype."""

    def one(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def keywords(model, hparams, train: bool) -> dict[str, Any]:
    """What the model's call is given besides its inputs: `train` and the numbers of hparams, each
    where the call has a keyword of that name."""
    names = {"train", *numbers(hparams)}
    parameters = inspect.signature(type(model).__call__).parameters.values()
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        names &= {p.name for p in parameters}
    return {name: train if name == "train" else getattr(hparams, name) for name in sorted(names)}


def gradient(
    recipe: "Recipe", state: "State", hparams: Hparams, batch: Mapping[str, Any], key: jax.Array
) -> Gradient:
    """The gradient of the objective on a batch, as `prepare` gives both, at the State's parameters:
    of those that are trained."""
    trained_params, others = trained(recipe, state.params)

    def of_inputs(inputs):
        def of_params(trained_params):
            params = joined(recipe, trained_params, others)
            whole = {**batch, "inputs": inputs}
            return objective(recipe, params, state.collections, hparams, whole, key)

        return jax.value_and_grad(of_params, has_aux=True)(trained_params)

    # a model may cut a batch to what is in it; chosen out here, a cut keeps nothing of the others
    cuts = recipe.model.cuts(batch["inputs"]) if hasattr(recipe.model, "cuts") else None
    if cuts is None:
        found = of_inputs(batch["inputs"])
    else:
        found = lax.switch(cuts[0], [functools.partial(of_inputs, each) for each in cuts[1]])
    (value, (outputs, each, collections)), gradient = found
    return Gradient(gradient, value, outputs, each, collections)


def objective(recipe, params, collections, hparams, batch, key):
    """What training minimizes: the mean loss of the batch, plus the L2 penalty, plus what the model
    puts into its collection "losses", (n,) each: a float32 scalar.

    batch: as for `step`, and with MixUp or CutMix `partner` int32 (n,) and `share` float32 (n,).
    Returns (objective, (outputs float32 (n, ...), per-example losses (n,), new collections)).
    """
    dtype = jnp.dtype(recipe.compute_dtype)
    with frozen_norms(recipe.trainable):
        outputs, collections = recipe.model.apply(
            {"params": cast(params, dtype), **collections},
            cast(batch["inputs"], dtype),
            **keywords(recipe.model, hparams, train=True),
            # a stream of another name takes "params"
            rngs={"dropout": key, "params": jax.random.fold_in(key, 1)},
            mutable=[*collections, "losses"],
        )
    outputs = cast(outputs, jnp.float32)
    loss, targets = recipe.task.loss, batch["targets"]
    each = loss(outputs, targets, hparams)
    weight = batch["mask"] * batch["weight"] if "weight" in batch else batch["mask"]
    total = jnp.sum(each * weight)
    if "partner" in batch:  # a target's loss has the weight of that target's class
        share, partner = batch["share"], batch["partner"]
        other = loss(outputs, targets[partner], hparams)
        others = batch.get("weight", jnp.ones_like(share))[partner]
        total = jnp.sum(share * each * weight + (1 - share) * other * others * batch["mask"])
        each = share * each + (1 - share) * other
    if own := jax.tree.leaves(collections.pop("losses", {})):
        total = total + hparams.kl_weight * jnp.sum(sum(own) * weight)
    mean = total / jnp.maximum(batch["mask"].sum(), 1.0)
    penalty = losses.l2(trained(recipe, params)[0])
    return mean + hparams.l2 * penalty, (outputs, each, collections)


def update(
    recipe: "Recipe", state: "State", hparams: Hparams, batch: Mapping[str, Any], found: Gradient
) -> "tuple[State, dict[str, jax.Array]]":
    """(State after the optimizer's update with this gradient, sums).

    sums: `loss` without the penalty and `count`, float32; those of the task; and `first_bad_step`,
    the 0-based step if the objective or the gradient is not finite, else a large number.
    """
    params, others = trained(recipe, state.params)
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
        old, kept = trained(recipe, ema)
        new = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, old, params)
        ema = joined(recipe, new, kept)
        if ema_collections is not None:
            ema_collections = jax.tree.map(
                functools.partial(_average, decay), ema_collections, found.collections
            )

    finite = jnp.isfinite(found.objective) & jnp.isfinite(optax.tree.norm(found.gradient))
    sums = {
        **task_sums(recipe, found.outputs, found.losses, batch),
        "first_bad_step": jnp.where(finite, NEVER, state.step),
    }
    state = state.replace(
        step=state.step + 1, params=joined(recipe, params, others), opt_state=opt_state, ema=ema,
        collections=found.collections, ema_collections=ema_collections,
    )  # fmt: skip
    return state, sums


def _average(decay, old, new):
    """Of floats; of anything else the newest. Equal values stay as they are to the bit."""
    if not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    return old + (1 - decay) * (new - old)


def task_sums(recipe, outputs, each, batch):
    """`loss`, `count` and the task's own sums over the examples that count."""
    mask = batch["mask"]
    own = recipe.task.sums(outputs, batch["targets"], mask)
    # padding may be anything, NaN included: select, do not multiply
    return {"loss": jnp.sum(jnp.where(mask > 0, each, 0.0)), "count": mask.sum(), **own}


def trained(recipe, params):
    """(parameters that are trained, the others), each {path: leaf} where Recipe.trainable chooses;
    else (params, {}). InputError where it matches none."""
    if not recipe.trainable:
        return params, {}
    parts = {}, {}
    try:
        for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
            parts[not re.search(recipe.trainable, path)][path] = leaf
    except re.error as error:
        raise InputError(
            f"--trainable {recipe.trainable}: not a regular expression ({error})."
        ) from error
    if not parts[0]:
        raise InputError(
            f"--trainable {recipe.trainable} matches no parameter: they have names such as "
            f"{next(iter(parts[1]))}."
        )
    return parts


def joined(recipe, trained, others):
    """The reverse of `trained`."""
    if not recipe.trainable:
        return trained
    return traverse_util.unflatten_dict({**trained, **others}, sep="/")


def moved(recipe: "Recipe", state: "State", direction: Any) -> "State":
    """The State with its trained parameters moved by `direction`, which is like their gradient."""
    params, others = trained(recipe, state.params)
    params = jax.tree.map(lambda leaf, by: leaf + by, params, direction)
    return state.replace(params=joined(recipe, params, others))
