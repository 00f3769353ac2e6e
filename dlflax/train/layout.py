"""The devices that the members of a population are trained on, and how many fit."""

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
    """The places of the members on devices. Static: another layout is another program. (A run has
    none: it is one member without a member axis, `driver.Fit`.)"""

    mode: Mode
    """vmap: a device trains its members at once, which differ by 1e-6 from a run; map: one after
    the other, with the bits of a run."""
    devices: int
    """Number of `jax.devices()` that share the members."""
    width: int
    """Places, a multiple of `devices`. Under map those without a member cost nothing."""

    @property
    def members_per_device(self) -> int:
        """Places a device."""
        return self.width // self.devices

    def sharding(self, *axes: str | None) -> NamedSharding:
        """("member") cuts the first axis over the devices; () puts a copy on every device."""
        devices = jax.devices()[: self.devices]
        # Auto: jax.make_mesh's default, Explicit, refuses to gather survivors
        mesh = jax.make_mesh((self.devices,), ("member",), (AxisType.Auto,), devices=devices)
        return NamedSharding(mesh, P(*axes))


def layout_for(
    recipe: train.Recipe,
    hparams: train.Hparams,
    inputs: Any,
    members: int,
    mode: Mode | None = None,
) -> Layout:
    """The layout for `members` at once; mode None chooses it by what was measured: on a CPU one
    virtual device a core and map, but vmap below 20,000 parameters, where a step is mostly
    overhead; vmap on GPU and TPU. inputs: one example (1, ...)."""
    if mode is None:
        params = train.abstract(recipe, hparams, inputs).params
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        mode = "map" if jax.default_backend() == "cpu" and parameters >= 20_000 else "vmap"
    devices = min(len(jax.devices()), members)
    return Layout(mode, devices, -(-members // devices) * devices)


def deal(members, layout: Layout) -> list:
    """Returns the member at each place, None where there is none: dealt out like cards, so that
    every device has as much to do."""
    places = [None] * layout.width
    for k, member in enumerate(members):
        places[k % layout.devices * layout.members_per_device + k // layout.devices] = member
    return places


def active_slots(places, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Returns `slots` and `counts` of `population.train_epoch` for the members at these places."""
    slots, counts = np.zeros(layout.width, np.int32), np.zeros(layout.devices, np.int32)
    for place in sorted(places):
        device, slot = divmod(place, layout.members_per_device)
        slots[device * layout.members_per_device + counts[device]] = slot
        counts[device] += 1
    return slots, counts


def use_all_cores() -> None:
    """One virtual CPU device a core, which measured fastest for a population. Does nothing once
    JAX has started, or where XLA_FLAGS says how many."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", cores)


def member_bytes(recipe: train.Recipe, hparams: train.Hparams, inputs: Any) -> int:
    """Returns at least what a member takes in memory: its State, its best variables, and its
    gradient while it is trained."""
    state = train.abstract(recipe, hparams, inputs)
    leaves = jax.tree.leaves((state, state.params, train.variables(recipe, state)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def free_bytes(*data: Mapping[str, Any]) -> int:
    """Returns the memory that is left for members beside a copy of the data on every device."""
    size = sum(array.nbytes for part in data for array in part.values())
    return _memory() - len(jax.devices()) * size


def _memory() -> int:
    """Returns the bytes that all devices have together; of a CPU those of the machine or its
    container."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return host_memory()
    return sum((device.memory_stats() or {}).get("bytes_limit", 2**34) for device in devices)
