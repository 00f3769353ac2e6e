"""Hyperparameter sweeps over the experiments: bayes_opt, random_search, grid_search."""

import experiments  # noqa: F401  (what it does on Ctrl-C)
