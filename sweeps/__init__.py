"""Hyperparameter sweeps over the experiments: bayes_opt, random_search, grid_search."""
