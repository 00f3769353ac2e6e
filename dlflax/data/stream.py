"""Examples that do not fit on the device, read in chunks while it trains on the chunk before."""

from collections.abc import Iterator

import jax
import numpy as np

from dlflax import parallel
from dlflax.data.dataset import DiskArray

CHUNK_BYTES = 2**28  # large enough to hide the call; three chunks are in memory at once


def fits_on_device(data) -> bool:
    """True if arrays {"inputs": ..., ...} are in memory and take at most half of the device's."""
    if isinstance(data["inputs"], DiskArray):
        return False
    free = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", float("inf"))
    return sum(array.nbytes for array in data.values()) <= free / 2


def _example_bytes(data) -> int:
    return sum(array.nbytes // max(len(array), 1) for array in data.values())


def _prefetch(count: int, size: int, read):
    """Yields read(start) for start 0, size, ... below count, by grain, two ahead."""
    import grain

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    yield from grain.MapDataset.range(0, count, size).map(read).to_iter_dataset(options)


def stream(data, batches: np.ndarray) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Yields this host's share of batches (steps, batch_size), as of `order.epoch_batches`. A chunk
    is (arrays (k, share, ...), "mask" float32 among them; the steps of k that are real)."""
    batches = batches[:, parallel.host_rows(batches.shape[1])]
    steps, batch_size = batches.shape
    k = int(np.clip(CHUNK_BYTES // max(_example_bytes(data) * batch_size, 1), 1, steps))

    def read(start):
        chunk = np.resize(batches[start : start + k], (k, batch_size))  # the last is padded
        index = np.where(chunk < 0, -1 - chunk, chunk).ravel()
        rows = {name: array[index].reshape(k, batch_size, *array.shape[1:])
                for name, array in data.items()}  # fmt: skip
        return {**rows, "mask": np.float32(chunk >= 0)}, min(k, steps - start)

    yield from _prefetch(steps, k, read)


def stream_in_order(data) -> Iterator[dict[str, np.ndarray]]:
    """Yields chunks of the examples in their order."""
    size = max(1, CHUNK_BYTES // max(_example_bytes(data), 1))
    yield from _prefetch(len(data["inputs"]), size, lambda start: {
        name: array[start : start + size] for name, array in data.items()
    })  # fmt: skip
