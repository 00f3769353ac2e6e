"""Saliency maps of an image classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def grad_cam(model, variables, images) -> np.ndarray | None:
    """Grad-CAM (Selvaraju et al. 2017, section 3): the channels of the last feature map, weighted
    by the mean gradient of the predicted class's logit, summed and rectified.

    images float32 (n, h, w, c) in 0..1 -> float32 (n, h, w), upsampled bilinearly, each with a
    maximum of 1, or all 0 without positive evidence. None for a model without a
    `layers.feature_map`.
    """
    perturbations = _perturbations(model, variables, images)
    if not jax.tree.leaves(perturbations):
        return None
    return np.asarray(_grad_cam(model, variables, images))


def _perturbations(model, variables, images):
    """Returns the abstract collection "perturbations" of the model."""
    apply = functools.partial(model.apply, train=False, mutable=["perturbations"])
    return jax.eval_shape(apply, variables, images)[1]


@functools.partial(jax.jit, static_argnums=0)
def _grad_cam(model, variables, images):
    # Only the perturbation is differentiated: the backward pass ends at the feature map.
    def score(perturbations):
        outputs, sown = model.apply(
            {**variables, **perturbations}, images, train=False, mutable=["intermediates"]
        )
        (features,) = jax.tree.leaves(sown)
        predicted = jnp.take_along_axis(outputs, outputs.argmax(-1, keepdims=True), -1)
        return predicted.sum(), features

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _perturbations(model, variables, images)
    )
    gradient, features = jax.grad(score, has_aux=True)(zeros)
    (gradient,) = jax.tree.leaves(gradient)
    maps = jax.nn.relu(jnp.einsum("nhwc,nc->nhw", features, gradient.mean((1, 2))))
    maps = jax.image.resize(maps, images.shape[:3], "bilinear")
    highest = maps.max((1, 2), keepdims=True)
    return maps / jnp.where(highest > 0, highest, 1)
