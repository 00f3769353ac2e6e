"""Exceptions that end a command early. Each prints one sentence and no traceback."""


class InputError(ValueError):
    """Invalid input of the user (a flag, a file, a value). Exit code 2.

    The message is one sentence: which file or flag, what is wrong, what would be right.
    """


class Terminated(BaseException):
    """SIGTERM, as spot machines and SLURM send it. Exit code 75 ("try again" in sysexits.h): the
    same command with --resume continues. Like KeyboardInterrupt not an Exception, so that error
    handlers do not swallow it.

    The message says what was saved.
    """


class RunError(RuntimeError):
    """The run cannot continue (diverged loss, full disk, damaged checkpoints). Exit code 1.

    The message also says what was saved.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, at most 300 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
