"""The command line of a sweep: its flags, and the space that they give."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Literal, TypedDict

import tyro

from dlflax import STARTED, run
from dlflax.config.renamed import REPLACED
from dlflax.errors import InputError
from dlflax.run.flags import describe_choice, parse_known_args
from dlflax.train.hparams import hparam_names
from dlflax.train.layout import use_all_cores
from dlflax.tune.pool.rules import RULES, Rule
from dlflax.tune.suggest.samplers import load_class
from dlflax.tune.suggest.space import STRUCTURE
from dlflax.tune.sweep import run_sweep
from dlflax.tune.sweep_config import Sweep

# the search space of an experiment without a SPACE or GRID of its own
SPACE = {
    "learning_rate": ("1e-4", "1e-2", "log"),
    "dropout": ("0", "0.5"),
    "l2": ("1e-7", "1e-3", "log"),
}
GRID = {
    "learning_rate": ("3e-4", "1e-3", "3e-3"),
    "dropout": ("0", "0.25", "0.5"),
    "l2": ("0", "1e-5", "1e-4"),
}


def main(
    search: str, experiments: ModuleType, samplers: tuple[str, ...], args: list[str] | None = None,
    description: str | None = None,
) -> None:  # fmt: skip
    """Runs the command of a kind of search. Exit codes as for `run.main`.

    experiments: the package whose modules have PRESETS and may have ARCHITECTURES, SPACE and GRID;
    samplers: the choices of --sampler, the default first.
    """
    words = sys.argv[1:] if args is None else list(args)
    if any(word.startswith("--workers") for word in words):  # they need memory of the accelerators
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    use_all_cores()
    run.with_exit_codes(
        lambda: run_sweep(
            search, *_parse(search, experiments, samplers, words, description), started=STARTED
        ),
        continuation="the same command continues with the recorded trials",
    )


def _parse(search, experiments, samplers, args, description) -> tuple[run.Experiment, Sweep]:
    if "--resume" in args:
        raise InputError("--resume: a sweep always continues; give the same command without it.")
    target = args.pop(0) if args and not args[0].startswith("-") else "mnist"
    experiment, is_grid = run.find(target, experiments), samplers == ("grid",)
    words = getattr(experiment.module, *(("GRID", GRID) if is_grid else ("SPACE", SPACE)))
    if is_grid and any(word.startswith("--space.") for word in args):
        words = {}  # a grid searches over the named fields alone

    name = parse_known_args({"search": str}, args)[0].get("search", "full")
    owners = {
        f"--{field.name.replace('_', '-')}": owner
        for owner, shipped in RULES.items() for field in dataclasses.fields(shipped)
    }  # fmt: skip
    for flag in (word.partition("=")[0] for word in args):
        if flag in REPLACED:
            raise InputError(f"{flag} is no flag any more: {REPLACED[flag]}.")
        if owners.get(flag, name) != name:
            raise InputError(f"{flag} is for --search {owners[flag]}: add it or remove the flag.")
    rule = _rule(name)

    def extend(config: run.Config) -> Sweep:
        """Returns the defaults of the flags, the experiment's before those of a sweep."""
        kind, space = _space(config, words)
        metavars = [f"{{{','.join((*names, 'MODULE:CLASS'))}}}" for names in (samplers, RULES)]
        shown = tyro.conf.Suppress if is_grid else tyro.conf.arg(metavar=metavars[0])
        search_arg = tyro.conf.arg(help="Selects the trials to train next.", metavar=metavars[1])
        unnamed = tyro.conf.arg(name="")  # --reduction-factor, not --search.reduction-factor
        default = dataclasses.field(default=rule, metadata={"saved": False})
        fields = [
            ("space", kind, dataclasses.field(default_factory=lambda: space)),
            ("search", Annotated[str, search_arg], name),
            ("rule", Annotated[type(rule), unnamed], default),
            ("sampler", Annotated[str, shown], samplers[0]),
            ("objective", tuple[str, ...], ()),
            ("trials", int, 0) if is_grid else ("trials", int | Literal["auto"], Sweep.trials),
        ]
        flags = dataclasses.make_dataclass("Flags", fields, bases=(Sweep,), frozen=True)
        flags.__doc__ = Sweep.__doc__
        common = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return flags(**{**common, "resume": True})

    sweep = run.parse(
        experiment, args, description, prog=f"python -m sweeps.{search} {target}", extend=extend
    )
    if len(sweep.objective) > 2:
        raise InputError(
            f"--objective {' '.join(sweep.objective)}: give one, or two of which the second is a "
            f"cost, such as val_loss parameters."
        )
    first, second = (*sweep.objective, "", "")[:2]
    space = {name: tuple(words) for name, words in sweep.space.items() if words}
    given = [f"space.{name}" for name, value in space.items() if value != words.get(name)]
    for name in space:
        if f"hparams.{name}" in sweep.given:
            flag, value = name.replace("_", "-"), getattr(sweep.hparams, name)
            raise InputError(
                f"--hparams.{flag} {value:g} and --space.{flag} contradict each other: fix it with "
                f"--space.{flag} {value:g}, or remove --hparams.{flag}."
            )
    return experiment, dataclasses.replace(
        sweep, objective=first, cost=second, search=sweep.rule, space=space,
        given=(*sweep.given, *given),
    )  # fmt: skip


def _rule(name: str) -> Rule:
    """Returns the Rule of that name, or of module:Class. Raises InputError where there is none."""
    if ":" not in name:
        if name not in RULES:
            raise InputError(f"--search {describe_choice(name, RULES)}")
        return RULES[name]
    rule = load_class("--search", name)
    if not (dataclasses.is_dataclass(rule) and hasattr(rule, "decide")):
        raise InputError(f"--search {name} must be a dataclass with the methods of rules.Rule.")
    return rule()


def _space(config, words) -> tuple[type, dict[str, tuple[str, ...]]]:
    """Returns (type for tyro, words) of every searchable name, such as "dropout" and
    "model.features"."""
    model, recipe = config.recipe.model, config.recipe
    from_data = ("parent", "name", "num_outputs", "vocabulary", "shape")
    names = [field.name for field in dataclasses.fields(model) if field.name not in from_data]
    values = {name: None for name in hparam_names(config.hparams)}
    values |= {name: getattr(recipe, name, None) for name in STRUCTURE}
    values |= {f"model.{name}": getattr(model, name) for name in names}
    kinds = {
        # tyro splits a tuple; here each choice may be a list, --space.model.features 32,64 128
        name: Sequence[str] if isinstance(value, tuple) else tuple[str, ...]
        for name, value in values.items()
    }
    return TypedDict("Space", kinds), {name: words.get(name, ()) for name in kinds}
