"""Recipe: the structure of a training run, and its model as functions of a State."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dlflax import parallel
from dlflax.errors import InputError
from dlflax.models.flops import flops
from dlflax.models.protocols import Convolving
from dlflax.train import optim
from dlflax.train.augment import Augmentation
from dlflax.train.batch import abstract_batch, cast, check_lengths, floats, with_targets
from dlflax.train.hparams import Hparams, numbers
from dlflax.train.metrics import batch_sums
from dlflax.train.state import State
from dlflax.train.tasks import Classification, Task

NEVER = np.int32(2**31 - 1)  # first_bad_step where all were good


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The structure of a training run. Static and hashed by value: one compilation each.

    Every part is the thing itself, a frozen dataclass, a Linen module or a function of a module,
    never its name: one of yours is used as those shipped are.
    """

    model: Any
    """A Linen module, called as model(inputs), with the keyword `train` and those that have the
    name of a number of Hparams, such as `dropout`, where its call has them."""
    task: Task = Classification()
    """Loss, metrics, and the meaning of the outputs."""
    optimizer: optim.Optimizer = optim.Adam()
    """Update rule: (learning_rate, hparams) -> optax.GradientTransformation."""
    schedule: optim.Schedule = optim.Constant()
    """Learning rate: (step, hparams) -> scalar."""
    batch_size: int = 32
    """Examples a step."""
    augment: tuple[Augmentation, ...] = ()
    """Random changes of training inputs: (key, batch, hparams) -> batch, one after the other."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and gradients; parameters and the update stay float32. On a CPU the
    activations of Transformers stay float32, too: `models.dense`."""
    ema: bool = False
    """Evaluate a moving average of the weights instead of the last ones."""
    trainable: str = ""
    """Regular expression of the parameters to be trained, such as ^(stage4|logits): the others stay
    as they are, batch statistics included; empty trains all."""
    step: Callable | None = None
    """One update: (recipe, state, hparams, batch) -> (State, sums); None is `train.step`."""


def init(
    recipe: Recipe, hparams: Hparams, inputs: Any, key: jax.Array,
    pretrained: Mapping[str, Any] | None = None,
) -> State:  # fmt: skip
    """A fresh State. inputs: one batch or a single example's batch (1, ...), any dtype; `key` is a
    typed PRNG key, which alone decides the parameters and all later randomness. pretrained: some of
    the variables, {"params": {...}, ...}, which are taken in place of the fresh ones (of several
    hosts NumPy arrays)."""
    init_key, key = jax.random.split(key)
    fresh = recipe.model.init(
        init_keys(init_key), floats(inputs), **keywords(recipe.model, hparams, train=False)
    )
    fresh.pop("losses", None)  # of one call, not of the State
    if pretrained:
        own, given = (traverse_util.flatten_dict(each) for each in (fresh, pretrained))
        fresh = traverse_util.unflatten_dict({**own, **given})
    params = fresh.pop("params")
    optimizer = optim.transformation(recipe.optimizer, 0.0, hparams)
    opt_state = optimizer.init(partition_params(recipe, params)[0])
    # a copy, because a donated State must not hold one buffer twice
    ema = jax.tree.map(jnp.copy, params) if recipe.ema else None
    floating = any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(fresh))
    averages = jax.tree.map(jnp.copy, fresh) if recipe.ema and floating else None
    return State(jnp.int32(0), params, fresh, opt_state, ema, key, averages)


@functools.partial(jax.jit, static_argnums=0)
def init_placed(recipe, hparams, inputs, seed, pretrained):
    """`init` of the key of `seed`, compiled, every leaf where `parallel` says."""
    return parallel.constrain_state(init(recipe, hparams, inputs, jax.random.key(seed), pretrained))


def abstract(recipe: Recipe, hparams: Hparams, inputs: Any) -> State:
    """Shapes and dtypes of `init`'s State, which restoring a checkpoint needs. Computes nothing."""
    return jax.eval_shape(lambda: init(recipe, hparams, inputs, jax.random.key(0)))


def variables(recipe: Recipe, state: State) -> dict[str, Any]:
    """{"params": ..., ...} to evaluate with: averaged ones, where the recipe averages. Batch
    statistics belong to the weights that they were taken with, so both are averaged or neither."""
    if not recipe.ema:
        return {"params": state.params, **state.collections}
    collections = state.collections if state.ema_collections is None else state.ema_collections
    return {"params": state.ema, **collections}


def forward(recipe: Recipe, state: State, hparams: Hparams, inputs: Any) -> jax.Array:
    """The model's outputs, float32 (n, ...), on inputs (n, ...) of any dtype, not training."""
    dtype = jnp.dtype(recipe.compute_dtype)
    evaluated = variables(recipe, state)
    evaluated = {**evaluated, "params": cast(evaluated["params"], dtype)}
    inputs = cast(floats(inputs), dtype)
    outputs = recipe.model.apply(evaluated, inputs, **keywords(recipe.model, hparams, train=False))
    return cast(outputs, jnp.float32)


def forward_flops(recipe: Recipe, state: State, hparams: Hparams, inputs: Any) -> int:
    """Returns the operations of a forward pass of the model on one example, inputs (1, ...); state
    may be abstract. Convolutions count as such, whatever formulation they are computed by."""
    if isinstance(recipe.model, Convolving):
        recipe = dataclasses.replace(recipe, model=recipe.model.clone(formulation="lax"))
    return flops(lambda state, x: forward(recipe, state, hparams, x), state, inputs)


def output_shape(recipe: Recipe, hparams: Hparams, inputs: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the model's outputs on inputs (n, ...). Computes nothing."""

    def outputs(inputs):
        options = keywords(recipe.model, hparams, train=False)
        keys = init_keys(jax.random.key(0))
        return recipe.model.init_with_output(keys, floats(inputs), **options)[0]

    return jax.eval_shape(outputs, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))


def check_arrays(recipe: Recipe, hparams: Hparams, *parts: Mapping[str, Any] | None) -> None:
    """Raises InputError where the arrays (N, ...) of a split, training first, are not what the
    recipe's task takes."""

    @functools.cache
    def outputs():
        return output_shape(recipe, hparams, abstract_batch(parts[0], 1)["inputs"])

    for part in parts:
        if part is not None:
            check_lengths(part)
            recipe.task.check_arrays(part, outputs)


def zero_sums(recipe: Recipe, hparams: Hparams, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The sums of no examples: NumPy zeros in the shapes that a step's sums have. data: arrays
    (N, ...), as for `train_steps`."""
    batch = abstract_batch(data, 1)
    shapes = tuple((name, leaf.shape, str(leaf.dtype)) for name, leaf in batch.items())
    return _zero_sums(recipe, type(hparams), shapes)


@functools.lru_cache(maxsize=64)
def _zero_sums(recipe, kind, shapes):
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in shapes}
    outputs = output_shape(recipe, kind(), batch["inputs"])

    def one(batch, outputs):
        batch = with_targets(recipe.task, batch)
        return batch_sums(recipe.task.metrics, outputs.astype(jnp.float32), jnp.zeros(1), batch)

    found = jax.eval_shape(one, batch, outputs)
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in found.items()}
    return {**zeros, "first_bad_step": NEVER}


def init_keys(key: Any) -> dict[str, Any]:
    """Returns the keys of a model's initialization: a stream of its own for dropout, which some
    models draw from even then."""
    return {"params": key, "dropout": jax.random.fold_in(key, 1)}


def keywords(model, hparams, train: bool) -> dict[str, Any]:
    """Returns `train` and the numbers of hparams for which the model's call has a keyword of that
    name."""
    names = {"train", *numbers(hparams)}
    parameters = inspect.signature(type(model).__call__).parameters.values()
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        names &= {p.name for p in parameters}
    return {name: train if name == "train" else getattr(hparams, name) for name in sorted(names)}


def partition_params(recipe, params):
    """Returns (parameters that are trained, the others), each {path: leaf} where Recipe.trainable
    chooses; else (params, {}). Raises InputError where it matches none."""
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


def merge_params(recipe, trained, others):
    """Returns the parameters that `partition_params` split."""
    if not recipe.trainable:
        return trained
    return traverse_util.unflatten_dict({**trained, **others}, sep="/")
