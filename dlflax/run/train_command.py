"""Command line of an experiment: flags override a preset, or the settings of a resumed run."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

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

HELP = {
    "preset": "Values that the other flags start from.",
    "model": "Architecture, if not the preset's; some have a preset too.",
    **{slot: properties.help for slot, properties in SLOTS.items()},
}


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
    presets, architectures = experiment.presets, experiment.architectures
    recipes = [preset.recipe for preset in presets.values()]
    is_path = args and not args[0].startswith("-") and Path(args[0]).exists()
    if is_path and "data" in vars(presets["default"].data):
        args = ["--data", *args]
    # the flags that decide the defaults of all others
    structure = _structure(experiment)
    kinds = {**structure, "run_dir": Path | None, "resume": bool}
    chosen, _ = flags.parse_known_args(kinds, args)

    architecture = chosen.get("model")  # a preset may have its name
    preset = chosen.get("preset", architecture if architecture in presets else "default")
    default, resumed = presets[preset], False
    if chosen.get("resume"):
        folder = chosen.get("run_dir") or _find_newest_run(experiment.name)
        resumed = (folder / "config.json").exists() and "preset" not in chosen
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
    keep_model = resumed or "preset" in chosen or architecture in presets

    def override(default: Config, console_outputs: bool = True) -> Config:
        recipe = replace_components(default.recipe, chosen, recipes)
        model = architectures.get(architecture, recipe.model)
        if type(model) is not type(recipe.model) or not keep_model:
            recipe = dataclasses.replace(recipe, model=model)
        hparams = default.hparams
        if chosen.get("augment"):
            hparams = set_default_strengths(recipe.augment, hparams)
        default = extend(dataclasses.replace(default, recipe=recipe, hparams=hparams))
        models = (n for n, model in architectures.items() if type(model) is type(recipe.model))
        values = {"preset": preset, "model": next(models, None)}
        values |= {slot: short_names(slot, recipe) for slot in SLOTS}
        options = {"prog": prog or experiment.command, "console_outputs": console_outputs}
        config = _parse_flags(default, structure, values, args, description, **options)
        changed = [
            f"hparams.{f.name}" for f in dataclasses.fields(hparams)
            if getattr(config.hparams, f.name) != getattr(hparams, f.name)
        ]  # fmt: skip
        return dataclasses.replace(config, given=tuple(changed))

    config, stand_ins = override(default), {}
    others = {} if keep_model else stand_in_presets(presets, config)
    for name, other in others.items():
        with contextlib.suppress(InputError, SystemExit):  # a flag that the other does not have
            stand_ins[name] = changes(config, override(other, console_outputs=False))
    return dataclasses.replace(config, stand_ins=stand_ins)


def _structure(experiment: Experiment) -> dict[str, Any]:
    """Returns the types of --preset, --model and the slots, for tyro."""
    recipes = [preset.recipe for preset in experiment.presets.values()]
    choices = {"preset": experiment.presets, "model": experiment.architectures}
    choices |= {name: components(name, recipes) for name, slot in SLOTS.items() if slot.shipped}
    kinds = {name: Literal[tuple(sorted(choices[name]))] for name in filter(choices.get, choices)}
    kinds |= {name: tuple[kinds[name], ...] for name, slot in SLOTS.items() if slot.several}
    return {name: Annotated[kind, tyro.conf.arg(help=HELP[name])] for name, kind in kinds.items()}


def _parse_flags(default, structure, values, args, description, **options) -> Config:
    """Returns the Config of the flags; --help and --help-all end the process. values: the defaults
    of the flags of `_structure`."""
    flags.refuse_old_flags(args, default)
    is_full = {"-H", "--help-all"} & {*args}
    is_short = not is_full and {"-h", "--help"} & {*args}
    if is_short:
        parts = [(description or "").partition("\n\n")[0]]
        parts.append("All flags: --help-all. Lists: 32 64 or 32,64.")
        if hasattr(default, "space"):
            parts.append(
                "Any number and any field of the model can be searched, --space.NAME, or fixed, "
                "--hparams.NAME."
            )
        description = "\n\n".join(parts).strip()
    kind = Annotated[type(default), tyro.conf.arg(name="")]
    fields = [("config", kind, dataclasses.field(default=default, metadata={"help": ""}))]
    for name, kind in structure.items():
        value = values[name]
        if isinstance(value, str) and value not in get_args(get_args(kind)[0]):
            value = None  # a resumed run's own
        fields.append((name, kind | None if value is None else kind, value))
    return tyro.cli(
        dataclasses.make_dataclass("Command", fields),
        args=["-H"] if is_full else args, compact_help=True, description=description,
        registry=flags.registry(default, bool(is_short)), config=(tyro.conf.SuppressFixed,),
        **options,
    ).config  # fmt: skip


def _find_newest_run(experiment: str) -> Path:
    folder = Path("runs") / experiment
    configs = sorted(folder.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise InputError(
            f"--resume: {folder} has no run: name one with --run-dir, or remove --resume."
        )
    return configs[-1].parent
