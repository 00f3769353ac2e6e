"""A Config as JSON: classes and functions by where they live, `module:name`."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from dlflax import train
from dlflax.errors import InputError
from dlflax.run.config import Config
from dlflax.transfer import Transfer

OWN = ("dlflax", "experiments")  # packages that come with this one
LIBRARIES = (  # whose functions a model's field may name
    "jax.nn", "jax.numpy", "jax.nn.initializers", "flax.linen", "flax.linen.initializers", "optax",
)  # fmt: skip
FILE = "experiment_file_"  # what a module that was loaded from a file is called in sys.modules


def to_json(value: Any, place: str = "config", arrays: dict[str, np.ndarray] | None = None) -> Any:
    """Returns a Config and everything in it as JSON values. Arrays are put into `arrays`, by the
    names of their files, where it is given. Raises InputError naming the field that cannot be."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and arrays is not None:
        arrays[f"{place}.npy"] = value
        return {"npy": f"{place}.npy"}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_json(item, f"{place}.{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): to_json(item, f"{place}.{key}", arrays) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: to_json(getattr(value, f.name), f"{place}.{f.name}", arrays)
            for f in dataclasses.fields(value)
            if f.init and f.metadata.get("saved", True)
            and not (isinstance(value, nn.Module) and f.name in ("parent", "name"))
        }  # fmt: skip
        known = isinstance(value, Config | train.Recipe | Transfer)
        if known:
            return fields
        if found := reference(type(value)):
            return {"class": found, **fields}
    if name := _dtype_name(value):
        return {"dtype": name}
    if callable(value) and (found := reference(value)):
        return {"function": found}
    raise InputError(
        f"{place} is {value!r:.100}, which config.json cannot hold: use numbers, text, tuples, "
        "frozen dataclasses and functions that a module defines (no lambdas)."
    )


def _dtype_name(value) -> str | None:
    """The name of a dtype or of its scalar type, such as jnp.bfloat16."""
    try:
        is_dtype = isinstance(value, np.dtype) or hasattr(value, "dtype") and callable(value)
        return np.dtype(value).name if is_dtype else None
    except TypeError:
        return None


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become text."""
    flattened = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flattened.update(flat(value, f"{prefix}{name}."))
        elif isinstance(value, list):
            flattened[prefix + name] = str(tuple(_short(item) for item in value))
        else:
            flattened[prefix + name] = value
    return flattened


def _short(item):
    """A thing in a list by its name, with what of it is set."""
    if not isinstance(item, dict):
        return item
    fields = {k: v for k, v in item.items() if k not in ("class", "function")}
    return (item.get("class") or item.get("function"), *(sorted(fields.items()) if fields else ()))


def reference(thing) -> str | None:
    """ "module:name" of a class or function; None for one that cannot be found by it."""
    module_name = getattr(thing, "__module__", None)
    name = qualified_name(thing)
    if not module_name or not name or "<" in name:
        return None
    if module_name.partition(".")[0] == "dlflax":  # the shortest place that has it
        parts = module_name.split(".")
        for length in range(2, len(parts) + 1):
            shorter = ".".join(parts[:length])
            if getattr(sys.modules.get(shorter), name, None) is thing:
                return f"{shorter}:{name}"
    for library in LIBRARIES:
        if getattr(sys.modules.get(library), name, None) is thing:
            return f"{library}:{name}"
    found = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{shown_name(module_name)}:{name}" if found is thing else None


def modules_of(value) -> set[str]:
    """Names of the modules outside of dlflax whose classes and functions a Config holds."""
    found = set()
    if isinstance(value, tuple | list):
        return found.union(*map(modules_of, value)) if value else found
    of = type(value) if dataclasses.is_dataclass(value) else value
    if (dataclasses.is_dataclass(value) or callable(value)) and (name := reference(of)):
        module = name.partition(":")[0]
        if module.partition(".")[0] not in OWN and module not in LIBRARIES:
            found.add(module)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.name != "parent":
                found |= modules_of(getattr(value, field.name, None))
    return found


def qualified_name(thing) -> str | None:
    """Returns the name of a class or function within its module; None for anything else."""
    return getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)


def shown_name(module_name: str) -> str:
    """A module's name as others import it."""
    if module_name == "__main__":
        main = sys.modules["__main__"]
        if getattr(main, "__spec__", None) is not None:
            return main.__spec__.name
        return Path(main.__file__).stem if getattr(main, "__file__", None) else "__main__"
    return module_name.removeprefix(FILE)
