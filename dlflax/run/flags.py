"""Words of a command line as flags: short names, lists with commas, near misses; and
a help that shows what matters first."""

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

from dlflax.errors import InputError
from dlflax.train.augment import AUGMENTATIONS, strength_names
from dlflax.train.hparams import hparam_names

SHORT = {"lr": "learning-rate"}
WITH_PREFIX = ("hparams", "task", "model", "optimizer", "schedule", "augment", "space")
LIST = re.compile(r"[^,\s]+(,[^,\s]+)+")  # "32,64"; a column may be called "price, EUR"
FEW_NEED = {  # flags that --help leaves out
    "--devices", "--shard-state", "--distributed", "--profile", "--trainable", "--compute-dtype",
    "--baseline", "--class-weights", "--reduce-on-plateau", "--self-contained", "--head-epochs",
    "--contrastive-epochs", "--views", "--rank", "--prior", "--warm-start", "--mode",
    "--tolerance", "--launcher-options", "--storage", "--study", "--retrain-on-all",
    "--model.formulation", "--space.model.formulation", "--space.compute-dtype", "--space.ema",
    "--log", "--task.monitor", "--optimizer.b1", "--optimizer.b2", "--optimizer.eps",
    "--hparams.ema-decay", "-H", "--hparams.label-smoothing", "--hparams.clip-norm",
}  # fmt: skip


OPTIONAL = tyro.constructors.ConstructorRegistry()
METAVARS = {Path: "PATH", str: "STR", int: "INT", float: "FLOAT"}


@OPTIONAL.primitive_rule
def optional(info: tyro.constructors.PrimitiveTypeInfo):
    """Returns tyro's specification of `Path | None` and the like, which shows PATH and not
    {None}|PATH; None for another type."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if len(kinds) != 1 or NoneType not in get_args(info.type) or kinds[0] not in METAVARS:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=METAVARS[kinds[0]],
        instance_from_str=lambda words: None if words == ["None"] else kinds[0](words[0]),
        is_instance=lambda value: value is None or isinstance(value, kinds[0]),
        str_from_instance=lambda value: [str(value)],
    )


def rewritten(args: list[str], default) -> list[str]:
    """The words with short names in full, `--lr 0.1` as `--hparams.learning-rate 0.1`, and lists
    with commas, `--model.features 32,64`, as words of their own. default: a Config, whose fields
    are the flags."""
    own, lists = _fields(default)
    of_hparams, found = {*hparam_names(default.hparams), *SHORT}, []
    for word in args:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            prefix, _, name = flag[2:].rpartition(".")
            if prefix in ("", "hparams", "space") and name.replace("-", "_") in of_hparams - own:
                prefix = prefix or "hparams"
                word = f"--{prefix}.{SHORT.get(name, name)}{equals}{value}"
        found.append(word)
    return with_lists(found, lists)


def with_lists(args: list[str], lists: Collection[str]) -> list[str]:
    """The words with "32,64" as "32", "64" behind the flags in `lists`, such as
    "model.features"."""
    found, in_list = [], False
    for word in args:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            in_list = flag[2:].replace("-", "_") in lists
            if in_list and LIST.fullmatch(value):
                found += [flag, *value.split(",")]
                continue
        elif in_list and LIST.fullmatch(word):
            found += word.split(",")
            continue
        found.append(word)
    return found


def with_data(args: list[str], source) -> list[str]:
    """Returns the words with a first one that is a file or folder as --data-dir, if the source has
    that field."""
    takes = "data_dir" in {field.name for field in dataclasses.fields(source)}
    is_data = takes and args and not args[0].startswith("-") and Path(args[0]).exists()
    return ["--data-dir", *args] if is_data else args


def choices_of(value, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Returns flag -> its choices, for the fields of a dataclass that are a Literal."""
    found, hints = {}, {}
    with contextlib.suppress(NameError):  # of a class whose annotations name what is not there
        hints = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        each = getattr(value, field.name, None)
        hint = hints.get(field.name)
        words = get_args(hint) if get_origin(hint) is Literal else ()
        if words and all(isinstance(word, str) for word in words):
            found[prefix + field.name] = words
        if dataclasses.is_dataclass(each):
            inner = f"{prefix}{field.name}." if field.name in WITH_PREFIX else prefix
            found |= choices_of(each, inner)
    return found


def check_choices(args: list[str], choices: Mapping[str, Collection[str]]) -> None:
    """Raises InputError for a word behind one of these flags that is none of its choices; it names
    the nearest one."""
    flag = None
    for word in args:
        given = word
        if word.startswith("--"):
            flag, equals, given = word.partition("=")
            if not equals:
                continue
        known = choices.get(flag[2:].replace("-", "_"), ()) if flag else ()
        if known and given not in known:
            of_any_case = {name.lower(): name for name in known}
            near = difflib.get_close_matches(given.lower(), of_any_case, 1, 0.5)
            advice = f"did you mean {of_any_case[near[0]]}? " if near else ""
            raise InputError(
                f"{flag} {given} is not one of its choices: {advice}"
                f"There are {', '.join(sorted(known))}."
            )


def _fields(value, prefix: str = "") -> tuple[set[str], set[str]]:
    """(names of the flags without a prefix, flags that take lists) of a dataclass."""
    own, lists = set(), set()
    for field in dataclasses.fields(value):
        each = getattr(value, field.name, None)
        if not prefix:
            own.add(field.name)
        if isinstance(each, tuple) or str(field.type).startswith("tuple"):
            lists.add(prefix + field.name)
        if dataclasses.is_dataclass(each) and field.name != "hparams":
            inner = f"{prefix}{field.name}." if field.name in WITH_PREFIX else prefix
            more = _fields(each, inner)
            own, lists = own | more[0], lists | more[1]
    # of a space's choices one may itself be a list: --space.model.features 32,64 128
    return own, {name for name in lists if name.removeprefix("space.") not in lists - {name}}


def called(function: Callable, prog: str, description: str | None, config=()) -> Any:
    """Calls a function with the words of the command line, by tyro, and returns its result.
    InputError for a word that is none of its flags, before it is called."""

    @functools.wraps(function)
    def later(*args, **kwargs):
        return functools.partial(function, *args, **kwargs)

    how = {"prog": prog, "description": description, "config": config, "registry": OPTIONAL}
    call, unknown = tyro.cli(later, return_unknown_args=True, **how)
    refuse_unknown(unknown, lambda: tyro.cli(later, args=["--help"], **how), prog, "--help")
    return call()


def refuse_unknown(
    words: list[str], show: Callable[[], None], command: str, all_flags: str = "--help-all"
) -> None:
    """InputError that names the first word that is no flag, and the flag of the help, as `show`
    prints it, that looks most like it. all_flags: the flag that shows every other one."""
    if not words:
        return
    flag = next((word for word in words if word.startswith("-")), None)
    if flag is None:
        raise InputError(f"{words[0]!r} belongs to no flag: see {command} --help.")
    known = re.findall(r"(?m)^[│ ] (--[a-z][a-z0-9.-]*)", printed(show))
    flag, of_last = flag.partition("=")[0], {}
    for option in known:
        of_last.setdefault(option.rpartition(".")[2].strip("-"), option)
    last = flag.rpartition(".")[2].strip("-")
    near = difflib.get_close_matches(last, of_last, 1, 0.6)
    near = [of_last[near[0]]] if near else difflib.get_close_matches(flag, known, 1, 0.6)
    advice = f"did you mean {near[0]}?" if near else f"see {command} {all_flags}."
    raise InputError(f"{flag} is no flag of this command: {advice}")


def help_of(show: Callable[[], None], default, command: str) -> str:
    """Returns the help that `show` prints before it exits, without the flags few need and those
    of augmentations that the experiment does not have."""
    hparams, augment = default.hparams, default.recipe.augment
    idle = {*strength_names(tuple(AUGMENTATIONS.values()), hparams), "kl_weight"}
    idle -= {*strength_names(augment, hparams)}
    idle |= {"backbone_rate"} if getattr(default, "transfer", None) is None else set()
    idle = [f"{of}.{name.replace('_', '-')}" for name in idle for of in ("hparams", "space")]
    more = ""
    if space := getattr(default, "space", None):  # of a sweep: what is searched already
        model = {f"model.{field.name}" for field in dataclasses.fields(default.recipe.model)}
        empty = {f.name for f in dataclasses.fields(space) if getattr(space, f.name) == ()}
        of_model = {f.name for f in dataclasses.fields(space.model)}
        of_model = {f"model.{name}" for name in of_model if getattr(space.model, name) == ()}
        idle += [*model, *(f"hparams.{name}" for name in hparam_names(hparams))]
        idle += [*(f"space.{name.replace('_', '-')}" for name in empty | of_model)]
        idle = [name.replace("_", "-") for name in idle]
        more = (
            "Any number and any field of the model can be searched, --space.NAME, or fixed, "
            "--hparams.NAME.\n"
        )
    shown, count = _without(printed(show), {*FEW_NEED, *(f"--{name}" for name in idle)})
    return (
        f"{shown}\n{command} --help-all shows {count} more flags.\n{more}"
        "In short: --lr 0.01 for --hparams.learning-rate, --dropout 0.3 for --hparams.dropout, and "
        "so on;\nlists are 32 64 or 32,64.\n"
    )


def printed(show: Callable[[], None]) -> str:
    """Returns the text that `show`, which may exit, prints."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # tyro draws boxes as it allows
    with io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) as out:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            show()
        return out.buffer.getvalue().decode(encoding)


def _without(text: str, hidden: Collection[str]) -> tuple[str, int]:
    """(tyro's help without the entries of some flags, groups that have no others, and lines of
    empty defaults; how many)."""
    groups, count, skipped = [[0]], 0, False  # each with how many entries it has, then its lines
    for line in text.splitlines(keepends=True):
        if entry := re.match(r"[│ ] (--?[a-zA-Z][a-z0-9.-]*)", line):
            skipped = entry[1] in hidden
            count += skipped
            groups[-1][0] += not skipped
        elif re.match(r"[╭ ](─ )?\S*( ?options) ", line):  # boxes are blank where there are none
            groups.append([0])
            skipped = False
        elif line[0] in "╭╰" or not line.strip():
            skipped = False
        if not skipped and not re.fullmatch(r"[│ ]\s+\(default: \)\s*│?\s*", line):
            groups[-1].append(line)
    shown = [groups[0], *(group for group in groups[1:] if group[0])]
    return "".join(line for _, *lines in shown for line in lines), count
