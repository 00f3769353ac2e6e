"""Samplers: the Gaussian process as one of Optuna's, by Optuna's own suite; those of a sweep."""

import warnings

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from dlflax.tune import GaussianProcess


class TestOptunasOwnSuite(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """The claims that Optuna makes of every sampler."""

    @pytest.fixture
    def sampler(self):
        return lambda: GaussianProcess(seed=0, startup=3)
