"""A Config and an encoder from the JSON of `serialize.to_json`.

What a saved file names is imported only from places that the user trusts (`Experiment.resolve`),
and called only if it is of the kind that is expected at its place.
"""

import dataclasses
import inspect
import math
import types
import typing
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import typeguard

from dlflax import train
from dlflax.data import Encoder, Source
from dlflax.data.download import first_line
from dlflax.data.npy import read_npy
from dlflax.errors import InputError
from dlflax.files import MAX_JSON_BYTES, read_bytes, read_json, write_json
from dlflax.run.config import Config, check
from dlflax.run.experiment import Experiment
from dlflax.run.serialize import OWN, reference, to_json
from dlflax.train.slots import SLOTS
from dlflax.train.tasks import Task
from dlflax.transfer import Transfer


def config_from_json(saved: dict, folder: Path, experiment: Experiment) -> Config:
    """The Config that `to_json` wrote. InputError when it does not fit this version, or names what
    is not trusted or not of the right kind."""
    read = _Reader(folder, experiment)
    try:
        recipe = saved["recipe"]
        names = [name for name in ("model", *SLOTS) if name != "loss"]  # which is in the task
        slots = {name: read.slot(recipe[name], name) for name in names}
        parts = {
            "recipe": read.built(train.Recipe, **recipe | slots),
            "hparams": read.thing(saved["hparams"], "hparams"),
            "data": read.thing(saved["data"], "data"),
            "transfer": None,
            "run_dir": saved["run_dir"] and Path(saved["run_dir"]),
        }
        if saved.get("transfer"):
            parts["transfer"] = read.built(Transfer, **saved["transfer"])
        config = read.built(Config, **{**saved, **parts})
        check(config)
        return config
    except InputError:
        raise
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'} does not fit this version of dlflax ({error}): use the "
            "version named in it, or start a new run."
        ) from error


ENCODER = "encoder.json"
MOST_VALUES = 2**28  # of one example


def save_encoder(folder: Path, encoder: Encoder) -> None:
    """Writes encoder.json, and the files of its arrays and large fields. Raises InputError for a
    field that is none and that JSON cannot hold."""
    arrays: dict[str, np.ndarray] = {}
    saved = to_json(encoder, "encoder", arrays)
    for name, array in arrays.items():
        np.save(folder / name, array, allow_pickle=False)
    for field in dataclasses.fields(encoder):
        if name := field.metadata.get("file"):
            (folder / name).write_text(saved.pop(field.name), encoding="utf-8")
    write_json(folder / ENCODER, saved)


def load_encoder(folder: Path, experiment: Experiment) -> Encoder:
    """Returns the encoder of a run folder. Raises InputError for one that is damaged, or not
    trusted, as `config_from_json`."""
    path = folder / ENCODER
    try:
        saved = read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: it is not the JSON that a run writes.") from error
    read = _Reader(folder, experiment, ENCODER)
    try:
        encoder = read.thing(saved, "encoder")
        spec = encoder.spec()
        if min(spec.shape, default=1) < 1 or math.prod(spec.shape) > MOST_VALUES:
            raise ValueError(f"an example of shape {spec.shape}")
        encoder.batch(np.zeros((1, *spec.shape), spec.dtype))
    except InputError as error:
        raise (
            error if str(error).startswith(str(path)) else InputError(f"{path} is damaged: {error}")
        ) from error
    except Exception as error:  # numbers that no run wrote can do anything
        reason = first_line(error)
        raise InputError(f"{path} is damaged ({reason}): copy the run's folder again.") from error
    return encoder


def _large_fields(kind: type, folder: Path) -> dict[str, str]:
    """The fields of an encoder that are files of their own."""
    fields = {}
    for field in dataclasses.fields(kind):
        if name := field.metadata.get("file"):
            path = folder / Path(name).name
            try:
                fields[field.name] = read_bytes(path, MAX_JSON_BYTES).decode("utf-8")
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}.") from error
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is damaged: it is not UTF-8.") from error
    return fields


def check_type(value, kind, path: Path, place: str) -> None:
    """InputError unless the value is of the kind, a type as annotations write it."""
    try:
        typeguard.check_type(
            value, kind, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS
        )
    except typeguard.TypeCheckError as error:
        wanted = getattr(kind, "__name__", None) if isinstance(kind, type) else None
        shown = str(wanted or kind).replace("typing.", "")
        raise InputError(
            f"{path} is damaged: {place} is {value!r:.60}, and should be {shown}."
        ) from error


BASES = {  # of classes; functions are for `train.slots`
    "model": nn.Module, "hparams": train.Hparams, "data": Source, "encoder": Encoder, "task": Task,
}  # fmt: skip
PURE = (  # modules whose functions may be called, of dlflax and of Flax
    "dlflax.train.augment", "dlflax.train.ensemble", "dlflax.train.losses", "dlflax.train.optim",
    "dlflax.train.step", "flax.linen.activation", "flax.linen.attention",
    "flax.linen.initializers", "flax.linen.pooling",
)  # fmt: skip
IMPURE = {  # functions of jax.numpy that read or write files, or change how arrays are printed
    "load", "save", "savez", "fromfile", "printoptions", "set_printoptions", "get_printoptions",
}  # fmt: skip
TRACED = (type(jax.jit(abs)), jax.custom_jvp, jax.custom_vjp, jnp.ufunc)


class _Reader:
    """Builds things from their JSON, each checked for the place where it stands."""

    def __init__(self, folder: Path, experiment: Experiment, file: str = "config.json"):
        self.path, self.experiment = Path(folder) / file, experiment

    def thing(self, value, place: str):
        """Returns what a JSON object at this place of the Config stands for."""
        if not isinstance(value, dict) or not ({"class", "function"} & set(value)):
            raise InputError(f"{self.path}: {place} must name a class or a function.")
        found = self.experiment.resolve(value.get("class") or value.get("function"), self.path)
        if "function" in value:
            self._expect(_is_function(found, place), place, value, _kind_at(place))
            return found
        self._expect(_is_kind(found, place), place, value, _kind_at(place))
        return self._built(found, {k: v for k, v in value.items() if k != "class"}, place)

    def slot(self, value, name: str):
        """Returns what the JSON of a field of a Recipe stands for."""
        if name == "step" and value is None:  # the default
            return None
        if name in SLOTS and SLOTS[name].several:
            return tuple(self.thing(each, name) for each in value)
        return self.thing(value, name)

    def built(self, cls, place: str = "", **fields):
        """cls(**fields), each of which is of the type that the class says."""
        hints = typing.get_type_hints(cls)
        for name, value in fields.items():
            if name in hints:
                check_type(value, hints[name], self.path, f"{place}.{name}".lstrip("."))
        return cls(**fields)

    def _built(self, cls, fields, place):
        hints = typing.get_type_hints(cls) if fields else {}
        values = {k: self._value(v, hints.get(k), place, k) for k, v in fields.items()}
        if place == "encoder":
            values |= _large_fields(cls, self.path.parent)
        missing = [f.name for f in dataclasses.fields(cls) if not f.metadata.get("saved", True)]
        if missing:  # arrays in memory: the experiment that is run has them
            ours = self.experiment.default_data()
            values |= {name: getattr(ours, name, None) for name in missing}
        return self.built(cls, place, **values)

    def _value(self, value, hint, place, name):
        if isinstance(value, list):
            return tuple(self._value(item, None, place, name) for item in value)
        if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
            return Path(value)
        if not isinstance(value, dict):
            return value
        if "npy" in value and self.path.name == ENCODER:
            return np.array(read_npy(self.path.with_name(Path(str(value["npy"])).name)))
        if "dtype" in value:
            dtype = np.dtype(str(value["dtype"]))
            if dtype.kind != "b" and not jnp.issubdtype(dtype, np.number):
                raise InputError(f"{self.path}: {place}.{name} is {dtype}, no dtype of a model.")
            return dtype
        is_thing = "class" in value or "function" in value
        if not is_thing and self.path.name == ENCODER:
            return {key: self._value(item, None, place, key) for key, item in value.items()}
        if not is_thing or name == "loss":
            return self.thing(value, name)
        if "class" in value:  # a field of a thing, say a part of a model
            found = self.experiment.resolve(value["class"], self.path)
            is_kind = isinstance(found, type) and dataclasses.is_dataclass(found)
            self._expect(is_kind, f"{place}.{name}", value, "a dataclass")
            return self._built(found, {k: v for k, v in value.items() if k != "class"}, place)
        function = self.experiment.resolve(value["function"], self.path, libraries=True)
        right = place == "model" and _is_array_function(function)
        self._expect(right, f"{place}.{name}", value, "a function that a model may call")
        return function

    def _expect(self, right, place, value, kind):
        if not right:
            named = value.get("class") or value.get("function")
            raise InputError(
                f"{self.path}: {place} names {named}, which is not {kind}: nothing was called."
            )


def _kind_at(place: str) -> str:
    """Returns in words what is expected at this place."""
    if place in BASES:
        return f"a subclass of {reference(BASES[place])}"
    return f"called as ({SLOTS[place].arguments})"


def _is_function(found, place: str, *instance: None) -> bool:
    """True if it is a plain function that can be called with the arguments of this slot. instance:
    None, for a method, which is called with its instance too."""
    arguments = SLOTS[place].arguments if place in SLOTS else ""
    if not arguments or not isinstance(found, types.FunctionType):
        return False
    if found.__module__.partition(".")[0] in OWN and found.__module__ not in PURE:
        return False
    try:
        inspect.signature(found).bind(*instance, *arguments.split(", "))
    except TypeError:
        return False
    return True


def _is_array_function(thing) -> bool:
    """True for a traced function, and for a plain one unless a library has it for other ends."""
    if isinstance(thing, TRACED):
        return True
    if not isinstance(thing, types.FunctionType):
        return False
    root = thing.__module__.partition(".")[0]
    if root in ("flax", *OWN):
        return thing.__module__ in PURE
    return root != "jax" or thing.__name__ not in IMPURE


def _is_kind(found, place: str) -> bool:
    """True if it is a dataclass of the kind that is expected at this place."""
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        return False
    if place in BASES:
        return issubclass(found, BASES[place])
    return _is_function(getattr(found, "__call__", None), place, None)  # noqa: B004
