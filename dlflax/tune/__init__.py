"""Hyperparameter search: spaces, samplers, rules, and the pool that trains populations."""

from dlflax.tune.config import Sweep
from dlflax.tune.rules import Budget, Curve, Go, Stop
from dlflax.tune.samplers import GaussianProcess
from dlflax.tune.sweep import run_sweep

__all__ = ["Budget", "Curve", "GaussianProcess", "Go", "Stop", "Sweep", "run_sweep"]
