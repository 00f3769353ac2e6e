"""Bags of networks, linear models and trees: their held-out outputs, average, and time limit."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression, Ridge

import dlflax
from dlflax import data, run, train
from dlflax.baselines import boosting, linear
from dlflax.data.order import assign_folds
from dlflax.errors import InputError
from dlflax.models import MLP
from dlflax.run import average, blend, time_limit
from dlflax.train.bag import fit_bag
from dlflax.train.ensemble import choose
from dlflax.train.metrics import CalibratedLoss
from dlflax.train.tasks import intervals
from experiments import forecast, tabular

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(61, 4)))
CLASSES = (X[:, 0] + X[:, 1] > 0).astype(np.int32) + (X[:, 2] > 1)


def test_each_example_is_held_out_from_one_network():
    recipe = train.Recipe(MLP(features=(3,), num_outputs=3), batch_size=16)
    fold_of, arrays = assign_folds(CLASSES, 3, 0), {"inputs": X, "targets": CLASSES}
    bag = fit_bag(recipe, train.Hparams(), arrays, fold_of, seed=1, epochs=2)
    hparams = train.as_float32(train.Hparams())
    for fold, variables in enumerate(bag.variables):
        rows = fold_of == fold
        outputs = train.predict(recipe, train.from_variables(variables), hparams, X[rows])
        np.testing.assert_allclose(bag.outputs[rows], outputs, atol=1e-6)
        alone = train.fit(
            recipe, train.Hparams(), {n: a[~rows] for n, a in arrays.items()},
            {n: a[rows] for n, a in arrays.items()}, epochs=2, seed=1 + fold,
        )  # fmt: skip
        assert len(bag.histories[fold]) == 2
        assert bag.histories[fold][1]["step"] == alone.history[1]["step"]


def test_linear_models_are_the_mean_of_scikit_learn_s():
    fold_of = assign_folds(CLASSES, 3, 0)
    targets = np.stack([X @ [1, 2, 3, 4], X[:, 0] ** 2], 1)
    fits = linear.fit_folds(X, targets, fold_of, 0)
    best = min(linear.ALPHAS, key=lambda alpha: np.mean(_ridge_errors(targets, fold_of, alpha)))
    models = [Ridge(best).fit(X[fold_of != fold], targets[fold_of != fold]) for fold in range(3)]
    expected = np.mean([model.coef_.T for model in models], 0)
    np.testing.assert_allclose(fits.params["kernel"], expected, atol=1e-4)
    held_out = models[1].predict(X[fold_of == 1])
    np.testing.assert_allclose(fits.outputs[fold_of == 1], held_out, atol=1e-4)

    fits = linear.fit_folds(X, CLASSES, fold_of, 3)
    losses = {}
    for strength in linear.STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000)
        p = np.empty((61, 3))
        for fold in range(3):
            model.fit(X[fold_of != fold], CLASSES[fold_of != fold])
            p[fold_of == fold] = model.predict_proba(X[fold_of == fold])
        losses[strength] = -np.log(p[np.arange(61), CLASSES]).mean()
    loss = -log_softmax(fits.outputs, 1)[np.arange(61), CLASSES].mean()
    assert loss == pytest.approx(min(losses.values()), rel=0.01)


def _ridge_errors(targets, fold_of, alpha):
    return np.concatenate([
        (Ridge(alpha).fit(X[fold_of != k], targets[fold_of != k]).predict(X[fold_of == k])
         - targets[fold_of == k]) ** 2
        for k in range(3)
    ])  # fmt: skip


@pytest.mark.parametrize("scale", [0.01, 1, 30])
def test_the_calibrated_loss_is_that_of_the_best_temperature(scale):
    logits = scale * (RNG.normal(size=(61, 3)) + np.eye(3)[CLASSES])

    def loss(log_scale):
        return -log_softmax(logits * np.exp(log_scale), 1)[np.arange(61), CLASSES].mean()

    best = minimize_scalar(loss, bounds=(-7, 7), method="bounded").fun
    batch = {"targets": CLASSES}
    assert CalibratedLoss().compute(np.float32(logits), batch) == pytest.approx(best, abs=1e-5)
    binary = np.float32(logits[:, 1] - logits[:, 0])[:, None]
    both = np.concatenate([np.zeros_like(binary), binary], 1)
    targets = {"targets": (CLASSES > 0).astype(int)}
    assert CalibratedLoss().compute(binary, targets) == pytest.approx(
        CalibratedLoss().compute(both, {"targets": (CLASSES > 0).astype(int)})
    )


def test_a_run_is_the_weighted_mean_of_its_members(zoo):
    folder = zoo("bag")
    results = json.loads((folder / "results.json").read_text())
    members = {member["name"]: member for member in results["members"]}
    assert {"network", "linear model", "boosted trees (scikit-learn)"} <= set(members)
    assert members["network"]["models"] == 3
    assert sum(member["weight"] for member in members.values()) == pytest.approx(1)
    assert results["baselines"]["network alone"] == members["network"]["test"]
    assert results["val"]["loss"] <= min(m["val"]["loss"] for m in members.values()) + 1e-4
    saved = json.loads((folder / "config.json").read_text())
    assert saved["requested"]["bag_folds"] == 3 and saved["config"]["bag_folds"] == 0
    model = dlflax.load(folder, log=lambda _: None)
    rows = [{"a": 0.3, "colour": "red"}, {"a": None, "colour": "blue"}]
    assert len(model.predict(rows)) == 2
    # the saved model is the one that was tested
    lines = (folder / "predictions.csv").read_text().splitlines()
    assert len(lines) == results["data"]["test"] + 1
    assert (folder / "metrics.csv").read_text().count("\n") == 3


def test_a_finished_bag_is_not_trained_again(zoo, place, capsys, monkeypatch):
    shutil.copytree(zoo("bag"), place / "r")
    before = json.loads(Path("r/results.json").read_text())
    config = json.loads(Path("r/config.json").read_text())
    flags = f"--data {config['requested']['data']['data']} --bag-folds 3 --model.features 8 "
    flags = (flags + "--epochs 2 --baseline none --run-dir r --resume").split()
    with monkeypatch.context() as patch:
        patch.setattr("dlflax.run.blend.fit", None)
        run.main("tabular", tabular.PRESETS, {}, flags)
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run.main("tabular", tabular.PRESETS, {}, [*flags, "--seed", "5"])
    assert "seed was 0, now 5" in capsys.readouterr().err
    Path("r/results.json").unlink()  # as if it had been killed: the same numbers
    run.main("tabular", tabular.PRESETS, {}, flags)
    after = json.loads(Path("r/results.json").read_text())
    assert (after["val"], after["test"]) == (before["val"], before["test"])
    assert after["members"] == before["members"]


@pytest.mark.parametrize(
    ("module", "flags", "sentence"),
    [
        (forecast, "--dataset sunspots --devices 2", "--devices has no effect on a bag"),
        (tabular, "--devices 2", "--devices has no effect on a bag"),
        (tabular, "--bag-folds 1", "--bag-folds 1 must be 2 or more"),
        (tabular, "--bag-folds 0 --blend none", "--blend none is for --bag-folds"),
        (tabular, "--time-limit 0.5", "--time-limit 0.5 must be from 1"),
    ],
)
def test_refusals(module, flags, sentence, capsys, place):
    with pytest.raises(SystemExit) as end:
        run.main(module.__name__.rpartition(".")[2], module.PRESETS,
                 getattr(module, "ARCHITECTURES", {}), flags.split())  # fmt: skip
    assert end.value.code == 2 and sentence in capsys.readouterr().err


def test_a_time_limit_is_planned_once(place, monkeypatch):
    config = run.Config(train.Recipe(MLP()), epochs=100, time_limit=60.0)
    monkeypatch.setattr(time_limit.time, "perf_counter", lambda: 105.0)
    monkeypatch.setattr(time_limit.time, "process_time", lambda: 9.0)
    clock, said = time_limit.Clock(60.0, 100.0), []
    assert clock.remaining() == 60 - time_limit.END - 6 - 5
    with monkeypatch.context() as busy:
        busy.setattr(time_limit.time, "process_time", lambda: 4.0)
        assert clock.remaining() == 60 - 1.25 * (time_limit.END + 6) - 5
    planned = time_limit.plan_epochs(config, place, clock, lambda: 1.5, said.append)
    assert planned.epochs == 30 and said == ["time limit of 60 s: 30 of 100 epochs"]
    again = time_limit.plan_epochs(config, place, clock, None, said.append)  # is not measured
    assert again.epochs == 30
    (place / "plan.json").write_text('{"epochs": "many"}')
    with pytest.raises(InputError, match=r"plan\.json is damaged"):
        time_limit.plan_epochs(config, place, clock, None, said.append)
    (place / "plan.json").unlink()
    assert time_limit.plan_epochs(config, place, clock, lambda: 900.0, said.append).epochs == 1
    assert time_limit.plan_epochs(
        run.Config(train.Recipe(MLP())), place, clock, None, said.append
    ).epochs == 5  # fmt: skip


def test_a_run_keeps_its_time_limit(place):
    flags = ["--bag-folds", "0", "--time-limit", "2", "--epochs", "5000", "--model.features", "4",
             "--patience", "0", "--baseline", "none", "--run-dir", "r"]  # fmt: skip
    run.main("tabular", tabular.PRESETS, {}, flags)
    plan = json.loads(Path("r/plan.json").read_text())
    results = json.loads(Path("r/results.json").read_text())
    assert plan["epochs"] == results["epochs_run"] < 5000
    jax.clear_caches()


def test_a_planned_bag_has_the_trees_of_its_plan(place, monkeypatch):
    """The clock chooses once: the plan in another folder makes the same model."""
    monkeypatch.setattr(boosting, "available", lambda: ("scikit-learn",))
    members = []
    for folder in ("first", "again"):
        flags = ["--dataset", "wine", "--bag-folds", "2", "--time-limit", "1e6", "--epochs", "1",
                 "--model.features", "4", "--baseline", "none", "--run-dir", folder]  # fmt: skip
        run.main("tabular", tabular.PRESETS, {}, flags)
        members.append(json.loads(Path(folder, "results.json").read_text())["members"])
        if folder == "first":
            plan = json.loads(Path("first/plan.json").read_text())
            assert plan["max_trees"] == {"scikit-learn": blend.MAX_TREES}
            plan["max_trees"]["scikit-learn"] = 45
            Path("again").mkdir()
            Path("again/plan.json").write_text(json.dumps(plan))
            monkeypatch.setattr(boosting, "MIN_TREES", 10**6)  # nothing is measured again
    assert [row["name"] for row in members[1]] == [
        "network", "linear model", "boosted trees (scikit-learn)"
    ]  # fmt: skip
    are_same = [a["val"] == b["val"] for a, b in zip(*members, strict=True)]
    assert are_same == [True, True, False]  # the trees are fewer


def test_intervals_of_numbers_cover_as_they_say(zoo):
    folder = zoo("bag")
    results = json.loads((folder / "results.json").read_text())
    calibration = json.loads((folder / "calibration.json").read_text())
    assert results["interval"]["coverage_wanted"] == calibration["coverage"] == 0.9
    assert 0.7 <= results["interval"]["coverage"] <= 1
    (answer,) = dlflax.load(folder, log=lambda _: None).predict([{"a": 0.3, "colour": "red"}])
    encoder = json.loads((folder / "encoder.json").read_text())
    half = calibration["half_width"][0] * np.ravel(encoder["target"]["scale"])[0]
    (value,), (low,), (high,) = answer["values"], answer["low"], answer["high"]
    assert (value - low, high - value) == (pytest.approx(half, rel=1e-4),) * 2
    assert answer["coverage"] == 0.9


def test_the_interval_is_the_conformal_quantile():
    errors = RNG.normal(size=(99, 2)) * [1, 5]
    fitted = intervals.fit(errors)
    for column, half in zip(np.abs(errors).T, fitted["half_width"], strict=True):
        assert np.sum(column <= half) == 90  # ceil(0.9 * 100)
    assert intervals.fit(errors[:29]) == {}
    measured = intervals.measure(fitted, errors, [1, 1])["interval"]
    assert measured["coverage"] == pytest.approx(90 / 99)


def test_members_are_calibrated_on_held_out_outputs():
    outputs = np.float32(3 * np.eye(3)[CLASSES])
    task, hparams = train.Recipe(MLP()).task, train.as_float32(train.Hparams())
    member = average.Members("network", MLP(), [], outputs)
    calibrated = average.calibrate(member, task, hparams, {"targets": CLASSES})
    assert 0.5 < calibrated.temperature < 1
    np.testing.assert_allclose(calibrated.outputs, outputs / calibrated.temperature)


def test_a_fold_has_a_group_or_more():
    """The bag is a default, so few groups make fewer folds."""
    config = run.Config(train.Recipe(MLP()), bag_folds=5)
    for count in (2, 3, 9):
        groups = np.arange(60) % count
        examples = data.Examples({"inputs": X[:60]}, CLASSES[:60])
        split = data.Given(np.zeros(60, bool), groups=groups.astype(str))
        dataset = data.Dataset(examples, split, "x", "x", "x")
        fold_of = blend.folds(config, dataset)
        assert len(set(fold_of)) == min(count, 5)
        assert all(len(set(fold_of[groups == group])) == 1 for group in range(count))


def test_a_model_that_diverged_is_not_chosen():
    outputs = np.stack([RNG.normal(size=(61, 3)) + i * np.eye(3)[CLASSES] for i in range(3)])
    outputs[1] = np.nan
    hparams = train.as_float32(train.Hparams())
    chosen = choose(train.Recipe(MLP()).task, hparams, np.float32(outputs), {"targets": CLASSES}, 9)
    assert chosen.weights[1] == 0 and np.isfinite(chosen.loss)


def test_trials_join_where_their_gain_is_no_chance():
    task, hparams = train.Recipe(MLP()).task, train.as_float32(train.Hparams())
    truth = 0.5 * np.eye(3)[CLASSES]
    outputs = np.float32(RNG.normal(size=(3, 61, 3)) + truth)
    signs = np.where(np.arange(61) % 2, 1, -1)[:, None]  # better for as many as it is worse for
    noise, better = np.float32(signs * truth), np.float32(3 * truth)
    for last, joins in ((outputs[0] + noise, False), (outputs[0] + better, True)):
        members = [average.Members(str(i), None, [], each, trial=i)
                   for i, each in enumerate([outputs[0], last])]  # fmt: skip
        members += [average.Members("linear model", None, [], outputs[1])]
        chosen = average.choose_members(task, hparams, members, {"targets": CLASSES})
        assert bool(chosen.weights[1]) == joins and sum(chosen.weights) == pytest.approx(1)


def test_an_example_of_any_class_is_yet_to_come():
    outputs = np.float32(5 * np.eye(3)[CLASSES])
    hparams = train.as_float32(average.smooth(train.Hparams(), outputs))

    def loss(log_scale):
        logits = outputs * np.exp(log_scale)
        return float(train.Recipe(MLP()).task.loss(logits, {"targets": CLASSES}, hparams).mean())

    best = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    probabilities = softmax(best * outputs, -1)[np.arange(61), CLASSES]
    np.testing.assert_allclose(probabilities, 62 / 64, atol=1e-3)  # Laplace's rule of succession
