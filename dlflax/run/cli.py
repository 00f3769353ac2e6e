"""The command line of an experiment: flags over a preset, or over what a run was begun with."""

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dlflax import parallel
from dlflax.errors import InputError
from dlflax.run import flags
from dlflax.run.config import Config
from dlflax.run.execute import run
from dlflax.run.exit_codes import with_exit_codes
from dlflax.run.experiment import Experiment, of_presets
from dlflax.run.folder import load_config
from dlflax.run.folds import cross_validate
from dlflax.run.resume import freedom
from dlflax.run.saved import config_from_json
from dlflax.run.stand_in import changes, stand_in_presets
from dlflax.train.augment import set_default_strengths
from dlflax.train.layout import use_all_cores
from dlflax.train.slots import SLOTS, components, replace_components, short_names

TYRO = (tyro.conf.SuppressFixed,)


def main(
    experiment: str,
    presets: Mapping[str, Config],
    architectures: Mapping[str, Any] | None = None,
    args: list[str] | None = None,
    description: str | None = None,
) -> None:
    """The command line of an experiment. presets: named Configs, "default" among them;
    architectures: Linen modules that --model can swap in. Exits 2 on bad input, 1 when the run
    cannot continue, 75 on SIGTERM, 130 on Ctrl-C."""
    found = of_presets(experiment, presets, architectures)

    def command():
        config = parse(found, args, description)
        if config.folds:
            use_all_cores()
        if config.distributed:
            parallel.initialize()
        (cross_validate if config.folds else run)(found, config)

    with_exit_codes(command)


def parse(
    experiment: Experiment,
    args: list[str] | None = None,
    description: str | None = None,
    prog: str | None = None,
    extend: Callable[[Config], Config] = lambda config: config,
) -> Config:
    """Config from the flags, over the preset's values or, with --resume, over the saved ones.
    extend turns it into that of another command, with more flags."""
    args = sys.argv[1:] if args is None else list(args)
    args = flags.with_lists(args, [name for name, slot in SLOTS.items() if slot.several])
    presets, architectures = experiment.presets, experiment.architectures
    args = flags.with_data(args, presets["default"].data)
    recipes = [preset.recipe for preset in presets.values()]
    choices = {
        name: tuple(sorted(components(name, recipes)))
        for name, slot in SLOTS.items()
        if slot.shipped
    }
    named = {**choices, "preset": tuple(presets), "model": tuple(sorted(architectures))}
    flags.check_choices(args, named)
    chosen = _first_look(args, tuple(presets), tuple(architectures), choices)

    # an architecture may have a preset of its own name
    preset = chosen.preset or (chosen.model if chosen.model in presets else "default")
    default, resumed = presets[preset], False
    if chosen.resume:
        folder = chosen.run_dir or _newest_run(experiment.name)
        resumed = (folder / "config.json").exists() and not chosen.preset
        if resumed:
            saved = load_config(folder)["config"]
            default = config_from_json(saved, folder, experiment)
        local = {  # perhaps on another machine
            field.name: field.default for field in dataclasses.fields(Config)
            if freedom(Config, field.name) == "local"
        }  # fmt: skip
        default = dataclasses.replace(default, run_dir=folder, **local)
    # a preset, or a run that is resumed, has that architecture with fields of its own
    as_it_is = resumed or chosen.preset or chosen.model in presets

    def over(default: Config) -> Config:
        """The flags over a Config's values."""
        recipe = replace_components(default.recipe, vars(chosen), recipes)
        model = architectures.get(chosen.model, recipe.model)
        if type(model) is not type(recipe.model) or not as_it_is:
            recipe = dataclasses.replace(recipe, model=model)
        numbers = default.hparams
        if chosen.augment:
            numbers = set_default_strengths(recipe.augment, numbers)
        default = extend(dataclasses.replace(default, recipe=recipe, hparams=numbers))
        command = _command(default, preset, tuple(presets), architectures, choices)
        config = _parsed(command, prog or experiment.command, description, args, default)
        changed = [
            f"hparams.{f.name}" for f in dataclasses.fields(numbers)
            if getattr(config.hparams, f.name) != getattr(numbers, f.name)
        ]  # fmt: skip
        return dataclasses.replace(config, given=tuple(changed))

    config, stand_ins = over(default), {}
    others = {} if as_it_is else stand_in_presets(presets, config)
    for name, other in others.items():
        with contextlib.suppress(InputError):  # a flag that the other preset does not have
            stand_ins[name] = changes(config, over(other))
    return dataclasses.replace(config, stand_ins=stand_ins)


def _parsed(command, prog, description, args, default):
    """The Config of the flags. InputError for a flag that there is not; --help and --help-all end
    the process."""
    options = dict(prog=prog, description=description, config=TYRO, registry=flags.OPTIONAL)
    args = flags.rewritten(args, default)

    def whole(compact: bool = False):
        of_help = {"description": (description or "").partition("\n\n")[0]} if compact else {}
        tyro.cli(command, args=["--help"], compact_help=compact, **options | of_help)

    if "--help-all" in args:
        args = ["--help"]
    elif {"-h", "--help"} & {*args}:
        print(flags.help_of(lambda: whole(compact=True), default, prog), end="")
        sys.exit(0)
    flags.check_choices(args, flags.choices_of(default))
    config, unknown = tyro.cli(command, args=args, return_unknown_args=True, **options)
    flags.refuse_unknown(unknown, whole, prog)
    return config


def _first_look(args, presets, architectures, choices):
    """The flags that decide the defaults of all others."""
    named = [(slot, _choice(slot, names) | None, None) for slot, names in choices.items()]
    first = dataclasses.make_dataclass(
        "First",
        [
            ("preset", Literal[presets] | None, None),
            ("model", Literal[architectures] | None if architectures else None, None),
            *named,
            ("run_dir", Path | None, None),
            ("resume", bool, False),
        ],
    )
    without_help = [arg for arg in args if arg not in ("-h", "--help", "--help-all")]
    chosen, _ = tyro.cli(
        first, args=without_help, config=TYRO, add_help=False, return_unknown_args=True
    )
    return chosen


def _choice(slot: str, names: tuple[str, ...]):
    """Returns the type of a flag that takes these names of things."""
    return tuple[Literal[names], ...] if SLOTS[slot].several else Literal[names]


def _command(default, preset, presets, architectures, choices):
    """A function whose arguments are all flags, for tyro; it returns the Config."""
    recipe = default.recipe

    def command(config, **_):
        return config

    kinds = {
        "config": Annotated[type(default), tyro.conf.arg(name="")],
        "preset": Annotated[
            Literal[tuple(sorted(presets))],
            tyro.conf.arg(help="Values that the other flags start from."),
        ],
    }
    defaults = {"config": default, "preset": preset}
    if architectures:  # what is shown; the first look has taken it
        names = tuple(sorted(architectures))
        own = [n for n in names if type(architectures[n]) is type(recipe.model)]
        of = Literal[names] if own else Literal[names] | None
        text = "Architecture, if not the preset's; some have a preset too."
        kinds["architecture"] = Annotated[of, tyro.conf.arg(name="model", help=text)]
        defaults["architecture"] = own[0] if own else None
    for slot, names in choices.items():
        # what tyro shows as the default; the first look has put the thing itself into the recipe
        value = short_names(slot, recipe)
        if value not in names and not SLOTS[slot].several:
            continue  # of a resumed run: it stays
        argument = tyro.conf.arg(name=slot, help=SLOTS[slot].help)
        kinds[f"{slot}_name"] = Annotated[_choice(slot, names), argument]
        defaults[f"{slot}_name"] = value
    return _with_signature(command, kinds, defaults)


def _with_signature(function, kinds, defaults):
    """The function with these keyword arguments, as tyro reads them."""
    function.__annotations__ = dict(kinds)
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind
            )
            for name, kind in kinds.items()
        ]
    )
    return function


def _newest_run(experiment: str) -> Path:
    folder = Path("runs") / experiment
    found = sorted(folder.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(
            f"--resume: there is no run in {folder}; name one with --run-dir, or leave it out."
        )
    return found[-1].parent
