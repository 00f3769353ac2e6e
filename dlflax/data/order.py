"""The examples that are trained on, and their order: pure functions of a seed, in NumPy.

Nothing here has state, so a stopped run continues from its step counter alone.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dlflax.errors import InputError

POOL = 16  # batches of which the examples are sorted by length


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


def check_fraction(validation: float) -> None:
    """InputError for a share of the training examples that cannot be held out."""
    if not 0 <= validation < 1:
        raise InputError(f"the validation fraction must be from 0 up to below 1, not {validation}.")


def split(
    train: dict[str, np.ndarray], fraction: float = 0.1, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """(train, validation): `fraction` of the examples, drawn by `seed`, become validation; with
    fraction 0 all are for training, and validation is None.

    Every array is cut along its first axis; both parts keep the examples in their old order,
    no example is in both and none is lost. Raises InputError when `fraction` is not from 0 up to
    below 1, or is so near to either that a part would be empty.
    """
    check_fraction(fraction)
    if fraction == 0:
        return train, None
    held = draw_part(len(next(iter(train.values()))), fraction, seed)
    rest, validation = (
        {key: array[chosen] for key, array in train.items()} for chosen in (~held, held)
    )
    return rest, validation


def draw_part(n: int, fraction: float, seed: int) -> np.ndarray:
    """Returns bool (n,): the examples that are drawn for validation. Raises InputError where one of
    both parts would be empty, but for fraction 0."""
    count = round(n * fraction)
    if fraction and not 0 < count < n:
        raise InputError(
            f"a validation fraction of {fraction} leaves {n - count} of {n} examples for training "
            f"and {count} for validation: both need at least one."
        )
    held = np.zeros(n, bool)
    held[permutation(n, seed, 0)[:count]] = True
    return held


def stratified(targets, share: float, seed: int, *purpose: int, left: int = 1) -> np.ndarray:
    """bool (n,): about `share` of each class, drawn by `seed`: at least one of it, but not its last
    `left`; none for share 0. targets: int (n,)."""
    counts = np.bincount(targets)
    wanted = np.minimum(np.maximum(1, np.round(share * counts)), counts - left) * (share > 0)
    shuffled = permutation(len(targets), seed, *purpose)
    place = np.empty(len(targets), np.int64)
    place[shuffled] = np.arange(len(targets))
    return _first_of_each(targets, place, wanted)


def held_out(
    targets, share: float, seed: int, *purpose: int, left: int = 1, groups=None
) -> np.ndarray:
    """bool (n,): about `share` of the examples, drawn by `seed`, as `stratified` where the targets
    are classes, int (n,). With groups (n,), the share of these: whole ones, one or more."""
    return _whole(
        groups, targets, left,
        lambda targets, _: stratified(targets, share, seed, *purpose, left=left),
    )  # fmt: skip


def _whole(groups, targets, left, choose):
    """choose(targets, names) -> bool: of the examples, or of the groups, each of which is then
    chosen as a whole. InputError for fewer than left + 1 groups."""
    if groups is None:
        return choose(_strata(targets), None)
    names, group = np.unique(groups, return_inverse=True)
    if len(names) <= left:
        raise InputError(
            f"--group: there are {len(names)} groups, but training, validation and test data need "
            f"one each: at least {left + 1} here."
        )
    return choose(np.zeros(len(names), np.int32), names)[group]


def folds_of(targets, count: int, seed: int, groups=None) -> np.ndarray:
    """int (n,): the fold of each example, 0 to count - 1, drawn by `seed`: of classes as many in
    each as can be, as for `held_out`; or whole groups, so that the folds are about as large.
    InputError for fewer groups than folds."""
    if groups is None:
        fold = np.empty(len(targets), np.int32)
        by_class = np.lexsort((permutation(len(targets), seed, 4), _strata(targets)))
        fold[by_class] = np.arange(len(targets)) % count
        return fold
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < count:
        raise InputError(f"--folds {count}: there are {len(names)} groups, and each needs one.")
    sizes, filled = np.bincount(group), np.zeros(count, int)
    of = np.empty(len(names), np.int32)
    for each in np.lexsort((permutation(len(names), seed, 4), -sizes)):  # the largest first
        of[each] = np.argmin(filled)
        filled[of[each]] += sizes[each]
    return of[group]


def _strata(targets):
    """int (n,): the classes; all one where the targets are none."""
    classes = targets.ndim == 1 and targets.dtype.kind in "iu"
    return targets if classes else np.zeros(len(targets), np.int32)


def by_content(
    targets, contents, share: float, seed: int, left: int = 1, groups=None
) -> np.ndarray:
    """Returns what `held_out` does, decided by each example's own content or its group's name, so
    that it stays when others come or go; a class then has about `share`. contents: str (n,), a
    digest of each."""

    def choose(targets, names):
        return _drawn(targets, contents if names is None else names, share, seed, left)

    return _whole(groups, targets, left, choose)


def _drawn(targets, contents, share, seed, left):
    digests = (hashlib.sha256(f"{seed} {content}".encode()).digest() for content in contents)
    draws = np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])
    counts = np.bincount(targets)
    below = np.bincount(targets, weights=draws < share, minlength=len(counts))
    return _first_of_each(targets, draws, np.minimum(np.maximum(1, below), counts - left))


def _first_of_each(targets, values, wanted) -> np.ndarray:
    """bool (n,): of each class c the wanted[c] examples with the smallest values."""
    counts = np.bincount(targets)
    by_class = np.lexsort((values, targets))
    rank = np.arange(len(targets)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(targets), bool)
    chosen[by_class[rank < np.repeat(wanted, counts)]] = True
    return chosen


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` examples in `epoch`: an int32 (n,) permutation.

    Raises InputError when `seed` is negative.
    """
    return permutation(n, seed, 1, epoch)


def epoch_batches(
    n: int, batch_size: int, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> np.ndarray:
    """`order` cut into batches: int32 (ceil(n / batch_size), batch_size) indices.

    With lengths (n,) examples of like length come into the same batch: those of each POOL batches
    are sorted by length, and the batches are put in a random order.

    The last batch is filled up with -1 - i for the first examples i of the same order: padding
    that does not count, so that every example counts exactly once, but is still a draw from the
    data, for batch statistics.
    Raises InputError when `n` or `batch_size` is below 1 or `seed` is negative.
    """
    if n < 1 or batch_size < 1:
        raise InputError(f"batches need n and batch_size of 1 or more, not {n} and {batch_size}.")
    shuffled = order(n, seed, epoch)
    if lengths is not None:
        shuffled = _by_length(shuffled, np.asarray(lengths), batch_size, seed, epoch)
    padding = -1 - np.resize(shuffled, -n % batch_size)
    return np.concatenate([shuffled, padding]).reshape(-1, batch_size)


def _by_length(shuffled, lengths, batch_size, seed, epoch):
    """The whole batches in another order; what is left over stays last."""
    whole, rest = np.split(shuffled, [len(shuffled) // batch_size * batch_size])
    batches = whole.reshape(-1, batch_size).copy()
    for start in range(0, len(batches), POOL):
        pool = batches[start : start + POOL].ravel()
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches[start : start + POOL] = pool.reshape(-1, batch_size)
    batches = batches[permutation(len(batches), seed, 2, epoch)]
    return np.concatenate([batches.ravel(), rest])


class Order(NamedTuple):
    """The batches of every epoch."""

    steps: int
    """Batches an epoch."""
    batches: Callable[[int, int], np.ndarray]
    """(seed, epoch) -> int32 (steps, batch_size), as `epoch_batches` returns them."""


def order_of(data: Mapping[str, Any], batch_size: int, rows: np.ndarray | None = None) -> Order:
    """Returns the Order of data, arrays (N, ...), or of some of them, rows int32 (n,)."""
    rows = np.arange(len(data["inputs"]), dtype=np.int32) if rows is None else rows
    lengths = data.get("length")
    lengths = None if lengths is None else np.asarray(lengths)[rows]

    def batches(seed, epoch):
        places = epoch_batches(len(rows), batch_size, seed, epoch, lengths)
        return np.where(places < 0, -1 - rows[-1 - places], rows[places])

    return Order(-(-len(rows) // batch_size), batches)
