"""Layout of a population's members on devices, and how many fit in memory."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dlflax import train
from dlflax.files import host_memory

Mode = Literal["vmap", "map"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Slots for members on devices. Static: each layout is compiled once. (A single run needs none:
    `driver.Fit` has no member axis.)"""

    mode: Mode
    """vmap: a device trains its members together, to 1e-6 of a single run; map: one after another,
    bitwise equal to a single run."""
    devices: int
    """Number of `jax.devices()` that share the members."""
    width: int
    """Number of slots, a multiple of `devices`. Under map, empty slots cost nothing."""

    @property
    def members_per_device(self) -> int:
        """Slots per device."""
        return self.width // self.devices

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Returns a sharding: ("member") splits the first axis over the devices, () replicates."""
        devices = jax.devices()[: self.devices]
        # Auto, because Explicit, the default of jax.make_mesh, refuses to gather
        mesh = jax.make_mesh((self.devices,), ("member",), (AxisType.Auto,), devices=devices)
        return NamedSharding(mesh, P(*axes))


def layout_for(
    recipe: train.Recipe, hparams: train.Hparams, inputs: Any, members: int,
    mode: Mode | None = None,
) -> Layout:  # fmt: skip
    """Returns the layout for this many members. inputs: one example (1, ...). mode None takes the
    fastest in our benchmarks: map on a CPU, one virtual device per core; vmap below 20,000
    parameters, where a step is mostly overhead, and on GPU and TPU."""
    if mode is None:
        params = train.abstract(recipe, hparams, inputs).params
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        mode = "map" if jax.default_backend() == "cpu" and parameters >= 20_000 else "vmap"
    devices = min(len(jax.devices()), members)
    return Layout(mode, devices, -(-members // devices) * devices)


def assign_slots(members, layout: Layout) -> list:
    """Returns the member of each slot, None if empty: round-robin over the devices, which balances
    their load."""
    slots = [None] * layout.width
    for k, member in enumerate(members):
        slots[k % layout.devices * layout.members_per_device + k // layout.devices] = member
    return slots


def active_slots(slots, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Returns `active` and `counts` of `population.train_epoch` for the members in these slots."""
    active, counts = np.zeros(layout.width, np.int32), np.zeros(layout.devices, np.int32)
    for slot in sorted(slots):
        device, local_slot = divmod(slot, layout.members_per_device)
        active[device * layout.members_per_device + counts[device]] = local_slot
        counts[device] += 1
    return active, counts


def use_all_cores() -> None:
    """Creates one virtual CPU device per core, the fastest for populations in our benchmarks. Does
    nothing once JAX has started, or if XLA_FLAGS sets the number of devices."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", cores)


def member_bytes(recipe: train.Recipe, hparams: train.Hparams, inputs: Any) -> int:
    """Returns a lower bound of a member's memory: its State, best variables and gradient."""
    state = train.abstract(recipe, hparams, inputs)
    leaves = jax.tree.leaves((state, state.params, train.variables(recipe, state)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def free_bytes(*data: Mapping[str, Any]) -> int:
    """Returns the memory for members, besides a copy of the data on every device."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        memory = host_memory()
    else:
        memory = sum((device.memory_stats() or {}).get("bytes_limit", 2**34) for device in devices)
    size = sum(array.nbytes for part in data for array in part.values())
    return memory - len(jax.devices()) * size
