"""The examples that are held out, and the order of the others: pure functions of a seed. A stopped
run continues from its step counter alone."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dlflax.errors import InputError

POOL = 16  # batches whose examples are sorted by length together


def permutation(n: int, seed: int, *purpose: int) -> np.ndarray:
    """Returns an int32 (n,) permutation for this seed and purpose."""
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}.")
    # a spawn key, as SeedSequence([s]) and SeedSequence([s, 0]) are equal
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=purpose))
    # NumPy may change `Generator.permutation`, but never raw bits
    return np.argsort(bits.random_raw(n), kind="stable").astype(np.int32)


def check_fraction(validation: float) -> None:
    """Raises InputError for a validation fraction outside [0, 1)."""
    if not 0 <= validation < 1:
        raise InputError(f"the validation fraction must be from 0 up to below 1, not {validation}.")


def split(
    train: dict[str, np.ndarray], fraction: float = 0.1, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Returns (train, validation): `fraction` of the examples, drawn by `seed`, is for validation.

    Both keep the order of the examples, along the first axis of every array. Validation is None for
    fraction 0. Raises InputError when `fraction` is outside [0, 1), or leaves a split empty."""
    check_fraction(fraction)
    if fraction == 0:
        return train, None
    held_out = draw(len(next(iter(train.values()))), fraction, seed)
    rest, validation = (
        {key: array[rows] for key, array in train.items()} for rows in (~held_out, held_out)
    )
    return rest, validation


def draw(n: int, fraction: float, seed: int) -> np.ndarray:
    """Returns bool (n,): the examples that are drawn for validation. Raises InputError where the
    train or validation split would be empty, unless fraction is 0."""
    count = round(n * fraction)
    if fraction and not 0 < count < n:
        raise InputError(
            f"a validation fraction of {fraction} leaves {n - count} of {n} examples for training "
            f"and {count} for validation: both need at least one."
        )
    held_out = np.zeros(n, bool)
    held_out[permutation(n, seed, 0)[:count]] = True
    return held_out


def stratified_sample(targets, share: float, seed: int, *purpose: int, left: int = 1) -> np.ndarray:
    """Returns bool (n,): about `share` of each class, drawn by `seed`.

    targets: class numbers int (n,). At least one example of a class is drawn, and its last `left`
    are not; share 0 draws none."""
    counts = np.bincount(targets)
    sizes = np.minimum(np.maximum(1, np.round(share * counts)), counts - left) * (share > 0)
    ranks = np.empty(len(targets), np.int64)
    ranks[permutation(len(targets), seed, *purpose)] = np.arange(len(targets))
    return _smallest_per_class(targets, ranks, sizes)


def hold_out(
    targets, share: float, seed: int, *purpose: int, left: int = 1, groups=None
) -> np.ndarray:
    """Returns bool (n,): about `share` of the examples, by `stratified_sample` where targets are
    classes, int (n,). With groups (n,) that share of the groups is drawn, one or more."""

    def choose(targets, _):
        return stratified_sample(targets, share, seed, *purpose, left=left)

    return _draw_groups(groups, targets, left, choose)


def hold_out_by_hash(
    targets, contents, share: float, seed: int, left: int = 1, groups=None
) -> np.ndarray:
    """Returns bool (n,) as `hold_out`, decided by a hash of an example's content or group.

    An example stays in its split when others are added or removed, so a class has only about
    `share`. contents: a digest of each example, str (n,)."""

    def choose(targets, names):
        names = contents if names is None else names
        digests = (hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names)
        draws = np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])
        counts = np.bincount(targets)
        below = np.bincount(targets, weights=draws < share, minlength=len(counts))
        sizes = np.minimum(np.maximum(1, below), counts - left)
        return _smallest_per_class(targets, draws, sizes)

    return _draw_groups(groups, targets, left, choose)


def _draw_groups(groups, targets, left, choose):
    """Returns choose(targets, names): bool, of the examples, or of the groups for theirs. Raises
    InputError for fewer than left + 1 groups."""
    if groups is None:
        return choose(_strata(targets), None)
    names, group = np.unique(groups, return_inverse=True)
    if len(names) <= left:
        raise InputError(
            f"--group: there are {len(names)} groups, but training, validation and test data need "
            f"one each: at least {left + 1} here."
        )
    return choose(np.zeros(len(names), np.int32), names)[group]


def assign_folds(targets, count: int, seed: int, groups=None) -> np.ndarray:
    """Returns the fold of each example, int (n,) from 0 to count - 1, drawn by `seed`.

    Folds are stratified where targets are classes; with groups, each of which is in one fold, they
    are of about equal size. Raises InputError for fewer groups than folds."""
    if groups is None:
        fold = np.empty(len(targets), np.int32)
        by_class = np.lexsort((permutation(len(targets), seed, 4), _strata(targets)))
        fold[by_class] = np.arange(len(targets)) % count
        return fold
    names, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < count:
        raise InputError(f"--folds {count}: there are {len(names)} groups, and each needs one.")
    filled, fold = np.zeros(count, int), np.empty(len(names), np.int32)
    for i in np.lexsort((permutation(len(names), seed, 4), -sizes)):  # the largest first
        fold[i] = np.argmin(filled)
        filled[fold[i]] += sizes[i]
    return fold[group]


def _strata(targets):
    """Returns int (n,): the classes; zeros where the targets are no classes."""
    has_classes = targets.ndim == 1 and targets.dtype.kind in "iu"
    return targets if has_classes else np.zeros(len(targets), np.int32)


def _smallest_per_class(targets, values, sizes) -> np.ndarray:
    """Returns bool (n,): of each class c the sizes[c] examples with the smallest values."""
    counts = np.bincount(targets)
    by_class = np.lexsort((values, targets))
    rank = np.arange(len(targets)) - np.repeat(np.cumsum(counts) - counts, counts)
    smallest = np.zeros(len(targets), bool)
    smallest[by_class[rank < np.repeat(sizes, counts)]] = True
    return smallest


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of n examples in an epoch, an int32 (n,) permutation."""
    return permutation(n, seed, 1, epoch)


def epoch_batches(
    n: int, batch_size: int, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Returns `order` in batches: int32 (ceil(n / batch_size), batch_size) indices.

    The last batch is padded with -1 - i for the first examples i of the same order: they do not
    count, but are draws from the data for batch statistics. With lengths (n,), the examples of POOL
    batches are sorted by length, then the batches shuffled. Raises InputError when `n` or
    `batch_size` is below 1 or `seed` is negative."""
    if n < 1 or batch_size < 1:
        raise InputError(f"batches need n and batch_size of 1 or more, not {n} and {batch_size}.")
    shuffled = order(n, seed, epoch)
    if lengths is not None:
        shuffled = _group_by_length(shuffled, np.asarray(lengths), batch_size, seed, epoch)
    padding = -1 - np.resize(shuffled, -n % batch_size)
    return np.concatenate([shuffled, padding]).reshape(-1, batch_size)


def _group_by_length(shuffled, lengths, batch_size, seed, epoch):
    """Returns the order with its full batches grouped by length; the last examples stay last."""
    full, rest = np.split(shuffled, [len(shuffled) // batch_size * batch_size])
    batches = full.reshape(-1, batch_size).copy()
    for start in range(0, len(batches), POOL):
        pool = batches[start : start + POOL].ravel()
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches[start : start + POOL] = pool.reshape(-1, batch_size)
    batches = batches[permutation(len(batches), seed, 2, epoch)]
    return np.concatenate([batches.ravel(), rest])


class Order(NamedTuple):
    """The batches of every epoch."""

    steps: int
    """Batches per epoch."""
    batches: Callable[[int, int], np.ndarray]
    """(seed, epoch) -> int32 (steps, batch_size), as `epoch_batches` returns them."""


def batch_order(data: Mapping[str, Any], batch_size: int, rows: np.ndarray | None = None) -> Order:
    """Returns the Order of data, arrays (N, ...), or of the examples at rows, int32 (n,)."""
    rows = np.arange(len(data["inputs"]), dtype=np.int32) if rows is None else rows
    lengths = np.asarray(data["length"])[rows] if "length" in data else None

    def batches(seed, epoch):
        index = epoch_batches(len(rows), batch_size, seed, epoch, lengths)
        return np.where(index < 0, -1 - rows[-1 - index], rows[index])

    return Order(-(-len(rows) // batch_size), batches)
