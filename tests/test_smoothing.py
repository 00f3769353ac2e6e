"""Exponential smoothing and the theta method, against statsforecast."""

import functools

import golden_series
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax.baselines import fit_smoothing
from dlflax.models import smoothing


@pytest.mark.parametrize("name", golden_series.SERIES)
def test_the_filter_is_that_of_statsforecast(name):
    """With its parameters and its first state, in float64. Its damped forecasts of several steps
    sum phi + phi + phi^2 + ..., as R's; ours sum phi + phi^2 + phi^3, as Hyndman et al. (2008):
    they are those of a filter that reads its own forecasts."""
    said, (*_, period) = golden_series.saved(name), golden_series.SERIES[name]
    kinds = sorted({key.split("/")[0] for key in said if "likelihood" in key})
    with jax.enable_x64(True):
        numbers = smoothing.Smoothing(*np.stack([said[f"{k}/numbers"] for k in kinds]).T)
        states = np.stack([said[f"{k}/state"] for k in kinds])
        first = smoothing.State(states[:, 0], states[:, 1], states[:, 2:])

        @jax.jit
        @jax.vmap
        def run(numbers, state):
            state, fitted = smoothing.smooth(numbers, state, jnp.asarray(said["y"]))
            forecast = smoothing.extrapolate(numbers, state, golden_series.STEPS)
            return fitted, forecast, smoothing.smooth(numbers, state, forecast)[1]

        fitted, forecasts, again = run(numbers, first)
    np.testing.assert_allclose(again, forecasts, rtol=1e-9)
    for i, kind in enumerate(kinds):
        np.testing.assert_allclose(fitted[i], said[f"{kind}/fitted"], rtol=1e-6)
        steps = 1 if kind[1] == "1" else golden_series.STEPS
        expected = said[f"{kind}/forecast"][:steps]
        np.testing.assert_allclose(forecasts[i, :steps], expected, rtol=1e-6)
    assert first.season.shape[1] == period


def test_theta_is_that_of_statsforecast():
    said = golden_series.saved("huron")
    alpha, theta, level = said["theta/numbers"]
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(smoothing.theta_forecast, horizon=golden_series.STEPS))
        forecast, fitted = run(jnp.asarray(said["y"]), alpha, theta, level - said["y"][0])
        padded = np.pad(said["y"], (7, 0), constant_values=np.nan)
        again, _ = run(jnp.asarray(padded), alpha, theta, level - said["y"][0])
    np.testing.assert_allclose(fitted[1:], said["theta/fitted"][1:], rtol=1e-6)
    np.testing.assert_allclose(forecast, said["theta/forecast"], rtol=1e-6)
    np.testing.assert_allclose(again, forecast, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden_series.SERIES)
def test_a_fit_has_the_likelihood_of_statsforecast(name):
    """Within 1 % of its squared error, where its parameters are in the usual region."""
    said, (*_, period) = golden_series.saved(name), golden_series.SERIES[name]
    count, compared = len(said["y"]), 0
    fits = fit_smoothing.fit(said["y"][None], period)
    for kind, loss in zip(fit_smoothing.KINDS, fits.losses[0], strict=False):
        key = "".join(map(str, kind))
        alpha, beta, gamma, *_ = said[f"{key}/numbers"]
        if beta <= alpha and gamma <= 1 - alpha:
            compared += 1
            assert loss <= 1.01 * np.exp(said[f"{key}/likelihood"] / count), key
    assert compared >= 2
    if period == 1:
        alpha, theta, offset, _ = fit_smoothing.fit_theta(said["y"][None], 1)[0]
        _, fitted = smoothing.theta_forecast(jnp.asarray(said["y"]), alpha, theta, offset, 1)
        squares = np.sum((np.asarray(fitted)[1:] - said["y"][1:]) ** 2)
        assert squares <= 1.01 * said["theta/squares"]


@pytest.mark.parametrize("period", [4, 7, 12])
def test_the_season_is_that_of_a_classical_decomposition(period):
    """Also of a series that begins later, where the season keeps its steps."""
    rng = np.random.default_rng(0)
    season = rng.normal(size=period)
    season -= season.mean()
    line = 3 + 0.1 * np.arange(8 * period)
    series = line + np.tile(season, 8)
    decompose = jax.jit(smoothing.decompose, static_argnums=1)
    late = np.where(np.arange(len(series)) < period + 2, np.nan, series)
    for values in (series, late):
        found = decompose(jnp.float32(values), period, False)
        np.testing.assert_allclose(found, season, atol=1e-4)
    product = decompose(jnp.float32(line * np.tile(1 + 0.1 * season, 8)), period, True)
    np.testing.assert_allclose(product, 1 + 0.1 * season, atol=0.01)
    few = decompose(jnp.float32(np.where(np.arange(len(series)) < 7 * period, np.nan, series)),
                    period, False)  # fmt: skip
    assert (few == 0).all()
