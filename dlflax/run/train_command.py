"""Command line of an experiment: flags override a preset, or the settings of a resumed run."""

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dlflax import STARTED, parallel
from dlflax.config.config import Config
from dlflax.config.experiment import Experiment, from_presets
from dlflax.config.resume import resume_policy
from dlflax.config.run_folder import load_config
from dlflax.config.saved import config_from_json
from dlflax.config.stand_in import changes, stand_in_presets
from dlflax.errors import InputError
from dlflax.run import flags
from dlflax.run.cross_validation import cross_validate
from dlflax.run.execute import run
from dlflax.run.exit_codes import with_exit_codes
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
    """Runs the command line of an experiment. presets: named Configs, "default" among them;
    architectures: Linen modules for --model. Exits 2 on bad input, 1 when the run
    cannot continue, 75 on SIGTERM, 130 on Ctrl-C."""
    run_experiment = from_presets(experiment, presets, architectures)

    def command():
        config = parse(run_experiment, args, description)
        if config.folds or config.bag_folds:
            use_all_cores()
        if config.distributed:
            parallel.initialize()
        if config.folds:
            cross_validate(run_experiment, config)
        else:
            run(run_experiment, config, started=STARTED)

    with_exit_codes(command)


def parse(
    experiment: Experiment,
    args: list[str] | None = None,
    description: str | None = None,
    prog: str | None = None,
    extend: Callable[[Config], Config] = lambda config: config,
) -> Config:
    """Returns the Config: flags override the preset or, with --resume, the saved settings.
    extend: turns the Config into one of another command, with more flags."""
    args = sys.argv[1:] if args is None else list(args)
    args = flags.split_lists(args, [name for name, slot in SLOTS.items() if slot.several])
    presets, architectures = experiment.presets, experiment.architectures
    args = flags.insert_data_flag(args, presets["default"].data)
    recipes = [preset.recipe for preset in presets.values()]
    choices = {
        name: tuple(sorted(components(name, recipes)))
        for name, slot in SLOTS.items()
        if slot.shipped
    }
    flags.check_choices(args, {**choices, "preset": presets, "model": architectures})
    chosen = _parse_structure(args, tuple(presets), tuple(architectures), choices)

    # a preset may have the name of an architecture
    preset = chosen.preset or (chosen.model if chosen.model in presets else "default")
    default, resumed = presets[preset], False
    if chosen.resume:
        folder = chosen.run_dir or _find_newest_run(experiment.name)
        resumed = (folder / "config.json").exists() and not chosen.preset
        if resumed:
            saved = load_config(folder)
            saved = saved.get("requested", saved["config"])
            default = config_from_json(saved, folder, experiment)
        local = {  # the machine may be another
            field.name: field.default for field in dataclasses.fields(Config)
            if resume_policy(Config, field.name) == "local"
        }  # fmt: skip
        default = dataclasses.replace(default, run_dir=folder, **local)
    # the model of a preset or a resumed run has its own field values
    keep_model = resumed or chosen.preset or chosen.model in presets

    def override(default: Config) -> Config:
        recipe = replace_components(default.recipe, vars(chosen), recipes)
        model = architectures.get(chosen.model, recipe.model)
        if type(model) is not type(recipe.model) or not keep_model:
            recipe = dataclasses.replace(recipe, model=model)
        hparams = default.hparams
        if chosen.augment:
            hparams = set_default_strengths(recipe.augment, hparams)
        default = extend(dataclasses.replace(default, recipe=recipe, hparams=hparams))
        command = _command(default, preset, tuple(presets), architectures, choices)
        config = _parse_flags(command, prog or experiment.command, description, args, default)
        changed = [
            f"hparams.{f.name}" for f in dataclasses.fields(hparams)
            if getattr(config.hparams, f.name) != getattr(hparams, f.name)
        ]  # fmt: skip
        return dataclasses.replace(config, given=tuple(changed))

    config, stand_ins = override(default), {}
    others = {} if keep_model else stand_in_presets(presets, config)
    for name, other in others.items():
        with contextlib.suppress(InputError):  # a flag that the other preset does not have
            stand_ins[name] = changes(config, override(other))
    return dataclasses.replace(config, stand_ins=stand_ins)


def _parse_flags(command, prog, description, args, default):
    """Returns the Config of the flags; --help and --help-all end the process."""
    options = dict(prog=prog, description=description, config=TYRO, registry=flags.REGISTRY)
    args = flags.expand_flags(args, default)

    def print_help(compact: bool = False):
        summary = {"description": (description or "").partition("\n\n")[0]} if compact else {}
        tyro.cli(command, args=["--help"], compact_help=compact, **options | summary)

    if "--help-all" in args:
        args = ["--help"]
    elif {"-h", "--help"} & {*args}:
        print(flags.compact_help(lambda: print_help(compact=True), default, prog), end="")
        sys.exit(0)
    flags.check_choices(args, flags.literal_choices(default))
    config, unknown = tyro.cli(command, args=args, return_unknown_args=True, **options)
    flags.refuse_unknown(unknown, print_help, prog)
    return config


def _parse_structure(args, presets, architectures, choices):
    """Parses the flags that decide the defaults of all others."""
    structure = dataclasses.make_dataclass(
        "Structure",
        [
            ("preset", Literal[presets] | None, None),
            ("model", Literal[architectures] | None if architectures else None, None),
            *((slot, _slot_type(slot, names) | None, None) for slot, names in choices.items()),
            ("run_dir", Path | None, None),
            ("resume", bool, False),
        ],
    )
    args = [arg for arg in args if arg not in ("-h", "--help", "--help-all")]
    return tyro.cli(structure, args=args, config=TYRO, add_help=False, return_unknown_args=True)[0]


def _slot_type(slot: str, names: tuple[str, ...]):
    return tuple[Literal[names], ...] if SLOTS[slot].several else Literal[names]


def _command(default, preset, presets, architectures, choices):
    """Returns a function from all flags, as keyword arguments, to the Config, for tyro."""
    recipe = default.recipe

    def command(config, **_):
        return config

    parameters = []

    def add(parameter: str, kind, default, /, **options):
        kind = Annotated[kind, tyro.conf.arg(**options)]
        command.__annotations__[parameter] = kind
        parameters.append(inspect.Parameter(
            parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
        ))  # fmt: skip

    add("config", type(default), default, name="")
    add("preset", Literal[tuple(sorted(presets))], preset,
        help="Values that the other flags start from.")  # fmt: skip
    # `_parse_structure` has parsed the flags below already: they are here for the help
    if architectures:
        names = tuple(sorted(architectures))
        name = next((n for n in names if type(architectures[n]) is type(recipe.model)), None)
        add("architecture", Literal[names] if name else Literal[names] | None, name, name="model",
            help="Architecture, if not the preset's; some have a preset too.")  # fmt: skip
    for slot, names in choices.items():
        value = short_names(slot, recipe)
        if value in names or SLOTS[slot].several:  # else it is a resumed run's own
            add(f"{slot}_name", _slot_type(slot, names), value, name=slot, help=SLOTS[slot].help)
    command.__signature__ = inspect.Signature(parameters)
    return command


def _find_newest_run(experiment: str) -> Path:
    folder = Path("runs") / experiment
    configs = sorted(folder.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise InputError(
            f"--resume: {folder} has no run: name one with --run-dir, or remove --resume."
        )
    return configs[-1].parent
