"""The command line of a sweep: its flags, and the space that they give."""

import dataclasses
import os
import sys
from types import ModuleType
from typing import Annotated, Literal

import tyro

from dlflax import run
from dlflax.config.renamed import REPLACED
from dlflax.errors import InputError
from dlflax.run.flags import check_choices
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
        lambda: run_sweep(search, *_parse(search, experiments, samplers, words, description)),
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

    name = _rule_name(args)
    rules = {
        f"--{field.name.replace('_', '-')}": owner
        for owner, shipped in RULES.items() for field in dataclasses.fields(shipped)
    }  # fmt: skip
    for flag in (word.partition("=")[0] for word in args):
        if flag in REPLACED:
            raise InputError(f"{flag} is no flag any more: {REPLACED[flag]}.")
        if rules.get(flag, name) != name:
            raise InputError(f"{flag} is for --search {rules[flag]}: add it or remove the flag.")
    rule = _rule(name)

    def extend(config: run.Config) -> Sweep:
        """Returns the defaults of the flags, the experiment's before those of a sweep."""
        space_type = _space_type(config, words)
        metavars = [f"{{{','.join((*names, 'MODULE:CLASS'))}}}" for names in (samplers, RULES)]
        shown = tyro.conf.Suppress if is_grid else tyro.conf.arg(metavar=metavars[0])
        search_arg = tyro.conf.arg(help="Selects the trials to train next.", metavar=metavars[1])
        unnamed = tyro.conf.arg(name="")  # --reduction-factor, not --search.reduction-factor
        default = dataclasses.field(default=rule, metadata={"saved": False})
        fields = [
            ("space", space_type, space_type()),
            ("search", Annotated[str, search_arg], name),
            ("rule", Annotated[type(rule), unnamed], default),
            ("sampler", Annotated[str, shown], samplers[0]),
            ("objective", tuple[str, ...], ()),
            ("trials", int, 0) if is_grid else ("trials", int | Literal["auto"], Sweep.trials),
        ]
        flags = dataclasses.make_dataclass("Flags", fields, bases=(Sweep,), frozen=True)
        flags.__doc__ = Sweep.__doc__
        common = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return flags(**{**common, "resume": True, "bag_folds": 0})

    sweep = run.parse(
        experiment, args, description, prog=f"python -m sweeps.{search} {target}", extend=extend
    )
    if len(sweep.objective) > 2:
        raise InputError(
            f"--objective {' '.join(sweep.objective)}: give one, or two of which the second is a "
            f"cost, such as val_loss parameters."
        )
    first, second = (*sweep.objective, "", "")[:2]
    space = _words(sweep.space)
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


def _space_type(config, words) -> type:
    """Returns a dataclass with a field for every searchable name, for tyro."""

    def fields(names, prefix=""):
        kind = Annotated[tuple[str, ...], tyro.conf.arg(help="")]  # Sweep.space explains them
        return [(name, kind, words.get(prefix + name, ())) for name in names]

    from_data = ("parent", "name", "num_outputs", "vocabulary", "shape")
    names = [f.name for f in dataclasses.fields(config.recipe.model) if f.name not in from_data]
    model = dataclasses.make_dataclass("ModelSpace", fields(names, "model."), frozen=True)
    model.__doc__ = "Searched fields of the model."
    numbers_and_structure = fields([*hparam_names(config.hparams), *STRUCTURE])
    return dataclasses.make_dataclass(
        "Space", [*numbers_and_structure, ("model", model, model())], frozen=True
    )


def _words(space) -> dict[str, tuple[str, ...]]:
    """Returns the flags of the space that are set, as `space.space` takes them."""
    flat = {f.name: getattr(space, f.name) for f in dataclasses.fields(space)}
    model = flat.pop("model")
    flat |= {f"model.{f.name}": getattr(model, f.name) for f in dataclasses.fields(model)}
    return {name: words for name, words in flat.items() if words}
