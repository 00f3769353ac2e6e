"""One training on many devices, of one host or of several: where its arrays lie, what hosts tell.

Training is data-parallel: every device has the State and its share of each batch; the program is
that of one device, cut by XLA (Xu et al. 2021, GSPMD), so losses, BatchNorm's statistics and random
numbers are those of the whole batch. `with use(devices)` says which devices; without it nothing
here does anything.
"""

import base64
import contextlib
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dlflax.errors import InputError, RunError

# A mesh has one axis. Its name is part of what a program is compiled for.
BATCH, BATCH_AND_STATE = "batch", "batch_and_state"
HEARTBEAT = 30  # seconds of silence after which another host counts as dead
LARGE = 2**16  # numbers: smaller leaves of the State are not worth cutting


def initialize() -> None:
    """Joins the other hosts through `jax.distributed`: $JAX_COORDINATOR_ADDRESS (HOST:PORT),
    $JAX_NUM_PROCESSES and $JAX_PROCESS_ID, or what JAX detects itself (SLURM, TPU pods, Open MPI,
    Kubernetes). Only process 0 prints. InputError when the others cannot be found."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, *numbers = (os.environ.get(name) for name in names)
    try:
        count, process = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(
            address, count, process,
            heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--distributed: the other hosts cannot be joined ({reason}): under SLURM, on a TPU "
            f"pod or by mpirun JAX finds them, elsewhere set {', '.join(names)}."
        ) from error
    if not is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def is_main() -> bool:
    """True if this process is the one that writes and prints."""
    return jax.process_index() == 0


def any_host(flag: bool) -> bool:
    """True if it is true on one of the hosts; all have to ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def slowest(seconds: float) -> float:
    """The longest of what the hosts measured; all have to ask."""
    if jax.process_count() == 1:
        return seconds
    from jax.experimental import multihost_utils

    return float(multihost_utils.process_allgather(np.float32(seconds)).max())


def wait(what: str) -> None:
    """Waits until all hosts have come to this place."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def broadcast(text: str) -> str:
    """The text that process 0 has."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    content = np.resize(content, size) if len(content) else np.zeros(size, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(content)).decode()


def from_main(function: Callable[[], Any]) -> Any:
    """Returns what function does on process 0, which alone calls it. Raises its InputError,
    RunError or OSError on all hosts, so that none waits for one that has left. function must not
    ask other hosts for anything, and what it returns must be picklable."""
    if jax.process_count() == 1:
        return function()
    answer = error = None
    if is_main():
        try:
            answer = function()
        except (InputError, RunError, OSError) as raised:
            error = raised
    told = broadcast(base64.b64encode(pickle.dumps((answer, error))).decode())
    answer, error = pickle.loads(base64.b64decode(told))
    if error is not None:
        raise error
    return answer


def devices(wanted: int, batch_size: int, shard_state: bool = False) -> int:
    """Returns the number of devices that a run uses. wanted 0: all, but one on a CPU, whose cores
    one device shares out already; no more than divide the batch. Raises InputError for a number
    that cannot be, and for shard_state on one device."""
    there = len(jax.devices())
    if wanted > there or wanted < 0:
        raise InputError(f"--devices {wanted}: there are {there}; 0 takes all of them.")
    if wanted and batch_size % wanted:
        raise InputError(f"--batch-size {batch_size} must be a multiple of --devices {wanted}.")
    if jax.process_count() > 1 and (batch_size % there or wanted not in (0, there)):
        raise InputError(
            f"--batch-size {batch_size} must be a multiple of the {there} devices of "
            f"{jax.process_count()} hosts, which are all used."
        )
    count = wanted or max(n for n in range(1, there + 1) if batch_size % n == 0)
    if not wanted and jax.default_backend() == "cpu" and jax.process_count() == 1:
        count = 1
    if shard_state and count == 1:
        raise InputError("--shard-state is for several devices, and one is used: leave it out.")
    return count


def use(count: int, shard_state: bool = False):
    """A context in which what `train` compiles is cut over the first `count` devices; shard_state:
    the State too, for models that one device cannot hold."""
    if count == 1 and jax.process_count() == 1:
        return contextlib.nullcontext()
    name = BATCH_AND_STATE if shard_state else BATCH
    mesh = jax.make_mesh((count,), (name,), (AxisType.Auto,), devices=jax.devices()[:count])
    return jax.set_mesh(mesh)


def _axis() -> str | None:
    names = jax.sharding.get_abstract_mesh().axis_names
    return next((name for name in names if name in (BATCH, BATCH_AND_STATE)), None)


def size() -> int:
    """Devices of the context."""
    return jax.sharding.get_abstract_mesh().size if _axis() else 1


def split_batch(batch):
    """Inside a program: the first axis of every leaf is cut over the devices."""
    if not (name := _axis()):
        return batch
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, P(name)), batch)


def replicated(tree):
    """Inside a program: every device has all of every leaf."""
    if not _axis():
        return tree
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, P()), tree)


def constrain_state(state):
    """Inside a program: every leaf of the State as it is to lie."""
    if not _axis():
        return state
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, _spec(leaf)), state)


def _spec(leaf):
    """Sharding of a leaf of the State: cut along its longest axis that can be, or whole."""
    name, count = _axis(), size()
    if name == BATCH_AND_STATE and leaf.size >= LARGE:
        fit = [axis for axis, side in enumerate(leaf.shape) if side % count == 0]
        if fit:
            axis = max(fit, key=lambda axis: leaf.shape[axis])
            return P(*[None] * axis, name)
    return P()


def placed(state):
    """Shapes of a State (`train.abstract`) with where each leaf is to lie, for restoring it,
    whatever number of devices it was saved from."""
    if not _axis():
        return state
    mesh = jax.sharding.get_mesh()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, _spec(leaf))
        ),
        state,
    )


def put(tree):
    """Arrays of this host, which every host has the same, on every device."""
    if not _axis():
        return jax.device_put(tree)
    return jax.device_put(tree, NamedSharding(jax.sharding.get_mesh(), P()))


def place(tree, sharding):
    """Arrays of this host, which every host has the same, as `sharding` says; those that lie there
    already are left alone."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def one(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        # jax.device_put would send every array around to see that all hosts have the same
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(one, tree)


def fetch(state):
    """The State's parameters and collections as NumPy arrays, wherever they lie; its other parts
    are left out. Without a context the State as it is."""
    if not _axis():
        return state
    names = ("params", "collections", "ema", "ema_collections")
    parts = {name: getattr(state, name) for name in names}
    parts = jax.device_get(jax.jit(replicated)(parts))
    return state.replace(**parts, opt_state=None, key=None)


def host_rows(batch_size: int) -> slice:
    """The examples of every batch that this host reads."""
    each = batch_size // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def put_host_batches(tree):
    """(k, n, ...) arrays, n this host's `host_rows` of the batch, as (k, batch_size, ...) arrays
    over all devices."""
    if not (name := _axis()):
        return jax.device_put(tree)
    sharding = NamedSharding(jax.sharding.get_mesh(), P(None, name))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)
