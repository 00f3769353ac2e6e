"""Hyperparameter search: spaces, samplers, rules, and the pool that trains populations."""

from dlflax.tune.pool.rules import Budget, Curve, Go, Rule, Stop
from dlflax.tune.suggest.samplers import GaussianProcess
from dlflax.tune.sweep import run_sweep
from dlflax.tune.sweep_config import Sweep

__all__ = ["Budget", "Curve", "GaussianProcess", "Go", "Rule", "Stop", "Sweep", "run_sweep"]
