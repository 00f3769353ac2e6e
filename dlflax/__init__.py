"""Deep learning in JAX and Flax, where training is a pure function of its hyperparameters."""

__version__ = "0.2.0"
