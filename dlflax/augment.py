"""Augmentation on the device, batched: a pure function of the key, the images and the strengths.

Every function takes images float (n, h, w, c), values 0..1, and gives the same shape and range.
Strengths may be traced, so another one costs no compilation; strength 0 is the identity to the bit.
"""

from typing import Literal, get_args

import dm_pix as pix
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

Operation = Literal[
    "crop", "flip", "affine", "brightness", "contrast", "cutout", "mixup", "cutmix", "noise"
]
STRENGTHS = {
    "affine": ("translate", "rotate", "zoom"),
    **{name: (name,) for name in get_args(Operation) if name != "affine"},
}  # the Hparams that an operation goes by


def augment(operations: tuple[Operation, ...], key, images, hparams):
    """Images changed by `operations`, in the order that `Operation` lists them.

    images: float32 (n, h, w, c), 0..1; hparams: the strengths, as `optim.Hparams`. Each image gets
    its own random amounts; MixUp and CutMix draw once a batch, and of both, one a batch.
    Returns (images, partner int32 (n,), share float32 (n,)): an example's own label counts `share`,
    and that of images[partner] counts 1 - share, which is 0 without MixUp and CutMix.

    noise is left to `noise`, since the target of a denoising autoencoder lies between.
    """
    if unknown := set(operations) - set(get_args(Operation)):
        raise ValueError(f"unknown augmentations: {', '.join(sorted(unknown))}")
    keys = _keys(key)
    if "crop" in operations:
        images = crop(keys["crop"], images, hparams.crop)
    if "flip" in operations:
        images = flip(keys["flip"], images, hparams.flip)
    if "affine" in operations:
        images = affine(keys["affine"], images, hparams.translate, hparams.rotate, hparams.zoom)
    if "brightness" in operations:
        images = brightness(keys["brightness"], images, hparams.brightness)
    if "contrast" in operations:
        images = contrast(keys["contrast"], images, hparams.contrast)
    if "cutout" in operations:
        images = cutout(keys["cutout"], images, hparams.cutout)
    if "mixup" in operations or "cutmix" in operations:
        mixup_alpha = hparams.mixup if "mixup" in operations else 0.0
        cutmix_alpha = hparams.cutmix if "cutmix" in operations else 0.0
        return mix(keys["mixup"], images, mixup_alpha, cutmix_alpha)
    n = len(images)
    return images, jnp.arange(n, dtype=jnp.int32), jnp.ones(n, jnp.float32)


def noise(key, images, deviation):
    """Gaussian noise of this standard deviation added, not clipped. `key` is that of `augment`."""
    return images + deviation * jax.random.normal(_keys(key)["noise"], images.shape)


def _keys(key):
    """One key for each operation, whichever are in use."""
    names = get_args(Operation)
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))


def crop(key, images, largest):
    """Random crop of each image padded by reflection (He et al. 2016, section 4.2, with zeros):
    a shift by whole pixels, uniform in +-largest for rows and for columns."""
    # pix.random_crop needs a padded image, and so a shift known when compiling
    n, h, w, _ = images.shape
    largest = jnp.int32(largest)
    shift = jax.random.randint(key, (n, 2), -largest, largest + 1)

    def reflected(shift, size):
        period = max(2 * (size - 1), 1)
        at = (jnp.arange(size)[None] + shift[:, None]) % period
        return jnp.minimum(at, period - at)

    rows, columns = reflected(shift[:, 0], h), reflected(shift[:, 1], w)
    return images[jnp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def flip(key, images, probability):
    """Each image mirrored left to right with this probability."""
    mirrored = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
    return jnp.where(mirrored, pix.flip_left_right(images), images)


def affine(key, images, translate, rotate, zoom):
    """Each image shifted, rotated and zoomed by its own random amount about its centre: bilinear,
    0 outside. Amounts are uniform in +-translate pixels (rows and columns), +-rotate degrees and
    1 +- zoom."""
    n, h, w, _ = images.shape
    shift_key, angle_key, zoom_key = jax.random.split(key, 3)
    shift = translate * jax.random.uniform(shift_key, (n, 2), minval=-1.0)
    angle = jnp.deg2rad(rotate * jax.random.uniform(angle_key, (n,), minval=-1.0))
    scale = 1.0 + zoom * jax.random.uniform(zoom_key, (n,), minval=-1.0)
    rows, columns = jnp.meshgrid(
        jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij"
    )

    def one(image, shift, angle, scale):
        # every output pixel looks up where it came from, hence the inverse map; not as a matrix
        # product, which accelerators round to fewer bits
        cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
        source = [
            cos * rows - sin * columns + ((h - 1) / 2 - shift[0]),
            sin * rows + cos * columns + ((w - 1) / 2 - shift[1]),
        ]
        # pix.affine_transform takes 30 times as long (it interpolates over channels too), and cuts
        # to 0 at the border instead of interpolating
        return jax.vmap(lambda channel: map_coordinates(channel, source, order=1), -1, -1)(image)

    return jax.vmap(one)(images, shift, angle, scale)


def brightness(key, images, largest):
    """Each image brighter by its own amount, uniform in +-largest, and clipped to 0..1."""
    delta = largest * jax.random.uniform(key, (len(images), 1, 1, 1), minval=-1.0)
    changed = jnp.clip(pix.adjust_brightness(images, delta), 0.0, 1.0)
    return jnp.where(largest > 0, changed, images)


def contrast(key, images, largest):
    """Each image's differences from its mean, channel by channel, multiplied by a factor uniform in
    1 +- largest, and clipped to 0..1."""
    factor = 1.0 + largest * jax.random.uniform(key, (len(images), 1, 1, 1), minval=-1.0)
    changed = jnp.clip(pix.adjust_contrast(images, factor), 0.0, 1.0)
    return jnp.where(largest > 0, changed, images)


def cutout(key, images, side):
    """A square of each image set to 0 (DeVries and Taylor 2017). side: as a fraction of the image's
    shorter side, rounded to whole pixels; the centre is any pixel, so part may lie outside."""
    n, h, w, _ = images.shape
    side = jnp.int32(jnp.round(side * min(h, w)))
    return jnp.where(_box(key, n, h, w, side, side), 0.0, images)


def mix(key, images, mixup, cutmix):
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each image with another of the
    batch; where both are on, one of them a batch, at random, as timm does.

    mixup, cutmix: alpha of the Beta(alpha, alpha) distribution of the share; 0 is off.
    Returns (images, partner, share) as `augment`: the share and the box are the batch's, and
    CutMix's share is the area that the box, cut off at the border, leaves.
    """
    n, h, w, _ = images.shape
    choice_key, share_key, partner_key, box_key = jax.random.split(key, 4)
    ons = jnp.sign(mixup) + jnp.sign(cutmix)
    is_cutmix = jax.random.bernoulli(choice_key, jnp.sign(cutmix) / jnp.maximum(ons, 1.0))
    alpha = jnp.where(is_cutmix, cutmix, mixup)
    share = jnp.where(alpha > 0, _symmetric_beta(share_key, alpha), 1.0)
    partner = jax.random.permutation(partner_key, n)

    height, width = (jnp.int32(jnp.round(size * jnp.sqrt(1.0 - share))) for size in (h, w))
    outside = 1.0 - _box(box_key, 1, h, w, height, width)
    own = jnp.where(is_cutmix, outside, share)
    images = own * images + (1.0 - own) * images[partner]
    return images, partner, jnp.full(n, jnp.where(is_cutmix, outside.mean(), share))


def _symmetric_beta(key, alpha):
    """One draw of Beta(alpha, alpha): T / sqrt(2 alpha + T^2) of Student's T with 2 alpha degrees
    of freedom, from -1..1 to 0..1, where T is drawn by the polar method (Bailey 1994)."""
    # exact, without the loops of jax.random.beta, which take 3 s to compile
    radius, angle = jax.random.uniform(key, (2,))
    kept = jnp.log(radius) / alpha
    kept, lost = jnp.exp(kept), -jnp.expm1(kept)
    cos = jnp.cos(2 * jnp.pi * angle)
    # rounding may end beyond 0..1
    return jnp.clip(0.5 + 0.5 * cos * jnp.sqrt(lost / (kept + lost * cos**2)), 0.0, 1.0)


def _box(key, n, h, w, height, width):
    """bool (n, h, w, 1): whether a pixel lies in a box of height x width, whole pixels, whose
    centre is drawn from all pixels."""
    row_key, column_key = jax.random.split(key)

    def inside(key, size, length):
        start = jax.random.randint(key, (n, 1), 0, size) - length // 2
        at = jnp.arange(size)[None]
        return (start <= at) & (at < start + length)

    rows, columns = inside(row_key, h, height), inside(column_key, w, width)
    return rows[:, :, None, None] & columns[:, None, :, None]
