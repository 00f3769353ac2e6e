"""Augmentation on the device: pure functions of the key, the batch and the strengths.

A recipe lists its augmentations: frozen dataclasses or functions (key, batch, hparams) -> batch.
batch: "inputs", float (n, ...), and "targets"; shapes and dtypes stay the same. hparams: the
strengths, which may be traced, so a new value needs no compilation; strength 0 is the exact
identity. Three attributes are optional:

- `numbers`: the Hparams that an augmentation reads, each with its default strength for --augment
  (without `numbers`: all Hparams, without defaults);
- `corrupts`: True if an autoencoder is to undo it: it then acts after the targets are computed;
- "partner", int32 (n,), and "share", float32 (n,), in the returned batch mark a mix: the loss
  weights an example's own target by `share`, and the partner's target by 1 - share.

The shipped ones require images, float (n, h, w, c) in 0..1; `Noise` takes inputs of any shape.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Float, Int, PRNGKeyArray, ScalarLike

from dlflax.errors import InputError
from dlflax.shapes import AnyArray
from dlflax.train.batch import floats
from dlflax.train.hparams import hparam_names

ImageBatch = Float[AnyArray, "n h w c"]
Augmentation = Callable  # (key, batch, hparams) -> batch


def augment(augmentations: tuple[Augmentation, ...], key, batch, hparams, corrupt: bool = False):
    """Returns the batch after the augmentations in their order, each with a key of its own.
    corrupt: applies those that corrupt, instead of all others. Raises InputError if two of them mix
    examples."""
    for i, augmentation in enumerate(augmentations):
        if getattr(augmentation, "corrupts", False) == corrupt:
            partner = batch.get("partner")
            batch = augmentation(jax.random.fold_in(key, i), batch, hparams)
            if partner is not None and batch.get("partner") is not partner:
                raise InputError(
                    "--augment mixup cutmix: use mix, which draws one of the two for each batch."
                )
    return batch


def augment_batch(recipe, hparams, batch, key):
    """Returns the batch as a training step uses it: augmented, with the task's targets."""
    batch = {**batch, "inputs": floats(batch["inputs"])}
    batch = augment(recipe.augment, key, batch, hparams)
    batch = {**batch, "targets": recipe.task.targets(batch)}
    return augment(recipe.augment, key, batch, hparams, corrupt=True)


def strength_names(augmentations, hparams) -> tuple[str, ...]:
    """Returns the names of the Hparams that these augmentations read."""
    return tuple(
        name for change in augmentations
        for name in getattr(change, "numbers", hparam_names(hparams))
    )  # fmt: skip


def set_default_strengths(augmentations, hparams):
    """Returns hparams with the default strengths of every augmentation whose strengths are all 0:
    an augmentation that a user names has an effect."""
    for augmentation in augmentations:
        defaults = getattr(augmentation, "numbers", None)
        if isinstance(defaults, dict) and not any(getattr(hparams, n) for n in defaults):
            hparams = hparams.replace(**defaults)
    return hparams


def mix(
    key: PRNGKeyArray, images: ImageBatch, mixup_alpha: ScalarLike, cutmix_alpha: ScalarLike
) -> tuple[ImageBatch, Int[AnyArray, " n"], Float[AnyArray, " n"]]:
    """Mixes each image with another of the batch: MixUp (Zhang et al. 2018) or CutMix (Yun et al.
    2019); if both are on, one is drawn for each batch, as in timm.

    mixup_alpha, cutmix_alpha: of the Beta(alpha, alpha) distribution of the share; 0 is off.
    Returns (images, partner, share): a batch has one share and one box; the share of CutMix is the
    area outside the box, which the border clips.
    """
    n, h, w, _ = images.shape
    choice_key, share_key, partner_key, box_key = jax.random.split(key, 4)
    enabled = jnp.sign(mixup_alpha) + jnp.sign(cutmix_alpha)
    cutmix_share = jnp.sign(cutmix_alpha) / jnp.maximum(enabled, 1.0)
    is_cutmix = jax.random.bernoulli(choice_key, cutmix_share)
    alpha = jnp.where(is_cutmix, cutmix_alpha, mixup_alpha)
    share = jnp.where(alpha > 0, _symmetric_beta(share_key, alpha), 1.0)
    partner = jax.random.permutation(partner_key, n)

    height, width = (jnp.int32(jnp.round(size * jnp.sqrt(1.0 - share))) for size in (h, w))
    outside = 1.0 - _box(box_key, 1, h, w, height, width)
    weight = jnp.where(is_cutmix, outside, share)
    images = weight * images + (1.0 - weight) * images[partner]
    return images, partner, jnp.full(n, jnp.where(is_cutmix, outside.mean(), share))


def _symmetric_beta(key, alpha):
    """Draws from Beta(alpha, alpha) without the loops of jax.random.beta (3 s to compile). The draw
    is T / sqrt(2 alpha + T^2), mapped from -1..1 to 0..1, of Student's T with 2 alpha degrees of
    freedom, by the polar method (Bailey 1994), which is exact."""
    radius, angle = jax.random.uniform(key, (2,))
    log_power = jnp.log(radius) / alpha
    power, rest = jnp.exp(log_power), -jnp.expm1(log_power)
    cos = jnp.cos(2 * jnp.pi * angle)
    # rounding may leave 0..1
    return jnp.clip(0.5 + 0.5 * cos * jnp.sqrt(rest / (power + rest * cos**2)), 0.0, 1.0)


def _box(key, n, h, w, height, width):
    """Returns masks bool (n, h, w, 1) of boxes of height x width pixels at random centres."""
    row_key, column_key = jax.random.split(key)

    def inside(key, size, length):
        start = jax.random.randint(key, (n, 1), 0, size) - length // 2
        index = jnp.arange(size)[None]
        return (start <= index) & (index < start + length)

    rows, columns = inside(row_key, h, height), inside(column_key, w, width)
    return rows[:, :, None, None] & columns[:, None, :, None]


def _images(batch):
    """Returns the inputs, float (n, h, w, c). Raises InputError for any other shape."""
    if batch["inputs"].ndim != 4:
        shape = batch["inputs"].shape[1:]
        raise InputError(f"--augment requires images, not inputs of shape {shape}: remove it.")
    return batch["inputs"]


class ImageAugmentation:
    """Base of the augmentations of images: calls `transform` with the strengths in `numbers`."""

    numbers: ClassVar[dict[str, float]]
    transform: ClassVar[Callable]
    """(key, images, *strengths) -> images."""

    def __call__(self, key, batch, hparams):
        strengths = (getattr(hparams, name) for name in self.numbers)
        return {**batch, "inputs": self.transform(key, _images(batch), *strengths)}


@dataclasses.dataclass(frozen=True)
class Crop(ImageAugmentation):
    """Random shift of images by whole pixels, uniform in +-crop_pixels for rows and columns,
    padded by reflection (He et al. 2016, section 4.2, who pad with zeros)."""

    numbers: ClassVar = {"crop_pixels": 4.0}

    @staticmethod
    def transform(key: PRNGKeyArray, images: ImageBatch, largest: ScalarLike) -> ImageBatch:
        n, h, w, _ = images.shape
        largest = jnp.int32(largest)
        shift = jax.random.randint(key, (n, 2), -largest, largest + 1)

        def reflect(shift, size):
            period = max(2 * (size - 1), 1)
            index = (jnp.arange(size)[None] + shift[:, None]) % period
            return jnp.minimum(index, period - index)

        rows, columns = reflect(shift[:, 0], h), reflect(shift[:, 1], w)
        return images[jnp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


@dataclasses.dataclass(frozen=True)
class Flip(ImageAugmentation):
    """Random horizontal flip."""

    numbers: ClassVar = {"flip_probability": 0.5}

    @staticmethod
    def transform(key: PRNGKeyArray, images: ImageBatch, probability: ScalarLike) -> ImageBatch:
        mirrored = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
        return jnp.where(mirrored, images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True)
class Affine(ImageAugmentation):
    """Random shift, rotation and zoom of images about their centre: bilinear, 0 outside. Uniform in
    +-translate_pixels (rows and columns), +-rotate_degrees and 1 +- zoom_fraction."""

    numbers: ClassVar = {"translate_pixels": 2.0, "rotate_degrees": 12.0, "zoom_fraction": 0.1}

    @staticmethod
    def transform(
        key: PRNGKeyArray, images: ImageBatch, pixels: ScalarLike, degrees: ScalarLike,
        fraction: ScalarLike,
    ) -> ImageBatch:  # fmt: skip
        n, h, w, _ = images.shape
        shift_key, angle_key, zoom_key = jax.random.split(key, 3)
        shift = pixels * jax.random.uniform(shift_key, (n, 2), minval=-1.0)
        angle = jnp.deg2rad(degrees * jax.random.uniform(angle_key, (n,), minval=-1.0))
        scale = 1.0 + fraction * jax.random.uniform(zoom_key, (n,), minval=-1.0)
        rows, columns = jnp.meshgrid(
            jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij"
        )

        def warp(image, shift, angle, scale):
            # the inverse map: the source of each output pixel. Not as a matrix product, which
            # accelerators round to fewer bits
            cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
            source = [
                cos * rows - sin * columns + ((h - 1) / 2 - shift[0]),
                sin * rows + cos * columns + ((w - 1) / 2 - shift[1]),
            ]
            sample = functools.partial(map_coordinates, coordinates=source, order=1)
            return jax.vmap(sample, -1, -1)(image)

        return jax.vmap(warp)(images, shift, angle, scale)


@dataclasses.dataclass(frozen=True)
class Warp(Affine):
    """`Affine` for autoencoders to undo: codes then depend little on an object's position and
    rotation."""

    corrupts: ClassVar = True


@dataclasses.dataclass(frozen=True)
class Brightness(ImageAugmentation):
    """Random offset of images, uniform in +-brightness, clipped to 0..1."""

    numbers: ClassVar = {"brightness": 0.2}

    @staticmethod
    def transform(key: PRNGKeyArray, images: ImageBatch, largest: ScalarLike) -> ImageBatch:
        delta = largest * jax.random.uniform(key, (len(images), 1, 1, 1), minval=-1.0)
        changed = jnp.clip(images + delta, 0.0, 1.0)
        return jnp.where(largest > 0, changed, images)


@dataclasses.dataclass(frozen=True)
class Contrast(ImageAugmentation):
    """Random factor of images' differences from their channel means, uniform in 1 +- contrast,
    clipped to 0..1."""

    numbers: ClassVar = {"contrast": 0.2}

    @staticmethod
    def transform(key: PRNGKeyArray, images: ImageBatch, largest: ScalarLike) -> ImageBatch:
        factor = 1.0 + largest * jax.random.uniform(key, (len(images), 1, 1, 1), minval=-1.0)
        mean = images.mean((1, 2), keepdims=True)
        changed = jnp.clip(factor * (images - mean) + mean, 0.0, 1.0)
        return jnp.where(largest > 0, changed, images)


@dataclasses.dataclass(frozen=True)
class Cutout(ImageAugmentation):
    """Random square of images set to 0 (DeVries and Taylor 2017). Its side is a fraction of the
    image's shorter side, in whole pixels; its centre is any pixel, so the border may clip it."""

    numbers: ClassVar = {"cutout_fraction": 0.25}

    @staticmethod
    def transform(key: PRNGKeyArray, images: ImageBatch, side: ScalarLike) -> ImageBatch:
        n, h, w, _ = images.shape
        side = jnp.int32(jnp.round(side * min(h, w)))
        return jnp.where(_box(key, n, h, w, side, side), 0.0, images)


@dataclasses.dataclass(frozen=True)
class Mix:
    """MixUp or CutMix, drawn for each batch: `mix`."""

    numbers: ClassVar = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}

    def __call__(self, key, batch, hparams):
        names = ("mixup_alpha", "cutmix_alpha")
        alphas = (getattr(hparams, name) if name in self.numbers else 0.0 for name in names)
        images, partner, share = mix(key, _images(batch), *alphas)
        return {**batch, "inputs": images, "partner": partner, "share": share}


@dataclasses.dataclass(frozen=True)
class MixUp(Mix):
    """MixUp alone: `mix`."""

    numbers: ClassVar = {"mixup_alpha": 0.2}


@dataclasses.dataclass(frozen=True)
class CutMix(Mix):
    """CutMix alone: `mix`."""

    numbers: ClassVar = {"cutmix_alpha": 1.0}


@dataclasses.dataclass(frozen=True)
class Noise:
    """Gaussian noise of standard deviation `Hparams.noise_std` added to the inputs, not clipped."""

    numbers: ClassVar = {"noise_std": 0.3}
    corrupts: ClassVar = True

    def __call__(self, key, batch, hparams):
        inputs = batch["inputs"]
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise InputError(
                f"--augment noise requires float inputs, but they are {inputs.dtype}: remove it."
            )
        noise = jax.random.normal(key, inputs.shape, inputs.dtype)
        return {**batch, "inputs": inputs + hparams.noise_std * noise}


AUGMENTATIONS = {
    "crop": Crop(), "flip": Flip(), "affine": Affine(), "brightness": Brightness(),
    "contrast": Contrast(), "cutout": Cutout(), "mixup": MixUp(), "cutmix": CutMix(), "mix": Mix(),
    "warp": Warp(), "noise": Noise(),
}  # fmt: skip
"""Augmentations by their short names on the command line."""
