"""Encoding of a Config as JSON, with classes and functions as references `module:name`."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

import dlflax
from dlflax import train
from dlflax.config.config import Config
from dlflax.errors import InputError
from dlflax.transfer import Transfer

OWN_PACKAGES = ("dlflax", "experiments")  # packages that come with this one
HOME = Path(dlflax.__file__).resolve().parents[1]  # of the packages
LIBRARIES = (  # modules whose functions may be fields of a model
    "jax.nn", "jax.numpy", "jax.nn.initializers", "flax.linen", "flax.linen.initializers", "optax",
)  # fmt: skip
MODULE_PREFIX = "experiment_file_"  # of modules in sys.modules that were loaded from a file


def is_own(module_name: str) -> bool:
    """True for a module that comes with dlflax; a folder `experiments` of the user's does not."""
    package = module_name.partition(".")[0]
    spec = importlib.util.find_spec(package) if package in OWN_PACKAGES else None
    return spec is not None and Path(spec.origin or "").resolve().parent.parent == HOME


def to_json(value: Any, field: str = "config", arrays: dict[str, np.ndarray] | None = None) -> Any:
    """Returns a Config, or a value in it, as JSON values. arrays: gets arrays by file name. Raises
    InputError for a field that JSON cannot hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and arrays is not None:
        arrays[f"{field}.npy"] = value
        return {"npy": f"{field}.npy"}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_json(item, f"{field}.{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): to_json(item, f"{field}.{key}", arrays) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: to_json(getattr(value, f.name), f"{field}.{f.name}", arrays)
            for f in dataclasses.fields(value)
            if f.init and f.metadata.get("saved", True)
            and not (isinstance(value, nn.Module) and f.name in ("parent", "name"))
        }  # fmt: skip
        if isinstance(value, Config | train.Recipe | Transfer):
            return fields
        if name := reference(type(value)):
            return {"class": name, **fields}
    if name := _dtype_name(value):
        return {"dtype": name}
    if callable(value) and (name := reference(value)):
        return {"function": name}
    raise InputError(
        f"{field} is {value!r:.100}, which config.json cannot hold: use numbers, text, tuples, "
        "frozen dataclasses and functions that a module defines (no lambdas)."
    )


def _dtype_name(value) -> str | None:
    """Returns the name of a dtype or scalar type, such as jnp.bfloat16; None for other values."""
    try:
        is_dtype = isinstance(value, np.dtype) or hasattr(value, "dtype") and callable(value)
        return np.dtype(value).name if is_dtype else None
    except TypeError:
        return None


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Flattens {"a": {"b": 1}} to {"a.b": 1}, and lists to text."""
    flattened = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flattened.update(flatten(value, f"{prefix}{name}."))
        elif isinstance(value, list):
            flattened[prefix + name] = str(tuple(_item_name(item) for item in value))
        else:
            flattened[prefix + name] = value
    return flattened


def _item_name(item):
    """Returns an item of a list as (reference, *fields) if it is an object."""
    if not isinstance(item, dict):
        return item
    fields = {k: v for k, v in item.items() if k not in ("class", "function")}
    return (item.get("class") or item.get("function"), *(sorted(fields.items()) if fields else ()))


def reference(value) -> str | None:
    """Returns "module:name" of a class or function; None if it cannot be imported by that."""
    module_name, name = getattr(value, "__module__", None), qualified_name(value)
    if not module_name or not name or "<" in name:
        return None
    shorter = []
    if module_name.partition(".")[0] == "dlflax":  # prefer the shortest module that exports it
        parts = module_name.split(".")
        shorter = [".".join(parts[:length]) for length in range(2, len(parts) + 1)]
    for module in (*shorter, *LIBRARIES):
        if getattr(sys.modules.get(module), name, None) is value:
            return f"{module}:{name}"
    resolved = sys.modules.get(module_name)
    for part in name.split("."):
        resolved = getattr(resolved, part, None)
    return f"{importable_name(module_name)}:{name}" if resolved is value else None


def external_modules(value) -> set[str]:
    """Returns the modules outside of dlflax whose classes and functions a Config uses."""
    if isinstance(value, tuple | list):
        return set().union(*map(external_modules, value))
    modules, is_dataclass = set(), dataclasses.is_dataclass(value)
    if is_dataclass or callable(value):
        name = reference(type(value) if is_dataclass else value)
        module = name.partition(":")[0] if name else "dlflax"
        if not is_own(module) and module not in LIBRARIES:
            modules.add(module)
    if is_dataclass and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.name != "parent":
                modules |= external_modules(getattr(value, field.name, None))
    return modules


def qualified_name(value) -> str | None:
    """Returns the name of a class or function within its module; None for other values."""
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None)


def importable_name(module_name: str) -> str:
    """Returns the name by which other modules import a module."""
    if module_name == "__main__":
        main = sys.modules["__main__"]
        if getattr(main, "__spec__", None) is not None:
            return main.__spec__.name
        return Path(main.__file__).stem if getattr(main, "__file__", None) else "__main__"
    return module_name.removeprefix(MODULE_PREFIX)
