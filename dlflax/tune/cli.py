"""The command line of a sweep: its flags, and the space that they give."""

import dataclasses
import os
import sys
from types import ModuleType
from typing import Annotated, Literal

import tyro

from dlflax import run
from dlflax.errors import InputError
from dlflax.run.flags import check_choices
from dlflax.train.hparams import hparam_names
from dlflax.train.layout import use_all_cores
from dlflax.tune.config import Sweep
from dlflax.tune.rules import RULES, Rule
from dlflax.tune.samplers import load_class
from dlflax.tune.space import STRUCTURE
from dlflax.tune.sweep import run_sweep

SPACE = {
    "learning_rate": ("1e-4", "1e-2", "log"),
    "dropout": ("0", "0.5"),
    "l2": ("1e-7", "1e-3", "log"),
}  # what is searched for an experiment without a SPACE of its own
OLD = {
    "--prune": "use --search halving --reduction-factor N",
    "--slice": "use --search freeze-thaw --epochs-per-round N",
    "--heartbeat": "workers are started by --launcher and --workers",
}  # flag -> what to do
GRID = {
    "learning_rate": ("3e-4", "1e-3", "3e-3"),
    "dropout": ("0", "0.25", "0.5"),
    "l2": ("0", "1e-5", "1e-4"),
}


def main(
    search: str,
    experiments: ModuleType,
    samplers: tuple[str, ...],
    args: list[str] | None = None,
    description: str | None = None,
) -> None:
    """The command line of a kind of search. experiments: the package whose modules have PRESETS and
    may have ARCHITECTURES, SPACE and GRID; samplers: what --sampler offers, the default first.
    Exit codes as for `run.main`."""

    def command():
        run_sweep(*_parse(search, experiments, samplers, args, description))

    words = sys.argv[1:] if args is None else args
    if any(word.startswith("--workers") for word in words):  # they need memory of the accelerators
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    use_all_cores()
    run.with_exit_codes(command, continuation="the same command continues with what is recorded")


def _parse(search, experiments, samplers, args, description):
    args = sys.argv[1:] if args is None else list(args)
    if "--resume" in args:
        raise InputError("--resume: a sweep always continues; give the same command without it.")
    given = args.pop(0) if args and not args[0].startswith("-") else "mnist"
    experiment, grid = run.find(given, experiments), samplers == ("grid",)
    words = getattr(experiment.module, *(("GRID", GRID) if grid else ("SPACE", SPACE)))
    if grid and any(word.startswith("--space.") for word in args):
        words = {}  # a grid is over what is named, and nothing else

    _refuse_flags(args)
    rule = _rule(_rule_name(args))

    def extend(config: run.Config) -> Sweep:
        """The flags' defaults: those of the experiment, and those of a sweep over it."""
        of_flags = _space_type(config, words)
        shown = tyro.conf.arg(metavar=f"{{{','.join((*samplers, 'MODULE:CLASS'))}}}")
        sampler = Annotated[str, tyro.conf.Suppress if grid else shown]
        choices = {**RULES, "MODULE:CLASS": None}
        rules = Annotated[
            str, tyro.conf.arg(help="What trains next.", metavar=f"{{{','.join(choices)}}}")
        ]
        own = Annotated[type(rule), tyro.conf.arg(name="")]  # --reduction-factor, not --search.…
        fields = [
            ("space", of_flags, of_flags()),
            ("search", rules, _rule_name(args)),
            ("rule", own, dataclasses.field(default=rule, metadata={"saved": False})),
            ("sampler", sampler, samplers[0]),
            ("objective", tuple[str, ...], ()),
            ("trials", int, 0) if grid else ("trials", int | Literal["auto"], Sweep.trials),
        ]
        flags = dataclasses.make_dataclass("Flags", fields, bases=(Sweep,), frozen=True)
        flags.__doc__ = Sweep.__doc__
        common = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return flags(**{**common, "resume": True})

    sweep = run.parse(
        experiment, args, description, prog=f"python -m sweeps.{search} {given}", extend=extend
    )
    if len(sweep.objective) > 2:
        raise InputError(
            f"--objective {' '.join(sweep.objective)}: give one, or two of which the second is a "
            f"cost, such as val_loss parameters."
        )
    first, second = (*sweep.objective, "", "")[:2]
    sweep = dataclasses.replace(sweep, objective=first, cost=second, search=sweep.rule)
    chosen = _words(sweep.space)
    given = [f"space.{name}" for name, value in chosen.items() if value != words.get(name)]
    sweep = dataclasses.replace(sweep, space=chosen, given=(*sweep.given, *given))
    for name in sweep.space:
        if f"hparams.{name}" in sweep.given:
            flag, value = name.replace("_", "-"), getattr(sweep.hparams, name)
            raise InputError(
                f"--hparams.{flag} {value:g} and --space.{flag} contradict each other: fix it with "
                f"--space.{flag} {value:g}, or leave --hparams.{flag} out."
            )
    return search, experiment, sweep


def _rule_name(args: list[str]) -> str:
    """Returns the word of --search, or full."""
    name = "full"
    for word, following in zip(args, [*args[1:], ""], strict=bool(args)):
        flag, equals, value = word.partition("=")
        if flag == "--search":
            name = value if equals else following
    return name


def _rule(name: str) -> Rule:
    """Returns the Rule of that name, or of module:Class. Raises InputError where there is none."""
    if ":" not in name:
        check_choices(["--search", name], {"search": tuple(RULES)})
        return RULES[name]
    rule = load_class("--search", name)
    if not (dataclasses.is_dataclass(rule) and hasattr(rule, "decide")):
        raise InputError(f"--search {name} must be a dataclass with the methods of rules.Rule.")
    return rule()


def _refuse_flags(args: list[str]) -> None:
    """Raises InputError for a flag of another Rule, or of an earlier version."""
    of_rules = {
        f"--{field.name.replace('_', '-')}": name
        for name, rule in RULES.items() for field in dataclasses.fields(rule)
    }  # fmt: skip
    for flag in (word.partition("=")[0] for word in args):
        if flag in OLD:
            raise InputError(f"{flag} is no flag any more: {OLD[flag]}.")
        if of_rules.get(flag, _rule_name(args)) != _rule_name(args):
            raise InputError(f"{flag} is for --search {of_rules[flag]}: add it or remove the flag.")


def _space_type(config, words):
    """A dataclass with a field for everything that can be searched, for tyro."""

    def field(name, prefix=""):
        of = Annotated[tuple[str, ...], tyro.conf.arg(help="")]  # said once, above all
        return name, of, words.get(prefix + name, ())

    skip = ("parent", "name", "num_outputs", "vocabulary", "shape")  # the data decide these
    of_model = [f.name for f in dataclasses.fields(config.recipe.model)]
    of_model = [name for name in of_model if name not in skip]
    model_type = dataclasses.make_dataclass(
        "ModelSpace", [field(name, "model.") for name in of_model], frozen=True
    )
    model_type.__doc__ = "What of the model is searched over."
    return dataclasses.make_dataclass(
        "Space",
        [field(name) for name in hparam_names(config.hparams)]
        + [field(name) for name in STRUCTURE]
        + [("model", model_type, model_type())],
        frozen=True,
    )


def _words(space) -> dict[str, tuple[str, ...]]:
    """The space's flags as `space` reads them, without those that are not set."""
    flat = {f.name: getattr(space, f.name) for f in dataclasses.fields(space)}
    of_model = flat.pop("model")
    flat |= {f"model.{f.name}": getattr(of_model, f.name) for f in dataclasses.fields(of_model)}
    return {name: words for name, words in flat.items() if words}
