"""The search space and its refusals; every sampler: inside the space, resumable, and of use."""

import importlib.util
import math
import re
import statistics

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from searching import GRID, SPACE, ask, search

from dlflax.errors import InputError
from dlflax.models import CNN, MLP
from dlflax.train import Hparams, Recipe
from dlflax.train.augment import Crop, Flip
from dlflax.tune.pool.training import trial_seeds
from dlflax.tune.study import open_study
from dlflax.tune.suggest import samplers, space

RECIPE = Recipe(model=CNN())
NEEDS = {"cmaes": "cmaes"}
SEARCHES = [
    pytest.param(
        *search,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(NEEDS.get(search[0], "optuna")) is None,
            reason=f"no {NEEDS.get(search[0])} here",
        ),
    )
    for search in [
        ("tpe", 1), ("tpe", 4), ("random", 4), ("qmc", 4), ("grid", 1), ("grid", 4), ("cmaes", 4),
        ("gp", 4),
    ]
]  # fmt: skip


def test_a_space_from_its_words():
    found = space.space(
        {
            "learning_rate": ("1e-4", "1e-2", "log"),
            "dropout": ("0", "0.5"),
            "l2": ("0", "1e-4", "1e-3"),
            "momentum": ("0.8", "0.9", "choice"),
            "clip_norm": ("1",),
            "zoom_fraction": (),
            "model.features": ("32", "32,64"),
            "model.dropout_after": ("dense", "all"),
            "batch_size": ("64",),
            "ema": ("true", "false"),
            "augment": ("none", "crop,flip"),
        },
        RECIPE,
    )
    assert found.distributions == {
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "dropout": FloatDistribution(0, 0.5),
        "l2": CategoricalDistribution([0.0, 1e-4, 1e-3]),
        "momentum": CategoricalDistribution([0.8, 0.9]),
        "model.features": CategoricalDistribution(["32", "32,64"]),
        "model.dropout_after": CategoricalDistribution(["dense", "all"]),
        "ema": CategoricalDistribution([True, False]),
        "augment": CategoricalDistribution(["none", "crop,flip"]),
    }
    assert found.fixed == {"clip_norm": 1.0, "batch_size": 64} and len(found.structures()) == 16
    recipe, hparams = found.apply(found.fixed, RECIPE, Hparams(l2=0.5))
    assert (recipe.batch_size, hparams.clip_norm, hparams.l2) == (64, 1.0, 0.5)
    assert found.apply({"augment": "none"}, RECIPE, hparams)[0].augment == ()
    assert found.apply({"augment": "crop,flip"}, RECIPE, hparams)[0].augment == (Crop(), Flip())
    recipe, hparams = found.apply({"model.features": "32,64", "l2": 0.25}, recipe, hparams)
    assert recipe.model == CNN(features=(32, 64)) and hparams.l2 == 0.25
    assert recipe.batch_size == 64 and hash(recipe) == hash(recipe)


def test_a_grid_in_declared_order():
    words = {"dropout": ("0.2", "0.1"), "model.features": ("16", "8,8")}
    found = space.space(words, Recipe(model=MLP()), grid=True)
    points = [(point["dropout"], point["model.features"]) for point in found.grid()]
    assert points == [(0.2, "16"), (0.2, "8,8"), (0.1, "16"), (0.1, "8,8")]


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("learning_rate", "1e-2 1e-4", "low end 0.01 is above the high end 0.0001"),
        ("learning_rate", "0.5", "nothing to search"),
        ("learning_rate", "1e-4 1e-3 1e-2 log", "LOW HIGH log"),
        ("learning_rate", "log", "before log"),
        ("learning_rate", "0 1e-2", "learning-rate 0 must be above 0"),
        ("learning_rate", "nan 1", "must be above 0"),
        ("learning_rate", "1e-3 inf", "finite"),
        ("l2", "0 1e-2 log", "begin above 0"),
        ("dropout", "0 1.5", "dropout 1.5 must be"),
        ("dropout", "a b", "'a' is not a number"),
        ("dropout", "0.1 0.1", "twice"),
        ("batch_size", "32 many", "whole numbers"),
        ("batch_size", "32 256 log", "not a range"),
        ("optimizer", "adam adagrad", "one of sgd, nesterov"),
        ("augment", "none flip,turn", "'turn' must be one of crop, flip"),
        ("optimizer", "adam sgd,lion", "'sgd,lion' must be one of sgd, nesterov"),
        ("ema", "yes no", "true or false"),
        ("model.features", "32 3.5", "32,64"),
        ("model.activation", "relu swish", "one of celu"),
    ],
)  # fmt: skip
def test_refusals(name, words, reason):
    with pytest.raises(InputError, match=reason) as error:
        space.space({name: tuple(words.split())}, RECIPE)
    assert name.replace("_", "-") in str(error.value) or "nothing" in reason


def bowl(params):
    """A bowl with a hole where training diverges."""
    return math.inf if params["x"] > 7 else (params["x"] - 2) ** 2 + params["z"], {}


@pytest.mark.parametrize(("sampler", "population"), SEARCHES)
def test_every_sampler_goes_on_as_if_never_stopped(tmp_path, sampler, population):
    """After whole populations; those that do not learn, and one at a time, after any trial."""
    found = space.Space(GRID if sampler == "grid" else SPACE)

    def searched(name, *stops):
        (tmp_path / name).mkdir()
        for trials in stops:
            with open_study(tmp_path / name, None, "a", "minimize") as study:
                search(study, found, bowl, sampler, trials, population, seed=3)
        return [(t.number, t.params, t.value) for t in study.trials()]

    whole = searched("whole", 18)
    assert len(whole) == 18
    assert len({str(params) for _, params, _ in whole}) == 18
    for _, params, _ in whole:
        assert all(found.distributions[name]._contains(
            found.distributions[name].to_internal_repr(value)) for name, value in params.items()
        )  # fmt: skip
    anywhere = population == 1 or sampler in ("random", "qmc", "grid")
    assert searched("stopped", *((3, 13) if anywhere else (4, 12)), 18) == whole


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_population_that_was_in_training_has_the_same_parameters(tmp_path, sampler):
    """Whatever a storage has of it: all trials, or the first ones, or parts of one. (A journal has
    all or none, unless its lines are those that Optuna itself writes.)"""
    found = space.Space(SPACE, defaults={"x": 1.0, "y": 2.0, "z": 0.5})
    (tmp_path / "a").mkdir()
    with open_study(tmp_path / "a", None, "a", "minimize") as study:
        search(study, found, bowl, sampler, 12, 4)
        wanted = [trial.params for trial in ask(study, found, sampler, 4)]
    whole = (tmp_path / "a" / "study.journal").read_bytes()
    whole = re.sub(rb',"more":[0-9]+', b"", whole).splitlines(keepends=True)
    for lines in range(1, 16):  # of the population: it was written last, in one piece
        cut = b"".join(whole[:-lines])
        (tmp_path / "a" / "study.journal").write_bytes(cut)
        with open_study(tmp_path / "a", None, "a", "minimize") as study:
            sampler_ = samplers.make_sampler(sampler, found, 0)
            study.complete_running(sampler_, SPACE)
            running = [t for t in study.trials() if t.state == TrialState.RUNNING]
            more = ask(study, found, sampler, 16 - len(study.trials()))
            assert [trial.number for trial in (*running, *more)] == [12, 13, 14, 15]
            assert [trial.params for trial in (*running, *more)] == wanted, lines


def branin(x, y):
    """Surjanovic and Bingham, Virtual Library of Simulation Experiments; least value 0.397887."""
    inner = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return inner**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


@pytest.mark.slow
def test_tpe_learns_from_what_was_recorded():
    found = space.Space({"x": FloatDistribution(-5, 10), "y": FloatDistribution(0, 15)})

    def regret(sampler, seed):
        with open_study(None, None, "branin", "minimize") as study:
            search(study, found, lambda params: (branin(**params), {}), sampler, 60, seed=seed)
            return min(trial.value for trial in study.trials()) - 0.397887

    tpe, random = (
        statistics.median(regret(name, seed) for seed in range(10)) for name in ("tpe", "random")
    )
    assert 0 <= tpe < 0.2 < random, (tpe, random)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "cmaes"])
def test_the_first_trial_has_the_defaults(sampler):
    if importlib.util.find_spec(NEEDS.get(sampler, "optuna")) is None:
        pytest.skip(f"no {sampler} here")
    words = {
        "learning_rate": ("1e-4", "1e-2", "log"), "l2": ("1e-7", "1e-3", "log"),
        "dropout": ("0", "0.3", "0.6"), "model.features": ("32,64", "32"),
        "augment": ("flip", "none"), "optimizer": ("sgd", "adam"), "ema": ("true", "false"),
    }  # fmt: skip
    found = space.space(words, Recipe(model=CNN()), Hparams(l2=0.0, dropout=0.25))
    expected = {
        "learning_rate": Hparams().learning_rate, "l2": 1e-7, "dropout": 0.3,
        "model.features": ",".join(map(str, CNN().features)), "augment": "none",
        "optimizer": "adam", "ema": False,
    }  # fmt: skip
    if expected["model.features"] not in words["model.features"]:
        words["model.features"] += (expected["model.features"],)
        found = space.space(words, Recipe(model=CNN()), Hparams(l2=0.0, dropout=0.25))
    with open_study(None, None, "a", "minimize") as study:
        first, second = ask(study, found, sampler, 2)
    assert first.params == expected and second.params != expected
    words["optimizer"] = ("sgd", "lion")  # what a run has is not among them
    assert space.space(words, Recipe(model=CNN())).defaults is None


def test_trial_seeds_depend_on_seed_and_number_alone():
    seeds = np.stack([trial_seeds(7, number, 3) for number in range(1000)])
    assert len(np.unique(seeds)) == 3000
    np.testing.assert_array_equal(seeds[41, :2], trial_seeds(7, 41, 2))
    assert not np.isin(trial_seeds(8, 41, 3), seeds).any()
