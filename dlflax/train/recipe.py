"""Recipe: the static structure of a run, and functions of its model and a State."""

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
from dlflax.models.protocols import Convolving
from dlflax.ops.flops import flops
from dlflax.train import optim
from dlflax.train.augment import Augmentation
from dlflax.train.batch import abstract_batch, add_targets, cast, check_lengths, floats
from dlflax.train.hparams import Hparams, hparam_names
from dlflax.train.metrics import batch_sums
from dlflax.train.state import State
from dlflax.train.tasks import Classification, Task

NEVER = np.int32(2**31 - 1)  # first_bad_step if every step was finite


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static structure of a run, hashed by value: each Recipe is compiled once. Every field
    holds an object (a frozen dataclass, a Linen module, a function of a module), never a name, so
    your own components work like the shipped ones."""

    model: Any
    """A Linen module, called as model(inputs). Its call may have the keyword `train` and the names
    of Hparams, such as `dropout`."""
    task: Task = Classification()
    """Loss, metrics, and the meaning of the outputs."""
    optimizer: optim.Optimizer = optim.Adam()
    """Update rule: (learning_rate, hparams) -> optax.GradientTransformation."""
    schedule: optim.Schedule = optim.Constant()
    """Learning rate: (step, hparams) -> scalar."""
    batch_size: int = 32
    """Examples per step."""
    micro_batch: int = 0
    """Examples per forward and backward pass: less memory, the same gradient (accumulated over the
    batch); BatchNorm normalizes by each micro-batch. Divides the batch size; 0: the whole batch."""
    augment: tuple[Augmentation, ...] = ()
    """Random changes of training batches, in order: (key, batch, hparams) -> batch."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and gradients; parameters and updates stay float32. On a CPU the
    activations of Transformers stay float32, too: `ops.dense`."""
    ema: bool = False
    """Evaluates a moving average of the weights instead of the latest weights."""
    trainable: str = ""
    """Regular expression of the parameters to train, such as ^(stage4|logits); the others are
    frozen, batch statistics included. Empty trains all."""
    step: Callable | None = None
    """One update: (recipe, state, hparams, batch) -> (State, sums); None is `train.step`."""


def init(
    recipe: Recipe, hparams: Hparams, inputs: Any, key: jax.Array,
    pretrained: Mapping[str, Any] | None = None,
) -> State:  # fmt: skip
    """Returns an initial State. inputs: one batch, any dtype; key: a typed PRNG key, the only
    source of the parameters and of all later randomness. pretrained: variables {"params": {...},
    ...} that replace the initial ones, NumPy arrays if there are several hosts."""
    init_key, key = jax.random.split(key)
    fresh = recipe.model.init(
        init_keys(init_key), floats(inputs), **model_kwargs(recipe.model, hparams, train=False)
    )
    fresh.pop("losses", None)  # belongs to one call, not to the State
    if pretrained:
        fresh, given = map(traverse_util.flatten_dict, (fresh, pretrained))
        fresh = traverse_util.unflatten_dict({**fresh, **given})
    params = fresh.pop("params", {})
    optimizer = optim.gradient_transformation(recipe.optimizer, 0.0, hparams)
    opt_state = optimizer.init(partition_params(recipe, params)[0])
    # a copy: a donated State must not hold one buffer twice
    ema = jax.tree.map(jnp.copy, params) if recipe.ema else None
    floating = any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(fresh))
    averages = jax.tree.map(jnp.copy, fresh) if recipe.ema and floating else None
    return State(jnp.int32(0), params, fresh, opt_state, ema, key, averages)


@functools.partial(jax.jit, static_argnums=0)
def init_on_devices(recipe, hparams, inputs, seed, pretrained):
    """Returns `init` for a seed, compiled, each leaf with the sharding that `parallel` chooses."""
    return parallel.constrain_state(init(recipe, hparams, inputs, jax.random.key(seed), pretrained))


@functools.partial(jax.jit, static_argnums=0)  # which keeps what it has traced
def _initial(recipe, hparams, inputs):
    return init(recipe, hparams, inputs, jax.random.key(0))


def abstract(recipe: Recipe, hparams: Hparams, inputs: Any) -> State:
    """Returns the shapes and dtypes of `init`'s State, for restoring a checkpoint. Only traced."""
    return _initial.eval_shape(recipe, hparams, inputs)


def variables(recipe: Recipe, state: State) -> dict[str, Any]:
    """Returns the variables of evaluation, {"params": ..., ...}: averages if the recipe has `ema`.
    Batch statistics depend on the weights, so both are averaged or neither."""
    if not recipe.ema:
        return {"params": state.params, **state.collections}
    collections = state.collections if state.ema_collections is None else state.ema_collections
    return {"params": state.ema, **collections}


def forward(recipe: Recipe, state: State, hparams: Hparams, inputs: Any) -> jax.Array:
    """Returns the model's outputs in evaluation, float32 (n, ...). inputs: (n, ...), any dtype."""
    dtype = jnp.dtype(recipe.compute_dtype)
    evaluated = variables(recipe, state)
    evaluated = {**evaluated, "params": cast(evaluated["params"], dtype)}
    kwargs = model_kwargs(recipe.model, hparams, train=False)
    outputs = recipe.model.apply(evaluated, cast(floats(inputs), dtype), **kwargs)
    return cast(outputs, jnp.float32)


def forward_flops(recipe: Recipe, state: State, hparams: Hparams, inputs: Any) -> int:
    """Returns the FLOPs of a forward pass on one example, inputs (1, ...); state may be abstract.
    Convolutions count as convolutions, whatever their implementation."""
    if isinstance(recipe.model, Convolving):
        recipe = dataclasses.replace(recipe, model=recipe.model.clone(implementation="lax"))
    return flops(lambda state, x: forward(recipe, state, hparams, x), state, inputs)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model, hparams, inputs):
    kwargs = model_kwargs(model, hparams, train=False)
    return model.init_with_output(init_keys(jax.random.key(0)), floats(inputs), **kwargs)[0]


def output_shape(recipe: Recipe, hparams: Hparams, inputs: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of the model's outputs on inputs (n, ...). Only traced, once."""
    example = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    return _outputs.eval_shape(recipe.model, hparams, example)


def check_arrays(recipe: Recipe, hparams: Hparams, *parts: Mapping[str, Any] | None) -> None:
    """Raises InputError if the recipe's task cannot take the arrays (N, ...) of a split. parts: the
    splits, training first."""

    @functools.cache
    def outputs():
        return output_shape(recipe, hparams, abstract_batch(parts[0], 1)["inputs"])

    for part in parts:
        if part is not None:
            check_lengths(part)
            recipe.task.check_arrays(part, outputs)


def zero_sums(recipe: Recipe, hparams: Hparams, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the sums of an epoch before its first step: NumPy zeros in the shapes of a step's
    sums. data: arrays (N, ...), as for `train_steps`."""
    batch = abstract_batch(data, 1)
    shapes = tuple((name, leaf.shape, str(leaf.dtype)) for name, leaf in batch.items())
    return _zero_sums(recipe, type(hparams), shapes)


@functools.lru_cache(maxsize=64)
def _zero_sums(recipe, kind, shapes):
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in shapes}
    outputs = output_shape(recipe, kind(), batch["inputs"])

    def sums(batch, outputs):
        batch = add_targets(recipe.task, batch)
        return batch_sums(recipe.task.metrics, outputs.astype(jnp.float32), jnp.zeros(1), batch)

    shapes = jax.eval_shape(sums, batch, outputs)
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    return {**zeros, "first_bad_step": NEVER}


def init_keys(key: Any) -> dict[str, Any]:
    """Returns the PRNG keys of initialization: some models draw from "dropout" even there."""
    return {"params": key, "dropout": jax.random.fold_in(key, 1)}


def model_kwargs(model, hparams, train: bool) -> dict[str, Any]:
    """Returns the keyword arguments of the model's call: `train` and hparams, if it has them."""
    names = {"train", *hparam_names(hparams)}
    parameters = inspect.signature(type(model).__call__).parameters.values()
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        names &= {p.name for p in parameters}
    return {name: train if name == "train" else getattr(hparams, name) for name in sorted(names)}


def partition_params(recipe, params):
    """Returns (trainable, frozen) parameters, each {path: leaf}; (params, {}) if all are trained.
    Raises InputError if Recipe.trainable matches none."""
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
            f"--trainable {recipe.trainable} matches no parameter; their names are like "
            f"{next(iter(parts[1]))}."
        )
    return parts


def merge_params(recipe, trainable, frozen):
    """Returns the tree of parameters from the two parts of `partition_params`."""
    if not recipe.trainable:
        return trainable
    return traverse_util.unflatten_dict({**trainable, **frozen}, sep="/")
