"""Array types for `jaxtyping` signatures, whose strings name the axes."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
