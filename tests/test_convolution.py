"""Every formulation of a convolution gives XLA's numbers, gradients too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlflax import models
from dlflax.ops import convolution as formulation
from dlflax.ops.convolution import convolution, fastest_algorithm, list_algorithms, symmetric_pads
from dlflax.ops.convolution_matmul import conv_pool_matmul

ALL = ("product", "custom gradient")


def arrays(n, side, c, f, k, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(n, side, side + 1, c)), rng.normal(size=(k, k, c, f)) / k
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def values(algorithm, x, kernel, stride, pads):
    """Outputs, and both gradients of a function of them."""

    def loss(x, kernel):
        y = convolution(x, kernel, stride, pads, algorithm)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
    return y, *gradients


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize(("k", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (7, 2)])
@pytest.mark.parametrize("side", [2, 7, pytest.param(16, marks=pytest.mark.slow)])
def test_all_formulations_agree(algorithm, k, stride, side):
    x, kernel = arrays(6, side, 17, 5, k)
    for pads in (symmetric_pads(k), ((0, k // 2), (k // 2, 0))):
        if side + sum(pads[0]) < k:
            continue
        expected = values("lax", x, kernel, stride, pads)
        for found, right in zip(values(algorithm, x, kernel, stride, pads), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


def by_taps(x, kernel, stride, pads, dy):
    """Output and both gradients in float64, a tap of the kernel at a time."""
    x, (rows, columns) = np.pad(np.float64(x), ((0, 0), *pads, (0, 0))), dy.shape[1:3]
    y, dx, dkernel = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(kernel.shape[:2]):
        seen = np.s_[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
        y += x[seen] @ kernel[i, j]
        dx[seen] += dy @ kernel[i, j].T
        dkernel[i, j] = np.einsum("nhwc,nhwf->cf", x[seen], dy)
    (top, bottom), (left, right) = pads
    return y, dx[:, top : x.shape[1] - bottom, left : x.shape[2] - right], dkernel


@pytest.mark.parametrize("k", [2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_own_gradient_of_any_shape(k, stride, monkeypatch):
    """Pads of each side its own, some wider than the kernel, pixels that no window reaches, and
    batches that pieces do not divide."""
    rng = np.random.default_rng([k, stride])
    for _ in range(5):
        monkeypatch.setattr(formulation, "CHUNK_BYTES", int(rng.integers(1, 4)) * 2**12)
        pads = tuple(tuple(map(int, rng.integers(0, k + 2, 2))) for _ in range(2))
        sides = [max(1, k - sum(pad)) + int(rng.integers(0, 9)) for pad in pads]
        out = [(side + sum(pad) - k) // stride + 1 for side, pad in zip(sides, pads, strict=True)]
        x, kernel = rng.normal(size=(5, *sides, 3)), rng.normal(size=(k, k, 3, 4)) / k
        x, kernel, dy = np.float32(x), np.float32(kernel), np.float32(rng.normal(size=(5, *out, 4)))

        @jax.jit
        def results(x, kernel, dy, pads=pads):
            y, backward = jax.vjp(
                lambda *args: convolution(*args, stride, pads, "custom gradient"), x, kernel
            )
            return y, *backward(dy)

        expected = by_taps(x, kernel, stride, pads, dy)
        for result, right in zip(results(x, kernel, dy), expected, strict=True):
            np.testing.assert_allclose(result, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_a_population(stride):
    """Mapped at once and one after the other, inputs and kernels of each member its own."""
    rng = np.random.default_rng(0)
    xs, kernels = rng.normal(size=(3, 4, 9, 8, 5)), rng.normal(size=(3, 3, 3, 5, 6)) / 3
    xs, kernels = jnp.float32(xs), jnp.float32(kernels)

    def gradients(algorithm, x, kernel):
        return values(algorithm, x, kernel, stride, symmetric_pads(3))

    expected = [gradients("lax", *member) for member in zip(xs, kernels, strict=True)]
    one = functools.partial(gradients, "custom gradient")
    in_turn = jax.lax.map(lambda member: one(*member), (xs, kernels))
    for results in (jax.vmap(one)(xs, kernels), in_turn):
        for result, *rights in zip(results, *expected, strict=True):
            np.testing.assert_allclose(result, jnp.stack(rights), rtol=1e-4, atol=1e-4)


def test_the_kernels_gradient_adds_in_float32():
    """In bfloat16, of which 256 + 1 is 256, a sum over many pixels would stand still."""
    x, dy = jnp.ones((4, 16, 16, 1), jnp.bfloat16), jnp.full((4, 16, 16, 1), 0.5, jnp.bfloat16)
    kernel = jnp.zeros((3, 3, 1, 1), jnp.bfloat16)
    conv = functools.partial(
        convolution, x, stride=1, pads=symmetric_pads(3), algorithm="custom gradient"
    )
    _, backward = jax.vjp(conv, kernel)
    (dkernel,) = backward(dy)
    assert float(dkernel[1, 1, 0, 0]) == 512 and float(dkernel[0, 0, 0, 0]) == 450


@pytest.mark.parametrize("algorithm", ALL)
def test_mapped_over_kernels_and_in_half_precision(algorithm):
    """As a population maps it over trials."""
    x, kernel = arrays(4, 8, 16, 3, 3)
    kernels = jnp.stack([kernel, 2 * kernel])
    one = functools.partial(convolution, stride=1, pads=symmetric_pads(3), algorithm=algorithm)
    gradient = jax.vmap(jax.grad(lambda kernel: jnp.sum(one(x, kernel) ** 2)))(kernels)
    np.testing.assert_allclose(gradient[1], 2 * gradient[0], rtol=1e-4)
    x, kernel = arrays(4, 8, 16, 3, 3, jnp.bfloat16)
    y, dx, dkernel = values(algorithm, x, kernel, 1, symmetric_pads(3))
    assert y.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16


def test_the_fastest_by_platform():
    assert fastest_algorithm(224, cpu=True) == "custom gradient"
    assert fastest_algorithm(2, cpu=True) == "product"
    assert fastest_algorithm(2, cpu=False) == "lax"


def test_no_gradient_is_left_to_xla_on_a_cpu():
    """In the training loop that takes it a hundred times as long."""
    for model, side in ((models.ResNet(depth="18"), 64), (models.VGG(dense=(8,)), 32)):
        inputs = jnp.zeros((1, side, side, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
        found = {algorithm for _, algorithm in list_algorithms(model.apply, variables, inputs)}
        assert found == {"product", "custom gradient"}


@pytest.mark.parametrize(
    ("model", "side", "expected"),
    [
        (models.CNN(), 28, {"conv1": "product with max-pool"}),
        (models.CNN(implementation="lax"), 28, {"conv1": "lax"}),
        (
            models.ResNet(depth="18"), 64,
            {"stem": "custom gradient",
             "stage2_block1_conv1": "custom gradient", "stage4_block1_conv2": "product"},
        ),
        (models.ResNet(depth="18", implementation="lax"), 64, {"stem": "lax"}),
        (models.VGG(dense=(8,), implementation="lax"), 32, {"stage1_conv1": "lax"}),
        (
            models.EfficientNetLite0(), 32,
            {"stem": "custom gradient", "block0_depthwise": "sum of slices", "head": "product"},
        ),
    ],
)  # fmt: skip
def test_formulations_name_every_convolution(model, side, expected):
    inputs = jnp.zeros((2, side, side, 1 if isinstance(model, models.CNN) else 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    found = dict(list_algorithms(model.apply, variables, inputs))
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    assert len(found) == len(kernels)
    short = {path.rpartition("/")[2]: algorithm for path, algorithm in found.items()}
    assert expected.items() <= short.items()


@pytest.mark.parametrize(("c", "f"), [(1, 2), (2, 40), (16, 3), (32, 64)])
@pytest.mark.parametrize("pool", [False, True])
def test_half_precision_in_a_compiled_loop(c, f, pool):
    """XLA:CPU has no product of bfloat16 into float32 for every shape, and says so as it runs."""
    x, kernel = arrays(64, 9, c, f, 3)
    kernel = kernel / 10  # so that the largest of a window rarely changes by rounding

    def gradients(dtype):
        def loss(kernel, x):
            y = (
                conv_pool_matmul(x, kernel)
                if pool
                else convolution(x, kernel, 1, symmetric_pads(3))
            )
            return jnp.sum(jnp.sin(y).astype(jnp.float32))

        def body(_, total):
            found = jax.grad(loss, (0, 1))(kernel.astype(dtype), x.astype(dtype))
            return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, found)

        zeros = jnp.zeros_like(kernel), jnp.zeros_like(x)
        return jax.jit(lambda: jax.lax.fori_loop(0, 2, body, zeros))()

    for found, right in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert jnp.linalg.norm(found - right) < (0.2 if pool else 0.03) * jnp.linalg.norm(right)
