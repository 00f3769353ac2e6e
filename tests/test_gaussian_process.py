"""Bayesian optimization by a Gaussian process, beside scikit-learn's and by what it finds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import qmc
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from dlflax.tune.suggest import encoding as encoding_module
from dlflax.tune.suggest import gaussian_process
from dlflax.tune.suggest.encoding import Encoding, sobol
from dlflax.tune.suggest.gaussian_process import fit, suggest

MIXED = {
    "learning_rate": FloatDistribution(1e-4, 1, log=True),
    "dropout": FloatDistribution(0, 0.5),
    "batch_size": CategoricalDistribution([128, 32, 64]),
    "optimizer": CategoricalDistribution(["sgd", "adam", "lion"]),
    "layers": IntDistribution(1, 7, step=2),
    "ema": CategoricalDistribution([True, False]),
    "l2": FloatDistribution(0.5, 0.5),
}


def score(params):
    """Best at a learning rate of 0.01 with lion and 64; a hole where it diverges."""
    if params["learning_rate"] > 0.5:
        return math.inf
    distance = (math.log10(params["learning_rate"]) + 2) ** 2 + params["dropout"]
    return distance + (params["optimizer"] != "lion") + (params["batch_size"] != 64)


def first(encoding, seed, count):
    """The first points of a sequence."""
    return [sobol(encoding, seed, index) for index in range(count)]


def test_a_point_for_all_parameters_and_back():
    encoding = Encoding(MIXED)
    trials = first(encoding, 3, 32)
    points = encoding.encode(trials)
    assert points.shape == (32, 9) and points.min() >= 0 and points.max() <= 1
    for params, point in zip(trials, points, strict=True):
        back = encoding.decode(point)
        assert back.keys() == params.keys()
        for name, distribution in MIXED.items():
            assert distribution._contains(distribution.to_internal_repr(back[name]))
            same = isinstance(distribution, FloatDistribution)
            assert back[name] == (pytest.approx(params[name]) if same else params[name])
    np.testing.assert_array_equal(encoding.continuous, [True, True] + [False] * 6 + [True])
    order = [encoding.encode([{**trials[0], "batch_size": size}])[0, 2] for size in (32, 64, 128)]
    assert order == [0, 0.5, 1]  # choices that are numbers lie in order
    counts = [sum(params["optimizer"] == name for params in trials) for name in ("sgd", "adam")]
    assert all(9 <= count <= 12 for count in counts)


def test_the_points_of_a_sequence_do_not_depend_on_how_many_are_taken():
    encoding = Encoding(MIXED)
    ahead = [sobol(encoding, 1, index) for index in (40, 1000, 4)]
    encoding_module._sobol.cache_clear()
    assert [sobol(encoding, 1, index) for index in (4, 40, 1000)] == [ahead[2], *ahead[:2]]
    whole = qmc.Sobol(len(MIXED), rng=np.random.default_rng(1)).random(64)
    assert encoding.spread(whole) == [sobol(encoding, 1, index) for index in range(64)]
    assert sobol(encoding, 2, 4) != sobol(encoding, 1, 4)


def data(n=24, width=3):
    rng = np.random.default_rng(0)
    points = rng.random((n, width))
    values = np.sin(5 * points[:, 0]) + points[:, 1] ** 2 + 0.1 * rng.standard_normal(n)
    return points, gaussian_process.warp(values), rng


def sklearns(points, values, raw):
    scales, amplitude, noise = np.exp(raw[:-2]), np.exp(raw[-2]), np.exp(raw[-1])
    kernel = ConstantKernel(amplitude) * Matern(scales, nu=2.5) + WhiteKernel(noise)
    return GaussianProcessRegressor(kernel, optimizer=None).fit(points, values)


def test_likelihood_and_its_gradient_equal_scikit_learns():
    points, values, _ = data()
    raw = np.array([-1.0, 0.3, 1.0, 0.5, -3.0])
    locations = np.array([-1.5, -1.2, 0.4, 0, gaussian_process.NOISE])
    reference = sklearns(points, values, raw)
    likelihood, gradient = reference.log_marginal_likelihood(
        reference.kernel_.theta, eval_gradient=True
    )
    with gaussian_process.float64():
        arrays = *gaussian_process._arrays(points, values), locations[:3]
        losses, gradients = map(np.asarray, gaussian_process._losses(raw[None], *arrays))
    prior = scipy.stats.norm.logpdf(raw, locations, [1, 1, 1, 1, 2])
    constant = np.log([1, 1, 1, 1, 2]).sum() + 2.5 * np.log(2 * np.pi)
    constant += len(values) / 2 * np.log(2 * np.pi)
    assert losses[0] == pytest.approx(-likelihood - prior.sum() - constant, rel=1e-8)
    deviations = (raw - locations) / [1, 1, 1, 1, 4]
    theta = np.concatenate([gradient[1:4], gradient[:1], gradient[4:]])  # theirs: amplitude first
    np.testing.assert_allclose(gradients[0], deviations - theta, rtol=1e-6)


def test_expected_improvement_equals_its_definition():
    points, values, rng = data()
    raw = np.array([-1.0, 0.3, 1.0, 0.5, -3.0])
    reference = sklearns(points, values, raw)
    new = rng.random((7, 3))
    mean, deviation = reference.predict(new, return_std=True)
    deviation = np.sqrt(deviation**2 - np.exp(raw[-1]))  # theirs is of a noisy value
    best = reference.predict(points).min()
    u = (best - mean) / deviation
    expected = deviation * (scipy.stats.norm.pdf(u) + u * scipy.stats.norm.cdf(u))
    with gaussian_process.float64():
        arrays = gaussian_process._arrays(points, values)
        model = gaussian_process._model(raw, *arrays, in_study=arrays[-1])
        alone = gaussian_process._Improvement(model, np.zeros((0, 3)), rng)(new)
        beside = gaussian_process._Improvement(model, new[:2], rng)(new)
    np.testing.assert_allclose(alone + raw[-2] / 2, np.log(expected), rtol=1e-6)  # of units
    # what waits leaves nothing to gain there, and less nearby
    assert (beside[:2] < np.log(1e-3)).all() and (beside[2:] <= alone[2:] + 0.3).all()


@pytest.mark.parametrize("u", [-80.0, -9.0, -1.5, -1.0, -0.5, 0.0, 2.0, 9.0])
def test_log_improvement_is_exact(u):
    def integrand(z):  # of the improvement z + u, relative to its largest
        return (z + u) * np.exp(-0.5 * z**2 + 0.5 * min(u, 0) ** 2)

    z = np.linspace(max(-u, -12), max(-u, 0) + 12, 400_001)
    log = np.log(np.trapezoid(integrand(z), z)) - 0.5 * min(u, 0) ** 2 - 0.5 * np.log(2 * np.pi)
    with gaussian_process.float64():
        found = float(gaussian_process.log_improvement(jnp.asarray(u)))
        slope = float(jax.grad(gaussian_process.log_improvement)(jnp.asarray(u)))
    assert found == pytest.approx(log, rel=1e-6, abs=1e-6)
    assert np.isfinite(slope) and slope > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_warped_keeps_the_order_and_bounds_what_diverged(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.random(20), [1e30, 3e5, math.inf, math.nan, 50.0]])
    found = gaussian_process.warp(values)
    order = np.argsort(values[:22], kind="stable")
    assert (np.diff(found[:22][order]) >= 0).all() and found[22] == found[23] == found[20]
    assert found.max() - found.min() < 8 and np.ptp(found[:20]) > 0.3
    assert not gaussian_process.warp(np.array([math.inf, math.nan])).any()
    assert not gaussian_process.warp(np.array([2.0, 2.0])).any()
    assert gaussian_process.warp(np.array([])).shape == (0,)


def test_suggestions_are_a_pure_function_of_what_is_known():
    encoding = Encoding(MIXED)
    finished = [(params, score(params)) for params in first(encoding, 0, 20)]
    waiting, together = first(encoding, 5, 3), []
    fitted = fit(encoding, finished)
    for seed in (7, 8, 9):  # one model, whatever it was asked before
        together.append(suggest(encoding, fitted, [*waiting, *together], seed))
    anew = fit(encoding, finished)
    assert suggest(encoding, anew, [*waiting, *together[:2]], 9) == together[2]
    assert suggest(encoding, anew, waiting, 7) == together[0]
    assert len({encoding.key(params) for params in together}) == 3
    assert jnp.zeros(1).dtype == jnp.float32  # of the rest of the process


@pytest.mark.parametrize("finished", [[], [math.inf], [math.inf, math.nan, 1e30, 2.0]])
def test_it_works_with_little_and_with_bad_values(finished):
    encoding = Encoding(MIXED)
    fitted = fit(encoding, list(zip(first(encoding, 0, 8), finished, strict=False)))
    for seed in (1, 2):
        params = suggest(encoding, fitted, [], seed)
        for name, distribution in MIXED.items():
            assert distribution._contains(distribution.to_internal_repr(params[name]))


@pytest.mark.slow
def test_it_finds_the_best_of_a_mixed_space():
    encoding = Encoding(MIXED)
    known = [(params, score(params)) for params in first(encoding, 0, 16)]
    for batch in range(3):
        fitted, new = fit(encoding, known), []
        for seed in range(16 * batch, 16 * batch + 16):
            new.append(suggest(encoding, fitted, new, seed))
        known += [(params, score(params)) for params in new]
    assert min(value for _, value in known) < 0.02


@pytest.mark.slow
def test_a_long_study_compiles_no_more_than_a_handful_and_looks_at_a_subset(monkeypatch):
    monkeypatch.setattr(gaussian_process, "MOST", 100)
    encoding = Encoding(MIXED)
    trials = [(params, score(params)) for params in first(encoding, 0, 300)]
    before = gaussian_process._improvements._cache_size()
    for count in (30, 90, 110, 300):
        suggest(encoding, fit(encoding, trials[:count]), [], 1)
    assert gaussian_process._improvements._cache_size() - before <= 4
    kept = gaussian_process._most_informative([value for _, value in trials], 100)
    best = np.argsort([value for _, value in trials], kind="stable")[:50]
    assert len(kept) == 100 and set(best) <= set(kept) and 299 in kept
