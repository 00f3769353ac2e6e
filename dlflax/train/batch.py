"""A batch: the arrays of one step, by name."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from dlflax.errors import InputError


class Batch(TypedDict, total=False):
    """The reserved keys of a batch of n examples. Every other key of the data passes through, one
    array (n, ...) each, to the augmentations, the task's loss and its metrics."""

    inputs: Any
    """(n, ...): uint8 images until a step casts them (`floats`), else floats, or int32 tokens."""
    targets: Any
    """(n, ...): what `Task.targets` returns; before a step, what the data source gives."""
    mask: Any
    """float32 (n,): 1 for an example, 0 for padding. The trainer adds it."""
    weight: Any
    """float32 (n,): a factor of the example's loss in training."""
    partner: Any
    """int32 (n,): the example that each is mixed with. Mixing augmentations add it."""
    share: Any
    """float32 (n,): the example's own share of its mix; the partner has the rest."""
    length: Any
    """int32 (n,): tokens of a text, by which training batches are made of similar lengths."""


TRAINER_KEYS = "mask", "partner", "share"  # that no data source gives
KINDS = {"weight": "f", "length": "iu"}  # dtype kinds of those with one value an example


def check_keys(data: Mapping[str, Any]) -> None:
    """Raises InputError for arrays under reserved keys that are the trainer's, or of another shape
    or dtype than `Batch` has. data: arrays (N, ...) of a data source."""
    if taken := [name for name in TRAINER_KEYS if name in data]:
        raise InputError(
            f"the data have arrays named {' and '.join(taken)}: these keys of a batch are "
            "reserved for the trainer, so give them other names."
        )
    for name, kinds in KINDS.items():
        array = data.get(name)
        if array is not None and (array.ndim != 1 or array.dtype.kind not in kinds):
            number = "float" if kinds == "f" else "int"
            raise InputError(
                f"the data have an array named {name} of {array.dtype} {array.shape}: this key of "
                f"a batch is reserved for one {number} an example, so give it another name."
            )


def check_lengths(data: Mapping[str, Any]) -> None:
    """Raises InputError unless data are arrays of as many examples each, "inputs" among them."""
    for name, array in data.items():
        if not hasattr(array, "shape") or not array.shape:
            raise InputError(f"{name} must be an array (n, ...), not {array!r:.40}.")
    if not len(data.get("inputs", ())):
        raise InputError('the data need "inputs", an array (n, ...) of one example or more.')
    n = len(data["inputs"])
    if others := [f"{len(a)} {name}" for name, a in data.items() if len(a) != n]:
        raise InputError(f"there are {n} inputs, but {others[0]}: give one for each example.")


def abstract_batch(data: Mapping[str, Any], count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a batch of `count` examples, with its mask, as a compiled
    step gets them: float64 as float32. data: arrays (N, ...)."""

    def abstract(array):
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)  # newer jax warns of what it truncates
        return jax.ShapeDtypeStruct((count, *array.shape[1:]), dtype)

    batch = {name: abstract(array) for name, array in data.items()}
    return {**batch, "mask": jax.ShapeDtypeStruct((count,), jnp.float32)}


def floats(inputs: Any) -> Any:
    """Returns images, uint8 0..255, as float32 0..1, and other inputs as they are. Images are kept
    as bytes until a step uses them."""
    return inputs.astype(jnp.float32) / 255.0 if inputs.dtype == jnp.uint8 else inputs


def cast(tree: Any, dtype: Any) -> Any:
    """Returns the tree with all its floats in this dtype."""

    def cast_leaf(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast_leaf, tree)


def gather(data: Mapping[str, Any], index: Any) -> dict[str, Any]:
    """Returns a batch of the examples at index, int32 (n,). A negative index, -1 - i, is example i
    as padding: mask 0. data: arrays (N, ...)."""
    at = jnp.where(index < 0, -1 - index, index)
    batch = {name: jnp.take(leaf, at, axis=0) for name, leaf in data.items()}
    return {**batch, "mask": (index >= 0).astype(jnp.float32)}


SIZES = (1, 8, 64)  # of the batches that a trained model answers


def padded_size(count: int) -> int:
    """Returns the size that so many inputs are padded to: one of SIZES, or a multiple of the
    largest. So a trained model has few programs, whatever it is asked."""
    fitting = [size for size in SIZES if size >= count]
    return fitting[0] if fitting else -(-count // SIZES[-1]) * SIZES[-1]


def with_targets(task: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the batch as a task's loss and metrics take it when a model is evaluated."""
    batch = {**batch, "inputs": floats(batch["inputs"])}
    return {**batch, "targets": task.targets(batch)}
