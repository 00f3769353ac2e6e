"""Which formulation of an operation suits the platform it is traced for."""

import contextlib
import contextvars

import jax

_portable = contextvars.ContextVar("portable", default=False)


def on_cpu() -> bool:
    """Whether operations are to be formulated in the way that suits XLA:CPU."""
    return jax.default_backend() == "cpu" and not is_portable()


def is_portable() -> bool:
    """Whether this is traced inside `portable`."""
    return _portable.get()


@contextlib.contextmanager
def portable():
    """What is traced inside uses only operations that other formats and other platforms have, on a
    batch of any size, and computes the same: for `run.export`."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)
