"""Flags of the command line: short names, comma-separated lists, suggestions and compact help."""

import contextlib
import dataclasses
import difflib
import functools
import io
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from dlflax.config.renamed import new_flag, new_value
from dlflax.errors import InputError
from dlflax.train.augment import AUGMENTATIONS, strength_names
from dlflax.train.hparams import hparam_names

SHORT = {"lr": "learning-rate"}
NESTED = ("hparams", "task", "model", "optimizer", "schedule", "augment", "space")  # flag prefixes
LIST = re.compile(r"[^,\s]+(,[^,\s]+)+")  # "32,64"; a column's name may be "price, EUR"
ADVANCED = {  # flags that only --help-all shows
    "--devices", "--fsdp", "--distributed", "--profile", "--trainable", "--compute-dtype",
    "--baseline", "--class-weights", "--plateau-patience", "--save-backbone", "--freeze-epochs",
    "--contrastive-epochs", "--num-views", "--rank", "--prior", "--warm-start", "--population-map",
    "--min-improvement", "--launcher-options", "--storage", "--study", "--refit-full",
    "--model.implementation", "--space.model.implementation", "--space.compute-dtype",
    "--space.ema", "--logger", "--task.monitor", "--optimizer.b1", "--optimizer.b2",
    "--optimizer.eps", "--hparams.ema-decay", "-H", "--hparams.label-smoothing",
    "--hparams.clip-norm",
}  # fmt: skip


REGISTRY = tyro.constructors.ConstructorRegistry()
METAVARS = {Path: "PATH", str: "STR", int: "INT", float: "FLOAT"}


@REGISTRY.primitive_rule
def optional(info: tyro.constructors.PrimitiveTypeInfo):
    """Returns tyro's constructor for `Path | None` and the like, with metavar PATH; else None."""
    types = [cls for cls in get_args(info.type) if cls is not NoneType]
    if len(types) != 1 or NoneType not in get_args(info.type) or types[0] not in METAVARS:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=METAVARS[types[0]],
        instance_from_str=lambda words: None if words == ["None"] else types[0](words[0]),
        is_instance=lambda value: value is None or isinstance(value, types[0]),
        str_from_instance=lambda value: [str(value)],
    )


def expand_flags(args: list[str], default) -> list[str]:
    """Expands short names, `--lr 0.1` to `--hparams.learning-rate 0.1`, and splits lists,
    `--model.features 32,64`. default: Config with the flags as fields."""
    top_level, lists = _top_level_and_lists(default)
    short, expanded = {*hparam_names(default.hparams), *SHORT} - top_level, []
    for word in args:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            prefix, _, name = flag[2:].rpartition(".")
            if prefix in ("", "hparams", "space") and name.replace("-", "_") in short:
                word = f"--{prefix or 'hparams'}.{SHORT.get(name, name)}{equals}{value}"
        expanded.append(word)
    return split_lists(expanded, lists)


def split_lists(args: list[str], lists: Collection[str]) -> list[str]:
    """Splits "32,64" into "32", "64" after the flags in `lists`, such as "model.features"."""
    words, in_list = [], False
    for word in args:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            in_list = flag[2:].replace("-", "_") in lists
        if in_list and LIST.fullmatch(value):
            words += [*([flag] if flag else []), *value.split(",")]
        else:
            words.append(word)
    return words


def insert_data_flag(args: list[str], source) -> list[str]:
    """Inserts --data before a first word that is a path, if the source has that field."""
    has_field = "data" in {field.name for field in dataclasses.fields(source)}
    is_data = has_field and args and not args[0].startswith("-") and Path(args[0]).exists()
    return ["--data", *args] if is_data else args


def _walk(value, prefix: str = ""):
    """Yields (prefix of its flag, field, value, type hint) of a dataclass's fields, recursively."""
    hints = {}
    with contextlib.suppress(NameError):  # a user's annotation may name a missing type
        hints = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name, None)
        yield prefix, field, inner, hints.get(field.name)
        if dataclasses.is_dataclass(inner):
            yield from _walk(inner, f"{prefix}{field.name}." if field.name in NESTED else prefix)


def literal_choices(value) -> dict[str, tuple[str, ...]]:
    """Returns flag -> choices of the Literal fields of a dataclass."""
    choices = {}
    for prefix, field, _, hint in _walk(value):
        words = get_args(hint) if get_origin(hint) is Literal else ()
        if words and all(isinstance(word, str) for word in words):
            choices[prefix + field.name] = words
    return choices


def check_choices(args: list[str], choices: Mapping[str, Collection[str]]) -> None:
    """Raises InputError, with the nearest choice, for a flag's word that is not a choice."""
    flag = None
    for word in args:
        given = word
        if word.startswith("--"):
            flag, equals, given = word.partition("=")
            if not equals:
                continue
        valid = choices.get(flag[2:].replace("-", "_"), ()) if flag else ()
        if valid and given not in valid:
            if (new := new_value(flag, given)) in valid:
                raise InputError(f"{flag} {given} was renamed: use {flag} {new}.")
            lower = {name.lower(): name for name in valid}
            near = difflib.get_close_matches(given.lower(), lower, 1, 0.5)
            advice = f"did you mean {lower[near[0]]}? " if near else ""
            raise InputError(
                f"{flag} {given} is not one of its choices: {advice}"
                f"There are {', '.join(sorted(valid))}."
            )


def _top_level_and_lists(value) -> tuple[set[str], set[str]]:
    """Returns (names of the flags without a prefix, flags that take lists) of a dataclass."""
    top_level, lists = set(), set()
    for prefix, field, inner, _ in _walk(value):
        if not prefix:
            top_level.add(field.name)
        is_list = isinstance(inner, tuple) or str(field.type).startswith("tuple")
        if is_list and not prefix.startswith("hparams."):
            lists.add(prefix + field.name)
    # a choice of a space may be a list itself: --space.model.features 32,64 128
    return top_level, {n for n in lists if n.removeprefix("space.") not in lists - {n}}


def run_command(function: Callable, prog: str, description: str | None, config=()) -> Any:
    """Calls a function with the flags of the command line, and returns its result."""

    @functools.wraps(function)
    def bind(*args, **kwargs):
        return functools.partial(function, *args, **kwargs)

    options = {"prog": prog, "description": description, "config": config, "registry": REGISTRY}
    call, unknown = tyro.cli(bind, return_unknown_args=True, **options)
    refuse_unknown(unknown, lambda: tyro.cli(bind, args=["--help"], **options), prog, "--help")
    return call()


def refuse_unknown(
    words: list[str], show: Callable[[], None], command: str, all_flags: str = "--help-all"
) -> None:
    """Raises InputError for unknown words, with the most similar flag of the help that `show`
    prints. all_flags: the flag for the full help."""
    if not words:
        return
    flag = next((word for word in words if word.startswith("-")), None)
    if flag is None:
        raise InputError(f"{words[0]!r} belongs to no flag: see {command} --help.")
    flags = re.findall(r"(?m)^[│ ] (--[a-z][a-z0-9.-]*)", capture_stdout(show))
    flag, by_last_name = flag.partition("=")[0], {}
    for option in flags:
        by_last_name.setdefault(option.rpartition(".")[2].strip("-"), option)
    refuse_old_names([flag], by_last_name)
    last_name = flag.rpartition(".")[2].strip("-")
    near = difflib.get_close_matches(last_name, by_last_name, 1, 0.6)
    near = [by_last_name[near[0]]] if near else difflib.get_close_matches(flag, flags, 1, 0.6)
    advice = f"did you mean {near[0]}?" if near else f"see {command} {all_flags}."
    raise InputError(f"{flag} is no flag of this command: {advice}")


def refuse_old_names(words: list[str], names: Collection[str]) -> None:
    """Raises InputError for an old name of a flag. names: those of the command's flags, without
    prefixes."""
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        new = new_flag(flag)
        if new and re.split(r"\.|--(?:no-)?", new)[-1] in names:
            raise InputError(f"{flag} was renamed: use {new}.")


def compact_help(show: Callable[[], None], default, command: str) -> str:
    """Returns the help that `show` prints, without advanced and ineffective flags."""
    hparams, augment = default.hparams, default.recipe.augment
    unused = {*strength_names(tuple(AUGMENTATIONS.values()), hparams), "kl_weight"}
    unused -= {*strength_names(augment, hparams)}
    unused |= {"backbone_lr_scale"} if getattr(default, "transfer", None) is None else set()
    hidden = {f"{prefix}.{name}" for name in unused for prefix in ("hparams", "space")}
    sweep_text = ""
    if space := getattr(default, "space", None):  # a sweep searches these already
        hidden |= {f"model.{field.name}" for field in dataclasses.fields(default.recipe.model)}
        hidden |= {f"hparams.{name}" for name in hparam_names(hparams)}
        for prefix, values in (("space.", space), ("space.model.", space.model)):
            names = [field.name for field in dataclasses.fields(values)]
            hidden |= {prefix + name for name in names if getattr(values, name) == ()}
        sweep_text = (
            "Any number and any field of the model can be searched, --space.NAME, or fixed, "
            "--hparams.NAME.\n"
        )
    hidden = {f"--{name.replace('_', '-')}" for name in hidden}
    shown, count = _hide_flags(capture_stdout(show), ADVANCED | hidden)
    return (
        f"{shown}\n{command} --help-all shows {count} more flags.\n{sweep_text}"
        "In short: --lr 0.01 for --hparams.learning-rate, --dropout 0.3 for --hparams.dropout, and "
        "so on;\nlists are 32 64 or 32,64.\n"
    )


def capture_stdout(show: Callable[[], None]) -> str:
    """Returns the output of `show`, which may exit."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # decides tyro's box characters
    with io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) as out:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            show()
        return out.buffer.getvalue().decode(encoding)


def _hide_flags(text: str, hidden: Collection[str]) -> tuple[str, int]:
    """Returns (help without hidden flags and empty groups; number of hidden flags)."""
    groups, count, skipped = [[0]], 0, False  # a group: number of its entries, then its lines
    for line in text.splitlines(keepends=True):
        if entry := re.match(r"[│ ] (--?[a-zA-Z][a-z0-9.-]*)", line):
            skipped = entry[1] in hidden
            count += skipped
            groups[-1][0] += not skipped
        elif re.match(r"[╭ ](─ )?\S*( ?options) ", line):  # some encodings have no boxes
            groups.append([0])
            skipped = False
        elif line[0] in "╭╰" or not line.strip():
            skipped = False
        if not skipped and not re.fullmatch(r"[│ ]\s+\(default: \)\s*│?\s*", line):
            groups[-1].append(line)
    shown = [groups[0], *(group for group in groups[1:] if group[0])]
    return "".join(line for _, *lines in shown for line in lines), count
