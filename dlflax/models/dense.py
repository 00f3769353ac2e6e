"""A dense layer whose products suit the platform."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlflax.models.platform import on_cpu


class Dense(nn.Module):
    """`nn.Dense`: the same parameters, initial values and outputs. x (..., c) float -> (...,
    features).

    On a CPU kernels in bfloat16 (--compute-dtype bfloat16) give float32: a CPU with instructions
    for bfloat16 multiplies such numbers, and adds their products in float32, twice as fast as
    float32, but is slow at anything else in bfloat16.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        # one matrix of all rows: XLA:CPU would transpose anything else for the kernel's gradient
        rows = x.reshape(-1, x.shape[-1])
        multiply = product if kernel.dtype == jnp.bfloat16 and on_cpu() else jnp.matmul
        y = multiply(rows, kernel)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))[None]
        return y.reshape(*x.shape[:-1], self.features)


@jax.custom_vjp
def product(x, kernel):
    """x (n, c) float32 or bfloat16, rounded to bfloat16, by kernel (c, d) bfloat16 -> float32
    (n, d). So are its gradients, but for the kernel's, which XLA:CPU is faster at in float32."""
    return _product(x, kernel, (1, 0))


def _product(a, b, contracted):
    dims = tuple((each,) for each in contracted), ((), ())
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    of_kernel = x.astype(jnp.float32).T @ gradient
    return _product(gradient, kernel, (1, 1)).astype(x.dtype), of_kernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)
