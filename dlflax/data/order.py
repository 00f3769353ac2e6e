"""Which examples are trained on, and in which order: pure functions of a seed, in NumPy.

Nothing here has state, so a stopped run continues from its step counter alone.
"""

import numpy as np

from dlflax.errors import InputError


def permutation(n: int, seed: int, *purpose: int) -> np.ndarray:
    """An int32 (n,) permutation for this seed and purpose.

    Sorting raw Philox bits: NumPy promises never to change these, but not
    `Generator.permutation`.
    The purpose goes in as spawn key, because SeedSequence([s]) and SeedSequence([s, 0]) are equal.
    """
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}.")
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=purpose))
    return np.argsort(bits.random_raw(n), kind="stable").astype(np.int32)


def split(
    train: dict[str, np.ndarray], fraction: float = 0.1, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """(train, validation): `fraction` of the examples, drawn by `seed`, become validation; with
    fraction 0 all are for training, and validation is None.

    Every array is cut along its first axis; both parts keep the examples in their old order,
    no example is in both and none is lost. Raises InputError when `fraction` is not from 0 up to
    below 1, or is so near to either that a part would be empty.
    """
    n = len(next(iter(train.values())))
    if not 0 <= fraction < 1:
        raise InputError(f"the validation fraction must be from 0 up to below 1, not {fraction}.")
    if fraction == 0:
        return train, None
    count = round(n * fraction)
    if not 0 < count < n:
        raise InputError(
            f"a validation fraction of {fraction} leaves {n - count} of {n} examples for training "
            f"and {count} for validation: both need at least one."
        )
    shuffled = permutation(n, seed, 0)
    kept, held_out = np.sort(shuffled[count:]), np.sort(shuffled[:count])
    return (
        {key: array[kept] for key, array in train.items()},
        {key: array[held_out] for key, array in train.items()},
    )


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` examples in `epoch`: an int32 (n,) permutation.

    Raises InputError when `seed` is negative.
    """
    return permutation(n, seed, 1, epoch)


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """`order` cut into batches: int32 (ceil(n / batch_size), batch_size) indices.

    The last batch is filled up with -1 - i for the first examples i of the same order: padding
    that does not count, so that every example counts exactly once, but is still a draw from the
    data, for batch statistics.
    Raises InputError when `n` or `batch_size` is below 1 or `seed` is negative.
    """
    if n < 1 or batch_size < 1:
        raise InputError(f"batches need n and batch_size of 1 or more, not {n} and {batch_size}.")
    shuffled = order(n, seed, epoch)
    padding = -1 - np.resize(shuffled, -n % batch_size)
    return np.concatenate([shuffled, padding]).reshape(-1, batch_size)
