"""The ways a command ends early. All print one sentence and no traceback."""


class InputError(ValueError):
    """What the user gave is wrong (a flag, a file, a value). Exit code 2.

    The message is one sentence: which file or flag, what is wrong, what would be right.
    """


class Terminated(BaseException):
    """The process was asked to end (SIGTERM), as spot machines and SLURM do. Exit code 75, "try
    again" in sysexits.h: the same command with --resume continues. Like KeyboardInterrupt not an
    Exception, so that code that handles errors does not swallow it.

    The message says what was saved.
    """


class RunError(RuntimeError):
    """The run cannot continue (diverged loss, full disk, damaged checkpoints). Exit code 1.

    The message also says what is still safely saved.
    """
