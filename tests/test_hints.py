"""What a search is told beforehand: a guess (--prior), another study (--warm-start)."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_trials
from optuna.distributions import CategoricalDistribution, FloatDistribution
from searching import ask, begun

import experiments
from dlflax.errors import InputError
from dlflax.tune import sweep_command
from dlflax.tune.study import open_study
from dlflax.tune.suggest import gaussian_process
from dlflax.tune.suggest.encoding import Encoding
from dlflax.tune.suggest.space import Space, guess, is_within, space
from experiments.mnist import PRESETS

pytestmark = pytest.mark.usefixtures("place")

DISTRIBUTIONS = {
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0, 0.5),
    "model.activation": CategoricalDistribution(["relu", "tanh", "gelu"]),
}
GUESS = {"learning_rate": 1e-3, "model.activation": "tanh"}
DEFAULTS = {"learning_rate": 1e-2, "dropout": 0.1, "model.activation": "relu"}
TINY = "--dataset digits --model mlp --model.features 32 --epochs 2"
TINY += " --ensemble-size 0"


def first_trials(sampler, count, **known):
    with open_study(None, None, "a", "minimize") as study:
        return [trial.params for trial in ask(study, Space(**known), sampler, count, seed=3)]


@pytest.mark.parametrize("sampler", ["gp", "random", "tpe", "qmc"])
def test_a_guess_is_a_trial_of_its_own(sampler):
    """The second one, or the first one where there are no defaults; all others are as without."""
    told = {"distributions": DISTRIBUTIONS, "guess": GUESS}
    found = first_trials(sampler, 9, **told, defaults=DEFAULTS)
    assert found[:2] == [DEFAULTS, {**DEFAULTS, **GUESS}]
    plain = first_trials(sampler, 9, distributions=DISTRIBUTIONS)
    assert found[2:] == plain[2:]
    alone = first_trials(sampler, 9, **told)
    assert alone[1:] == plain[1:]
    assert {name: alone[0][name] for name in GUESS} == GUESS
    assert is_within(DISTRIBUTIONS["dropout"], alone[0]["dropout"])
    assert Space(DISTRIBUTIONS, defaults=DEFAULTS).first_trials() == [DEFAULTS]


def test_what_is_enqueued_is_so_once(tmp_path):
    told = Space(DISTRIBUTIONS, defaults=DEFAULTS, guess=GUESS)
    for number in range(4):
        with open_study(tmp_path, None, "a", "minimize") as study:
            ask(study, told, "random", 1)
            found = [trial.params for trial in begun(study)]
        assert found[:2] == [DEFAULTS, {**DEFAULTS, **GUESS}][: number + 1]
    assert len(found) == 4 and GUESS["learning_rate"] not in [p["learning_rate"] for p in found[2:]]


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["learning_rate"], "NAME=VALUE"),
        (["momentum=0.9"], "of a searched parameter"),
        (["learning_rate=fast"], "not a number"),
        (["learning_rate=5"], "outside"),
        (["learning_rate=nan"], "learning"),
        (["model.activation=sigmoid"], "outside"),
        (["dropout=0.1", "dropout=0.2"], "twice"),
        ([""], "NAME=VALUE"),
    ],
)
def test_a_guess_that_is_not_in_the_space(words, right):
    recipe = PRESETS["default"].recipe
    made = space(
        {
            "learning_rate": ("1e-5", "1e-1", "log"),
            "dropout": ("0", "0.5"),
            "model.activation": ("relu", "tanh"),
        },
        recipe,
    )
    with pytest.raises(InputError, match=right):
        guess(words, made, recipe)
    assert guess(["learning-rate=1e-3", "model.activation=tanh"], made, recipe) == GUESS


UNIT = {name: FloatDistribution(0, 1) for name in ("x", "y", "z")}


def bowl(params, centre=0.7):
    return sum((value - centre) ** 2 for value in params.values())


def regret(known, seed):
    """Of the best of 4 trials in one batch, 6 being finished."""
    rng, encoding = np.random.default_rng(seed), Encoding(UNIT)
    finished = [(params, bowl(params)) for params in encoding.spread(rng.random((6, 3)))]
    fitted, found = gaussian_process.fit(encoding, finished, known), []
    for k in range(4):
        found.append(gaussian_process.suggest(encoding, fitted, found, seed * 4 + k))
    return min(bowl(params) for params in found)


@pytest.mark.slow
def test_another_study_counts_as_much_as_it_tells():
    rng = np.random.default_rng(9)
    points = Encoding(UNIT).spread(rng.random((40, 3)))
    alike = [(params, 100 + 7 * bowl(params, 0.65)) for params in points]  # of another scale
    noise = [(params, rng.normal()) for params in points]
    none, near, useless = (
        np.median([regret(known, seed) for seed in range(6)]) for known in ([], alike, noise)
    )
    assert near < 0.5 * none
    assert useless < 3 * none


def sweep(name, *flags):
    sweep_command.main(
        "bayes_opt", experiments, ("gp", "tpe"),
        ["mnist", *TINY.split(), "--run-dir", name, "--study", name, *flags], "",
    )  # fmt: skip
    table = Path(name, "trials.csv").read_text()
    return list(csv.DictReader(table.splitlines()))


@pytest.mark.slow
@pytest.mark.usefixtures("trials_alone")
def test_a_sweep_that_knows_another_goes_on_without_it(capsys):
    first = sweep("first", "--trials", "5", "--population-size", "5")
    flags = ["--population-size", "4", "--prior", "dropout=0.4", "--warm-start", "first"]
    begun = sweep("second", "--trials", "4", *flags)
    assert "warm start from 5 of the 5 trials of first" in capsys.readouterr().out
    best = min(first, key=lambda row: float(row["val_loss"]))
    assert begun[2]["learning_rate"] == best["learning_rate"]
    assert float(begun[1]["dropout"]) == 0.4
    saved = json.loads(Path("second", "config.json").read_text())
    assert len(saved["known"]) == 5

    shutil.copytree("second", "third")
    more = sweep("second", "--trials", "12", *flags)
    shutil.rmtree("first")
    shutil.rmtree("second")
    Path("third").rename("second")
    assert sweep("second", "--trials", "12", *flags) == more  # what it knew is its own now


@pytest.fixture(scope="module")
def first(tmp_path_factory, zoo):
    """The trials of a sweep, and a run in the place of its best one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sweeps"))
        patch.setattr("dlflax.run.exit_codes.compilation_cache", lambda: None)
        patch.setattr("dlflax.tune.sweep.finish", write_trials)
        sweep("first", "--trials", "2", "--population-size", "2")
        shutil.copytree(zoo("digits"), "first/best")
        return Path("first").resolve()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "right"),
    [
        (["--warm-start", "nowhere"], "neither nowhere nor"),
        (["--warm-start", "first", "--sampler", "tpe"], "not for --sampler tpe"),
        (["--warm-start", "first", "--objective", "val_accuracy"], "its objective is val_loss"),
        (["--warm-start", "first", "--space.momentum", "0", "0.9", "--optimizer", "sgd",
          "--space.learning-rate", "0.1", "1"], "fewer than two"),
        (["--warm-start", "first/best"], "of a run, not of a sweep"),
        (["--warm-start", "first", "--search", "freeze-thaw"], "freeze-thaw"),
    ],
)  # fmt: skip
def test_what_cannot_be_known(place, first, capsys, flags, right):
    shutil.copytree(first, place / "first")
    with pytest.raises(SystemExit) as exit_:
        sweep("second", *flags)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and right in error and "Traceback" not in error
