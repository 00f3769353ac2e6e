"""Ensembles: their mean, choice and temperature by other means; of every kind of sweep."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.datasets import load_digits

import experiments
from dlflax import train
from dlflax.data.arrays import Arrays
from dlflax.inference.predict import Predictor
from dlflax.models import MLP, Autoencoder
from dlflax.models.autoregression import Autoregression
from dlflax.train import ensemble, metrics
from dlflax.train.tasks import Classification, MultiLabel, Reconstruction, Regression
from dlflax.tune import sweep
from dlflax.tune.pool.training import Model, Trial
from dlflax.tune.pool.trial_models import Members
from dlflax.tune.sweep_config import Sweep

RNG = np.random.default_rng(0)
LOGITS = np.float32(RNG.normal(size=(8, 40, 3)) * 2)
TARGETS = RNG.integers(0, 3, 40)


def test_the_mean_is_that_of_the_probabilities():
    weights = np.float32([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    expected = np.tensordot(weights, softmax(LOGITS, -1), 1)
    found = softmax(Classification().mean(jnp.asarray(LOGITS), weights), -1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    expected = logit(np.tensordot(weights, expit(LOGITS), 1))
    for task, logits in ((MultiLabel(), LOGITS), (Classification(), LOGITS[..., :1])):
        found = task.mean(jnp.asarray(logits), weights)
        np.testing.assert_allclose(found, expected[..., : logits.shape[-1]], atol=1e-5)
    expected = np.tensordot(weights, LOGITS, 1)
    np.testing.assert_allclose(Regression().mean(jnp.asarray(LOGITS), weights), expected, 1e-5)


def loss_of(logits):
    return -log_softmax(logits, -1)[np.arange(len(TARGETS)), TARGETS].mean()


def test_the_choice_is_the_greedy_one_and_the_temperature_the_best():
    # what Caruana et al. write, in probabilities
    probabilities = softmax(np.float64(LOGITS), -1)

    def together(chosen):
        return -np.log(np.mean(probabilities[chosen], 0)[np.arange(40), TARGETS]).mean()

    order = list(np.argsort([loss_of(each) for each in LOGITS]))
    picked = min((order[: n + 1] for n in range(ensemble.FIRST)), key=together)
    best = (together(picked), list(picked))
    while len(picked) < ensemble.ROUNDS:
        losses = [together([*picked, i]) for i in range(8)]
        picked.append(int(np.argmin(losses)))
        best = min(best, (min(losses), list(picked)))
    found = ensemble.choose(
        Classification(), train.Hparams(), jnp.asarray(LOGITS), {"targets": TARGETS}, 8
    )
    np.testing.assert_allclose(found.weights, np.bincount(best[1], minlength=8) / len(best[1]))
    assert found.alone == pytest.approx(min(map(loss_of, LOGITS)), abs=1e-5)
    logits = np.log(np.mean(probabilities[best[1]], 0))
    cooled = minimize_scalar(  # with the prior of log(temperature)
        lambda t: loss_of(logits / t) + (np.log(t) / 0.5) ** 2 / 80, bounds=(0.05, 20),
        method="bounded",
    )  # fmt: skip
    assert found.loss == pytest.approx(loss_of(logits / found.temperature), abs=1e-5)
    assert found.temperature == pytest.approx(cooled.x, rel=0.02)
    few = ensemble.choose(
        Classification(), train.Hparams(), jnp.asarray(LOGITS), {"targets": TARGETS}, 2
    )
    assert np.sum(np.array(few.weights) > 0) <= 2


def test_calibration_by_hand():
    sure = np.array([0.95, 0.95, 0.65, 0.65])
    found = metrics.calibration(np.array([0, 1, 0, 0]), np.stack([sure, 1 - sure], 1), bins=10)
    assert found["error"] == pytest.approx((0.45 * 2 + 0.35 * 2) / 4)
    assert found["count"].tolist() == [0] * 6 + [2, 0, 0, 2]
    assert found["accuracy"][9] == 0.5 and found["confidence"][6] == pytest.approx(0.65)
    edge = metrics.calibration(np.array([0]), np.array([[1.0, 0.0]]))
    assert edge["error"] == 0 and edge["count"][-1] == 1


def test_an_ensemble_is_a_model():
    members = tuple(MLP(features=(4,), num_outputs=3) for _ in range(2))
    model = ensemble.Ensemble(members, (train.Hparams(),) * 2, (0.25, 0.75), Classification(), 2.0)
    inputs = jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    assert set(variables["params"]) == {"members_0", "members_1"}
    each = [
        member.apply({"params": variables["params"][f"members_{i}"]}, inputs)
        for i, member in enumerate(members)
    ]
    expected = np.tensordot([0.25, 0.75], [softmax(e, -1) for e in each], 1)
    found = softmax(2 * model.apply(variables, inputs), -1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_only_the_best_trials_are_kept(tmp_path):
    members = Members(tmp_path, -1, most=2)
    assert members.threshold() == np.inf

    def trial(number, value, *models):
        records = [[[{"val_accuracy": value}], None]]
        return Trial(number, {}, value=value, is_over=True, records=records, models=list(models))

    model = Model({"params": {"a": np.ones(2)}}, np.zeros((1, 2)))
    for number, value in enumerate([0.3, 0.9, 0.5, 0.1, np.nan]):
        members.add(trial(number, value, model))
    members.add(trial(5, 0.95))  # no model came
    assert members.threshold() == -0.5, "what is better than 0.5 is kept, times the sign"
    assert [path.stem for path in sorted(members.folder.iterdir())] == ["000001", "000002"]
    (members.folder / "000001.safetensors").write_bytes(b"cut")
    assert list(members._files()) == [2]


def digits(task):
    images, targets = load_digits(return_X_y=True)
    inputs, names = np.float32(images.reshape(-1, 8, 8, 1) / 16), tuple("0123456789")
    if isinstance(task, MultiLabel):
        targets, names = np.float32(np.stack([targets % 2, targets > 4], 1)), ("odd", "large")
    if isinstance(task, Regression):
        targets, names = np.float32(targets[:, None]), ("digit",)
    part = {"inputs": inputs, "targets": targets}
    return Arrays(*({k: v[p] for k, v in part.items()} for p in HALVES), class_names=names)


HALVES = slice(0, 900), slice(900, None)
SPACES = {
    "classification, structures": (Classification(), MLP(), {"model.features": ("8", "16")}),
    "regression": (Regression(), MLP(features=(16,)), {}),
    "multilabel, seeds": (MultiLabel(), MLP(features=(16,)), {"num_seeds": 2}),
    "reconstruction": (Reconstruction(), Autoencoder(features=(32,), latent_dim=8), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_of_every_task(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # no name is folded
    task, model, options = SPACES[name]
    options = dict(options)
    space = {"learning_rate": ("1e-2", "3e-2", "log"), "dropout": ("0", "0.3")}
    space |= {key: options.pop(key) for key in ("model.features",) if key in options}
    if isinstance(task, Reconstruction):
        space.pop("dropout")
    arrays = digits(task)
    config = Sweep(
        recipe=train.Recipe(model, task, batch_size=64, ema=True), data=arrays, space=space,
        trials=8, population_size=4, epochs=2, sampler="qmc", run_dir=tmp_path / "sweep", **options,
    )  # fmt: skip
    results = sweep.run_sweep("random_search", "digits", config)
    found = results["ensemble"]
    assert found["validation_loss"] < found["validation_loss_of_the_best_alone"]
    assert sum(each["weight"] for each in found["models"]) == pytest.approx(1)
    assert 2 <= len(found["models"]) <= 16
    assert (
        found["test"]["loss"]
        == json.loads((tmp_path / "sweep" / "ensemble" / "results.json").read_text())["test"][
            "loss"
        ]
    )
    said = f"testing an ensemble of {len(found['models'])} models: validation loss "
    assert said in capsys.readouterr().out
    scores = {name: each["val"]["loss"] for name, each in results["candidates"].items()}
    assert scores.keys() == {"trained", "retrained", "ensemble"}
    if "num_seeds" in options:  # the better one of a mean
        assert scores["trained"] <= results["best"]["value"]
    else:
        assert scores["trained"] == pytest.approx(results["best"]["value"], rel=1e-5)
    assert found["val"]["loss"] <= scores["ensemble"] + 1e-6, "before its temperature"
    assert results["model"] == min(scores, key=scores.get)
    assert results["test"] == results["candidates"][results["model"]]["test"]

    # the saved run says what its members say together
    predictor = Predictor(tmp_path / "sweep" / "ensemble", experiments)
    inputs = arrays.test["inputs"][:20]
    recipe = predictor.config.recipe
    state, members = predictor.state(), recipe.model.members
    each = []
    for i, member in enumerate(members):
        variables = {"params": state.params[f"members_{i}"]}
        variables |= {k: v[f"members_{i}"] for k, v in state.collections.items()}
        each.append(member.apply(variables, inputs))
    together = task.mean(jnp.stack(each), jnp.float32(recipe.model.weights))
    np.testing.assert_allclose(
        predictor.outputs(inputs), together / recipe.model.temperature, rtol=1e-4, atol=1e-5
    )
    # finished: nothing is done again
    before = (tmp_path / "sweep" / "ensemble" / "results.json").stat().st_mtime_ns
    again = sweep.run_sweep("random_search", "digits", config)
    assert again["ensemble"]["test"] == found["test"]
    assert (tmp_path / "sweep" / "ensemble" / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_without_an_ensemble_the_best_trial_alone_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Sweep(
        recipe=train.Recipe(MLP(features=(4,)), batch_size=64), data=digits(Classification()),
        space={"learning_rate": ("1e-3", "3e-2", "log")}, trials=2, population_size=2, epochs=1,
        sampler="qmc", ensemble_size=0, run_dir=Path("sweep"),
    )  # fmt: skip
    results = sweep.run_sweep("random_search", "digits", config)
    assert results["ensemble"] is None and results["candidates"].keys() == {"trained", "retrained"}
    kept = [int(path.stem) for path in Path("sweep/members").iterdir()]
    assert kept == [results["best"]["number"]] and not Path("sweep/ensemble").exists()


def test_members_share_no_module():
    """Flax gives an object in two fields one set of parameters, so also a module of a module."""
    network = MLP((3,), num_outputs=2)
    model = Autoregression(4, 2, network=network)
    recipe = ensemble.ensemble_recipe(
        train.Recipe(model, Regression()), [(model, train.Hparams())] * 2, [0.5, 0.5]
    )
    params = train.abstract(recipe, train.Hparams(), np.zeros((1, 6, 2), np.float32)).params
    assert jax.tree.structure(params["members_0"]) == jax.tree.structure(params["members_1"])
