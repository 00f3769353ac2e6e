"""Feature extractor: a model that returns features."""

import flax.linen as nn


class Encoder(nn.Module):
    """Feature extractor of a model with the method `features`: (n, ...) -> (n, d)."""

    model: nn.Module

    def __call__(self, x, *, train: bool = False):
        return self.model.features(x, train)
