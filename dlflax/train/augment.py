"""Augmentation on the device, batched: a pure function of the key, the batch and the strengths.

A recipe lists its augmentations: frozen dataclasses or functions (key, batch, hparams) -> batch.
batch: "inputs", float (n, ...), and "targets"; what comes back has the same shapes and dtypes.
hparams: the strengths, which may be traced, so another one costs no compilation; strength 0 is the
identity to the bit. Three attributes say more of an augmentation:

- `numbers`: the Hparams that it goes by, each with the strength that --augment gives where none is
  set (without `numbers`: all Hparams, as they are);
- `corrupts`: True for one that an autoencoder is to undo; it acts after the targets are taken;
- a batch that comes back with "partner", int32 (n,), and "share", float32 (n,), is a mix: an
  example's own target counts `share` in the loss, and that of `partner` 1 - share.

The shipped ones take pictures, float (n, h, w, c) in 0..1; `Noise` takes inputs of any shape.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Float, Int, PRNGKeyArray, ScalarLike

from dlflax.errors import InputError
from dlflax.shapes import AnyArray
from dlflax.train.batch import floats
from dlflax.train.hparams import numbers as names_of

Pictures = Float[AnyArray, "n h w c"]
Augmentation = Callable  # (key, batch, hparams) -> batch


@dataclasses.dataclass(frozen=True)
class Crop:
    """`crop`."""

    numbers: ClassVar = {"crop": 4.0}

    def __call__(self, key, batch, hparams):
        return {**batch, "inputs": crop(key, _pictures(batch), hparams.crop)}


@dataclasses.dataclass(frozen=True)
class Flip:
    """`flip`."""

    numbers: ClassVar = {"flip": 0.5}

    def __call__(self, key, batch, hparams):
        return {**batch, "inputs": flip(key, _pictures(batch), hparams.flip)}


@dataclasses.dataclass(frozen=True)
class Affine:
    """`affine`: shift, rotation and zoom."""

    numbers: ClassVar = {"translate": 2.0, "rotate": 12.0, "zoom": 0.1}

    def __call__(self, key, batch, hparams):
        strengths = hparams.translate, hparams.rotate, hparams.zoom
        return {**batch, "inputs": affine(key, _pictures(batch), *strengths)}


@dataclasses.dataclass(frozen=True)
class Warp(Affine):
    """`affine`, which an autoencoder is to undo: its code then says little of where a thing is and
    how it is turned."""

    corrupts: ClassVar = True


@dataclasses.dataclass(frozen=True)
class Brightness:
    """`brightness`."""

    numbers: ClassVar = {"brightness": 0.2}

    def __call__(self, key, batch, hparams):
        return {**batch, "inputs": brightness(key, _pictures(batch), hparams.brightness)}


@dataclasses.dataclass(frozen=True)
class Contrast:
    """`contrast`."""

    numbers: ClassVar = {"contrast": 0.2}

    def __call__(self, key, batch, hparams):
        return {**batch, "inputs": contrast(key, _pictures(batch), hparams.contrast)}


@dataclasses.dataclass(frozen=True)
class Cutout:
    """`cutout`."""

    numbers: ClassVar = {"cutout": 0.25}

    def __call__(self, key, batch, hparams):
        return {**batch, "inputs": cutout(key, _pictures(batch), hparams.cutout)}


@dataclasses.dataclass(frozen=True)
class MixUp:
    """`mix`, MixUp alone."""

    numbers: ClassVar = {"mixup": 0.2}

    def __call__(self, key, batch, hparams):
        return _mixed(key, batch, hparams.mixup, 0.0)


@dataclasses.dataclass(frozen=True)
class CutMix:
    """`mix`, CutMix alone."""

    numbers: ClassVar = {"cutmix": 1.0}

    def __call__(self, key, batch, hparams):
        return _mixed(key, batch, 0.0, hparams.cutmix)


@dataclasses.dataclass(frozen=True)
class Mix:
    """`mix`: MixUp or CutMix, one of them a batch."""

    numbers: ClassVar = {"mixup": 0.2, "cutmix": 1.0}

    def __call__(self, key, batch, hparams):
        return _mixed(key, batch, hparams.mixup, hparams.cutmix)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Gaussian noise of standard deviation `Hparams.noise` added to the inputs, not clipped."""

    numbers: ClassVar = {"noise": 0.3}
    corrupts: ClassVar = True

    def __call__(self, key, batch, hparams):
        inputs = batch["inputs"]
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise InputError("--augment noise is for inputs that are floats: leave it out.")
        drawn = jax.random.normal(key, inputs.shape, inputs.dtype)
        return {**batch, "inputs": inputs + hparams.noise * drawn}


AUGMENTATIONS = {
    "crop": Crop(),
    "flip": Flip(),
    "affine": Affine(),
    "brightness": Brightness(),
    "contrast": Contrast(),
    "cutout": Cutout(),
    "mixup": MixUp(),
    "cutmix": CutMix(),
    "mix": Mix(),
    "warp": Warp(),
    "noise": Noise(),
}
"""Their short names on the command line."""


def augment(augmentations: tuple[Augmentation, ...], key, batch, hparams, corrupt: bool = False):
    """The batch changed by the augmentations in their order, each with a key of its own. corrupt:
    by those that corrupt, or by all others. InputError when two of them mix examples."""
    for i, each in enumerate(augmentations):
        if getattr(each, "corrupts", False) == corrupt:
            partner = batch.get("partner")
            batch = each(jax.random.fold_in(key, i), batch, hparams)
            if partner is not None and batch.get("partner") is not partner:
                raise InputError(
                    "--augment mixup cutmix: use mix, which draws one of the two for each batch."
                )
    return batch


def augment_batch(recipe, hparams, batch, key):
    """Returns the batch as the model and the loss see it in training. recipe: with `augment` and
    `task`, of which it takes the targets."""
    batch = {**batch, "inputs": floats(batch["inputs"])}
    batch = augment(recipe.augment, key, batch, hparams)
    batch = {**batch, "targets": recipe.task.targets(batch)}
    return augment(recipe.augment, key, batch, hparams, corrupt=True)


def numbers(augmentations, hparams) -> tuple[str, ...]:
    """The names of the Hparams that these augmentations go by."""
    return tuple(n for each in augmentations for n in getattr(each, "numbers", names_of(hparams)))


def with_strengths(augmentations, hparams):
    """The numbers, where an augmentation whose strengths are all 0 gets those that it suggests: one
    that is named is to do something."""
    for each in augmentations:
        suggested = getattr(each, "numbers", None)
        if isinstance(suggested, dict) and not any(getattr(hparams, n) for n in suggested):
            hparams = hparams.replace(**suggested)
    return hparams


def _pictures(batch):
    """The inputs, float (n, h, w, c). InputError for anything else."""
    if batch["inputs"].ndim != 4:
        shape = batch["inputs"].shape[1:]
        raise InputError(f"--augment is for pictures, not for inputs of shape {shape}: leave it.")
    return batch["inputs"]


def _mixed(key, batch, mixup, cutmix):
    images, partner, share = mix(key, _pictures(batch), mixup, cutmix)
    return {**batch, "inputs": images, "partner": partner, "share": share}


def crop(key: PRNGKeyArray, images: Pictures, largest: ScalarLike) -> Pictures:
    """Random crop of each image padded by reflection (He et al. 2016, section 4.2, with zeros):
    a shift by whole pixels, uniform in +-largest for rows and for columns."""
    n, h, w, _ = images.shape
    largest = jnp.int32(largest)
    shift = jax.random.randint(key, (n, 2), -largest, largest + 1)

    def reflected(shift, size):
        period = max(2 * (size - 1), 1)
        at = (jnp.arange(size)[None] + shift[:, None]) % period
        return jnp.minimum(at, period - at)

    rows, columns = reflected(shift[:, 0], h), reflected(shift[:, 1], w)
    return images[jnp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def flip(key: PRNGKeyArray, images: Pictures, probability: ScalarLike) -> Pictures:
    """Each image mirrored left to right with this probability."""
    mirrored = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def affine(
    key: PRNGKeyArray, images: Pictures, translate: ScalarLike, rotate: ScalarLike, zoom: ScalarLike
) -> Pictures:
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
        return jax.vmap(lambda channel: map_coordinates(channel, source, order=1), -1, -1)(image)

    return jax.vmap(one)(images, shift, angle, scale)


def brightness(key: PRNGKeyArray, images: Pictures, largest: ScalarLike) -> Pictures:
    """Each image brighter by its own amount, uniform in +-largest, and clipped to 0..1."""
    delta = largest * jax.random.uniform(key, (len(images), 1, 1, 1), minval=-1.0)
    changed = jnp.clip(images + delta, 0.0, 1.0)
    return jnp.where(largest > 0, changed, images)


def contrast(key: PRNGKeyArray, images: Pictures, largest: ScalarLike) -> Pictures:
    """Each image's differences from its mean, channel by channel, multiplied by a factor uniform in
    1 +- largest, and clipped to 0..1."""
    factor = 1.0 + largest * jax.random.uniform(key, (len(images), 1, 1, 1), minval=-1.0)
    mean = images.mean((1, 2), keepdims=True)
    changed = jnp.clip(factor * (images - mean) + mean, 0.0, 1.0)
    return jnp.where(largest > 0, changed, images)


def cutout(key: PRNGKeyArray, images: Pictures, side: ScalarLike) -> Pictures:
    """A square of each image set to 0 (DeVries and Taylor 2017). side: as a fraction of the image's
    shorter side, rounded to whole pixels; the centre is any pixel, so part may lie outside."""
    n, h, w, _ = images.shape
    side = jnp.int32(jnp.round(side * min(h, w)))
    return jnp.where(_box(key, n, h, w, side, side), 0.0, images)


def mix(
    key: PRNGKeyArray, images: Pictures, mixup: ScalarLike, cutmix: ScalarLike
) -> tuple[Pictures, Int[AnyArray, " n"], Float[AnyArray, " n"]]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each image with another of the
    batch; where both are on, one of them a batch, at random, as timm does.

    mixup, cutmix: alpha of the Beta(alpha, alpha) distribution of the share; 0 is off.
    Returns (images, partner, share): the share and the box are the batch's,
    and CutMix's share is the area that the box, cut off at the border, leaves.
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
