"""Hyperparameter search: spaces, samplers, rules, and the pool that trains populations."""

from dlflax.tune.samplers import GaussianProcess

__all__ = ["GaussianProcess"]
