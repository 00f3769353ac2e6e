"""Flax NNX modules as models. flax.nnx is imported where it is used, to start up faster."""

import inspect
import typing
from typing import TYPE_CHECKING, Any

import flax.linen as nn

if TYPE_CHECKING:
    from flax import nnx


def from_nnx(module: "type[nnx.Module]") -> type[nn.Module]:
    """Converts an NNX module class to a Linen class of the same name, for a Recipe: a decorator.

    The class's fields are the arguments of `__init__` without `rngs`. The module's `__call__` gets
    the inputs, and `train` and Hparams where it has arguments of these names. Layers that differ
    in training, such as BatchNorm and Dropout, are in the mode of `train`.
    """
    parameters = inspect.signature(module.__init__).parameters.values()
    fields = [p for p in parameters if p.name not in ("self", "rngs")]
    hints = typing.get_type_hints(module.__init__)
    arguments = inspect.signature(module.__call__).parameters

    @nn.compact
    def __call__(self, x, *, train: bool = False, **hparams):
        def apply(instance, x):
            instance.train() if train else instance.eval()
            options = {"train": train, **hparams}
            return instance(x, **{name: options[name] for name in options if name in arguments})

        from flax.nnx.bridge import ToLinen

        values = nn.FrozenDict({field.name: getattr(self, field.name) for field in fields})
        inner = ToLinen(module, kwargs=values, metadata_fn=None, name="nnx")
        return inner(x, nnx_method=apply)

    defaults = {f.name: f.default for f in fields if f.default is not f.empty}
    types = {field.name: hints.get(field.name, Any) for field in fields}
    about = {name: getattr(module, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {**defaults, **about, "__annotations__": types, "__call__": __call__}
    return type(module.__name__, (nn.Module,), body)
