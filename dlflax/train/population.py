"""Many trials of one Recipe in one compiled program: `train.step` over a trial axis.

A lane of a population is one (hparams, seed), and comes out as `train.fit` would train it alone: to
about 1e-6, and to the bit at the same width, devices and version. Every array of a population has
the lanes as its first axis, which is cut over a mesh of devices, of one host or of all: every host
then does the same with the same numbers. Nothing here reads files or prints.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from dlflax import parallel, train
from dlflax.data.order import epoch_batches
from dlflax.train.layout import Layout, active_slots, deal_lanes, layout_for

traces = 0
"""Number of programs that this process has traced for `train_epoch`: one a Recipe and Layout."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(recipe: train.Recipe, layout: Layout, hparams, inputs, seeds, pretrained=None):
    """Fresh States, every leaf (width, ...). hparams: leaves (width,); seeds: uint32 (width,);
    pretrained: as for `train.init`, the same for all."""

    def one(hparams, seed):
        return train.init(recipe, hparams, inputs, jax.random.key(seed), pretrained)

    return lax.with_sharding_constraint(jax.vmap(one)(hparams, seeds), layout.sharding("lane"))


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="with_outputs", donate_argnums=2)
def train_epoch(
    recipe, layout, states, hparams, train_set, val_set, batches, slots, counts, val_batches=None,
    *, with_outputs=False,
):  # fmt: skip
    """One epoch and its validation for every lane, in one compiled call.

    states, hparams: leaves (width, ...); data as for `train.train_steps`, a copy on every device;
    batches: int32 (width, steps, batch_size); val_batches: int32 (width, batches, size), where each
    lane has validation examples of its own, as `train.evaluate_batches` takes them; slots: int32
    (width,), for each device the lanes of its share that are to be trained, first; counts: int32
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

        def lane(i, carry):
            states, sums = carry
            slot = slots[i]
            state, new = one(at(states, slot), *at(own, slot))
            return put(states, slot, state), put(sums, slot, new)

        shapes = jax.eval_shape(one, at(states, 0), *at(own, 0))[1]
        sums = jax.tree.map(
            lambda s: jnp.zeros((layout.lanes_per_device, *s.shape), s.dtype), shapes
        )
        return lax.fori_loop(0, counts[0], lane, (states, sums))

    cut = P("lane")
    mapped = jax.shard_map(
        on_device, mesh=layout.sharding().mesh, in_specs=(cut,) * 6, out_specs=cut, check_vma=False
    )
    return mapped(states, hparams, batches, slots, counts, val_batches)


@functools.partial(jax.jit, static_argnums=0)
def _gather(sharding, states, index):
    def take(leaf):
        return lax.with_sharding_constraint(leaf[index], sharding)

    return jax.tree.map(take, states)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _better(recipe, best, states, improved):
    """The variables to evaluate with of those lanes that improved, bool (width,), and the best so
    far of the others."""

    def choose(old, new):
        return jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, best, train.variables(recipe, states))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(recipe, layout, variables, hparams, val_set):
    """Outputs float32 (width, n, ...) of every lane on the validation data."""
    plain = dataclasses.replace(recipe, ema=False)

    def one(variables, hparams):
        return train.evaluate_sums(plain, train.from_variables(variables), hparams, val_set)[1]

    def on_device(variables, hparams):
        if layout.mode == "vmap":
            return jax.vmap(one)(variables, hparams)
        return lax.map(lambda lane: one(*lane), (variables, hparams))

    cut = P("lane")
    mapped = jax.shard_map(
        on_device, mesh=layout.sharding().mesh, in_specs=(cut, cut), out_specs=cut, check_vma=False
    )
    return mapped(variables, hparams)


class Population:
    """Configurations in training, each under one or more seeds.

    hparams: one a configuration (n); seeds: uint32 (n, seeds). train_set, val_set: arrays as for
    `train.fit`, put on all devices; pretrained: as for `train.init`. The lanes may be fewer than
    the layout's width, never more. keep_best: `best` will be asked for, which takes a lane's
    variables once more. rows: for each configuration the examples, int32 (n,), of train_set and of
    val_set that are its own, as in cross-validation; as many steps an epoch for all of them.
    objective: name of a metric that every epoch has, whatever the task monitors.
    """

    def __init__(
        self, recipe, hparams, seeds, train_set, val_set, *, epochs, layout,
        patience=0, reduce_on_plateau=0, pretrained=None, keep_best=False, rows=None,
        objective="loss",
    ):  # fmt: skip
        train.check_arrays(recipe, train.as_traced(hparams[0]), train_set, val_set)
        self.recipe, self.layout = recipe, layout
        lengths, everything = train_set.get("length"), np.arange(len(train_set["inputs"]))
        self._lengths = None if lengths is None else np.asarray(lengths)
        rows = rows or [(np.int32(everything), None)] * len(hparams)
        self._rows, self._val_rows = zip(*rows, strict=True)
        steps = math.ceil(len(self._rows[0]) / recipe.batch_size)
        hparams = [h.replace(total_steps=float(epochs * steps)) for h in hparams]
        self.seeds = np.asarray(seeds, np.uint32)
        self.trainings = [
            [train.Training(recipe.task, h, steps, epochs, patience, reduce_on_plateau,
                            objective=objective) for _ in row]
            for h, row in zip(hparams, self.seeds, strict=True)
        ]  # fmt: skip
        """`[configuration][seed]` -> the lane's record: rows without learning rate and speed."""
        collecting = self.trainings[0][0].collecting
        self._host_val = train.host_batch(recipe.task, val_set) if collecting else None
        self.train_set, self.val_set = put_on_devices(layout, train_set, val_set)
        everything = [(i, j) for i, row in enumerate(self.seeds) for j in range(len(row))]
        self._lanes = deal_lanes(everything, layout)
        inputs = train_set["inputs"][:1]
        self._states = init(recipe, layout, self._hparams(), inputs, self._lane_seeds(), pretrained)
        self._best = None
        if keep_best:
            self._best = jax.tree.map(jnp.copy, train.variables(recipe, self._states))

    @property
    def histories(self) -> list[list[train.History]]:
        """`[configuration][seed]` -> rows, one an epoch."""
        return [[lane.history for lane in row] for row in self.trainings]

    @property
    def diverged(self) -> dict[int, int]:
        """configuration -> 1-based step at which the first of its seeds was no longer finite."""
        found = {
            i: [lane.diverged_at for lane in row if lane.diverged_at]
            for i, row in enumerate(self.trainings)
        }
        return {i: min(steps) for i, steps in found.items() if steps}

    def train(self, until: int | list[int], on_epoch=lambda: None) -> None:
        """Trains what is neither finished nor diverged up to `until` epochs, which may be of each
        configuration. on_epoch is called when all of them have one more."""
        untils = [until] * len(self.trainings) if isinstance(until, int) else until
        batches, val_batches = None, self._val_batches()
        while running := self._running(untils):
            batches = self._batches() if batches is None else batches
            slots, counts = active_slots(running, self.layout)
            self._states, sums = train_epoch(
                self.recipe, self.layout, self._states, self._hparams(),
                self.train_set, self.val_set, batches, slots, counts, val_batches,
                with_outputs=self._host_val is not None,
            )  # fmt: skip
            if any(len(self.trainings[i][j].history) + 1 < untils[i] for i, j in running.values()):
                batches = self._batches(ahead=1)  # while the devices work
            sums = parallel.gathered(sums)
            for place, (i, j) in running.items():
                train_sums, *tested = _at(sums, place)
                self.trainings[i][j].add(train_sums, self._validation(i, *tested))
            if self._best is not None:
                improved = self._put(self._improved(running))
                self._best = _better(self.recipe, self._best, self._states, improved)
            on_epoch()

    def _validation(self, i, sums, outputs):
        """Returns the validation of one lane of configuration i."""
        rows, batch = self._val_rows[i], self._host_val
        if batch is not None and rows is not None:
            # its examples come first, then padding
            batch, outputs = {n: leaf[rows] for n, leaf in batch.items()}, outputs[: len(rows)]
        return train.Evaluated(sums, outputs, batch)

    def _improved(self, running):
        """bool (width,): lanes for which the last epoch was the best so far."""
        improved = np.zeros(self.layout.width, bool)
        for place, (i, j) in running.items():
            lane = self.trainings[i][j]
            improved[place] = train.best_epoch(lane.history, lane.task) == len(lane.history) - 1
        return improved

    def best(self, most: int) -> dict[tuple[int, int], tuple[dict, np.ndarray]]:
        """(configuration, seed) -> the variables of the lane's best epoch, NumPy arrays, and its
        outputs on the first `most` validation examples, float32; without lanes that diverged."""
        if not self._lanes:
            return {}
        part = {name: leaf[:most] for name, leaf in self.val_set.items()}
        outputs = _outputs(self.recipe, self.layout, self._best, self._hparams(), part)
        variables, outputs = parallel.gathered((self._best, outputs))
        return {
            lane: (_at(variables, place), outputs[place])
            for place, lane in enumerate(self._lanes)
            if lane is not None and lane[0] not in self.diverged
        }

    def saved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `restore` needs: arrays, and JSON values."""
        records = [[[lane.history, lane.diverged_at] for lane in row] for row in self.trainings]
        notes = {"lanes": self._lanes, "width": self.layout.width, "trainings": records}
        if self._states is None:
            return {}, notes
        best = {} if self._best is None else {"best": self._best}
        return {"states": train.as_dict(self._states), **best}, notes

    def abstract(self, notes: dict[str, Any]) -> dict[str, Any]:
        """Shapes of the arrays that were saved with these notes, and where they are to lie."""
        if not notes["lanes"]:
            return {}
        layout = dataclasses.replace(self.layout, width=notes["width"])

        def placed(leaf):
            shape = (layout.width, *leaf.shape[1:])
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=layout.sharding("lane"))

        return jax.tree.map(placed, self.saved()[0])

    def restore(self, arrays: dict[str, Any], notes: dict[str, Any]) -> None:
        """Goes on from what `saved` gave, to the same bits."""
        self.layout = dataclasses.replace(self.layout, width=notes["width"])
        self._lanes = [lane and tuple(lane) for lane in notes["lanes"]]
        for row, records in zip(self.trainings, notes["trainings"], strict=True):
            for lane, (history, diverged_at) in zip(row, records, strict=True):
                lane.history, lane.diverged_at = history, diverged_at
        arrays = parallel.place(arrays, self.layout.sharding("lane"))
        self._states = train.State(**arrays["states"]) if arrays else None
        self._best = arrays.get("best")

    def continue_with(self, configurations) -> None:
        """Drops all others. They are dealt to the devices again; under vmap the population
        becomes narrower, which is another program."""
        kept = set(configurations)
        lanes = [lane for lane in self._lanes if lane is not None and lane[0] in kept]
        if not lanes:
            self._lanes, self._states, self._best = [], None, None
            return
        old = {lane: place for place, lane in enumerate(self._lanes) if lane is not None}
        if self.layout.mode == "vmap":
            devices = self.layout.devices
            width = -(-len(lanes) // devices) * devices
            self.layout = dataclasses.replace(self.layout, width=width)
        self._lanes = deal_lanes(sorted(lanes), self.layout)
        index = np.int32([old.get(lane, 0) for lane in self._lanes])
        sharding = self.layout.sharding("lane")
        self._states, self._best = _gather(sharding, (self._states, self._best), index)

    def scores(self, metric: str) -> np.ndarray:
        """Each configuration's best `val_<metric>` so far under each seed, float64 (n, seeds), in
        the direction that the task gives it; +-inf, the worst, once it diverged."""
        lowest = self.recipe.task.metric(metric).direction == "min"
        best, worst = (min, np.inf) if lowest else (max, -np.inf)
        diverged = self.diverged
        return np.array(
            [
                [worst if i in diverged else best(r[f"val_{metric}"] for r in h) for h in row]
                for i, row in enumerate(self.histories)
            ]
        )

    def _running(self, untils):
        """{place: (configuration, seed)} of the lanes that need another epoch."""
        diverged = self.diverged
        return {
            place: (i, j)
            for place, (i, j) in ((p, lane) for p, lane in enumerate(self._lanes) if lane)
            if i not in diverged and not self.trainings[i][j].finished(untils[i])
        }

    def _hparams(self):
        """Leaves float32 (width,), of the next epoch; lanes without a trial repeat the first
        configuration."""
        each = [self.trainings[i][j].current_hparams() for i, j in self._filled()]
        return self._put(jax.tree.map(lambda *leaves: np.float32(leaves), *each))

    def _lane_seeds(self):
        return self._put(np.uint32([self.seeds[lane] for lane in self._filled()]))

    def _batches(self, ahead=0):
        """int32 (width, steps, batch_size): of each lane's next epoch, or of the one after it."""
        lanes, made = self._filled(), {}
        for i, j in set(lanes):
            own = self._rows[i]
            batches = epoch_batches(
                len(own), self.recipe.batch_size, int(self.seeds[i, j]),
                len(self.trainings[i][j].history) + ahead,
                None if self._lengths is None else self._lengths[own],
            )  # fmt: skip
            made[i, j] = _of_rows(own, batches)
        return self._put(np.stack([made[lane] for lane in lanes]))

    def _val_batches(self):
        """int32 (width, batches, size) of the lanes' own validation examples, or None."""
        if self._val_rows[0] is None:
            return None
        most = max(map(len, self._val_rows))
        own = [np.pad(rows, (0, most - len(rows)), constant_values=-1) for rows in self._val_rows]
        places = train.all_batches(most)
        return self._put(
            np.stack([np.where(places < 0, -1, own[i][places]) for i, _ in self._filled()])
        )

    def _filled(self):
        return [lane or (0, 0) for lane in self._lanes]

    def _put(self, tree):
        return parallel.place(tree, self.layout.sharding("lane"))


def fit_all(
    recipe: train.Recipe, hparams: Sequence[train.Hparams], train_set: Mapping, val_set: Mapping,
    *, epochs: int, seeds: Sequence[int] = (0,),
) -> Population:  # fmt: skip
    """The Population, done, of configurations under every seed, with `histories` and `scores`."""
    each = [seeds] * len(hparams)
    where = layout_for(recipe, hparams[0], train_set["inputs"][:1], len(hparams) * len(seeds))
    lanes = Population(recipe, hparams, each, train_set, val_set, epochs=epochs, layout=where)
    lanes.train(epochs)
    return lanes


def _of_rows(rows, batches):
    """Batches of places in rows, as `epoch_batches` makes them, as batches of rows."""
    return np.where(batches < 0, -1 - rows[-1 - batches], rows[batches])


def put_on_devices(layout: Layout, *data):
    """The data with a copy on each of the layout's devices; free where it is there already."""
    return parallel.place(data, layout.sharding())


def _at(tree, place):
    return jax.tree.map(lambda leaf: leaf[place], tree)
