"""What a model computes before its last layer, as a model."""

import flax.linen as nn


class Encoder(nn.Module):
    """The features of a model that has the method `features`: (n, ...) -> (n, d)."""

    model: nn.Module

    def __call__(self, x, *, train: bool = False):
        return self.model.features(x, train)
