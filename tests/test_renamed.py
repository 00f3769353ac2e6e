"""Old names of flags and fields are refused with the new name: of sweeps, models and hparams."""

import dataclasses
from pathlib import Path

import pytest

import experiments
from dlflax import run, train
from dlflax.config import renamed
from dlflax.config.experiment import Experiment, from_presets
from dlflax.config.renamed import RENAMED
from dlflax.config.run_folder import check_version
from dlflax.config.saved import config_from_json
from dlflax.config.serialize import to_json
from dlflax.errors import InputError
from dlflax.run.exit_codes import with_exit_codes
from dlflax.tune import sweep_command
from dlflax.tune.sweep_config import Sweep
from experiments import autoencoder, compare, mnist, sentiment

pytestmark = pytest.mark.usefixtures("place")

CNN, TRANSFORMER = (mnist.ARCHITECTURES[name] for name in ("cnn", "transformer"))
MODELS = {  # old name -> (the command that has its model, the model)
    "depth": ("mnist", CNN), "dropout_on": ("mnist", CNN), "formulation": ("mnist", CNN),
    "embedding": ("sentiment", sentiment.ARCHITECTURES["rnn"]),
    "code": ("autoencoder", autoencoder.PRESETS["default"].recipe.model),
    **dict.fromkeys(("width", "heads", "mlp", "patch"), ("transformer", TRANSFORMER)),
}  # fmt: skip
COMMANDS = {
    "mnist": (mnist, []), "transformer": (mnist, ["--model", "transformer"]),
    "sentiment": (sentiment, ["--model", "rnn"]), "autoencoder": (autoencoder, []),
}  # fmt: skip
IN_SWEEPS = {field.name for field in dataclasses.fields(Sweep)}


def names_in(group):
    return [key.partition(".")[2] for key in RENAMED if key.startswith(f"{group}.")]


def call(command, words):
    if command == "sweep":
        return sweep_command._parse(
            "random_search", experiments, ("random", "qmc"), ["mnist", *words], ""
        )
    module, more = COMMANDS[command]
    architectures = getattr(module, "ARCHITECTURES", {})
    return run.parse(from_presets("x", module.PRESETS, architectures), [*more, *words])


def refusal(flag, command):
    with pytest.raises(InputError) as refused:
        call(command, [flag, "1"])
    return str(refused.value)


def dashed(name):
    return name.replace("_", "-")


def test_the_table_names_what_there_is():
    hparams = {field.name for field in dataclasses.fields(train.Hparams)}
    for old in names_in("hparams"):
        assert old not in hparams and RENAMED[f"hparams.{old}"] in hparams
    assert set(names_in("model")) == set(MODELS)
    for old, (_, model) in MODELS.items():
        fields = {field.name for field in dataclasses.fields(model)}
        assert old not in fields and RENAMED[f"model.{old}"] in fields


@pytest.mark.parametrize("old", names_in("hparams"))
def test_an_old_number_is_refused_everywhere(old):
    new = dashed(RENAMED[f"hparams.{old}"])
    for command in ("mnist", "sweep"):
        for prefix in ("--", "--hparams.", *(["--space."] if command == "sweep" else [])):
            flag = prefix + dashed(old)
            assert refusal(flag, command) == f"{flag} was renamed: use {prefix}{new}."


@pytest.mark.parametrize("old", MODELS)
def test_an_old_field_of_a_model_is_refused(old):
    command, new = MODELS[old][0], dashed(RENAMED[f"model.{old}"])
    flag = f"--model.{dashed(old)}"
    assert refusal(flag, command) == f"{flag} was renamed: use --model.{new}."
    if command == "mnist":
        assert refusal(f"--space.{flag[2:]}", "sweep").endswith(f"use --space.model.{new}.")


@pytest.mark.parametrize("old", ["tolerance", "population", "seeds", "mode", "ensemble",
                                 "retrain_on_all"])  # fmt: skip
def test_an_old_flag_of_a_sweep_is_refused(old):
    flag, new = f"--{dashed(old)}", RENAMED[old]
    assert refusal(flag, "sweep") == f"{flag} was renamed: use --{dashed(new)}."
    assert old not in IN_SWEEPS and new in IN_SWEEPS
    saved = {"versions": {"dlflax": "0.3.0"}, "config": {"epochs": 1, old: 1}}
    with pytest.raises(
        InputError, match=f"^the study s was saved with the field {old}, now {new}: "
    ):
        check_version(saved, "the study s")


@pytest.mark.parametrize(
    "call_with, words, sentence",
    [
        ("mnist", "--warmup 0.1", "--warmup was renamed: use --warmup-fraction."),
        ("mnist", "--model.depth=2", "--model.depth was renamed: use --model.convs-per-stage."),
        ("sweep", "--space.crop 0 4", "--space.crop was renamed: use --space.crop-pixels."),
        ("sweep", "--seeds 3", "--seeds was renamed: use --num-seeds."),
        *(("sweep", flag, f"{flag} is no flag any more: ") for flag in renamed.REPLACED),
        ("compare", "mnist --seeds 3", "--seeds was renamed: use --num-seeds."),
    ],
)  # fmt: skip
def test_a_command_with_an_old_flag_exits_with_one_sentence(call_with, words, sentence, capsys):
    def command():
        if call_with == "compare":
            compare.command(words.split())
        else:
            call(call_with, words.split())

    with pytest.raises(SystemExit) as stopped:
        with_exit_codes(command)
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1 and sentence in line


@pytest.mark.parametrize(
    "key", [key for key in RENAMED if key.partition(".")[0] in ("hparams", "model")]
)
def test_a_run_that_was_saved_before_is_refused(key):
    group, _, old = key.partition(".")
    config = mnist.PRESETS["default"]
    if group == "model":
        recipe = dataclasses.replace(config.recipe, model=MODELS[old][1])
        config = dataclasses.replace(config, recipe=recipe)
    saved = to_json(config)
    fields = saved["recipe"]["model"] if group == "model" else saved["hparams"]
    fields[old] = fields.pop(RENAMED[key])
    with pytest.raises(InputError) as refused:
        config_from_json(saved, Path("run"), Experiment("mnist"))
    sentence = str(refused.value)
    beginning = f"run/config.json was saved with the field {old}, now {RENAMED[key]}: "
    assert sentence.startswith(beginning)
    assert "start a new run" in sentence and "\n" not in sentence
