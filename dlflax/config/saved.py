"""Decoding of a Config and an encoder from the JSON of `serialize.to_json`.

`Experiment.resolve` finds the classes and functions that a saved file names. They are called only
if they have the type that their field expects.
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
from dlflax.config.config import Config, check
from dlflax.config.experiment import Experiment
from dlflax.config.renamed import describe_old_field
from dlflax.config.serialize import is_own, reference, to_json
from dlflax.data import Encoder, Source
from dlflax.data.npy import read_npy
from dlflax.errors import InputError, first_line
from dlflax.files import MAX_JSON_BYTES, read_bytes, read_json, write_json
from dlflax.train.slots import SLOTS
from dlflax.train.tasks import Task
from dlflax.transfer import Transfer


def config_from_json(saved: dict, folder: Path, experiment: Experiment) -> Config:
    """Returns the Config of `to_json`'s JSON. Raises InputError if it is of another version, or
    names code that is not trusted or of the wrong type."""
    decoder = _Decoder(folder, experiment)
    try:
        recipe = saved["recipe"]
        names = [name for name in ("model", *SLOTS) if name != "loss"]  # a field of the task
        slots = {name: decoder.slot(recipe[name], name) for name in names}
        transfer = saved.get("transfer")
        fields = {
            "recipe": decoder.construct(train.Recipe, **recipe | slots),
            "hparams": decoder.value(saved["hparams"], "hparams"),
            "data": decoder.value(saved["data"], "data"),
            "transfer": decoder.construct(Transfer, **transfer) if transfer else None,
            "run_dir": saved["run_dir"] and Path(saved["run_dir"]),
        }
        config = decoder.construct(Config, **{**saved, **fields})
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
MOST_VALUES = 2**28  # in one example


def save_encoder(folder: Path, encoder: Encoder) -> None:
    """Writes encoder.json, and files for arrays and for fields with "file" metadata. Raises
    InputError for a field that JSON cannot hold."""
    arrays: dict[str, np.ndarray] = {}
    saved = to_json(encoder, "encoder", arrays)
    for name, array in arrays.items():
        np.save(folder / name, array, allow_pickle=False)
    for field in dataclasses.fields(encoder):
        if (name := field.metadata.get("file")) and (text := saved.pop(field.name)):
            (folder / name).write_text(text, encoding="utf-8")
    write_json(folder / ENCODER, saved)


def load_encoder(folder: Path, experiment: Experiment) -> Encoder:
    """Returns the encoder of a run folder. Raises InputError if it is damaged or not trusted."""
    path = folder / ENCODER
    saved = read_run_json(path)
    try:
        encoder = _Decoder(folder, experiment, ENCODER).value(saved, "encoder")
        spec = encoder.spec()
        if min(spec.shape, default=1) < 1 or math.prod(spec.shape) > MOST_VALUES:
            raise ValueError(f"an example of shape {spec.shape}")
        encoder.batch(np.zeros((1, *spec.shape), spec.dtype))
    except InputError as error:
        raise (
            error if str(error).startswith(str(path)) else InputError(f"{path} is damaged: {error}")
        ) from error
    except Exception as error:  # damaged values can raise anything
        reason = first_line(error)
        raise InputError(f"{path} is damaged ({reason}): copy the run folder again.") from error
    return encoder


def read_run_json(path: Path):
    """Returns the JSON of a file in a run folder. Raises InputError for an unreadable file."""
    try:
        return read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: it is not the JSON that a run writes.") from error


def _read_file_fields(cls: type, folder: Path) -> dict[str, str]:
    """Returns the fields of an encoder that are saved as files, if they are not empty."""
    fields = {}
    for field in dataclasses.fields(cls):
        if name := field.metadata.get("file"):
            path = folder / Path(name).name
            if not path.exists() and field.default == "":
                continue
            try:
                fields[field.name] = read_bytes(path, MAX_JSON_BYTES).decode("utf-8")
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}.") from error
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is damaged: it is not UTF-8.") from error
    return fields


def check_type(value, annotation, path: Path, field: str) -> None:
    """Raises InputError unless the value of a field has the annotated type."""
    try:
        typeguard.check_type(
            value, annotation, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS
        )
    except typeguard.TypeCheckError as error:
        name = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
        expected = str(name or annotation).replace("typing.", "")
        raise InputError(
            f"{path} is damaged: {field} is {value!r:.60}, and should be {expected}."
        ) from error


BASES = {  # base classes of slots; functions have signatures in SLOTS
    "model": nn.Module, "hparams": train.Hparams, "data": Source, "encoder": Encoder, "task": Task,
}  # fmt: skip
PURE = (  # modules of dlflax and Flax whose functions have no side effects
    "dlflax.train.augment", "dlflax.train.ensemble", "dlflax.train.losses", "dlflax.train.optim",
    "dlflax.train.step", "flax.linen.activation", "flax.linen.attention",
    "flax.linen.initializers", "flax.linen.pooling",
)  # fmt: skip
IMPURE = {  # functions of jax.numpy with side effects
    "load", "save", "savez", "fromfile", "printoptions", "set_printoptions", "get_printoptions",
}  # fmt: skip
TRACED = (type(jax.jit(abs)), jax.custom_jvp, jax.custom_vjp, jnp.ufunc)


class _Decoder:
    """Decoder of JSON values, each checked against the slot of its field."""

    def __init__(self, folder: Path, experiment: Experiment, file: str = "config.json"):
        self.path, self.experiment = Path(folder) / file, experiment

    def value(self, saved, slot: str):
        """Returns the class instance or function that a slot of the Config holds."""
        if not isinstance(saved, dict) or not ({"class", "function"} & set(saved)):
            raise InputError(f"{self.path}: {slot} must name a class or a function.")
        value = self.experiment.resolve(saved.get("class") or saved.get("function"), self.path)
        is_right = (_is_function if "function" in saved else _is_class)(value, slot)
        expected = f"called as ({SLOTS[slot].arguments})" if slot in SLOTS else ""
        if slot in BASES:
            expected = f"a subclass of {reference(BASES[slot])}"
        self._check(is_right, slot, saved, expected)
        return value if "function" in saved else self._instance(value, saved, slot)

    def slot(self, saved, name: str):
        """Returns the value of a field of a Recipe."""
        if name == "step" and saved is None:  # the default
            return None
        if name in SLOTS and SLOTS[name].several:
            return tuple(self.value(item, name) for item in saved)
        return self.value(saved, name)

    def construct(self, cls, slot: str = "", **fields):
        """Returns cls(**fields), with fields checked against the class's annotations."""
        hints = typing.get_type_hints(cls)
        if reason := describe_old_field([n for n in fields if n not in hints], slot, hints):
            raise InputError(f"{self.path} {reason}")
        for name, value in fields.items():
            if name in hints:
                check_type(value, hints[name], self.path, f"{slot}.{name}".lstrip("."))
        return cls(**fields)

    def _instance(self, cls, saved, slot):
        fields = {name: inner for name, inner in saved.items() if name != "class"}
        hints = typing.get_type_hints(cls) if fields else {}
        values = {k: self._field(v, hints.get(k), slot, k) for k, v in fields.items()}
        if slot == "encoder":
            values |= _read_file_fields(cls, self.path.parent)
        missing = [f.name for f in dataclasses.fields(cls) if not f.metadata.get("saved", True)]
        if missing:  # arrays in memory, which the running experiment has
            default = getattr(self.experiment.presets.get("default"), "data", None)
            values |= {name: getattr(default, name, None) for name in missing}
        return self.construct(cls, slot, **values)

    def _field(self, saved, hint, slot, name):
        if isinstance(saved, list):
            return tuple(self._field(item, None, slot, name) for item in saved)
        if isinstance(saved, str) and Path in (hint, *typing.get_args(hint)):
            return Path(saved)
        if not isinstance(saved, dict):
            return saved
        if "npy" in saved and self.path.name == ENCODER:
            return np.array(read_npy(self.path.with_name(Path(str(saved["npy"])).name)))
        if "dtype" in saved:
            dtype = np.dtype(str(saved["dtype"]))
            if dtype.kind != "b" and not jnp.issubdtype(dtype, np.number):
                raise InputError(f"{self.path}: {slot}.{name} is {dtype}, no dtype of a model.")
            return dtype
        has_reference = "class" in saved or "function" in saved
        if not has_reference and self.path.name == ENCODER:
            return {key: self._field(item, None, slot, key) for key, item in saved.items()}
        if not has_reference or name == "loss":
            return self.value(saved, name)
        if "class" in saved:  # a dataclass within a value, such as a layer of a model
            cls = self.experiment.resolve(saved["class"], self.path)
            is_right = isinstance(cls, type) and dataclasses.is_dataclass(cls)
            self._check(is_right, f"{slot}.{name}", saved, "a dataclass")
            return self._instance(cls, saved, slot)
        function = self.experiment.resolve(saved["function"], self.path, libraries=True)
        is_right = slot == "model" and _is_array_function(function)
        self._check(is_right, f"{slot}.{name}", saved, "a function that a model may call")
        return function

    def _check(self, is_right, field, saved, expected):
        if not is_right:
            name = saved.get("class") or saved.get("function")
            raise InputError(
                f"{self.path}: {field} names {name}, which is not {expected}: nothing was called."
            )


def _is_function(value, slot: str, *instance: None) -> bool:
    """True for a plain function that takes the slot's arguments. instance: None for a method."""
    arguments = SLOTS[slot].arguments if slot in SLOTS else ""
    if not arguments or not isinstance(value, types.FunctionType):
        return False
    if is_own(value.__module__) and value.__module__ not in PURE:
        return False
    try:
        inspect.signature(value).bind(*instance, *arguments.split(", "))
    except TypeError:
        return False
    return True


def _is_array_function(value) -> bool:
    """True for a traced function, or a plain one, except functions of dlflax and Flax outside of
    PURE, and of JAX in IMPURE."""
    if isinstance(value, TRACED):
        return True
    if not isinstance(value, types.FunctionType):
        return False
    root = value.__module__.partition(".")[0]
    if root == "flax" or is_own(root):
        return value.__module__ in PURE
    return root != "jax" or value.__name__ not in IMPURE


def _is_class(value, slot: str) -> bool:
    """True for a dataclass of the type that the slot expects."""
    if not isinstance(value, type) or not dataclasses.is_dataclass(value):
        return False
    if slot in BASES:
        return issubclass(value, BASES[slot])
    return _is_function(getattr(value, "__call__", None), slot, None)  # noqa: B004
