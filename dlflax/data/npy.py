"""Files of one NumPy array."""

from pathlib import Path

import numpy as np

from dlflax.errors import InputError
from dlflax.files import open_regular_file


def read_npy(path: Path) -> np.ndarray:
    """Returns the memory-mapped array of a .npy file, without pickles, which could run code.
    Raises InputError for any other file."""
    try:
        with open_regular_file(path):  # np.load would wait for a pipe
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "not an array of NumPy"
        raise InputError(f"{path} cannot be read as a .npy file: {reason}.") from error
