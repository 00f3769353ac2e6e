"""Examples that do not fit on the device, read in pieces while it trains on the piece before."""

from collections.abc import Iterator

import jax
import numpy as np

from dlflax import parallel
from dlflax.data.dataset import DiskArray

PIECE_BYTES = 2**28  # of a piece: large enough to hide the call, three are in memory at once


def fits(data) -> bool:
    """Whether arrays "inputs" and so on may be put on the device whole: they are in memory, and
    take no more than half of the device's."""
    if isinstance(data["inputs"], DiskArray):
        return False
    free = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", float("inf"))
    return sum(array.nbytes for array in data.values()) <= free / 2


def _example_bytes(data) -> int:
    return sum(array.nbytes // max(len(array), 1) for array in data.values())


def stream(data, batches: np.ndarray) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The batches (steps, batch_size) of `order.epoch_batches` in pieces of k steps each, and of
    each batch this host's share.

    Yields (arrays (k, share, ...), "mask" float32 among them, and how many of the k steps there
    are). Read by grain, two pieces ahead.
    """
    import grain

    batches = batches[:, parallel.host_rows(batches.shape[1])]
    steps, batch_size = batches.shape
    k = int(np.clip(PIECE_BYTES // max(_example_bytes(data) * batch_size, 1), 1, steps))

    def piece(start):
        part = np.resize(batches[start : start + k], (k, batch_size))  # the last is filled up
        at = np.where(part < 0, -1 - part, part).ravel()
        rows = {name: array[at].reshape(k, batch_size, *array.shape[1:])
                for name, array in data.items()}  # fmt: skip
        return {**rows, "mask": np.float32(part >= 0)}, min(k, steps - start)

    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    starts = grain.MapDataset.range(0, steps, k)
    yield from starts.map(piece).to_iter_dataset(ahead)


def slices(data) -> Iterator[dict[str, np.ndarray]]:
    """The examples in their order, a piece at a time, read by grain."""
    import grain

    n, size = len(data["inputs"]), max(1, PIECE_BYTES // max(_example_bytes(data), 1))
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    yield from (
        grain.MapDataset.range(0, n, size)
        .map(lambda start: {name: array[start : start + size] for name, array in data.items()})
        .to_iter_dataset(ahead)
    )
