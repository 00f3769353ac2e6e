"""Logistic regression has scikit-learn's optimum, on columns of any scale."""

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

from dlflax.baselines import logistic


def objective(weights, x, targets, strength):
    """(value, gradient) in float64. weights: (classes, columns and 1), flat."""
    weights = weights.reshape(targets.max() + 1, -1)
    l2 = np.r_[np.full(x.shape[1], 1 / (strength * len(x))), 0]
    x = np.column_stack([x, np.ones(len(x))])
    logits = x @ weights.T
    total = logsumexp(logits, 1, keepdims=True)
    error = (np.exp(logits - total) - np.eye(len(weights))[targets]) / len(x)
    losses = total[:, 0] - logits[np.arange(len(x)), targets]
    value = losses.mean() + (l2 * weights**2).sum() / 2
    return value, (error.T @ x + l2 * weights).ravel()


def flat(model):
    return np.column_stack([model.coef_, model.intercept_]).ravel()


@pytest.mark.parametrize("most_columns", [logistic.MAX_COLUMNS, 0])
@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine"])
def test_the_optimum_is_scikit_learns(name, most_columns, monkeypatch):
    monkeypatch.setattr(logistic, "MAX_COLUMNS", most_columns)
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)  # columns from 0.001 to 4,000
    x, y = (x[:600] / 16, y[:600]) if name == "digits" else (x, y)
    fit = logistic.fitter(x)
    for strength in (0.01, 1.0):
        model = fit(y, strength)
        # of two classes scikit-learn has one vector, whose squares are twice those of two halves
        c = strength * (2 if len(set(y)) == 2 else 1)
        solver = "lbfgs" if name == "digits" else "newton-cholesky"
        own = LogisticRegression(C=c, solver=solver, tol=1e-6, max_iter=5000).fit(x, y)
        if len(own.coef_) == 1:
            own.coef_, own.intercept_ = (
                np.concatenate([-half, half]) / 2 for half in (own.coef_, own.intercept_)
            )
        mine, right = (objective(flat(each), x, y, strength)[0] for each in (model, own))
        assert mine <= right * (1 + 1e-3)
        agree = model.predict_proba(x).argmax(1) == np.argmax(x @ own.coef_.T + own.intercept_, 1)
        assert agree.mean() > 0.995


def inputs(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    return {
        "collinear": np.repeat(x, 3, 1) * np.tile([1, 1e4, 1e-4], 4),
        "constant": np.column_stack([x, np.full((300, 2), 7.0)]),
        "far from 0": x + 1e4,
        "more columns than rows": rng.normal(size=(30, 90)),
        "wide and alike": x[:, :1] + 0.1 * rng.normal(size=(300, logistic.MAX_COLUMNS + 50)),
    }[name]


@pytest.mark.parametrize(
    "name", ["collinear", "constant", "far from 0", "more columns than rows", "wide and alike"]
)
def test_nothing_is_left_to_gain(name):
    x = inputs(name)
    y = (x[:, 0] > x[:, 0].mean()) + np.arange(len(x)) % 2
    fit = logistic.fitter(x)
    for strength in (0.01, 10.0):
        model = fit(y, strength)
        weights = flat(model)
        mine, _ = objective(weights, x, y, strength)
        losses = -np.log(model.predict_proba(x)[np.arange(len(x)), y])
        penalty = (model.coef_**2).sum() / (2 * strength * len(x))
        assert losses.mean() + penalty == pytest.approx(mine)
        arguments = dict(args=(x, y, strength), jac=True, method="L-BFGS-B")
        assert mine <= minimize(objective, weights, **arguments).fun * (1 + 5e-3)


def test_one_program_for_all_strengths_and_twice_the_same():
    x, y = datasets.load_iris(return_X_y=True)
    before = logistic._minimize._cache_size()
    first, again = ([flat(logistic.fitter(x)(y, c)) for c in (0.1, 1.0, 10.0)] for _ in range(2))
    assert logistic._minimize._cache_size() == before + 1
    np.testing.assert_array_equal(first, again)
    assert not jax.config.jax_enable_x64


def test_the_classes_that_there_are():
    x, y = datasets.load_iris(return_X_y=True)
    model = logistic.fitter(x)(np.array([3, 7, 8])[y], 1.0)
    np.testing.assert_array_equal(model.classes_, [3, 7, 8])
    p = model.predict_proba(x)
    assert p.shape == (150, 3) and np.mean(p.argmax(1) == y) > 0.95
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)


def test_inputs_that_are_not_finite():
    x, y = datasets.load_iris(return_X_y=True)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        logistic.fitter(x)
