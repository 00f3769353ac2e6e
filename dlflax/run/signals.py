"""SIGTERM and Ctrl-C: a run saves a checkpoint and exits."""

import contextlib
import os
import signal

from dlflax import parallel
from dlflax.errors import Terminated


def handle_signals() -> None:
    """Makes SIGTERM raise Terminated and Ctrl-C KeyboardInterrupt, in the main thread."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _raise_on_sigterm)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_on_second_interrupt() -> None:
    """Makes Ctrl-C end the process at once."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def _raise_on_sigterm(*_):
    raise Terminated


@contextlib.contextmanager
def stop_requests():
    """Yields a function that returns True after SIGTERM, which does not end the process here."""
    signals = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda *_: signals.append(True))
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: parallel.any_host(bool(signals))
    finally:
        signal.signal(signal.SIGTERM, previous)
