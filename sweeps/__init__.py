"""Hyperparameter sweeps over the experiments: bayes_opt, random_search, grid_search."""

import experiments  # noqa: F401  (its handler of Ctrl-C)
