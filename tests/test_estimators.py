"""Estimators of scikit-learn: its own checks, pipelines, searches; one program for all of them."""

import copy
import doctest
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_classification, make_regression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from dlflax import DLClassifier, DLRegressor, estimators
from dlflax.train import loop

X, Y = make_classification(200, 3, n_informative=3, n_redundant=0, random_state=0)
SMALL = {"hidden_sizes": (16,), "epochs": 40, "bag_folds": 0, "random_state": 0}


def test_a_classifier():
    names = np.array(["no", "yes"], object)
    fitted = DLClassifier(**SMALL).fit(X[:150], names[Y[:150]])
    assert fitted.classes_.tolist() == ["no", "yes"] and fitted.n_features_in_ == 3
    probabilities = fitted.predict_proba(X[150:])
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(fitted.predict(X[150:]), names[probabilities.argmax(1)])
    assert fitted.score(X[150:], names[Y[150:]]) > 0.7
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X[150:]), probabilities)
    same = clone(fitted).fit(X[:150], names[Y[:150]])
    np.testing.assert_array_equal(same.predict_proba(X[150:]), probabilities)


def test_a_regressor_with_missing_numbers():
    x, y = make_regression(200, 3, noise=1, random_state=0)
    x[::7, 0] = np.nan
    fitted = DLRegressor(**SMALL).fit(x[:150], y[:150] * 1e6 + 1e9)
    assert fitted.score(x[150:], y[150:] * 1e6 + 1e9) > 0.5
    constant = DLRegressor(**SMALL).fit(np.ones((30, 2)), np.full(30, 7.0))
    np.testing.assert_allclose(constant.predict(np.ones((2, 2))), 7.0, rtol=1e-6)


@pytest.mark.slow
def test_a_bag_is_the_calibrated_mean_of_its_networks():
    noise = np.random.default_rng(0).permutation(Y)  # there is nothing to learn
    bag = DLClassifier(**{**SMALL, "bag_folds": 3}).fit(X, noise)
    assert len(bag.variables_) == 3 and bag.temperature_ > 1
    each = [copy.copy(bag) for _ in range(3)]
    for one, variables in zip(each, bag.variables_, strict=True):
        one.variables_, one.temperature_ = [variables], 1.0
    mean = np.mean([one.predict_proba(X) for one in each], 0)
    powers = mean ** (1 / bag.temperature_)
    expected = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(bag.predict_proba(X), expected, atol=1e-5)
    few = DLClassifier(**{**SMALL, "bag_folds": 3}).fit(X[:80], Y[:80])
    assert len(few.variables_) == 1  # a fold of 26 rows cannot choose an epoch


@pytest.mark.slow
def test_a_bag_is_better():
    x, y = load_diabetes(return_X_y=True)
    one, bag = (
        DLRegressor(bag_folds=folds, random_state=0).fit(x[:300], y[:300]) for folds in (0, 5)
    )
    assert bag.score(x[300:], y[300:]) > one.score(x[300:], y[300:]) + 0.05


def test_searches_share_a_program():
    """Numbers are traced, and sizes padded: folds, grids and steps of a pipeline compile once."""
    pipeline = make_pipeline(StandardScaler(), DLClassifier(**SMALL))
    pipeline.fit(X, Y)
    DLClassifier(**SMALL).fit(X, Y)
    before = loop.train_steps._cache_size()
    grid = {"dlclassifier__learning_rate": [1e-4, 1e-2], "dlclassifier__dropout": [0.0, 0.3]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, Y)
    scores = cross_val_score(DLClassifier(**SMALL), X, Y, cv=3)
    assert search.best_params_["dlclassifier__learning_rate"] == 1e-2 and scores.mean() > 0.7
    assert loop.train_steps._cache_size() == before


@pytest.mark.parametrize(
    ("estimator", "x", "y", "expected"),
    [
        (DLClassifier(), X, np.zeros(200), "y has one class, 0.0"),
        (DLRegressor(), X[:1], Y[:1], "n_samples = 1"),
        (DLClassifier(), X, X[:, 0], "continuous"),
        (DLRegressor(), X, np.full(200, np.nan), "NaN"),
        (DLRegressor(learning_rate=-1), X, Y, "learning-rate"),
        (DLRegressor(hidden_sizes=(0,)), X, Y, "must all be 1 or more"),
        (DLRegressor(epochs=0), X, Y, "epochs"),
    ],
)
def test_a_refusal_is_a_value_error(estimator, x, y, expected):
    with pytest.raises(ValueError, match=expected):
        estimator.fit(x, y)


def test_the_examples_of_the_docstrings():
    tested = doctest.testmod(estimators)
    assert tested.attempted >= 6 and not tested.failed


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [DLClassifier, DLRegressor])
def test_scikit_learns_own_checks(estimator):
    few = estimator(hidden_sizes=(16,), epochs=30, learning_rate=1e-2, bag_folds=2)
    check_estimator(few, on_skip=None)
