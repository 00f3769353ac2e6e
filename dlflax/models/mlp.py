"""The multilayer perceptron."""

from typing import Annotated

import flax.linen as nn
import tyro
from jaxtyping import Float, ScalarLike

from dlflax.errors import InputError
from dlflax.models.layers import Activation, Dropout, activation
from dlflax.shapes import AnyArray


class MLP(nn.Module):
    """Dense layers on the flattened input. Defaults: 784-128-10, 101,770 parameters on 28x28x1.

    Call: inputs (n, ...) float -> logits (n, num_outputs). `dropout` is the rate in [0, 1),
    which may be traced; training needs the "dropout" random stream.
    """

    features: tuple[int, ...] = (128,)
    """Widths of the hidden layers."""
    activation: Activation = "relu"
    """Activation of every hidden layer."""
    num_outputs: Annotated[int, tyro.conf.Suppress] = 10  # the data decides

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n ..."], *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        if min(self.features, default=1) < 1:
            raise InputError(f"--model.features {self.features} must all be 1 or more.")
        x = x.reshape(x.shape[0], -1)
        for i, features in enumerate(self.features):
            x = activation(self.activation)(nn.Dense(features, name=f"dense{i + 1}")(x))
            x = Dropout()(x, dropout, train)
        return nn.Dense(self.num_outputs, name="logits")(x)
