"""Does the installed compiler compute right? A few small programs against NumPy, once.

jaxlib 0.10.2 sums a fused reduction wrong on CPUs (jax issue 39103), without a word. What this
finds is an error that names the version to install; a machine where all is right is remembered in
the cache folder by its kind of device and its jaxlib.
"""

import contextlib
import json
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

from dlflax.errors import RunError
from dlflax.files import cache_folder, read_json, replacing


def check() -> None:
    """RunError when a program computes wrong here. Takes 0.3 s, the first time only."""
    this = f"{jax.devices()[0].device_kind}, jaxlib {jaxlib.__version__}"
    path = cache_folder() / "self_check.json"
    try:
        right = read_json(path)
    except (OSError, ValueError):
        right = []
    if isinstance(right, list) and this in right:
        return
    wrong = [name for name, program in PROGRAMS.items() if not program()]
    if wrong:
        version = "0.10.1" if sys.version_info < (3, 12) else "0.12.0.1"
        extra = {"gpu": "[cuda13]", "tpu": "[tpu]"}.get(jax.default_backend(), "")
        raise RunError(
            f"this installation computes {' and '.join(wrong)} wrong ({this}): pip install "
            f"'jax{extra}=={version}', which computes it right."
        )
    with contextlib.suppress(OSError):  # then it is checked again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            kept = right if isinstance(right, list) else []
            temporary.write_text(json.dumps([*kept, this]), encoding="utf-8")


def _near(found, expected) -> bool:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    scale = np.abs(expected).max()
    # accelerators may round products to 10 bits; what was seen wrong was wrong in the first digit
    return bool(np.abs(found - expected).max() <= 0.02 * scale)


def _reduction() -> bool:
    rng = np.random.default_rng(0)
    m, rows = np.float32(rng.normal(size=(3, 3))), np.float32(rng.normal(size=(40_000, 3)))
    found = jax.jit(jax.vmap(lambda r: jnp.sum((m @ r) ** 2)))(rows)
    expected = ((rows.astype(np.float64) @ m.T.astype(np.float64)) ** 2).sum(1)
    return bool(np.all(np.abs(found - expected) <= 0.02 * expected + 1e-3))


def _convolution() -> bool:
    rng = np.random.default_rng(1)
    x, kernel = np.float32(rng.normal(size=(2, 6, 6, 3))), np.float32(rng.normal(size=(3, 3, 3, 4)))

    def half_square(x, kernel):
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return 0.5 * jnp.sum(y**2), y

    gradient = jax.jit(jax.grad(half_square, argnums=(0, 1), has_aux=True))
    (dx, dkernel), y = gradient(x, kernel)
    windows = [(i, j) for i in range(3) for j in range(3)]
    by_hand = sum(x[:, i : i + 4, j : j + 4] @ kernel[i, j] for i, j in windows)
    dx_by_hand, dkernel_by_hand = np.zeros_like(x), np.zeros_like(kernel)
    for i, j in windows:
        dx_by_hand[:, i : i + 4, j : j + 4] += by_hand @ kernel[i, j].T
        dkernel_by_hand[i, j] = np.einsum("nhwc,nhwf->cf", x[:, i : i + 4, j : j + 4], by_hand)
    pairs = ((y, by_hand), (dx, dx_by_hand), (dkernel, dkernel_by_hand))
    return all(_near(found, expected) for found, expected in pairs)


def _softmax() -> bool:
    logits = np.float32(5 * np.random.default_rng(2).normal(size=(64, 500)))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return _near(jax.jit(jax.nn.softmax)(logits), powers / powers.sum(1, keepdims=True))


def _scan() -> bool:
    values = np.float32(np.random.default_rng(3).normal(size=(50, 8)))
    expected, state = [], np.zeros(8)
    for value in values:
        state = 0.9 * state + value
        expected.append(state)

    def add(state, value):
        state = 0.9 * state + value
        return state, state

    found = jax.jit(lambda values: lax.scan(add, jnp.zeros(8), values)[1])(values)
    return _near(found, np.stack(expected))


PROGRAMS = {
    "a fused reduction": _reduction,
    "a convolution and its gradient": _convolution,
    "softmax": _softmax,
    "a scan": _scan,
}
