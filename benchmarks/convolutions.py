"""How long does each formulation of a convolution take?

python -m benchmarks.convolutions

prints for the shapes of ResNets on 224 and 64 pixels, batch 32, milliseconds forward and forward
with both gradients, the best of some calls: what `dlflax.models.convolution.fastest` goes by. Timed
inside `lax.fori_loop`, as training is: outside of one, XLA:CPU computes the gradient of its own
convolution up to a hundred times as fast.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlflax.models.convolution import convolution, symmetric

SHAPES = (  # side, inputs, outputs, kernel size, stride
    (56, 64, 64, 3, 1), (28, 128, 128, 3, 1), (14, 256, 256, 3, 1), (7, 512, 512, 3, 1),
    (56, 64, 128, 3, 2), (14, 256, 512, 3, 2), (56, 256, 64, 1, 1), (56, 64, 256, 1, 1),
    (14, 1024, 256, 1, 1), (56, 256, 512, 1, 2), (224, 3, 64, 7, 2), (16, 64, 64, 3, 1),
    (8, 128, 128, 3, 1), (4, 256, 256, 3, 1), (2, 512, 512, 3, 1), (4, 256, 512, 3, 2),
)  # fmt: skip


def milliseconds(function, *arguments, seconds=1.0):
    jax.block_until_ready(function(*arguments))
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < seconds:
        lap = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - lap)
    return 1000 * min(times)


def looped(function):
    """function, so often, every result being needed for the next."""

    def body(_, arguments):
        used = sum(jnp.mean(leaf) for leaf in jax.tree.leaves(function(*arguments)))
        return jax.tree.map(lambda leaf: leaf + 1e-9 * used, arguments)

    return jax.jit(lambda x, kernel, times: lax.fori_loop(0, times, body, (x, kernel)))


def main():
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    rng = np.random.default_rng(0)
    for side, c, f, k, stride in SHAPES:
        x = jnp.float32(rng.normal(size=(32, side, side, c)))
        kernel = jnp.float32(rng.normal(size=(k, k, c, f)) / k)
        row = []
        for how in ("lax", "product", "own gradient"):

            def forward(x, kernel, how=how, k=k, stride=stride):
                return convolution(x, kernel, stride, symmetric(k), how)

            def both(x, kernel, forward=forward):
                y, backward = jax.vjp(forward, x, kernel)
                return backward(y)

            times = [milliseconds(looped(each), x, kernel, 1) for each in (forward, both)]
            row.append(f"{how} {times[0]:4.0f} / {times[1]:4.0f}")
        shape = f"{side}x{side} {c}->{f} {k}x{k}" + f", stride {stride}" * (stride > 1)
        print(f"{shape:32}", "   ".join(row), flush=True)


if __name__ == "__main__":
    main()
