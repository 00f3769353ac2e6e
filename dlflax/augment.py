"""Augmentation on the device, batched, a pure function of the key."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def affine(key, images, translate, rotate, zoom):
    """Each image shifted, rotated and zoomed by its own random amount about its centre.

    images: float (n, h, w, c) -> the same shape, bilinear, 0 outside. Amounts are uniform in
    +-translate pixels (rows and columns), +-rotate degrees and 1 +- zoom; all may be traced.
    """
    n, h, w, _ = images.shape
    shift_key, angle_key, zoom_key = jax.random.split(key, 3)
    shift = translate * jax.random.uniform(shift_key, (n, 2), minval=-1.0)
    angle = jnp.deg2rad(rotate * jax.random.uniform(angle_key, (n,), minval=-1.0))
    scale = 1.0 + zoom * jax.random.uniform(zoom_key, (n,), minval=-1.0)

    centre = jnp.array([(h - 1) / 2, (w - 1) / 2], jnp.float32)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), -1)
    grid = grid.reshape(-1, 2) - centre[None]

    def one(image, shift, angle, scale):
        # every output pixel looks up where it came from, hence the inverse map
        cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
        source = grid @ jnp.array([[cos, sin], [-sin, cos]]) + (centre - shift)[None]
        at = [source[:, 0].reshape(h, w), source[:, 1].reshape(h, w)]
        return jax.vmap(lambda channel: map_coordinates(channel, at, order=1), -1, -1)(image)

    return jax.vmap(one)(images, shift, angle, scale)
