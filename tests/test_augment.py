"""Augmentation, against NumPy by hand; `affine` against SciPy is in test_train.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dlflax.errors import InputError
from dlflax.train import Hparams
from dlflax.train.augment import AUGMENTATIONS, augment, mix, set_default_strengths

OPERATIONS = tuple(AUGMENTATIONS)[:-3]  # without mix, which is both, and those that corrupt
OFF = Hparams(flip_probability=0.0)
ON = Hparams(
    crop_pixels=3.0, flip_probability=0.5, translate_pixels=2.0, rotate_degrees=20.0,
    zoom_fraction=0.2, brightness=0.3, contrast=0.4,
    cutout_fraction=0.4, mixup_alpha=0.5, cutmix_alpha=1.0, noise_std=0.1,
)  # fmt: skip
N, H, W = 40, 12, 9
IMAGES = np.random.default_rng(0).random((N, H, W, 3), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def jitted(operations, key, images, hparams):
    """(images, partner, share), as `mix`."""
    chosen = tuple(AUGMENTATIONS[name] for name in operations)
    batch = augment(chosen, key, {"inputs": images}, hparams)
    n = len(images)
    partner, share = batch.get("partner", jnp.arange(n)), batch.get("share", jnp.ones(n))
    return batch["inputs"], partner, share


def run(operation, seed=0, images=IMAGES, **strengths):
    hparams = jax.tree.map(np.float32, OFF.replace(**strengths))
    out = jitted((operation,), jax.random.key(seed), images, hparams)
    return [np.asarray(leaf) for leaf in out]


def many(operation, runs, images, **strengths):
    """Images of that many runs: float32 (runs * N, H, W, 3)."""
    images = np.broadcast_to(images, IMAGES.shape).astype(np.float32)
    return np.concatenate([run(operation, i, images, **strengths)[0] for i in range(runs)])


def strength(operation):
    names = list(AUGMENTATIONS[operation].numbers)
    return {name: getattr(ON, name) for name in names}


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
    images, _, _ = run("crop", crop_pixels=largest)
    shifts = []
    for image, old in zip(images, IMAGES, strict=True):
        padded = np.pad(old, ((largest, largest), (largest, largest), (0, 0)), mode="reflect")
        span = range(2 * largest + 1)
        shifts += [
            (i, j) for i in span for j in span if (padded[i : i + H, j : j + W] == image).all()
        ]
    assert len(shifts) >= N
    if largest == 2:
        assert len(shifts) == N and set(np.unique(shifts)) == {0, 1, 2, 3, 4}


def test_crop_shifts_are_uniform():
    ramp = np.arange(H)[:, None, None]
    shifts = many("crop", 50, ramp, crop_pixels=2.9)[:, 6, 0, 0] - 6  # whole pixels: at most 2
    values, counts = np.unique(shifts, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_flip():
    images, _, _ = run("flip", flip_probability=1.0)
    assert (images == IMAGES[:, :, ::-1]).all()
    images = many("flip", 50, IMAGES, flip_probability=0.25)
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
    grey = many("brightness", 75, 0.5, brightness=0.3)[:, 0, 0, 0]
    assert_uniform(grey - 0.5, -0.3, 0.3)


def test_contrast():
    images, _, _ = run("contrast", contrast=0.4)
    for image, old in zip(images, IMAGES, strict=True):
        mean = old.mean((0, 1))
        at = np.unravel_index(np.argmin(abs(abs(old - mean) - 0.25)), old.shape)
        factor = (image[at] - mean[at[2]]) / (old[at] - mean[at[2]])
        assert 0.6 <= factor <= 1.4
        np.testing.assert_allclose(image, ((old - mean) * factor + mean).clip(0, 1), atol=1e-5)
    halves = np.where(np.arange(H) < H // 2, 0.25, 0.75)[:, None, None]
    factors = np.ptp(many("contrast", 75, halves, contrast=0.4), axis=(1, 2, 3)) / 0.5
    assert_uniform(factors, 0.6 - 1e-6, 1.4 + 1e-6)


def test_clips_only_what_it_changes():
    wide = IMAGES * 4 - 2
    for operation in ("brightness", "contrast"):
        assert (run(operation, images=wide)[0] == wide).all()


@pytest.mark.parametrize("side", [4, 7])
def test_cutout(side):
    holes = many("cutout", 50, 1.0, cutout_fraction=(side + 0.2) / W) == 0
    assert (holes.any(-1) == holes.all(-1)).all()
    holes = holes.any(-1)
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
    assert counts.sum() == len(holes)  # each is one of the squares, whose centres are uniform
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
        out = run(operation, seed, **{f"{operation}_alpha": 2.0})
        assert assert_mixed(*out) == operation or out[2][0] in (0, 1)


def test_mixup_and_cutmix_take_turns():
    hparams = jax.tree.map(np.float32, OFF.replace(mixup_alpha=2.0, cutmix_alpha=2.0))
    kinds = [
        assert_mixed(*map(np.asarray, jitted(("mix",), key, IMAGES, hparams)))
        for key in jax.random.split(jax.random.key(0), 60)
    ]
    assert 15 < kinds.count("mixup") < 45
    # one that is off leaves all batches to the other
    for other in ("mixup", "cutmix"):
        alone = hparams.replace(**{f"{other}_alpha": np.float32(0)})
        for key in jax.random.split(jax.random.key(1), 10):
            out = map(np.asarray, jitted(("mix",), key, IMAGES, alone))
            assert assert_mixed(*out) != other


def test_shares_follow_the_beta_distribution():
    keys = jax.random.split(jax.random.key(3), 4000)
    image = jnp.zeros((1, 1, 1, 1))
    shares_of = jax.jit(jax.vmap(lambda key, alpha: mix(key, image, alpha, 0.0)[2][0], (0, None)))
    for alpha in (1e-4, 0.05, 0.3, 1.0, 8.0, 1e3):
        shares = shares_of(keys, np.float32(alpha))
        assert shares.min() >= 0 and shares.max() <= 1
        # Kolmogorov and Smirnov's test, but where float32 rounds a share to 0 or 1
        grid = np.concatenate([[1e-3], np.linspace(0.01, 0.99, 401), [0.999]])
        found = np.searchsorted(np.sort(shares), grid) / len(shares)
        worst = abs(found - scipy.stats.beta(alpha, alpha).cdf(grid)).max()
        assert worst < 1.95 / len(shares) ** 0.5


def test_cutmix_shares_are_those_of_the_paper():
    """Yun et al. 2019, algorithm 1, on continuous boxes."""
    rng = np.random.default_rng(0)
    sides = np.sqrt(1 - rng.beta(1.0, 1.0, 100_000))

    def kept(centre):
        return (centre + sides / 2).clip(0, 1) - (centre - sides / 2).clip(0, 1)

    expected = 1 - kept(rng.random(len(sides))) * kept(rng.random(len(sides)))
    shares = [run("cutmix", seed, cutmix_alpha=1.0)[2][0] for seed in range(600)]
    assert abs(np.mean(shares) - expected.mean()) < 0.04
    assert abs(np.std(shares) - expected.std()) < 0.04


@pytest.mark.slow
def test_three_trials_of_all_equal_one_operation_after_the_other():
    """In the order given, each with a key of its own, under vmap too."""
    hparams = jax.tree.map(lambda on: on * np.array([0.0, 0.5, 1.0], np.float32), ON)
    keys = jax.random.split(jax.random.key(0), 3)
    names = (*OPERATIONS[:-2], "mix")
    trials = jax.jit(jax.vmap(functools.partial(jitted, names), in_axes=(0, None, 0)))
    found = trials(keys, IMAGES, hparams)
    np.testing.assert_array_equal(found[0][0], IMAGES)
    for i, key in enumerate(keys):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i], hparams)
        batch = {"inputs": IMAGES}
        for k, name in enumerate(names):
            batch = jax.jit(AUGMENTATIONS[name])(jax.random.fold_in(key, k), batch, alone)
        np.testing.assert_allclose(found[0][i], batch["inputs"], atol=1e-5)
        np.testing.assert_array_equal(found[1][i], batch["partner"])
        np.testing.assert_allclose(found[2][i], batch["share"], atol=1e-6)


def test_noise_comes_after_the_targets():
    key, noise = jax.random.key(0), (AUGMENTATIONS["noise"], AUGMENTATIONS["flip"])
    batch = {"inputs": IMAGES}
    noisy = jax.jit(functools.partial(augment, noise, corrupt=True))
    assert (augment(noise[:1], key, batch, ON)["inputs"] == IMAGES).all()
    assert (noisy(key, batch, ON.replace(noise_std=0.0))["inputs"] == IMAGES).all()
    added = (np.asarray(noisy(key, batch, ON)["inputs"]) - IMAGES).ravel() / 0.1
    assert scipy.stats.kstest(added, "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("names", "inputs", "sentence"),
    [
        (("flip",), np.zeros((2, 5), np.float32), "--augment requires images"),
        (("noise",), np.zeros((2, 5), np.int32), "--augment noise requires float inputs"),
        (("mixup", "cutmix"), IMAGES, "use mix, which draws one of the two"),
    ],
)
def test_what_an_augmentation_refuses(names, inputs, sentence):
    chosen = tuple(AUGMENTATIONS[name] for name in names)
    with pytest.raises(InputError, match=sentence):
        augment(chosen, jax.random.key(0), {"inputs": inputs}, ON, corrupt=names == ("noise",))


def corrupts(each):
    return getattr(each, "corrupts", False)


def test_one_that_is_named_has_a_strength():
    for name, each in AUGMENTATIONS.items():
        hparams = set_default_strengths((each,), Hparams(flip_probability=0.0))
        assert all(getattr(hparams, number) > 0 for number in each.numbers), name
        images = augment((each,), jax.random.key(0), {"inputs": IMAGES}, hparams, corrupts(each))
        assert (np.asarray(images["inputs"]) != IMAGES).any(), name
    given = Hparams(translate_pixels=1.0)  # one number that is set leaves the others as they are
    assert set_default_strengths((AUGMENTATIONS["affine"],), given) == given
