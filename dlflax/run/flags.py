"""Flags of the command line: rules for tyro, and the refusal of old names."""

import dataclasses
import difflib
import re
from collections.abc import Collection
from types import NoneType
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
)

from dlflax.config.renamed import new_flag, new_value
from dlflax.errors import InputError
from dlflax.train.augment import AUGMENTATIONS, strength_names

NESTED = ("hparams", "task", "model", "optimizer", "schedule", "augment", "space")  # flag prefixes
LIST = re.compile(r"[^,\s]+(,[^,\s]+)+")  # "32,64"; a column's name may be "price, EUR"
ADVANCED = {  # flags that only --help-all shows
    "--devices", "--fsdp", "--distributed", "--profile", "--trainable", "--compute-dtype",
    "--micro-batch", "--baseline", "--blend", "--class-weights", "--plateau-patience",
    "--save-backbone",
    "--freeze-epochs", "--contrastive-epochs", "--num-views", "--rank", "--prior", "--warm-start",
    "--population-map", "--min-improvement", "--launcher-options", "--storage", "--study",
    "--refit-full", "--model.implementation", "--logger", "--task.monitor", "--optimizer.b1",
    "--optimizer.b2", "--optimizer.eps", "--hparams.ema-decay", "--hparams.label-smoothing",
    "--hparams.clip-norm",
}  # fmt: skip
DEFAULT_RULE = object()  # in the markers of a type that tyro's own rule is asked for


def primitive_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Returns the constructor of a type, for tyro: its own, with differences. A list may be
    "32,64", an error names the nearest choice, and the metavar of `Path | None` is PATH."""
    origin, kinds = get_origin(info.type), get_args(info.type)
    as_given = {DEFAULT_RULE, tyro.conf.Positional, tyro.conf.UseAppendAction}  # texts have commas
    if not kinds or as_given & info.markers:
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
        metavar = spec.metavar.removeprefix("[").removesuffix("]" if kinds[1:] == (...,) else "")
        return dataclasses.replace(
            spec, nargs="*", metavar=metavar, choices=None, instance_from_str=parse_list
        )
    if origin is Literal:
        return dataclasses.replace(spec, choices=None, instance_from_str=parse_choice)
    if NoneType in kinds:
        return dataclasses.replace(spec, metavar=re.sub(r"\{None\}\||\|\{None\}", "", spec.metavar))
    return None


def describe_choice(word: str, choices: Collection[str]) -> str:
    """Returns the end of an error message: a word is not a choice, and the nearest one that is."""
    if (new := new_value(word, choices)) is not None:
        return f"{word} was renamed: use {new}."
    lower = {name.lower(): name for name in choices}
    near = difflib.get_close_matches(word.lower(), lower, 1, 0.5)
    advice = f"did you mean {lower[near[0]]}? " if near else ""
    return f"{word} is not one of its choices: {advice}There are {', '.join(sorted(choices))}."


def registry(default=None, is_short: bool = False) -> ConstructorRegistry:
    """Returns the rules for tyro. default: Config, whose flags get their short names as aliases;
    is_short: help is without advanced and ineffective flags."""
    rules = ConstructorRegistry()
    rules.primitive_rule(primitive_rule)
    flags = {} if default is None else flag_names(default)
    hidden = hidden_flags(default) if is_short else set()

    @rules.struct_rule
    def struct_rule(info):
        if DEFAULT_RULE in info.markers:
            return None
        info = dataclasses.replace(info, markers=(*info.markers, DEFAULT_RULE))
        spec, fields = ConstructorRegistry.get_struct_spec(info), []
        if not isinstance(spec, StructConstructorSpec):
            return spec
        for field in spec.fields:
            *aliases, flag = flags.get((id(info.default), field.name), [""])
            is_space = flag.startswith("--space.")
            is_empty = isinstance(field.default, tuple) and not field.default
            hint = "" if is_short else "(none by default)"
            mark = tyro.conf.arg(
                aliases=aliases, metavar="" if aliases or is_space else None,
                help_behavior_hint=hint if is_empty else None,
            )  # fmt: skip
            kind = Annotated[field.type, mark]
            if flag in hidden or (is_short and is_space and is_empty):
                kind = tyro.conf.Suppress[kind]
            fields.append(dataclasses.replace(field, type=kind))
        return dataclasses.replace(spec, fields=tuple(fields))

    return rules


def flag_names(default) -> dict[tuple[int, str], list[str]]:
    """Returns (id of a dataclass or dict, name of a field) -> short names of its flag, such as
    --lr, and the flag, --hparams.learning-rate. A short name is never that of another flag."""
    flags = {}

    def add(value, prefix: str) -> None:
        is_dict = isinstance(value, dict)
        for name in value if is_dict else [field.name for field in dataclasses.fields(value)]:
            inner = None if is_dict else getattr(value, name, None)
            flags[id(value), name] = f"{prefix}{name.replace('_', '-')}"
            if dataclasses.is_dataclass(inner) or name == "space":
                add(inner, f"{prefix}{name}." if name in NESTED else prefix)

    def aliases(flag: str) -> list[str]:
        short = flag.replace(".learning-rate", ".lr")
        names = [name.replace("--hparams.", "--") for name in (short, flag)]
        return [name for name in dict.fromkeys([*names, short]) if name not in full]

    add(default, "--")
    full = {*flags.values()}
    return {field: [*aliases(flag), flag] for field, flag in flags.items()}


def hidden_flags(default) -> set[str]:
    """Returns the flags that only --help-all shows: the advanced, and those without an effect."""
    hparams = default.hparams
    unused = {*strength_names(tuple(AUGMENTATIONS.values()), hparams), "kl_weight"}
    unused -= {*strength_names(default.recipe.augment, hparams)}
    unused |= {"backbone_lr_scale"} if default.transfer is None else set()
    names = {f"{prefix}.{name}" for name in unused for prefix in ("hparams", "space")}
    if hasattr(default, "space"):  # a sweep searches these already
        names |= {f"model.{field.name}" for field in dataclasses.fields(default.recipe.model)}
        names |= {f"hparams.{field.name}" for field in dataclasses.fields(hparams)}
    return ADVANCED | {f"--{name.replace('_', '-')}" for name in names}


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
