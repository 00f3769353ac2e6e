"""Flags of the command line: rules for tyro, and the refusal of old names."""

import dataclasses
import difflib
import re
from collections.abc import Collection
from types import NoneType
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from dlflax.config.renamed import new_flag, new_value
from dlflax.errors import InputError
from dlflax.train.augment import AUGMENTATIONS, strength_names

NESTED = ("hparams", "task", "model", "optimizer", "schedule", "augment", "space")  # flag prefixes
LIST = re.compile(r"[^,\s]+(,[^,\s]+)+")  # "32,64"; a column's name may be "price, EUR"
ADVANCED = {  # flags that only --help-all shows
    "--devices", "--fsdp", "--distributed", "--profile", "--trainable", "--compute-dtype",
    "--baseline", "--class-weights", "--plateau-patience", "--save-backbone", "--freeze-epochs",
    "--contrastive-epochs", "--num-views", "--rank", "--prior", "--warm-start", "--population-map",
    "--min-improvement", "--launcher-options", "--storage", "--study", "--refit-full",
    "--model.implementation", "--logger", "--task.monitor", "--optimizer.b1", "--optimizer.b2",
    "--optimizer.eps", "--hparams.ema-decay", "--hparams.label-smoothing", "--hparams.clip-norm",
}  # fmt: skip
DEFAULT_RULE = object()  # in the markers of a type that tyro's own rule is asked for


def primitive_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Returns tyro's constructor of a type, changed: a list may be "32,64", an error names the
    nearest choice, and the metavar of `Path | None` is PATH."""
    origin, kinds = get_origin(info.type), get_args(info.type)
    whole = {DEFAULT_RULE, tyro.conf.Positional, tyro.conf.UseAppendAction}  # a text with a comma
    if not kinds or whole & info.markers:
        return None
    default_info = dataclasses.replace(info, markers=info.markers | {DEFAULT_RULE})
    spec = ConstructorRegistry.get_primitive_spec(default_info)
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None

    def parse_choice(words: list[str]) -> Any:
        if words[0] not in spec.choices:
            raise ValueError(describe_choice(words[0], spec.choices))
        return spec.instance_from_str(words)

    def parse_list(words: list[str]) -> tuple:
        lists = (word.split(",") if LIST.fullmatch(word) else [word] for word in words)
        words = [word for parts in lists for word in parts]
        if kinds[1:] != (...,):
            return spec.instance_from_str(words)
        item = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], set()))
        return tuple(item.instance_from_str([word]) for word in words)

    if origin is tuple:
        return dataclasses.replace(spec, nargs="*", choices=None, instance_from_str=parse_list)
    if origin is Literal:
        return dataclasses.replace(spec, choices=None, instance_from_str=parse_choice)
    if NoneType in kinds:
        return dataclasses.replace(spec, metavar=re.sub(r"\{None\}\||\|\{None\}", "", spec.metavar))
    return None


def describe_choice(word: str, choices: Collection[str]) -> str:
    """Returns the end of an error message: that a word is no choice, and the nearest one."""
    if (new := new_value(word, choices)) is not None:
        return f"{word} was renamed: use {new}."
    lower = {name.lower(): name for name in choices}
    near = difflib.get_close_matches(word.lower(), lower, 1, 0.5)
    advice = f"did you mean {lower[near[0]]}? " if near else ""
    return f"{word} is no choice: {advice}There are {', '.join(sorted(choices))}."


def registry(default=None, is_short: bool = False) -> ConstructorRegistry:
    """Returns the rules for tyro. default: Config, whose flags get their short names as aliases;
    is_short: help is without advanced and ineffective flags."""
    rules, flags = ConstructorRegistry(), flag_names(default) if default else {}
    rules.primitive_rule(primitive_rule)

    @rules.struct_rule
    def struct_rule(info):
        if not dataclasses.is_dataclass(info.type) or DEFAULT_RULE in info.markers:
            return None
        info = dataclasses.replace(info, markers=(*info.markers, DEFAULT_RULE))
        spec, fields = ConstructorRegistry.get_struct_spec(info), []
        for field in spec.fields:
            *aliases, flag = flags.get((id(info.default), field.name), [""])
            marks = [tyro.conf.arg(aliases=aliases, metavar="" if aliases else None)]
            if is_short and is_hidden(flag, field.default, default):
                marks.append(tyro.conf.Suppress)
            fields.append(dataclasses.replace(field, type=Annotated[field.type, *marks]))
        return dataclasses.replace(spec, fields=tuple(fields))

    return rules


def flag_names(default) -> dict[tuple[int, str], list[str]]:
    """Returns (id of a dataclass, name of a field) -> short names of its flag, such as --lr, and
    the flag, --hparams.learning-rate. A short name is never that of another flag."""
    flags = {}

    def add(value, prefix: str) -> None:
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name, None)
            flags[id(value), field.name] = f"{prefix}{field.name.replace('_', '-')}"
            if dataclasses.is_dataclass(inner):
                add(inner, f"{prefix}{field.name}." if field.name in NESTED else prefix)

    def aliases(flag: str) -> list[str]:
        short = flag.replace(".learning-rate", ".lr")
        names = [name.replace("--hparams.", "--") for name in (short, flag)]
        return [name for name in dict.fromkeys([*names, short]) if name not in flags.values()]

    add(default, "--")
    return {field: [*aliases(flag), flag] for field, flag in flags.items()}


def is_hidden(flag: str, value, default) -> bool:
    """True if only --help-all shows the flag: it is advanced, or has no effect or no value yet.
    value: its default; default: the Config or Sweep."""
    hparams, (prefix, _, name) = default.hparams, flag.rpartition(".")
    unused = {*strength_names(tuple(AUGMENTATIONS.values()), hparams), "kl_weight"}
    unused -= {*strength_names(default.recipe.augment, hparams)}
    unused |= {"backbone_lr_scale"} if default.transfer is None else set()
    return (
        flag in ADVANCED
        or (prefix in ("--hparams", "--space") and name.replace("-", "_") in unused)
        or (prefix.startswith("--space") and value == ())
        or (prefix in ("--hparams", "--model") and hasattr(default, "space"))  # --space has them
    )


def refuse_old_flags(args: list[str], default) -> None:
    """Raises InputError, with the new name, for an old name of a flag of the Config `default`."""
    flags = {name for names in flag_names(default).values() for name in names}
    for flag in (word.partition("=")[0] for word in args if word.startswith("--")):
        new = new_flag(flag)
        if new and flag not in flags and re.sub("^--no-", "--", new) in flags:
            raise InputError(f"{flag} was renamed: use {new}.")


def parse_known_args(kinds: dict[str, Any], args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns (name -> value of the flags that are given, all other args). kinds: name -> type."""
    return tyro.cli(
        TypedDict("Known", kinds, total=False), args=args, add_help=False,
        return_unknown_args=True, registry=REGISTRY,
    )  # fmt: skip


REGISTRY = registry()
