"""Augmentation, against NumPy by hand; `affine` against SciPy is in test_train.py."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dlflax.augment import Operation, augment, mix, noise
from dlflax.optim import Hparams

OPERATIONS = get_args(Operation)[:-1]  # without noise, which augment leaves to `noise`
OFF = Hparams(flip=0.0)
ON = Hparams(
    crop=3.0, flip=0.5, translate=2.0, rotate=20.0, zoom=0.2, brightness=0.3, contrast=0.4,
    cutout=0.4, mixup=0.5, cutmix=1.0, noise=0.1,
)  # fmt: skip
N, H, W = 40, 12, 9
IMAGES = np.random.default_rng(0).random((N, H, W, 3), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def jitted(operations, key, images, hparams):
    return augment(operations, key, images, hparams)


def run(operation, seed=0, images=IMAGES, **strengths):
    hparams = jax.tree.map(np.float32, OFF.replace(**strengths))
    out = jitted((operation,), jax.random.key(seed), images, hparams)
    return [np.asarray(leaf) for leaf in out]


def strength(operation, hparams=ON):
    names = ["translate", "rotate", "zoom"] if operation == "affine" else [operation]
    return {name: getattr(hparams, name) for name in names}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation(operation):
    """Strength 0 is the identity to the bit; else the key decides, in range, on the same trace."""
    before = jitted._cache_size()
    same, partner, share = run(operation)
    assert (same == IMAGES).all() and (share == 1).all()
    if operation not in ("mixup", "cutmix"):
        assert (partner == np.arange(N)).all()

    images, partner, share = run(operation, **strength(operation))
    assert images.shape == IMAGES.shape and images.dtype == share.dtype == np.float32
    assert partner.shape == share.shape == (N,) and partner.dtype == np.int32
    assert images.min() >= 0 and images.max() <= 1 + 1e-6 and (images != IMAGES).any()
    assert (images == run(operation, **strength(operation))[0]).all()
    assert (images != run(operation, seed=1, **strength(operation))[0]).any()
    assert jitted._cache_size() == before + 1


@pytest.mark.parametrize("operation", OPERATIONS[:-2])
def test_every_image_has_its_own_amount(operation):
    same = np.tile(IMAGES[:1], (N, 1, 1, 1))
    images, _, _ = run(operation, images=same, **strength(operation))
    assert len(np.unique(images.reshape(N, -1), axis=0)) > (1 if operation == "flip" else N / 2)


@pytest.mark.parametrize("largest", [2, 15])  # 15: over the far edge, and back
def test_crop_is_a_slice_of_the_reflection(largest):
    images, _, _ = run("crop", crop=largest, images=IMAGES[:, :, :, :1])
    shifts = []
    for image, old in zip(images, IMAGES[:, :, :, :1], strict=True):
        padded = np.pad(old, ((largest, largest), (largest, largest), (0, 0)), mode="reflect")
        span = range(2 * largest + 1)
        shifts += [
            (i, j) for i in span for j in span if (padded[i : i + H, j : j + W] == image).all()
        ]
    assert len(shifts) >= N
    if largest == 2:
        assert len(shifts) == N and set(np.unique(shifts)) == {0, 1, 2, 3, 4}


def test_crop_shifts_are_uniform():
    ramp = np.zeros((4000, 30, 30, 1), np.float32) + np.arange(30, dtype=np.float32)[:, None, None]
    shifts = run("crop", crop=2.9, images=ramp)[0][:, 15, 0, 0] - 15  # whole pixels: at most 2
    values, counts = np.unique(shifts, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_flip():
    images, _, _ = run("flip", flip=1.0)
    assert (images == IMAGES[:, :, ::-1]).all()
    images, _, _ = run("flip", flip=0.25, images=np.tile(IMAGES, (50, 1, 1, 1)))
    old = np.tile(IMAGES, (50, 1, 1, 1))
    kept, flipped = ((images == x).all((1, 2, 3)) for x in (old, old[:, :, ::-1]))
    assert (kept ^ flipped).all() and abs(flipped.mean() - 0.25) < 0.04


def assert_uniform(amounts, low, high):
    assert scipy.stats.kstest(amounts, "uniform", (low, high - low)).pvalue > 1e-3
    assert low <= amounts.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < amounts.max() <= high


def test_brightness():
    images, _, _ = run("brightness", brightness=0.3)
    for image, old in zip(images, IMAGES, strict=True):
        unclipped = (image > 0) & (image < 1)
        delta = np.median((image - old)[unclipped])
        assert abs(delta) <= 0.3
        np.testing.assert_allclose(image, (old + delta).clip(0, 1), atol=1e-6)
    grey = np.full((3000, 1, 1, 1), 0.5, np.float32)
    assert_uniform(run("brightness", brightness=0.3, images=grey)[0].ravel() - 0.5, -0.3, 0.3)


def test_contrast():
    images, _, _ = run("contrast", contrast=0.4)
    for image, old in zip(images, IMAGES, strict=True):
        mean = old.mean((0, 1))
        at = np.unravel_index(np.argmin(abs(abs(old - mean) - 0.25)), old.shape)
        factor = (image[at] - mean[at[2]]) / (old[at] - mean[at[2]])
        assert 0.6 <= factor <= 1.4
        np.testing.assert_allclose(image, ((old - mean) * factor + mean).clip(0, 1), atol=1e-5)
    grey = np.tile(np.array([0.25, 0.75], np.float32).reshape(1, 2, 1, 1), (3000, 1, 1, 1))
    factors = np.ptp(run("contrast", contrast=0.4, images=grey)[0], axis=(1, 2, 3)) / 0.5
    assert_uniform(factors, 0.6 - 1e-6, 1.4 + 1e-6)


def test_clips_only_what_it_changes():
    wide = IMAGES * 4 - 2
    for operation in ("brightness", "contrast"):
        assert (run(operation, images=wide)[0] == wide).all()


@pytest.mark.parametrize("side", [4, 7])
def test_cutout(side):
    ones = np.ones((2000, H, W, 2), np.float32)
    holes = run("cutout", cutout=(side + 0.2) / W, images=ones)[0] == 0
    assert (holes[..., 0] == holes[..., 1]).all()
    holes = holes[..., 0]
    squares = {
        (top, left): [max(top, 0), top + side, max(left, 0), left + side]
        for top in range(-(side // 2), H - side // 2)
        for left in range(-(side // 2), W - side // 2)
    }
    counts = np.zeros(len(squares))
    for count, (top, bottom, left, right) in enumerate(squares.values()):
        square = np.zeros((H, W), bool)
        square[top:bottom, left:right] = True
        counts[count] = (holes == square).all((1, 2)).sum()
    assert counts.sum() == len(ones)  # each is one of the squares, whose centres are uniform
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def assert_mixed(images, partner, share):
    """Each image is `share` of its own and the rest of its partner's, either way of mixing."""
    assert sorted(partner) == list(range(N)) and (share == share[0]).all()
    other, share = IMAGES[partner], share[0]
    moved = partner != np.arange(N)
    own = (images == IMAGES).all((0, 3))
    if not own.any() and not (images == other).all((0, 3)).any():
        np.testing.assert_allclose(images, share * IMAGES + (1 - share) * other, atol=1e-6)
        return "mixup"
    assert (images == np.where(own[None, :, :, None], IMAGES, other)).all() and moved.any()
    np.testing.assert_allclose(share, own.mean(), atol=1e-6)
    rows, columns = (~own).any(1), (~own).any(0)
    assert ((~own) == rows[:, None] & columns[None]).all()  # a box
    assert all((np.diff(np.flatnonzero(line)) == 1).all() for line in (rows, columns))
    return "cutmix"


@pytest.mark.parametrize("operation", ["mixup", "cutmix"])
def test_mixing_agrees_with_the_shares(operation):
    for seed in range(20):
        out = run(operation, seed, **{operation: 2.0})
        assert assert_mixed(*out) == operation or out[2][0] in (0, 1)


def test_mixup_and_cutmix_take_turns():
    hparams = jax.tree.map(np.float32, OFF.replace(mixup=2.0, cutmix=2.0))
    kinds = [
        assert_mixed(*map(np.asarray, jitted(("cutmix", "mixup"), key, IMAGES, hparams)))
        for key in jax.random.split(jax.random.key(0), 60)
    ]
    assert 15 < kinds.count("mixup") < 45
    # one that is off leaves all batches to the other
    for other in ("mixup", "cutmix"):
        alone = hparams.replace(**{other: np.float32(0)})
        for key in jax.random.split(jax.random.key(1), 10):
            out = map(np.asarray, jitted(("mixup", "cutmix"), key, IMAGES, alone))
            assert assert_mixed(*out) != other


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0, 8.0])
def test_shares_follow_the_beta_distribution(alpha):
    keys = jax.random.split(jax.random.key(3), 4000)
    image = jnp.zeros((1, 1, 1, 1))
    shares = jax.jit(jax.vmap(lambda key, alpha: mix(key, image, alpha, 0.0)[2][0], (0, None)))(
        keys, np.float32(alpha)
    )
    assert shares.min() >= 0 and shares.max() <= 1
    # a draw within float32's rounding of 0 or 1 is neither side's fault
    shares = np.clip(np.asarray(shares, np.float64), 1e-6, 1 - 1e-6)
    grid = np.linspace(1e-3, 1 - 1e-3, 201)
    found = np.searchsorted(np.sort(shares), grid) / len(shares)
    assert abs(found - scipy.stats.beta(alpha, alpha).cdf(grid)).max() < 1.95 / len(shares) ** 0.5


def test_cutmix_boxes_have_the_area_drawn_unless_cut_off():
    """Beta(1, 1) shares: boxes of a uniform area, some of which the border cuts off."""
    keys = jax.random.split(jax.random.key(4), 2000)
    ramp = jnp.arange(2.0)[:, None, None, None] + jnp.zeros((2, 60, 60, 1))
    boxes, partner, share = jax.jit(jax.vmap(lambda key: mix(key, ramp, 0.0, 1.0)))(keys)
    boxes = np.asarray(boxes)[(np.asarray(partner)[:, 0] == 1)][:, 0, :, :, 0] == 1
    border = np.concatenate([boxes[:, 0], boxes[:, -1], boxes[:, :, 0], boxes[:, :, -1]], 1)
    whole = ~border.any(1)
    sides = boxes.any(2).sum(1), boxes.any(1).sum(1)
    assert (sides[0] == sides[1])[whole].all()
    # E[1 - sqrt(U)]^2 of the boxes lie inside: (1 - s)^2 for a side s with density 2 s
    assert abs(whole.mean() - 1 / 6) < 0.04
    assert sides[0].max() > 50 and share.min() < 0.2


def test_order_is_that_of_operation_not_of_the_tuple():
    hparams = jax.tree.map(np.float32, ON)
    key = jax.random.key(0)
    one = jitted(OPERATIONS, key, IMAGES, hparams)
    other = jitted(OPERATIONS[::-1], key, IMAGES, hparams)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    # an operation draws the same whatever else is in use
    images, _, _ = jitted(("flip", "crop"), key, IMAGES, hparams)
    cropped, _, _ = jitted(("crop",), key, IMAGES, hparams)
    expected, _, _ = jitted(("flip",), key, cropped, hparams)
    np.testing.assert_array_equal(images, expected)


def test_three_trials_equal_one_by_one():
    hparams = jax.tree.map(lambda on: on * np.array([0.0, 0.5, 1.0], np.float32), ON)
    keys = jax.random.split(jax.random.key(0), 3)
    trials = jax.jit(jax.vmap(functools.partial(augment, OPERATIONS), in_axes=(0, None, 0)))
    images, partner, share = trials(keys, IMAGES, hparams)
    for i in range(3):
        alone = jitted(
            OPERATIONS, keys[i], IMAGES, jax.tree.map(lambda leaf, i=i: leaf[i], hparams)
        )
        np.testing.assert_allclose(images[i], alone[0], atol=1e-5)
        np.testing.assert_array_equal(partner[i], alone[1])
        np.testing.assert_allclose(share[i], alone[2], atol=1e-6)
    np.testing.assert_array_equal(images[0], IMAGES)


def test_noise():
    key = jax.random.key(0)
    assert (noise(key, IMAGES, 0.0) == IMAGES).all()
    assert (augment(("noise",), key, IMAGES, ON)[0] == IMAGES).all()
    added = (noise(key, IMAGES, 0.1) - IMAGES).ravel() / 0.1
    assert scipy.stats.kstest(added, "norm").pvalue > 1e-3


def test_an_unknown_operation_is_an_error():
    with pytest.raises(ValueError, match="unknown augmentations: cutmux"):
        augment(("flip", "cutmux"), jax.random.key(0), IMAGES, ON)
