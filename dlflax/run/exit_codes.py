"""Exit codes and the compilation cache of a command."""

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from dlflax import NOISY_CACHE
from dlflax.cache import cache_folder, tidy_cache
from dlflax.errors import InputError, RunError, Terminated
from dlflax.files import escape_controls
from dlflax.run.signals import exit_on_second_interrupt, handle_signals


def with_exit_codes(
    command: Callable[[], Any],
    continuation: str = "continue with --resume from the last checkpoint",
) -> None:
    """Runs a command; expected errors print one sentence to stderr and exit with a code.
    continuation: advice after an interruption."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook replaces the streams
            stream.reconfigure(errors="backslashreplace")  # for terminals without UTF-8
    compilation_cache()
    handle_signals()
    try:
        command()
    except Terminated as error:
        _exit(str(error) or f"terminated; {continuation}.", 75)
    except (InputError, RunError) as error:
        _exit(error, 2 if isinstance(error, InputError) else 1)
    except OSError as error:  # mostly a full disk
        path = f"{error.filename}: " if error.filename else ""
        _exit(f"{path}{error.strerror or error}; checkpoints are kept.", 1)
    except KeyboardInterrupt:
        exit_on_second_interrupt()
        _exit(f"interrupted; {continuation}.", 130)
    except Exception as error:
        message, text = str(error), traceback.format_exc()
        is_runtime_error = isinstance(error, jax.errors.JaxRuntimeError)
        if is_runtime_error and re.search("(?i)out of memory|RESOURCE_EXHAUSTED", message):
            advice = "try a smaller --batch-size or narrower --model.features"
            _exit(f"the device is out of memory: {advice}; checkpoints are kept.", 1)
        if not jax.distributed.is_initialized():
            raise
        # Orbax and others wrap the errors of JAX when a connection breaks
        if re.search(r"JaxRuntimeError|Gloo|NCCL|[Cc]oordination|[Cc]onnection", text):
            reason = (message.splitlines() or [type(error).__name__])[0][:200]
            text = f"another host has stopped ({reason}): start all hosts again; {continuation}."
        _exit(text, 1)


def _exit(message, code: int) -> NoReturn:
    lines = map(escape_controls, str(message).splitlines())
    print(f"error: {chr(10).join(lines)}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(code)  # sys.exit would wait for the other hosts, which wait for this one
    sys.exit(code)


def compilation_cache() -> None:
    """Caches compiled programs on disk, unless jaxlib would print warnings about each."""
    noisy = NOISY_CACHE and os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not noisy:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    tidy_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # a full disk or a damaged entry only costs a compilation
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
