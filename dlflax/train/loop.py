"""The loop over an epoch's steps on the device, and the transfer of examples to it."""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlflax import parallel
from dlflax.data.stream import fits_on_device, stream
from dlflax.train.batch import gather
from dlflax.train.hparams import Hparams
from dlflax.train.recipe import Recipe
from dlflax.train.state import State
from dlflax.train.step import step


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(
    recipe: Recipe, state: State, hparams: Hparams, data: Mapping[str, Any], batches: Any,
    sums: Any, start: Any, stop: Any,
) -> tuple[State, dict[str, Any]]:  # fmt: skip
    """Trains steps `start` to `stop` of one epoch in one compiled call. Returns (State, sums).

    data: {"inputs": (N, ...), "targets": (N, ...)}; batches: int32 (steps, batch_size) from
    `Order.batches`, or None if data are the batches, (steps, batch_size, ...), with their "mask";
    sums: of the epoch's earlier steps. start and stop are traced: a whole epoch and a part of one
    (for a progress bar) share one program and are bitwise equal.
    """
    run_step = recipe.step or step

    def batch(i):
        if batches is None:
            return {name: leaf[i] for name, leaf in data.items()}
        return gather(data, parallel.shard_batch(batches[i]))

    def body(i, carry):
        state, sums = carry
        state, new = run_step(recipe, state, hparams, parallel.shard_batch(batch(i)))
        bad = jnp.minimum(sums["first_bad_step"], new.pop("first_bad_step"))
        sums = {**{name: sums[name] + new[name] for name in new}, "first_bad_step": bad}
        return parallel.constrain_state(state), parallel.replicate(sums)

    return lax.fori_loop(start, stop, body, (state, sums))


class Feed:
    """Transfer of training examples to the device: all at once if they fit, else streamed."""

    def __init__(self, data: Mapping[str, Any], batches: Callable[[int], np.ndarray]):
        """Puts data on the device if they fit. batches: epoch -> int32 (steps, batch_size)."""
        self._fits, self._batches = fits_on_device(data), batches
        self._data = parallel.put_on_all(data) if self._fits else data

    def pieces(self, epoch: int, done: int = 0) -> Iterator[tuple[Any, Any, int, int]]:
        """Yields (data, batches, start, stop) of `train_steps` for an epoch, from step `done`."""
        batches = self._batches(epoch)
        if self._fits:
            yield self._data, parallel.put_on_all(batches), done, len(batches)
            return
        for piece, count in stream(self._data, batches[done:]):
            yield parallel.put_host_batches(piece), None, 0, count

    def spans(self, epoch: int, done: int, seconds: float, last: float) -> Iterator[tuple]:
        """Yields `pieces`, split into spans that each train for about `seconds`. A span's time
        lasts until the caller asks for the next. Pieces stay whole if the last epoch took less,
        `last` seconds."""
        count = sys.maxsize if last < seconds else 1
        for data, batches, start, end in self.pieces(epoch, done):
            while start < end:
                stop, clock = min(start + count, end), time.perf_counter()
                yield data, batches, np.int32(start), np.int32(stop)
                span_seconds = max(parallel.max_over_hosts(time.perf_counter() - clock), 0.01)
                count = max(1, int((stop - start) * seconds / span_seconds))
                start = stop
