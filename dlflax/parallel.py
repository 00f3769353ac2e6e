"""Data-parallel training on the devices of one or several hosts: shardings and communication.

Every device has the State and a shard of each batch. XLA partitions the program of one device (Xu
et al. 2021, GSPMD), so losses, BatchNorm's statistics and random numbers are those of the whole
batch. Outside of `with use_devices(count)` the functions on shardings do nothing.
"""

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

from dlflax.errors import InputError, RunError, first_line

# A mesh has one axis, whose name is part of a program's cache key.
BATCH, BATCH_AND_STATE = "batch", "batch_and_state"
HEARTBEAT = 30  # seconds without a heartbeat after which a host counts as dead
LARGE = 2**16  # elements: smaller leaves of the State are replicated


def initialize() -> None:
    """Joins the other hosts by `jax.distributed`: $JAX_COORDINATOR_ADDRESS (HOST:PORT),
    $JAX_NUM_PROCESSES and $JAX_PROCESS_ID, or the launcher that JAX detects (SLURM, TPU pods, Open
    MPI, Kubernetes). Only process 0 prints. InputError if it fails."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, *numbers = (os.environ.get(name) for name in names)
    try:
        count, process = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(
            address, count, process,
            heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: the other hosts cannot be joined ({first_line(error)}): under SLURM, "
            f"on a TPU pod or by mpirun JAX finds them, elsewhere set {', '.join(names)}."
        ) from error
    if not is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def is_main() -> bool:
    """True if this is process 0, which alone writes and prints."""
    return jax.process_index() == 0


def any_host(flag: bool) -> bool:
    """True if the flag is true on any host; collective."""
    return bool(max_over_hosts(flag))


def max_over_hosts(value: float) -> float:
    """Returns the largest value of all hosts; collective."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.process_allgather(np.float32(value)).max())


def barrier(name: str) -> None:
    """Blocks until every host arrives at this barrier."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def call_on_main(function: Callable[[], Any]) -> Any:
    """Calls the function on process 0 and returns its result on every host. Raises its InputError,
    RunError or OSError on all hosts, so that none waits for a dead one. The function must not be
    collective; its result must be picklable."""
    if jax.process_count() == 1:
        return function()
    from jax.experimental import multihost_utils

    result = error = None
    if is_main():
        try:
            result = function()
        except (InputError, RunError, OSError) as raised:
            error = raised
    content = np.frombuffer(pickle.dumps((result, error)), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    content = multihost_utils.broadcast_one_to_all(np.resize(content, size))
    result, error = pickle.loads(content.tobytes())
    if error is not None:
        raise error
    return result


def num_devices(requested: int, batch_size: int, fsdp: bool = False) -> int:
    """Returns the number of devices of a run. 0 requests all that divide the batch, but 1 on a CPU,
    whose device uses all cores. InputError for an invalid number, or fsdp on one device."""
    available = len(jax.devices())
    if not 0 <= requested <= available:
        raise InputError(f"--devices {requested}: there are {available}; 0 uses all of them.")
    if requested and batch_size % requested:
        raise InputError(f"--batch-size {batch_size} must be a multiple of --devices {requested}.")
    if jax.process_count() > 1 and (batch_size % available or requested not in (0, available)):
        raise InputError(
            f"--batch-size {batch_size} must be a multiple of the {available} devices of "
            f"{jax.process_count()} hosts, which are all used."
        )
    count = requested or max(n for n in range(1, available + 1) if batch_size % n == 0)
    if not requested and jax.default_backend() == "cpu" and jax.process_count() == 1:
        count = 1
    if fsdp and count == 1:
        raise InputError("--fsdp needs several devices, and this run uses one: remove it.")
    return count


def use_devices(count: int, fsdp: bool = False):
    """Returns a context in which `train` shards batches over the first `count` devices. fsdp
    shards the State too, for models that exceed the memory of one device."""
    if count == 1 and jax.process_count() == 1:
        return contextlib.nullcontext()
    name = BATCH_AND_STATE if fsdp else BATCH
    mesh = jax.make_mesh((count,), (name,), (AxisType.Auto,), devices=jax.devices()[:count])
    return jax.set_mesh(mesh)


def _mesh_axis() -> str | None:
    names = jax.sharding.get_abstract_mesh().axis_names
    return next((name for name in names if name in (BATCH, BATCH_AND_STATE)), None)


def mesh_size() -> int:
    """Returns the number of devices of the context."""
    return jax.sharding.get_abstract_mesh().size if _mesh_axis() else 1


def _constrain(tree, spec_of):
    if not _mesh_axis():
        return tree
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, spec_of(leaf)), tree)


def shard_batch(batch):
    """Shards the first axis of every leaf over the devices; traced."""
    return _constrain(batch, lambda _: P(_mesh_axis()))


def replicate(tree):
    """Replicates every leaf on all devices; traced."""
    return _constrain(tree, lambda _: P())


def constrain_state(state):
    """Constrains every leaf of the State to its sharding; traced."""
    return _constrain(state, _partition_spec)


def _partition_spec(leaf):
    """Returns the partition of a State's leaf: along its longest divisible axis, or replicated."""
    name, count = _mesh_axis(), mesh_size()
    if name == BATCH_AND_STATE and leaf.size >= LARGE:
        divisible = [axis for axis, side in enumerate(leaf.shape) if side % count == 0]
        if divisible:
            axis = max(divisible, key=lambda axis: leaf.shape[axis])
            return P(*[None] * axis, name)
    return P()


def with_shardings(state):
    """Adds shardings to an abstract State, to restore a checkpoint of any number of devices."""
    if not _mesh_axis():
        return state
    mesh = jax.sharding.get_mesh()

    def add(leaf):
        sharding = NamedSharding(mesh, _partition_spec(leaf))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(add, state)


def put_on_all(tree):
    """Copies arrays, the same on every host, to every device."""
    if not _mesh_axis():
        return jax.device_put(tree)
    return jax.device_put(tree, NamedSharding(jax.sharding.get_mesh(), P()))


def put_by_sharding(tree, sharding):
    """Copies arrays, the same on every host, to devices by their sharding."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        # jax.device_put would send every array to all hosts, to compare them
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def fetch_variables(state):
    """Copies parameters and collections to NumPy arrays, and drops the State's other fields. Does
    nothing outside of a context."""
    if not _mesh_axis():
        return state
    names = ("params", "collections", "ema", "ema_collections")
    parts = {name: getattr(state, name) for name in names}
    parts = jax.device_get(jax.jit(replicate)(parts))
    return state.replace(**parts, opt_state=None, key=None)


def host_rows(batch_size: int) -> slice:
    """Returns the slice of every batch that this host reads."""
    count = batch_size // jax.process_count()
    return slice(jax.process_index() * count, (jax.process_index() + 1) * count)


def put_host_batches(tree):
    """Shards (k, n, ...) arrays, n this host's `host_rows`, to (k, batch_size, ...) arrays."""
    if not (name := _mesh_axis()):
        return jax.device_put(tree)
    sharding = NamedSharding(jax.sharding.get_mesh(), P(None, name))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)
