"""Floating-point operations of a program, counted from its trace."""

import math

import jax
from jax.extend import core


def flops(function, *args) -> int:
    """Counts multiplications and additions of matrix products and convolutions in
    `function(*args)`, args being arrays or ShapeDtypeStructs. A scan's body counts once per
    iteration, a while loop's once."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracting, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracting)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(kernel) // features * math.prod(out)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(_count(inner) for inner in inner_jaxprs(params))
    return total


def inner_jaxprs(params):
    """Yields the jaxprs in an equation's parameters: a loop's body, a jitted function."""
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
