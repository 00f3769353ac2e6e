"""Samplers: the Gaussian process as one of Optuna's, by Optuna's own suite; each of a sweep's by what
a kill may not change."""

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
