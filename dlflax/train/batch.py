"""A batch: the arrays of one step, by name."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from dlflax.errors import InputError


class Batch(TypedDict, total=False):
    """The reserved keys of a batch of n examples. Augmentations, loss and metrics also get every
    other array (n, ...) of the data."""

    inputs: Any
    """(n, ...): uint8 images until a step casts them (`floats`), else floats, or int32 tokens."""
    targets: Any
    """(n, ...): the result of `Task.targets`; before a step, the data source's array."""
    mask: Any
    """float32 (n,): 1 for an example, 0 for padding. The trainer adds it."""
    weight: Any
    """float32 (n,): a factor of the example's loss in training."""
    partner: Any
    """int32 (n,): index of the example to mix with. Mixing augmentations add it."""
    share: Any
    """float32 (n,): the example's share of its mix; the partner has the rest."""
    length: Any
    """int32 (n,): tokens of a text. Training batches group texts of similar length."""


TRAINER_KEYS = "mask", "partner", "share"  # refused in a data source
KINDS = {"weight": "f", "length": "iu"}  # dtype kinds of the keys with one value per example


def check_keys(data: Mapping[str, Any]) -> None:
    """Raises InputError for arrays (N, ...) of a data source under the trainer's keys, or with
    another shape or dtype than `Batch` has."""
    if reserved := [name for name in TRAINER_KEYS if name in data]:
        raise InputError(
            f"the data have arrays named {' and '.join(reserved)}: these keys of a batch are "
            "reserved for the trainer; rename them."
        )
    for name, kinds in KINDS.items():
        array = data.get(name)
        if array is not None and (array.ndim != 1 or array.dtype.kind not in kinds):
            number = "float" if kinds == "f" else "int"
            raise InputError(
                f"the data have an array named {name} of {array.dtype} {array.shape}: this key of "
                f"a batch is reserved for one {number} per example; rename it."
            )


def check_lengths(data: Mapping[str, Any]) -> None:
    """Raises InputError unless data are arrays of equal length, "inputs" among them."""
    for name, array in data.items():
        if not hasattr(array, "shape") or not array.shape:
            raise InputError(f"{name} must be an array (n, ...), not {array!r:.40}.")
    if not len(data.get("inputs", ())):
        raise InputError('the data need "inputs", an array (n, ...) with at least one example.')
    n = len(data["inputs"])
    if others := [f"{len(a)} {name}" for name, a in data.items() if len(a) != n]:
        raise InputError(f"there are {n} inputs, but {others[0]}: give one per example.")


def abstract_batch(data: Mapping[str, Any], count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a batch of `count` examples with its mask, as a compiled step
    gets them: float64 as float32. data: arrays (N, ...)."""

    def abstract(array):
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)  # newer jax warns about truncation
        return jax.ShapeDtypeStruct((count, *array.shape[1:]), dtype)

    batch = {name: abstract(array) for name, array in data.items()}
    return {**batch, "mask": jax.ShapeDtypeStruct((count,), jnp.float32)}


def floats(inputs: Any) -> Any:
    """Returns images, uint8 0..255, as float32 0..1, and any other inputs unchanged. Images stay
    bytes until a step uses them."""
    return inputs.astype(jnp.float32) / 255.0 if inputs.dtype == jnp.uint8 else inputs


def cast(tree: Any, dtype: Any) -> Any:
    """Returns the tree with its float leaves cast to dtype."""

    def cast_leaf(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast_leaf, tree)


def gather(data: Mapping[str, Any], index: Any) -> dict[str, Any]:
    """Returns the batch of the examples of data, arrays (N, ...), at index, int32 (n,). A negative
    index, -1 - i, is example i as padding, with mask 0."""
    rows = jnp.where(index < 0, -1 - index, index)
    batch = {name: jnp.take(leaf, rows, axis=0) for name, leaf in data.items()}
    return {**batch, "mask": (index >= 0).astype(jnp.float32)}


SIZES = (1, 8, 64)  # batch sizes of prediction: few, so that few programs are compiled


def padded_size(count: int) -> int:
    """Returns the batch size for `count` inputs: one of SIZES, or a multiple of the largest."""
    multiple = -(-count // SIZES[-1]) * SIZES[-1]
    return next((size for size in SIZES if size >= count), multiple)


def add_targets(task: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the batch as an evaluation uses it: float inputs, and the task's targets."""
    batch = {**batch, "inputs": floats(batch["inputs"])}
    return {**batch, "targets": task.targets(batch)}
