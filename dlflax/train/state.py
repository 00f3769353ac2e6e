"""State: all arrays that training changes."""

import dataclasses
from typing import Any

import jax
from flax import struct


@struct.dataclass
class State:
    """All arrays that training changes and a checkpoint saves."""

    step: jax.Array  # int32 scalar: number of steps so far
    params: Any  # float32
    collections: Any  # the model's other variables (batch statistics, ...)
    opt_state: Any
    ema: Any  # moving average of params, or None without Recipe.ema
    key: jax.Array  # constant; a step's randomness is fold_in(key, step)
    ema_collections: Any = None  # moving average of collections; None if they hold no floats


def as_dict(state: State) -> dict:
    """Returns the State as saved, without `ema_collections` if None, as in older checkpoints."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {k: v for k, v in fields.items() if k != "ema_collections" or v is not None}


def from_variables(variables: dict[str, Any]) -> State:
    """Returns a State of variables alone, for evaluation by a recipe without `ema`."""
    collections = dict(variables)
    return State(None, collections.pop("params", {}), collections, None, None, None)
