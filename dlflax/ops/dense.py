"""Dense layer with matrix products by platform."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlflax.ops.platform import on_cpu


class Dense(nn.Module):
    """Dense layer with the parameters, initial values and outputs of `nn.Dense`. x (..., c) float
    -> (..., features).

    On a CPU a bfloat16 kernel (--compute-dtype bfloat16) gives float32 outputs. A CPU with bfloat16
    instructions multiplies in bfloat16 and adds in float32, twice as fast as float32 alone, but is
    slow at anything else in bfloat16.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        # one matrix: XLA:CPU would transpose a higher rank for the kernel's gradient
        rows = x.reshape(-1, x.shape[-1])
        multiply = product if kernel.dtype == jnp.bfloat16 and on_cpu() else jnp.matmul
        y = multiply(rows, kernel)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))[None]
        return y.reshape(*x.shape[:-1], self.features)


@jax.custom_vjp
def product(x, kernel):
    """Multiplies x (n, c), rounded to bfloat16, by the bfloat16 kernel (c, d) -> float32 (n, d).
    The kernel's gradient is a float32 product, which is faster on XLA:CPU."""
    return _product(x, kernel, (1, 0))


def _product(a, b, axes):
    dims = (axes[:1], axes[1:]), ((), ())
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _backward(residuals, dy):
    x, kernel = residuals
    dkernel = x.astype(jnp.float32).T @ dy
    return _product(dy, kernel, (1, 1)).astype(x.dtype), dkernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)
