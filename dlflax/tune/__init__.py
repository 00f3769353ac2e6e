"""Hyperparameter search: spaces, samplers, rules, and the pool that trains populations of trials."""

from dlflax.tune.samplers import GaussianProcess

__all__ = ["GaussianProcess"]
