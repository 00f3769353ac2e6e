"""Boosted decision trees: a model whose arrays come from another library's."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from dlflax.ops.platform import is_portable
from dlflax.shapes import AnyArray

CHUNK = 64  # trees for each score that are evaluated at a time, to save memory


class Trees(nn.Module):
    """Gradient-boosted decision trees, which `baselines.boosting` fits: nothing is trained here.

    Call: inputs float32 (n, ...) -> outputs float32 (n, num_outputs). The trees read columns, which
    are inputs and linear combinations of inputs. A split passes an example to its child `left`, or
    to the node after that if the example's column is greater than the threshold. The fields are the
    sizes of the arrays in the collection "trees".
    """

    width: int
    """Number of inputs."""
    num_inputs: int
    """Number of columns that are inputs."""
    num_combinations: int
    """Number of columns that are linear combinations of inputs, such as target statistics."""
    num_trees: int
    num_nodes: int
    """Number of nodes of all trees."""
    depth: int
    """Number of splits above the lowest leaf."""
    num_scores: int = 1
    """Number of sums of leaf values; outputs are linear in them."""
    num_values: int = 1
    """Number of values of a leaf: 1, of the score of its tree, or num_scores."""
    num_outputs: int = 1

    def setup(self):
        def array(name: str, dtype: Any, *shape: int):
            return self.variable("trees", name, jnp.zeros, shape, dtype)

        # of the columns that are inputs; fill replaces missing ones, whose indicator is 1
        self.source = array("source", jnp.int32, self.num_inputs)
        self.indicator = array("indicator", jnp.int32, self.num_inputs)  # -1: never missing
        self.fill = array("fill", jnp.float32, self.num_inputs)
        self.projection = array("projection", jnp.float32, self.width, self.num_combinations)
        # of the trees, those of one round of boosting in the order of the scores
        self.root = array("root", jnp.int32, self.num_trees)
        # of the nodes; a leaf is its own child, with an infinite threshold
        self.column = array("column", jnp.int32, self.num_nodes)
        self.threshold = array("threshold", jnp.float32, self.num_nodes)
        self.left = array("left", jnp.int32, self.num_nodes)
        self.value = array("value", jnp.float32, self.num_nodes, self.num_values)
        self.head = array("head", jnp.float32, self.num_scores, self.num_outputs)
        self.base = array("base", jnp.float32, self.num_outputs)

    def columns(self, inputs: Float[AnyArray, "n ..."]) -> Float[AnyArray, "n columns"]:
        """Returns the columns that the trees read, float32."""
        x = jnp.asarray(inputs, jnp.float32).reshape(inputs.shape[0], -1)
        source, indicator = jnp.asarray(self.source.value), jnp.asarray(self.indicator.value)
        is_missing = (indicator >= 0)[None] & (x[:, jnp.maximum(indicator, 0)] > 0.5)
        values = jnp.where(is_missing, jnp.asarray(self.fill.value)[None], x[:, source])
        return jnp.concatenate([values, _dot(x, self.projection.value)], 1)

    def __call__(
        self, inputs: Float[AnyArray, "n ..."], train: bool = False
    ) -> Float[AnyArray, "n {self.num_outputs}"]:
        columns, n = self.columns(inputs), inputs.shape[0]
        column, threshold, left = self.column.value, self.threshold.value, self.left.value

        def descend(_, node):
            x = jnp.take_along_axis(columns, _take(column, node), 1, mode="promise_in_bounds")
            return _take(left, node) + (x > _take(threshold, node)).astype(jnp.int32)

        def add(scores, roots):
            node = jnp.zeros((n, 1), jnp.int32) + roots[None]
            if is_portable():  # jax2onnx translates no loop within a scan
                for step in range(self.depth):
                    node = descend(step, node)
            else:
                node = lax.fori_loop(0, self.depth, descend, node)
            values = _take(self.value.value, node).reshape(n, -1, self.num_scores)
            return scores + values.sum(1), None

        size = CHUNK * (self.num_scores // self.num_values)
        count, roots = self.num_trees // size, jnp.asarray(self.root.value)
        scores, _ = add(jnp.zeros((n, self.num_scores)), roots[count * size :])
        if count:
            scores, _ = lax.scan(add, scores, roots[: count * size].reshape(count, size))
        return _dot(scores, self.head.value) + self.base.value[None]


def _dot(x: AnyArray, y: AnyArray) -> jax.Array:
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)  # a split must see the same numbers


def _take(array: AnyArray, index: jax.Array) -> jax.Array:
    """Returns array[index] of valid indices, without the operations that check them."""
    return jnp.asarray(array).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
