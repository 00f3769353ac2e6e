"""Population: many trials of one Recipe in one compiled program, `train.step` over a member axis.

A member is one (hparams, seed). It is equal to a single run of `train.fit` to about 1e-6, and
bitwise reproducible for the same width, devices and version. The first axis of every array of a
population is the member axis, sharded over this host's devices. Reads no files, prints nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from dlflax import parallel, train
from dlflax.train.driver import Driver, Member
from dlflax.train.history import History
from dlflax.train.layout import Layout, active_slots, assign_slots, layout_for

traces = 0
"""Number of traces of `train_epoch` in this process: one for each Recipe and Layout."""


def init(recipe: train.Recipe, layout: Layout, hparams, inputs, seeds, pretrained=None):
    """Returns initial States, every leaf (width, ...). hparams: leaves (width,); seeds: uint32
    (width,); pretrained: as for `train.init`, shared by all members."""
    sharding = layout.sharding("member")
    if jax.default_backend() != "cpu":
        return _init(recipe, sharding, hparams, inputs, seeds, pretrained)
    # on one device: QR factorizations, of orthogonal parameters, on several CPU devices at a time
    # wait for each other forever
    hparams, seeds = jax.device_get((hparams, seeds))
    return jax.device_put(_init(recipe, None, hparams, inputs, seeds, pretrained), sharding)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(recipe, sharding, hparams, inputs, seeds, pretrained):
    def init_member(hparams, seed):
        return train.init(recipe, hparams, inputs, jax.random.key(seed), pretrained)

    states = jax.vmap(init_member)(hparams, seeds)
    return lax.with_sharding_constraint(states, sharding) if sharding else states


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="with_outputs", donate_argnums=2)
def train_epoch(
    recipe, layout, states, hparams, train_set, val_set, batches, active, counts, val_batches=None,
    *, with_outputs=False,
):  # fmt: skip
    """Trains and validates every member for one epoch, in one compiled call.

    states, hparams: leaves (width, ...); train_set, val_set: as for `train.train_steps`, replicated
    on the devices; batches: int32 (width, steps, batch_size); active: int32 (width,), starts in
    each device's share with the local slots to train; counts: int32 (devices,), the number of
    these. Under map the other members keep their State, under vmap they are trained as well.
    val_batches: int32 (width, batches, size), as for `train.evaluate_batches`, if each member has
    its own validation examples. Returns (States, (training sums, validation sums, validation
    outputs)), leaves (width, ...); the outputs are None unless with_outputs.
    """
    global traces
    traces += 1

    def train_member(state, hparams, batches, val_batches):
        start, stop = np.int32(0), np.int32(batches.shape[0])
        zero = train.zero_sums(recipe, hparams, train_set)
        state, sums = train.train_steps(
            recipe, state, hparams, train_set, batches, zero, start, stop
        )
        if val_set is None:
            return state, (sums, None, None)
        if val_batches is None:
            val_sums, outputs = train.evaluate_sums(recipe, state, hparams, val_set)
        else:
            val_sums, outputs = train.evaluate_batches(
                recipe, state, train.as_float32(hparams.evaluation()), val_set, val_batches
            )
            outputs = outputs.reshape(-1, *outputs.shape[2:])
        return state, (sums, val_sums, outputs if with_outputs else None)

    def put(tree, slot, values):
        return jax.tree.map(lambda leaf, value: leaf.at[slot].set(value), tree, values)

    def train_share(states, hparams, batches, active, counts, val_batches):
        arguments = hparams, batches, val_batches
        if layout.mode == "vmap":
            return jax.vmap(train_member)(states, *arguments)

        def body(i, carry):
            states, sums = carry
            slot = active[i]
            state, new = train_member(_take(states, slot), *_take(arguments, slot))
            return put(states, slot, state), put(sums, slot, new)

        shapes = jax.eval_shape(train_member, _take(states, 0), *_take(arguments, 0))[1]
        sums = jax.tree.map(
            lambda s: jnp.zeros((layout.members_per_device, *s.shape), s.dtype), shapes
        )
        return lax.fori_loop(0, counts[0], body, (states, sums))

    arguments = states, hparams, batches, active, counts, val_batches
    return _map_devices(layout, train_share, *arguments)


def _map_devices(layout, function, *arguments):
    """Returns function(*arguments), called on every device with its share of the member axis."""
    mesh, spec = layout.sharding().mesh, P("member")
    in_specs = (spec,) * len(arguments)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=spec, check_vma=False)
    return mapped(*arguments)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update_best(recipe, best, states, improved):
    """Returns the best variables so far: those of the States of members that improved, bool
    (width,), and `best` of the others."""

    def choose(old, new):
        return jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, best, train.variables(recipe, states))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(recipe, layout, variables, hparams, val_set):
    """Returns the outputs of every member on the validation split, float32 (width, n, ...)."""
    recipe = dataclasses.replace(recipe, ema=False)  # the variables are averages already

    def member_outputs(variables, hparams):
        return train.evaluate_sums(recipe, train.from_variables(variables), hparams, val_set)[1]

    def share_outputs(variables, hparams):
        if layout.mode == "vmap":
            return jax.vmap(member_outputs)(variables, hparams)
        return lax.map(lambda member: member_outputs(*member), (variables, hparams))

    return _map_devices(layout, share_outputs, variables, hparams)


class Population(Driver):
    """The training of configurations in one program, each under one or more seeds.

    The splits are copied to all devices; pretrained: as for `train.init`. There are at most as many
    members as the layout's width. keep_best: stores the best variables, which `best` requires.
    val_rows: for each seed its own validation examples, int32 (n,), indices into val_set, as in
    cross-validation. options: those of `Driver`.
    """

    def __init__(
        self, recipe, hparams, seeds, train_set, val_set, *, layout, pretrained=None,
        keep_best=False, val_rows=None, **options,
    ):  # fmt: skip
        super().__init__(recipe, hparams, seeds, train_set, val_set, **options)
        self.layout, self._val_rows = layout, val_rows
        self.train_set, self.val_set = put_on_devices(layout, train_set, val_set)
        self._slots = assign_slots(self.members, layout)
        self.members = [member for member in self._slots if member is not None]
        self._next_batches = None
        inputs, seeds = train_set["inputs"][:1], [self.seeds[i] for i in self._members_or_first()]
        seeds = self._put(np.uint32(seeds))
        self._states = init(recipe, layout, self._hparams(), inputs, seeds, pretrained)
        self._best = None
        if keep_best:
            self._best = jax.tree.map(jnp.copy, train.variables(recipe, self._states))

    def _train_epoch(self, running, untils, should_stop):
        slots = {member: self._slots.index(member) for member in running}
        active, counts = active_slots(slots.values(), self.layout)
        self._states, results = train_epoch(
            self.recipe, self.layout, self._states, self._hparams(), self.train_set, self.val_set,
            self._batches(), active, counts, self._val_batches(),
            with_outputs=self._host_val is not None,
        )  # fmt: skip
        if any(len(self.trainings[i][j].history) + 1 < untils[i] for i, j in running):
            self._batches(ahead=1)  # prepared while the devices compute
        results = jax.device_get(results)
        return {m: self._result(m, *_take(results, slot)) for m, slot in slots.items()}

    def _result(self, member, sums, val_sums, outputs):
        """Returns the arguments of `Training.add` for one member."""
        if val_sums is None:
            return sums, None, {}
        batch = self._host_val
        if batch is not None and self._val_rows:
            rows = self._val_rows[member[1]]
            # the member's examples come first, then padding
            batch, outputs = {n: leaf[rows] for n, leaf in batch.items()}, outputs[: len(rows)]
        return sums, train.Validation(val_sums, outputs, batch), {}

    def _end_epoch(self, best):
        if self._best is not None:
            improved = self._put(np.array([member in best for member in self._slots]))
            self._best = _update_best(self.recipe, self._best, self._states, improved)

    def best(self, count: int) -> dict[Member, tuple[dict, np.ndarray]]:
        """Returns member -> (NumPy variables of its best epoch, its outputs on the first `count`
        validation examples, float32), without diverged members."""
        part = {name: leaf[:count] for name, leaf in self.val_set.items()}
        return self._with_outputs(self._best, part)

    def last(self, data: Mapping) -> dict[Member, tuple[dict, np.ndarray]]:
        """Returns member -> (NumPy variables of its last epoch, its outputs on data), as `best`."""
        variables = train.variables(self.recipe, self._states)
        return self._with_outputs(variables, put_on_devices(self.layout, data)[0])

    def _with_outputs(self, variables, data):
        outputs = _outputs(self.recipe, self.layout, variables, self._hparams(), data)
        variables, outputs = jax.device_get((variables, outputs))
        return {
            member: (_take(variables, slot), outputs[slot])
            for slot, member in enumerate(self._slots)
            if member is not None and member[0] not in self.divergence_steps
        }

    def states(self, configurations: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """Returns configuration -> host leaves (seeds, ...) of its State and best variables, for
        `resume`."""
        if not configurations:
            return {}
        slots = {member: slot for slot, member in enumerate(self._slots) if member}
        leaves = jax.device_get([_raw(leaf) for leaf in jax.tree.leaves(self._tree())])
        return {
            i: [leaf[[slots[i, j] for j in range(len(self.seeds[i]))]] for leaf in leaves]
            for i in configurations
        }

    def records(self) -> list[list[tuple[History, int | None]]]:
        """Returns [configuration][seed] -> (history, diverged_at)."""
        return [[(m.history, m.diverged_at) for m in row] for row in self.trainings]

    def resume(self, records: Sequence, states: Mapping[int, list[np.ndarray]]) -> None:
        """Resumes configurations of this or another population, bitwise at the same width. records:
        as `records` returns them, None for a new configuration; states: as `states` returns
        them."""
        for row, saved in zip(self.trainings, records, strict=True):
            for member, (history, diverged_at) in zip(row, saved or (), strict=saved is not None):
                member.history, member.diverged_at = list(history), diverged_at
        leaves, structure = jax.tree.flatten(self._tree())
        arrays = [np.array(_raw(leaf)) for leaf in leaves]
        for slot, member in enumerate(self._slots):
            if member and member[0] in states:
                for array, values in zip(arrays, states[member[0]], strict=True):
                    array[slot] = values[member[1]]
        arrays = [
            jax.random.wrap_key_data(array) if _is_key(leaf) else array
            for array, leaf in zip(arrays, leaves, strict=True)
        ]
        tree = self._put(jax.tree.unflatten(structure, arrays))
        self._states, self._best = train.State(**tree["states"]), tree.get("best")

    def _tree(self):
        best = {} if self._best is None else {"best": self._best}
        return {"states": train.as_dict(self._states), **best}

    def scores(self, metric: str) -> np.ndarray:
        """Returns the best `val_<metric>` so far, float64 (configurations, seeds); the worst,
        +-inf, for diverged configurations."""
        lowest = self.recipe.task.metric(metric).direction == "min"
        best, worst = (min, np.inf) if lowest else (max, -np.inf)
        diverged = self.divergence_steps
        return np.array(
            [
                [worst if i in diverged else best(r[f"val_{metric}"] for r in h) for h in row]
                for i, row in enumerate(self.histories)
            ]
        )

    def _hparams(self):
        """Returns the hparams of the next epoch, leaves float32 (width,)."""
        hparams = [self.trainings[i][j].current_hparams() for i, j in self._members_or_first()]
        return self._put(jax.tree.map(lambda *leaves: np.float32(leaves), *hparams))

    def _batches(self, ahead=0):
        """Returns the members' next batches, int32 (width, steps, batch_size). ahead: 1 for the
        epoch after the next."""
        members = self._members_or_first()
        epochs = {(i, j): len(self.trainings[i][j].history) + ahead for i, j in members}
        if self._next_batches and self._next_batches[0] == epochs:
            return self._next_batches[1]
        batches = {
            (i, j): self._orders[j].batches(int(self.seeds[i, j]), epoch)
            for (i, j), epoch in epochs.items()
        }
        batches = self._put(np.stack([batches[member] for member in members]))
        self._next_batches = (epochs, batches)
        return batches

    def _val_batches(self):
        """Returns the members' own validation batches, int32 (width, batches, size), or None."""
        if not self._val_rows:
            return None
        longest = max(map(len, self._val_rows))
        padded = [np.pad(rows, (0, longest - len(rows)), constant_values=-1)
                  for rows in self._val_rows]  # fmt: skip
        indices, members = train.all_batches(longest), self._members_or_first()
        return self._put(np.stack([np.where(indices < 0, -1, padded[j][indices])
                                   for _, j in members]))  # fmt: skip

    def _members_or_first(self):
        """Returns the member of each slot; the first member for empty slots."""
        return [member or (0, 0) for member in self._slots]

    def _put(self, tree):
        return parallel.put_by_sharding(tree, self.layout.sharding("member"))


def fit_all(
    recipe: train.Recipe, hparams: Sequence[train.Hparams], train_set: Mapping, val_set: Mapping,
    *, epochs: int, seeds: Sequence[int] = (0,),
) -> Population:  # fmt: skip
    """Returns a trained Population of the configurations under every seed: its `histories` and
    `scores` are the results."""
    layout = layout_for(recipe, hparams[0], train_set["inputs"][:1], len(hparams) * len(seeds))
    population = Population(
        recipe, hparams, [seeds] * len(hparams), train_set, val_set, epochs=epochs, layout=layout
    )
    population.train(epochs)
    return population


def put_on_devices(layout: Layout, *data):
    """Returns the data, replicated on the layout's devices."""
    return parallel.put_by_sharding(data, layout.sharding())


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf):
    """Returns an array unchanged, and the uint32 data of typed keys."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _take(tree, slot):
    return jax.tree.map(lambda leaf: leaf[slot], tree)
