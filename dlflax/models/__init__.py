"""Linen modules, one architecture a file. A module's fields are its config."""

from dlflax.models.cnn import CNN
from dlflax.models.mlp import MLP

__all__ = ["CNN", "MLP"]
