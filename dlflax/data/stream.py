"""Examples that do not fit on the device, read in pieces while it trains on the piece before."""

from collections.abc import Iterator

import jax
import numpy as np

from dlflax.data.dataset import Rows

PIECE_BYTES = 2**28  # of a piece: large enough to hide the call, three are in memory at once


def fits(data) -> bool:
    """Whether arrays "inputs" and so on may be put on the device whole: they are in memory, and
    take no more than half of the device's."""
    if isinstance(data["inputs"], Rows):
        return False
    free = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", float("inf"))
    return sum(array.nbytes for array in data.values()) <= free / 2


def _example_bytes(data) -> int:
    return sum(array.nbytes // max(len(array), 1) for array in data.values())


def stream(data, batches: np.ndarray) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, int]]:
    """The batches (steps, batch_size) of `order.epoch_batches` in pieces of equal size.

    Yields (data of these steps alone, their batches as int32 (k, batch_size) indices into it, how
    many of the k steps there are), to be used as the whole would be: a step gets the same batch to
    the bit. Read by grain, two pieces ahead.
    """
    import grain

    steps, batch_size = batches.shape
    k = int(np.clip(PIECE_BYTES // max(_example_bytes(data) * batch_size, 1), 1, steps))

    def piece(start):
        part = np.resize(batches[start : start + k], (k, batch_size))  # the last is filled up
        at = np.where(part < 0, -1 - part, part).ravel()
        here = np.arange(k * batch_size, dtype=np.int32).reshape(k, batch_size)
        rows = {name: array[at] for name, array in data.items()}
        return rows, np.where(part < 0, -1 - here, here), min(k, steps - start)

    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    starts = grain.MapDataset.range(0, steps, k)
    yield from starts.map(piece).to_iter_dataset(ahead)


def slices(data) -> Iterator[dict[str, np.ndarray]]:
    """The examples in their order, a piece at a time, read by grain."""
    import grain

    n, size = len(data["targets"]), max(1, PIECE_BYTES // max(_example_bytes(data), 1))
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    yield from (
        grain.MapDataset.range(0, n, size)
        .map(lambda start: {name: array[start : start + size] for name, array in data.items()})
        .to_iter_dataset(ahead)
    )
