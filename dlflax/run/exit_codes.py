"""How a command ends: exit codes, signals, the compilation cache."""

import contextlib
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from dlflax import NOISY_CACHE, parallel
from dlflax.errors import InputError, RunError, Terminated
from dlflax.files import cache_folder, escape_controls, tidy_cache


def with_exit_codes(
    command: Callable[[], Any], again: str = "continue with --resume from the last checkpoint"
) -> None:
    """Runs command; a known failure becomes one sentence on stderr and an exit code. again: what to
    do after an interruption."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stand-in, as in a notebook
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal lacks
    compilation_cache()
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminated)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command()
    except Terminated as error:
        _exit(str(error) or f"terminated; {again}.", 75)
    except (InputError, RunError) as error:
        _exit(error, 2 if isinstance(error, InputError) else 1)
    except OSError as error:  # whatever is not handled where it happens: mostly a full disk
        place = f"{error.filename}: " if error.filename else ""
        _exit(f"{place}{error.strerror or error}; checkpoints are kept.", 1)
    except jax.errors.JaxRuntimeError as error:
        if "out of memory" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error):
            advice = "try a smaller --batch-size or narrower --model.features"
            _exit(f"the device is out of memory: {advice}; checkpoints are kept.", 1)
        if not jax.distributed.is_initialized():
            raise
        _exit(_host_lost(error, again), 1)
    except KeyboardInterrupt:
        with contextlib.suppress(ValueError):  # a second one does not wait for anything
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        _exit(f"interrupted; {again}.", 130)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        text = traceback.format_exc()
        # Orbax and others wrap what JAX raises when a connection breaks
        lost = re.search(r"JaxRuntimeError|Gloo|NCCL|[Cc]oordination|[Cc]onnection", text)
        _exit(_host_lost(error, again) if lost else text, 1)


def _host_lost(error, again):
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"another host has stopped ({reason}): start all of them again; {again}."


def _terminated(*_):
    raise Terminated


@contextlib.contextmanager
def stop_requests():
    """Gives a function that says whether SIGTERM has come, which ends nothing meanwhile."""
    came = []
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: parallel.any_host(bool(came))
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(message, code: int) -> NoReturn:
    lines = map(escape_controls, str(message).splitlines())
    print(f"error: {chr(10).join(lines)}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(code)  # an ordinary exit waits for the other hosts, which wait for this one
    sys.exit(code)


def compilation_cache() -> None:
    """Keeps compiled programs between processes, in $JAX_COMPILATION_CACHE_DIR if that is set; not
    where jaxlib would write pages about each of them."""
    noisy = NOISY_CACHE and os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not noisy:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    tidy_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # the cache only saves time: a full disk or a damaged entry costs a compilation, not a message
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
