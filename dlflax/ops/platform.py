"""Platform of the traced program, which selects the algorithms of operations."""

import contextlib
import contextvars

import jax

_portable = contextvars.ContextVar("portable", default=False)


def on_cpu() -> bool:
    """True if operations use the algorithms for XLA:CPU."""
    return jax.default_backend() == "cpu" and not is_portable()


def is_portable() -> bool:
    """True if `portable` is active."""
    return _portable.get()


@contextlib.contextmanager
def portable():
    """Restricts traced programs to operations of every export format and platform, on a batch of
    any size, with the same results (`inference.export`)."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)
