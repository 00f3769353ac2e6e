"""Data that stand in for others: their preset trains, flags that were given win, runs resume."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import experiments
from dlflax import run
from dlflax.config.serialize import flatten, to_json
from dlflax.config.stand_in import apply_stand_in
from dlflax.data import Text, published
from dlflax.models import CNN
from dlflax.run.find_learning_rate import find_learning_rate
from dlflax.train import SGD, Cosine
from dlflax.train.checkpoint import Checkpoints
from dlflax.tune import sweep_command
from experiments import fashion_mnist, mnist

pytestmark = pytest.mark.usefixtures("place")
EXPERIMENT = run.Experiment("mnist", mnist)
SMALL = ["--model.features", "2", "--model.dense", "4", "--batch-size", "128", "--baseline", "none"]


@pytest.fixture
def digits():
    dataset = mnist.DEFAULT.data.load(lambda sentence: None)
    assert (dataset.name, dataset.stands_in_for) == ("digits", "mnist")
    return dataset


def settings(config):
    return flatten(to_json(config))


FLAGS = [
    "", "--model cnn", "--epochs 5", "--epochs 7", "--lr 1e-3", "--lr 0.5 --dropout 0",
    "--rotate-degrees 0", "--schedule constant", "--schedule cosine --warmup-fraction 0",
    "--augment flip", "--optimizer sgd",
    "--batch-size 64 --seed 3 --ema", "--task.monitor accuracy",
    "--model.features 8,16 --model.activation gelu", "--val-split 0", "--resume --run-dir later",
]  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS)
def test_the_preset_of_the_stand_in_under_the_flags_given(flags, digits):
    said = []
    config = apply_stand_in(run.parse(EXPERIMENT, flags.split()), digits, said.append)
    preset = run.parse(EXPERIMENT, ["--preset", "digits", *flags.split()])
    assert settings(config) == settings(preset)
    assert len(said) == 1 and "\n" not in said[0] and config.stand_ins == {}
    assert apply_stand_in(config, digits, said.append) is not None and len(said) == 1


OTHERS = [
    "--preset default", "--preset best", "--preset fast", "--model rnn", "--model transformer",
    "--model mlp", "--model rnn --preset default",
]  # fmt: skip


@pytest.mark.parametrize("flags", OTHERS)
def test_other_presets_and_architectures_stay(flags, digits):
    config, said = run.parse(EXPERIMENT, flags.split()), []
    new = apply_stand_in(config, digits, said.append)
    assert settings(new) == {**settings(config), "data.dataset": "digits"} and not said


@pytest.mark.parametrize("flags", ["", "--dataset digits", "--dataset fashion_mnist"])
def test_data_that_were_asked_for_change_nothing(flags, digits):
    config = run.parse(EXPERIMENT, flags.split())
    asked = replace(digits, stands_in_for="")
    assert apply_stand_in(config, asked, print) is config
    elsewhere = replace(digits, stands_in_for="letters")  # a source of one's own
    assert apply_stand_in(config, elsewhere, print) is config
    assert settings(config)["epochs"] == 5
    assert "digits" not in fashion_mnist.PRESETS


def test_what_is_used_is_said_in_one_line(digits):
    said = []
    words = ["--epochs", "5", "--zoom-fraction", "0.3"]
    apply_stand_in(run.parse(EXPERIMENT, words), digits, said.append)
    assert said == [
        "note: digits stand in for mnist, so defaults are those of --preset digits: "
        "schedule Cosine, augment Affine, learning_rate 0.002, warmup_fraction 0.05, "
        "translate_pixels 2.0, rotate_degrees 10.0 (--preset default has those of mnist)"
    ]


def test_a_flag_that_the_other_preset_lacks_is_no_error(digits):
    """Then the default's own values hold, as for data that were asked for."""
    sgd = replace(mnist.DEFAULT, recipe=replace(mnist.DEFAULT.recipe, optimizer=SGD()))
    module = ModuleType("m")
    module.PRESETS = {"default": sgd, "digits": mnist.PRESETS["digits"]}
    experiment = run.Experiment("m", module)
    config = run.parse(experiment, ["--optimizer.nesterov"])
    assert config.recipe.optimizer == SGD(nesterov=True) and config.stand_ins == {}
    assert settings(apply_stand_in(config, digits, print))["epochs"] == 5
    assert run.parse(experiment, ["--epochs", "5"]).stand_ins["digits"]["recipe"]
    with pytest.raises(SystemExit, match="2"):
        run.parse(experiment, ["--no-such", "1"])


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits_when_mnist_is_back(monkeypatch, capsys):
    def train(*flags):
        run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, [*SMALL, *flags])

    train("--epochs", "3", "--run-dir", "whole")
    assert capsys.readouterr().out.count("note: digits stand in for mnist") == 1
    saved = json.loads(Path("whole/config.json").read_text())["config"]
    assert saved["recipe"]["schedule"] == {"class": "dlflax.train:Cosine"}
    assert (saved["data"]["dataset"], saved["epochs"]) == ("digits", 3)
    assert saved["hparams"]["rotate_degrees"] == 10 and saved["hparams"]["learning_rate"] == 2e-3
    results = json.loads(Path("whole/results.json").read_text())
    assert results["hparams"]["learning_rate"] == 2e-3 and results["dataset"] == "digits"

    # stopped after an epoch; by then there is a network, which a resumed run must not need
    save = Checkpoints.save

    def stopped(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Checkpoints, "save", stopped)
        train("--epochs", "3", "--run-dir", "parts")
    monkeypatch.setattr(published, "load", lambda *_, **__: pytest.fail("asked"))
    train("--run-dir", "parts", "--resume")
    assert "resuming after epoch 1" in capsys.readouterr().out
    again = json.loads(Path("parts/results.json").read_text())
    assert again["test"] == results["test"] and again["val"] == results["val"]


@pytest.mark.slow
def test_a_sweep_begins_from_the_preset_and_its_space_wins():
    flags = [*SMALL, "--epochs", "1", "--trials", "2", "--space.learning-rate", "0.1", "0.2", "0.3"]
    flags += ["--ensemble-size", "0", "--hparams.zoom-fraction", "0.2"]
    sweep_command.main("random_search", experiments, ("random",), ["mnist", *flags], "")
    for place in (".", "best"):
        folder = Path("runs/sweeps/mnist_random_search") / place
        saved = json.loads((folder / "config.json").read_text())["config"]
        assert saved["recipe"]["augment"] == [{"class": "dlflax.train.augment:Affine"}]
        assert saved["data"]["dataset"] == "digits" and saved["epochs"] == 1
        numbers = saved["hparams"]
        assert (numbers["warmup_fraction"], numbers["rotate_degrees"]) == (0.05, 10)
        assert numbers["zoom_fraction"] == 0.2
    assert numbers["learning_rate"] in (0.1, 0.2, 0.3)


@pytest.mark.slow
def test_folds_and_the_search_for_a_learning_rate(monkeypatch):
    words = [*SMALL, "--epochs", "1", "--folds", "2", "--run-dir", "folds"]
    run.main("mnist", mnist.PRESETS, mnist.ARCHITECTURES, words)
    saved = json.loads(Path("folds/results.json").read_text())["settings"]["config"]
    assert saved["recipe"]["schedule"] == {"class": "dlflax.train:Cosine"}
    seen = []
    step = Cosine.__call__
    monkeypatch.setattr(Cosine, "__call__", lambda *args: seen.append(1) or step(*args))
    find_learning_rate(run.parse(EXPERIMENT, SMALL), Path("rates"), 20, lambda line: None)
    assert seen


def test_words_that_stand_in_for_reviews():
    dataset = Text().load(lambda sentence: None)
    assert (dataset.name, dataset.stands_in_for) == ("vader", "imdb_reviews")
    config = replace(mnist.DEFAULT, data=Text())
    assert apply_stand_in(config, dataset, print).data == Text("vader")
    assert Text("vader").load(lambda sentence: None).stands_in_for == ""


def test_settings_chosen_on_validation():
    preset = mnist.PRESETS["digits"]
    assert preset.recipe.model == CNN() == mnist.DEFAULT.recipe.model
    numbers = preset.hparams
    assert (preset.epochs, numbers.learning_rate, numbers.warmup_fraction) == (20, 2e-3, 0.05)
    assert (numbers.translate_pixels, numbers.rotate_degrees, numbers.zoom_fraction) == (2, 10, 0.1)
    assert isinstance(preset.recipe.schedule, Cosine)
