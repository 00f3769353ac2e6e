"""State: all that changes in training."""

import dataclasses
from typing import Any

import jax
from flax import struct


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


def as_dict(state: State) -> dict:
    """Returns the State as it is saved: without `ema_collections` where it holds nothing, so that
    older checkpoints have the same structure."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {k: v for k, v in fields.items() if k != "ema_collections" or v is not None}


def from_variables(variables: dict[str, Any]) -> State:
    """Returns a State of nothing but variables, to evaluate with by a recipe without `ema`."""
    collections = dict(variables)
    return State(None, collections.pop("params"), collections, None, None, None)
