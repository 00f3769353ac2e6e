"""Many trials of one Recipe in one compiled program: `train.step` over a trial axis.

A member is one (hparams, seed), and comes out as `train.fit` would train it alone: to about 1e-6,
and with the same bits at the same width, devices and version. Every array of a population has the
members as its first axis, which is cut over a mesh of this host's devices. Nothing here reads files
or prints.
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
from dlflax.train.layout import Layout, active_slots, deal, layout_for

traces = 0
"""Number of programs that this process has traced for `train_epoch`: one a Recipe and Layout."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(recipe: train.Recipe, layout: Layout, hparams, inputs, seeds, pretrained=None):
    """Fresh States, every leaf (width, ...). hparams: leaves (width,); seeds: uint32 (width,);
    pretrained: as for `train.init`, the same for all."""

    def one(hparams, seed):
        return train.init(recipe, hparams, inputs, jax.random.key(seed), pretrained)

    return lax.with_sharding_constraint(jax.vmap(one)(hparams, seeds), layout.sharding("member"))


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="with_outputs", donate_argnums=2)
def train_epoch(
    recipe, layout, states, hparams, train_set, val_set, batches, slots, counts, val_batches=None,
    *, with_outputs=False,
):  # fmt: skip
    """One epoch and its validation, where there is one, of every member, in one compiled call.

    states, hparams: leaves (width, ...); data as for `train.train_steps`, a copy on every device;
    batches: int32 (width, steps, batch_size); val_batches: int32 (width, batches, size), where each
    member has validation examples of its own, as `train.evaluate_batches` takes them; slots: int32
    (width,), for each device the members of its share that are to be trained, first; counts: int32
    (devices,), how many these are. Under map the others keep their State, under vmap they are
    trained as well.
    Returns (States, (training sums, validation sums, with_outputs: the outputs of the validation,
    else None)), leaves (width, ...).
    """
    global traces
    traces += 1

    def one(state, hparams, batches, val_batches):
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
                recipe, state, train.as_traced(hparams.evaluation()), val_set, val_batches
            )
            outputs = outputs.reshape(-1, *outputs.shape[2:])
        return state, (sums, val_sums, outputs if with_outputs else None)

    def at(tree, slot):
        return jax.tree.map(lambda leaf: leaf[slot], tree)

    def put(tree, slot, values):
        return jax.tree.map(lambda leaf, value: leaf.at[slot].set(value), tree, values)

    def on_device(states, hparams, batches, slots, counts, val_batches):
        own = hparams, batches, val_batches
        if layout.mode == "vmap":
            return jax.vmap(one)(states, *own)

        def member(i, carry):
            states, sums = carry
            slot = slots[i]
            state, new = one(at(states, slot), *at(own, slot))
            return put(states, slot, state), put(sums, slot, new)

        shapes = jax.eval_shape(one, at(states, 0), *at(own, 0))[1]
        sums = jax.tree.map(
            lambda s: jnp.zeros((layout.members_per_device, *s.shape), s.dtype), shapes
        )
        return lax.fori_loop(0, counts[0], member, (states, sums))

    cut = P("member")
    mapped = jax.shard_map(
        on_device, mesh=layout.sharding().mesh, in_specs=(cut,) * 6, out_specs=cut, check_vma=False
    )
    return mapped(states, hparams, batches, slots, counts, val_batches)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _better(recipe, best, states, improved):
    """The variables to evaluate with of those members that improved, bool (width,), and the best so
    far of the others."""

    def choose(old, new):
        return jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, best, train.variables(recipe, states))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(recipe, layout, variables, hparams, val_set):
    """Outputs float32 (width, n, ...) of every member on the validation data."""
    plain = dataclasses.replace(recipe, ema=False)

    def one(variables, hparams):
        return train.evaluate_sums(plain, train.from_variables(variables), hparams, val_set)[1]

    def on_device(variables, hparams):
        if layout.mode == "vmap":
            return jax.vmap(one)(variables, hparams)
        return lax.map(lambda member: one(*member), (variables, hparams))

    cut = P("member")
    mapped = jax.shard_map(
        on_device, mesh=layout.sharding().mesh, in_specs=(cut, cut), out_specs=cut, check_vma=False
    )
    return mapped(variables, hparams)


class Population(Driver):
    """Configurations in training in one program, each under one or more seeds.

    The data are put on all devices; pretrained: as for `train.init`. There may be fewer members
    than the layout's width, never more. keep_best: `best` will be asked for, which takes a member's
    variables once more. val_rows: for each configuration the examples, int32 (n,), of val_set that
    are its own, as in cross-validation. options: those of `Driver`.
    """

    def __init__(
        self, recipe, hparams, seeds, train_set, val_set, *, layout, pretrained=None,
        keep_best=False, val_rows=None, **options,
    ):  # fmt: skip
        super().__init__(recipe, hparams, seeds, train_set, val_set, **options)
        self.layout, self._val_rows = layout, val_rows or [None] * len(hparams)
        self.train_set, self.val_set = put_on_devices(layout, train_set, val_set)
        self._set_places(deal(self.members, layout))
        inputs, seeds = train_set["inputs"][:1], [self.seeds[member] for member in self._filled()]
        seeds = self._put(np.uint32(seeds))
        self._states = init(recipe, layout, self._hparams(), inputs, seeds, pretrained)
        self._best = None
        if keep_best:
            self._best = jax.tree.map(jnp.copy, train.variables(recipe, self._states))

    def _train_epoch(self, running, untils, should_stop):
        places = {member: self._places.index(member) for member in running}
        slots, counts = active_slots(places.values(), self.layout)
        self._states, results = train_epoch(
            self.recipe, self.layout, self._states, self._hparams(), self.train_set, self.val_set,
            self._batches(), slots, counts, self._val_batches(),
            with_outputs=self._host_val is not None,
        )  # fmt: skip
        if any(len(self.trainings[i][j].history) + 1 < untils[i] for i, j in running):
            self._batches(ahead=1)  # while the devices work
        results = jax.device_get(results)
        return {
            member: self._result(member, *_at(results, place)) for member, place in places.items()
        }

    def _result(self, member, sums, val_sums, outputs):
        """Returns the arguments of `Training.add` for one member."""
        if val_sums is None:
            return sums, None, {}
        rows, batch = self._val_rows[member[0]], self._host_val
        if batch is not None and rows is not None:
            # its examples come first, then padding
            batch, outputs = {n: leaf[rows] for n, leaf in batch.items()}, outputs[: len(rows)]
        return sums, train.Evaluated(val_sums, outputs, batch), {}

    def _end_epoch(self, best):
        if self._best is not None:
            improved = self._put(np.array([member in best for member in self._places]))
            self._best = _better(self.recipe, self._best, self._states, improved)

    def best(self, most: int) -> dict[Member, tuple[dict, np.ndarray]]:
        """(configuration, seed) -> the variables of the member's best epoch, NumPy arrays, and its
        outputs on the first `most` validation examples, float32; without those that diverged."""
        part = {name: leaf[:most] for name, leaf in self.val_set.items()}
        outputs = _outputs(self.recipe, self.layout, self._best, self._hparams(), part)
        variables, outputs = jax.device_get((self._best, outputs))
        return {
            member: (_at(variables, place), outputs[place])
            for place, member in enumerate(self._places)
            if member is not None and member[0] not in self.diverged
        }

    def states(self, configurations: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """Returns configuration -> leaves (seeds, ...) of its State and its best variables, on the
        host, for `resume`."""
        if not configurations:
            return {}
        places = {member: place for place, member in enumerate(self._places) if member}
        leaves = jax.device_get([_numbers(leaf) for leaf in jax.tree.leaves(self._tree())])
        return {
            i: [leaf[[places[i, j] for j in range(len(self.seeds[i]))]] for leaf in leaves]
            for i in configurations
        }

    def records(self) -> list[list[tuple[History, int | None]]]:
        """Returns [configuration][seed] -> (history, the step at which it diverged)."""
        return [[(m.history, m.diverged_at) for m in row] for row in self.trainings]

    def resume(self, records: Sequence, states: Mapping[int, list[np.ndarray]]) -> None:
        """Continues configurations where they were in this population or in another one, with the
        same bits at the same width. records: as `records` returns, None for a fresh configuration;
        states: as `states` returns."""
        for row, saved in zip(self.trainings, records, strict=True):
            for member, (history, diverged_at) in zip(row, saved or (), strict=saved is not None):
                member.history, member.diverged_at = list(history), diverged_at
        leaves, structure = jax.tree.flatten(self._tree())
        arrays = [np.array(_numbers(leaf)) for leaf in leaves]
        for place, member in enumerate(self._places):
            if member and member[0] in states:
                for array, values in zip(arrays, states[member[0]], strict=True):
                    array[place] = values[member[1]]
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
        """Returns each configuration's best `val_<metric>` so far under each seed, float64
        (n, seeds), in the direction of the metric; +-inf, the worst, once it diverged."""
        lowest = self.recipe.task.metric(metric).direction == "min"
        best, worst = (min, np.inf) if lowest else (max, -np.inf)
        diverged = self.diverged
        return np.array(
            [
                [worst if i in diverged else best(r[f"val_{metric}"] for r in h) for h in row]
                for i, row in enumerate(self.histories)
            ]
        )

    def _set_places(self, places) -> None:
        self._places, self._ahead = places, None
        self.members = [member for member in places if member is not None]

    def _hparams(self):
        """Leaves float32 (width,), of the next epoch; places without a member repeat the first
        configuration."""
        numbers = [self.trainings[i][j].current_hparams() for i, j in self._filled()]
        return self._put(jax.tree.map(lambda *leaves: np.float32(leaves), *numbers))

    def _batches(self, ahead=0):
        """int32 (width, steps, batch_size): of each member's next epoch, or of the one after it."""
        members = self._filled()
        epochs = {(i, j): len(self.trainings[i][j].history) + ahead for i, j in members}
        if self._ahead and self._ahead[0] == epochs:
            return self._ahead[1]
        batches = {
            (i, j): self._orders[i].batches(int(self.seeds[i, j]), epoch)
            for (i, j), epoch in epochs.items()
        }
        batches = self._put(np.stack([batches[member] for member in members]))
        self._ahead = (epochs, batches)
        return batches

    def _val_batches(self):
        """int32 (width, batches, size) of the members' own validation examples, or None."""
        if self._val_rows[0] is None:
            return None
        most = max(map(len, self._val_rows))
        padded = [np.pad(rows, (0, most - len(rows)), constant_values=-1)
                  for rows in self._val_rows]  # fmt: skip
        indices = train.all_batches(most)
        return self._put(
            np.stack([np.where(indices < 0, -1, padded[i][indices]) for i, _ in self._filled()])
        )

    def _filled(self):
        return [member or (0, 0) for member in self._places]

    def _put(self, tree):
        return parallel.put_by_sharding(tree, self.layout.sharding("member"))


def fit_all(
    recipe: train.Recipe, hparams: Sequence[train.Hparams], train_set: Mapping, val_set: Mapping,
    *, epochs: int, seeds: Sequence[int] = (0,),
) -> Population:  # fmt: skip
    """The Population, done, of configurations under every seed, with `histories` and `scores`."""
    layout = layout_for(recipe, hparams[0], train_set["inputs"][:1], len(hparams) * len(seeds))
    population = Population(
        recipe, hparams, [seeds] * len(hparams), train_set, val_set, epochs=epochs, layout=layout
    )
    population.train(epochs)
    return population


def put_on_devices(layout: Layout, *data):
    """The data with a copy on each of the layout's devices; free where it is there already."""
    return parallel.put_by_sharding(data, layout.sharding())


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf):
    """Returns an array, or the numbers of typed keys."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _at(tree, place):
    return jax.tree.map(lambda leaf: leaf[place], tree)
