"""Recipe and State: the structure of a training run, and all that changes in it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct, traverse_util

from dlflax import parallel
from dlflax.train import optim
from dlflax.train.augment import Augmentation
from dlflax.train.hparams import Hparams, as_traced
from dlflax.train.step import NEVER, cast, floats, keywords, step, task_sums, trained
from dlflax.train.tasks import Classification


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The structure of a training run. Static and hashed by value: one compilation each.

    Every part is the thing itself, a frozen dataclass, a Linen module or a function of a module,
    never its name: one of yours is used as those shipped are.
    """

    model: Any
    """A Linen module, called as model(inputs), with the keyword `train` and those that have the
    name of a number of Hparams, such as `dropout`, where its call has them."""
    task: Any = Classification()
    """What kind of job it is (`tasks.Task`): loss, targets, scores, report, predictions."""
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
    step: Callable = step
    """One update: (recipe, state, hparams, batch) -> (State, sums), as `train.step`."""


@struct.dataclass
class State:
    """All that changes in training, and all that a checkpoint holds."""

    step: jax.Array  # int32 scalar: steps done
    params: Any  # float32
    collections: Any  # the model's other variables (batch statistics, ...)
    opt_state: Any
    ema: Any  # like params, or None without Recipe.ema
    key: jax.Array  # never changes; a step's randomness is fold_in(key, step)
    ema_collections: Any = None  # like collections, averaged alike; None where there are no floats


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
        init_key, floats(inputs), **keywords(recipe.model, hparams, train=False)
    )
    fresh.pop("losses", None)  # of one call, not of the State
    if pretrained:
        own, given = (traverse_util.flatten_dict(each) for each in (fresh, pretrained))
        fresh = traverse_util.unflatten_dict({**own, **given})
    params = fresh.pop("params")
    optimizer = optim.transformation(recipe.optimizer, 0.0, hparams)
    opt_state = optimizer.init(trained(recipe, params)[0])
    # a copy, because a donated State must not hold one buffer twice
    ema = jax.tree.map(jnp.copy, params) if recipe.ema else None
    floating = any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(fresh))
    averages = jax.tree.map(jnp.copy, fresh) if recipe.ema and floating else None
    return State(jnp.int32(0), params, fresh, opt_state, ema, key, averages)


@functools.partial(jax.jit, static_argnums=0)
def init_placed(recipe, hparams, inputs, seed, pretrained):
    """`init` of the key of `seed`, compiled, every leaf where `parallel` says."""
    return parallel.constrain_state(init(recipe, hparams, inputs, jax.random.key(seed), pretrained))


def as_dict(state: State) -> dict:
    """The State as it is saved: a field that came later is left out where it holds nothing, so that
    checkpoints from before it have the same structure."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {k: v for k, v in fields.items() if k != "ema_collections" or v is not None}


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


def of_variables(variables: dict[str, Any]) -> State:
    """A State of nothing but variables, to evaluate with by a recipe that does not average."""
    collections = dict(variables)
    return State(None, collections.pop("params"), collections, None, None, None)


def forward(recipe: Recipe, state: State, hparams: Hparams, inputs: Any) -> jax.Array:
    """The model's outputs, float32 (n, ...), on inputs (n, ...) of any dtype, not training."""
    dtype = jnp.dtype(recipe.compute_dtype)
    evaluated = variables(recipe, state)
    evaluated = {**evaluated, "params": cast(evaluated["params"], dtype)}
    inputs = cast(floats(inputs), dtype)
    outputs = recipe.model.apply(evaluated, inputs, **keywords(recipe.model, hparams, train=False))
    return cast(outputs, jnp.float32)


def output_shape(recipe: Recipe, hparams: Hparams, inputs: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the model's outputs on inputs (n, ...). Computes nothing."""

    def outputs(inputs):
        options = keywords(recipe.model, hparams, train=False)
        return recipe.model.init_with_output(jax.random.key(0), floats(inputs), **options)[0]

    return jax.eval_shape(outputs, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))


def used_numbers(recipe: Recipe, hparams: Hparams, data: Mapping[str, Any]) -> set[str]:
    """Names of the numbers of `hparams` that a step computes with. data: arrays (N, ...), as for
    `train_steps`. Computes nothing."""
    batch = {
        name: jax.ShapeDtypeStruct((2, *array.shape[1:]), array.dtype)
        for name, array in data.items()
    }
    batch["mask"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    state = abstract(recipe, hparams, data["inputs"][:1])
    one = functools.partial(recipe.step, recipe)
    found = jax.make_jaxpr(lambda numbers, state, batch: one(state, numbers, batch))(
        as_traced(hparams), state, batch
    )
    read = {id(variable) for equation in found.eqns for variable in equation.invars}
    names = [field.name for field in dataclasses.fields(hparams)]
    return {name for name, v in zip(names, found.jaxpr.invars, strict=False) if id(v) in read}


def zero_sums(recipe: Recipe, hparams: Hparams, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The sums of no examples: NumPy zeros in the shapes that a step's sums have. data: arrays
    (N, ...), as for `train_steps`."""
    shapes = tuple((name, leaf.shape[1:], str(leaf.dtype)) for name, leaf in data.items())
    return _zero_sums(recipe, type(hparams), shapes)


@functools.lru_cache(maxsize=64)
def _zero_sums(recipe, kind, shapes):
    batch = {name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, shape, dtype in shapes}
    outputs = output_shape(recipe, kind(), batch["inputs"])

    def one(batch, outputs):
        batch = {**batch, "inputs": floats(batch["inputs"]), "mask": jnp.ones(1)}
        batch["targets"] = recipe.task.targets(batch)
        return task_sums(recipe, outputs.astype(jnp.float32), jnp.zeros(1), batch)

    found = jax.eval_shape(one, batch, outputs)
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in found.items()}
    return {**zeros, "first_bad_step": NEVER}
