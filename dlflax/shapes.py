"""Types of arrays in signatures, beside those of `jaxtyping`, whose strings name the axes."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
