"""The two ways a command ends early. Both print one sentence and no traceback."""


class InputError(ValueError):
    """What the user gave is wrong (a flag, a file, a value). Exit code 2.

    The message is one sentence: which file or flag, what is wrong, what would be right.
    """


class RunError(RuntimeError):
    """The run cannot go on (diverged loss, full disk, damaged checkpoints). Exit code 1.

    The message also says what is still safely saved.
    """
