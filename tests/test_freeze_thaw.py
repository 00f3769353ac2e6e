"""Freeze-thaw: the model by plain linear algebra, what it decides, that thawing changes no bit."""

import csv

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.gaussian_process.kernels import Matern

from dlflax import train
from dlflax.data import Arrays, make_splits
from dlflax.errors import InputError
from dlflax.models import MLP
from dlflax.train.layout import Layout
from dlflax.train.population import Population
from dlflax.tune import checkpoint, freeze_thaw, sweep
from dlflax.tune.encoding import Encoding
from dlflax.tune.freeze_thaw import Curve, decide
from dlflax.tune.gaussian_process import float64, padded
from dlflax.tune.search import trial_seeds

ENCODING = Encoding({"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)})
EPOCHS = 16


def curve(a, b, epochs, over=False):
    """A power law towards a bowl with its least value at (0.3, 0.3)."""
    floor = 0.1 + (a - 0.3) ** 2 + (b - 0.3) ** 2
    return Curve({"a": a, "b": b}, [floor * epoch**-0.4 for epoch in range(1, epochs + 1)], over)


def some(count=20, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 2, 5, 9, 16], count)
    return [curve(*rng.random(2), n, n == EPOCHS) for n in lengths]


def test_the_model_is_that_of_plain_linear_algebra():
    rng, n, m = np.random.default_rng(0), 12, 5
    raw = np.array([-0.5, -1.0, 0.3, -0.2, -1.0, -2.0, -2.5, -3.0, -4.0])
    x, times, trial = rng.random((n, 2)), rng.random(n), np.arange(n) // 3.0
    x = x[np.int64(trial)]  # rows of a trial have its point
    y, new = rng.normal(size=n), rng.random((m, 2))
    new[0] = x[0]  # one that goes on
    of = np.array([0.0, 10, 11, 12, 13])

    def kernel(x, t, i, z, s, j):
        near = Matern(np.exp(raw[:2]), nu=2.5)(x, z)
        basis = np.stack([t**0, t, t**2]), np.stack([s**0, s, s**2])
        of_all, of_near, of_same = (
            np.einsum("c,cn,cm->nm", v, *basis)
            for v in (freeze_thaw.GLOBAL, np.exp(raw[2:5]), np.exp(raw[5:8]))
        )
        return of_all + of_near * near + of_same * (i[:, None] == j[None])

    rows, asked = (x, times, trial), (new, np.ones(m), of)
    inverse = np.linalg.inv(kernel(*rows, *rows) + np.exp(raw[-1]) * np.eye(n))
    across = kernel(*asked, *rows)
    mean = across @ inverse @ y
    variance = np.diag(kernel(*asked, *asked) - across @ inverse @ across.T)
    with float64():
        columns = [padded(each) for each in (x, times, trial, y, np.ones(n))]
        found = freeze_thaw._after_the_last(raw, *columns, padded(new), padded(of))
        loss = freeze_thaw._loss(raw, *columns, raw)
    np.testing.assert_allclose(np.asarray(found[0])[:m], mean, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found[1])[:m] ** 2, variance, atol=1e-6)
    covariance = kernel(*rows, *rows) + np.exp(raw[-1]) * np.eye(n)
    density = np.log(np.linalg.det(covariance)) / 2 + y @ inverse @ y / 2
    assert float(loss) == pytest.approx(density, rel=1e-6)


def test_it_foretells_the_ends_of_curves():
    """On power laws, to within what it says of itself."""
    curves = some(40)
    rng = np.random.default_rng(0)
    with float64():
        _, rows, raw = freeze_thaw._fitted(ENCODING, curves, EPOCHS, rng)
        points = ENCODING.encode([each.params for each in curves])
        mean, deviation = freeze_thaw._after_the_last(
            raw, *rows, padded(points), padded(np.arange(40.0))
        )
    ends = np.log([curve(**each.params, epochs=EPOCHS).values[-1] for each in curves])
    # the model's scale: that of the rows that it was shown
    shown = [
        np.log(each.values[epoch - 1])
        for each in curves
        for epoch in sorted({1, 2, 4, 8, 16, len(each.values)})
        if epoch <= len(each.values)
    ]
    ends = (ends - np.mean(shown)) / np.std(shown)
    errors = np.abs(np.asarray(mean)[:40] - ends)
    assert np.quantile(errors, 0.9) < 0.1
    assert np.mean(errors < norm.ppf(0.999) * np.asarray(deviation)[:40] + 0.02) > 0.9


def test_it_goes_on_by_ranks():
    """Those between rungs (1, 2, 4, 8 of 16 epochs); then the best half of those at a rung."""
    at_4 = [curve(0.3 + 0.1 * i, 0.3, 4) for i in range(4)]
    between = curve(0.9, 0.9, 3)
    picks = decide(ENCODING, [*at_4[::-1], between], EPOCHS, 8, 0)
    assert picks[:3] == [4, 3, 2] and all(isinstance(pick, dict) for pick in picks[3:])
    assert picks == decide(ENCODING, [*at_4[::-1], between], EPOCHS, 8, 0)
    # in slices of 3 epochs a trial may pass its rung
    passed = [each._replace(values=curve(**each.params, epochs=5).values) for each in at_4]
    assert decide(ENCODING, passed, EPOCHS, 2, 0, slice_epochs=3) == [0, 1]
    over = [each._replace(over=True) for each in some()]
    assert all(isinstance(pick, dict) for pick in decide(ENCODING, over, EPOCHS, 4, 0))


def test_new_ones_by_the_model_are_near_the_least(monkeypatch):
    monkeypatch.setattr(freeze_thaw, "SPREAD", 0.0)
    over = [each._replace(over=True) for each in some(30)]
    picks = [pick for seed in range(4) for pick in decide(ENCODING, over, EPOCHS, 2, seed)]
    distances = [np.hypot(pick["a"] - 0.3, pick["b"] - 0.3) for pick in picks]
    assert np.median(distances) < 0.1, distances


def test_what_diverged_is_worse_than_all_and_bends_nothing():
    curves = [*some(), Curve({"a": 0.29, "b": 0.9}, [0.9, np.inf], True)]
    picks = decide(ENCODING, curves, EPOCHS, 16, 0)
    assert len(curves) - 1 not in picks
    for values in ([np.nan], [np.inf]):
        every = [Curve({"a": 0.1 * i, "b": 0.5}, values, True) for i in range(4)]
        assert len(decide(ENCODING, every, EPOCHS, 2, 0)) == 2


def test_a_finite_space_ends():
    encoding = Encoding({"c": CategoricalDistribution(["x", "y", "z"])})
    one = [Curve({"c": "x"}, [1.0, 0.5], False)]
    begun = decide(encoding, one, EPOCHS, 16, 0)
    assert 0 in begun and sorted(pick["c"] for pick in begun if pick != 0) == ["y", "z"]
    waiting = [Curve({"c": name}, [1.0, 0.5], False) for name in "xyz"]
    assert sorted(decide(encoding, waiting, EPOCHS, 16, 0)) == [0, 1, 2]
    every = [Curve({"c": name}, [1.0], True) for name in "xyz"]
    assert decide(encoding, every, EPOCHS, 16, 0) == []


def arrays():
    images, targets = load_digits(return_X_y=True)
    part = {"inputs": np.float32(images.reshape(-1, 8, 8, 1) / 16), "targets": targets}
    parts = ({k: v[p] for k, v in part.items()} for p in (slice(0, 500), slice(500, 600)))
    return Arrays(*parts, class_names=tuple("0123456789"))


RECIPE = train.Recipe(MLP(features=(8,)), schedule=train.Cosine(), batch_size=64, ema=True)


def run_sweep(folder, **options):
    space = {"learning_rate": ("1e-3", "1e30", "log"), "model.features": ("8", "16")}
    config = sweep.Sweep(**{
        "recipe": RECIPE, "data": arrays(), "trials": 2, "epochs": 6, "seeds": 2, "mode": "map",
        "search": "freeze-thaw", "space": space, "run_dir": folder, "study": "s", "ensemble": 0,
        **options,
    })  # fmt: skip
    results = sweep.run_sweep("bayes_opt", "digits", config, lambda line: None)
    return results, list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_killed_after_any_round_it_decides_the_same(tmp_path, monkeypatch):
    """Two structures, two seeds, some diverge: the same table to the byte."""
    monkeypatch.chdir(tmp_path)
    results, rows = run_sweep(tmp_path / "whole")
    assert results["complete"] >= 1 and results["pruned"] >= 1 and results["trials"] == len(rows)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    write = checkpoint.BatchCheckpoint.write

    def killed(self, *args):
        write(self, *args)
        raise Killed

    monkeypatch.setattr(checkpoint.BatchCheckpoint, "write", killed)
    lives = 0
    while lives < 30:
        try:
            run_sweep(tmp_path / "killed")
            break
        except Killed:
            lives += 1
    assert lives >= 3
    whole, found = ((tmp_path / name / "trials.csv").read_bytes() for name in ("whole", "killed"))
    assert found == whole
    assert not (tmp_path / "killed" / "population").exists()


@pytest.mark.slow
def test_a_thawed_trial_is_one_that_was_never_frozen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {"learning_rate": ("1e-2", "1e-1", "log")}
    results, rows = run_sweep(tmp_path / "s", space=space, seeds=1, trials=3, population=2)
    best = next(row for row in rows if int(row["number"]) == results["best"]["number"])
    assert best["state"] == "complete"
    order = make_splits(arrays(), arrays().load(), 0.1, 0)
    hparams = train.Hparams(learning_rate=float(best["learning_rate"]))
    seeds = trial_seeds(0, int(best["number"]), 1)[None]
    recipe = RECIPE.__class__(**{**vars(RECIPE), "model": MLP(features=(8,), num_outputs=10)})
    alone = Population(
        recipe, [hparams], seeds, order.train, order.val, epochs=6, layout=Layout("map", 1, 1)
    )
    alone.train(6)
    assert alone.scores("loss")[0, 0] == pytest.approx(float(best["val_loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prune": 2}, "--prune does not go together with --search freeze-thaw"),
        ({"sampler": "tpe"}, "freeze-thaw decides by itself, not by --sampler tpe"),
        ({"search": "whole", "slice": 2}, "--slice is for --search freeze-thaw"),
        ({"storage": "postgresql://a/b"}, "for one process"),
    ],
)
def test_what_does_not_go_together(options, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        run_sweep(tmp_path, **options)
