"""The autoencoder: plain, denoising and variational."""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Float, ScalarLike

from dlflax.errors import InputError
from dlflax.models.layers import Activation, Dropout, activation
from dlflax.shapes import AnyArray


class Autoencoder(nn.Module):
    """Dense encoder to a latent code, and a decoder of the same widths in reverse.

    The defaults have 2,690,864 parameters on 28x28x1.

    Call: inputs (n, *shape) float in 0..1 -> reconstruction (n, *shape). `encode` returns the code
    (n, latent_dim), `decode` reconstructs the inputs. `dropout`, which may be traced, acts after
    the hidden layers.

    variational (Kingma and Welling 2014): the encoder returns mean and log variance of a normal
    distribution, from which training samples; outside of training the mean is the code. The KL
    divergence from the standard normal distribution, in nats (n,), is sown into the collection
    "losses", divided by the number of input values, as the squared error is.
    """

    features: tuple[int, ...] = (1024, 512)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    latent_dim: int = 32
    """Latent dimension."""
    variational: bool = False
    """Sample codes from a learned distribution (--hparams.kl-weight), to generate new images."""
    activation: Activation = "gelu"
    """Activation of every hidden layer."""
    shape: Annotated[tuple[int, ...], tyro.conf.Suppress] = (28, 28, 1)  # the data decides

    def setup(self):
        if min((*self.features, self.latent_dim)) < 1:
            raise InputError(
                f"--model.features {self.features} and --model.latent-dim {self.latent_dim} must "
                "be 1 or more."
            )
        self.down = [nn.Dense(f) for f in self.features]
        self.bottleneck = nn.Dense(self.latent_dim * (2 if self.variational else 1))
        self.up = [nn.Dense(f) for f in reversed(self.features)]
        self.pixels = nn.Dense(math.prod(self.shape))
        self.drop = Dropout()

    def encode(self, x):
        """Returns the code (n, latent_dim) of inputs (n, *shape)."""
        return self._encode(x, False, 0.0)[:, : self.latent_dim]

    def decode(self, code, train: bool = False, dropout=0.0):
        """Returns reconstructions (n, *shape) in 0..1 of codes (n, latent_dim)."""
        x, act = code, activation(self.activation)
        for layer in self.up:
            x = self.drop(act(layer(x)), dropout, train)
        return jax.nn.sigmoid(self.pixels(x)).reshape(-1, *self.shape)

    def __call__(
        self, x: Float[AnyArray, " n *shape"], *, train: bool = False, dropout: ScalarLike = 0.0
    ) -> Float[AnyArray, " n *shape"]:
        code = self._encode(x, train, dropout)
        if self.variational:
            mean, log_variance = jnp.split(code.astype(jnp.float32), 2, axis=-1)
            kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(-1)
            self.sow("losses", "kl", kl / x[0].size)
            if train:
                noise = jax.random.normal(self.make_rng("dropout"), mean.shape)
                mean = mean + jnp.exp(0.5 * log_variance) * noise
            code = mean.astype(code.dtype)
        return self.decode(code, train, dropout)

    def _encode(self, x, train, dropout):
        x, act = x.reshape(x.shape[0], -1), activation(self.activation)
        for layer in self.down:
            x = self.drop(act(layer(x)), dropout, train)
        return self.bottleneck(x)
