"""Training as a pure function of its hyperparameters.

`step` is the whole of it; `train_steps` loops it on the device, `evaluate` scores, `fit` is the
loop over epochs. Nothing here reads files or prints: that is `run.py`.
"""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax import lax

from dlflax import augment, losses, metrics, optim, parallel
from dlflax.augment import Operation
from dlflax.data.order import epoch_batches
from dlflax.data.stream import fits, slices, stream
from dlflax.errors import InputError, RunError
from dlflax.models.layers import frozen_norms

Batch = dict[str, jax.Array]
History = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The structure of a training run. Static and hashed by value: one compilation each."""

    model: Any
    """A Linen module: called as model(inputs, train=..., dropout=...)."""
    loss: Literal[
        "cross_entropy", "binary_cross_entropy", "mean_squared_error", "reconstruction"
    ] = "cross_entropy"
    """Loss on the model's outputs; reconstruction: squared error from the inputs."""
    optimizer: optim.Optimizer = "adam"
    """Update rule."""
    schedule: optim.Schedule = "constant"
    """Shape of the learning rate after the warm-up."""
    batch_size: int = 32
    """Examples a step."""
    augment: tuple[Operation, ...] = ()
    """Random changes of training images, whose strengths are Hparams; affine is shift, rotation and
    zoom."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and gradients; parameters and the update stay float32."""
    ema: bool = False
    """Evaluate a moving average of the weights instead of the last ones."""
    trainable: str = ""
    """Regular expression of the parameters to be trained, such as ^(stage4|logits): the others stay
    as they are, batch statistics included; empty trains all."""


@struct.dataclass
class State:
    """All that changes in training, and all that a checkpoint holds."""

    step: jax.Array  # int32 scalar: steps done
    params: Any  # float32
    collections: Any  # the model's other variables (batch statistics, ...)
    opt_state: Any
    ema: Any  # like params, or None without Recipe.ema
    key: jax.Array  # never changes; a step's randomness is fold_in(key, step)


def init(recipe: Recipe, hparams: optim.Hparams, inputs, key, pretrained=None) -> State:
    """A fresh State. inputs: one batch or a single example's batch (1, ...), any dtype; `key` is a
    typed PRNG key, which alone decides the parameters and all later randomness. pretrained: some of
    the variables, {"params": {...}, ...}, which are taken in place of the fresh ones (of several
    hosts NumPy arrays)."""
    init_key, key = jax.random.split(key)
    variables = recipe.model.init(init_key, floats(inputs), train=False)
    variables.pop("losses", None)  # of one call, not of the State
    if pretrained:
        fresh, ours = (traverse_util.flatten_dict(each) for each in (variables, pretrained))
        variables = traverse_util.unflatten_dict({**fresh, **ours})
    params = variables.pop("params")
    opt_state = optim.optimizer(recipe.optimizer, hparams, 0.0).init(_trained(recipe, params)[0])
    # a copy, because a donated State must not hold one buffer twice
    ema = jax.tree.map(jnp.copy, params) if recipe.ema else None
    return State(jnp.int32(0), params, variables, opt_state, ema, key)


def abstract(recipe: Recipe, hparams: optim.Hparams, inputs) -> State:
    """Shapes and dtypes of `init`'s State, which restoring a checkpoint needs. Computes nothing."""
    return jax.eval_shape(lambda: init(recipe, hparams, inputs, jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=0)
def _init(recipe, hparams, inputs, seed, pretrained):
    return parallel.keep(init(recipe, hparams, inputs, jax.random.key(seed), pretrained))


def _trained(recipe, params):
    """(parameters that are trained, the others), each {path: leaf} where Recipe.trainable chooses;
    else (params, {}). InputError where it matches none."""
    if not recipe.trainable:
        return params, {}
    parts = {}, {}
    try:
        for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
            parts[not re.search(recipe.trainable, path)][path] = leaf
    except re.error as error:
        raise InputError(
            f"--trainable {recipe.trainable}: no regular expression ({error})."
        ) from error
    if not parts[0]:
        raise InputError(
            f"--trainable {recipe.trainable} matches no parameter: they have names such as "
            f"{next(iter(parts[1]))}."
        )
    return parts


def _joined(recipe, trained, others):
    """The reverse of `_trained`."""
    if not recipe.trainable:
        return trained
    return traverse_util.unflatten_dict({**trained, **others}, sep="/")


def floats(inputs):
    """Images are kept as bytes until a step uses them: uint8 0..255 -> float32 0..1."""
    return inputs.astype(jnp.float32) / 255.0 if inputs.dtype == jnp.uint8 else inputs


def _cast(tree, dtype):
    def cast(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def objective(recipe: Recipe, params, collections, hparams, batch: Batch, key):
    """What training minimizes: the mean loss of the batch, plus the L2 penalty, plus what the model
    puts into its collection "losses", (n,) each: a float32 scalar.

    batch: as for `step`, and with MixUp or CutMix `partner` int32 (n,) and `share` float32 (n,), as
    `augment.augment` gives them.
    Returns (objective, (outputs float32 (n, ...), per-example losses (n,), new collections)).
    """
    dtype = jnp.dtype(recipe.compute_dtype)
    with frozen_norms(recipe.trainable):
        outputs, collections = recipe.model.apply(
            {"params": _cast(params, dtype), **collections},
            _cast(batch["inputs"], dtype),
            train=True,
            dropout=hparams.dropout,
            rngs={"dropout": key},
            mutable=[*collections, "losses"],
        )
    outputs = _cast(outputs, jnp.float32)
    loss, targets = getattr(losses, recipe.loss), batch["targets"]
    each = loss(outputs, targets, hparams.label_smoothing)
    if "partner" in batch:
        other = loss(outputs, targets[batch["partner"]], hparams.label_smoothing)
        each = batch["share"] * each + (1 - batch["share"]) * other
    own = sum(jax.tree.leaves(collections.pop("losses", {})))
    weight = batch["mask"] * batch["weight"] if "weight" in batch else batch["mask"]
    total = jnp.sum((each + hparams.kl_weight * own) * weight)
    mean = total / jnp.maximum(batch["mask"].sum(), 1.0)
    penalty = losses.l2(_trained(recipe, params)[0])
    return mean + hparams.l2 * penalty, (outputs, each, collections)


def step(recipe: Recipe, state: State, hparams: optim.Hparams, batch: Batch):
    """One update. Pure: the caller picks jit, vmap, map or shard.

    batch: inputs (n, ...), uint8 images or floats or ints; targets (n,) or (n, ...); mask float32
    (n,), 0 for padding; maybe weight float32 (n,), what an example's loss counts. Returns (State,
    sums): `loss` without the penalty, `correct` for classifiers, `absolute_error` for regression,
    `count`, all float32, and `first_bad_step`, the 0-based step if the objective or the gradient is
    not finite, else a large number.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = augmented(recipe, hparams, batch, augment_key)

    trained, others = _trained(recipe, state.params)

    def of_params(trained):
        params = _joined(recipe, trained, others)
        return objective(recipe, params, state.collections, hparams, batch, dropout_key)

    (value, (outputs, each, collections)), gradient = jax.value_and_grad(of_params, has_aux=True)(
        trained
    )

    rate = optim.learning_rate(recipe.schedule, hparams, state.step)
    optimizer = optim.optimizer(recipe.optimizer, hparams, rate)
    updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
    if recipe.trainable:
        updates = {
            path: update if path.startswith(HEAD) else hparams.backbone_rate * update
            for path, update in updates.items()
        }
    trained = optax.apply_updates(trained, updates)
    params, ema = _joined(recipe, trained, others), state.ema
    if recipe.ema:
        # the warm-up of the decay keeps the initial weights from lingering in a short run
        decay = jnp.minimum(hparams.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        old, kept = _trained(recipe, ema)
        new = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, old, trained)
        ema = _joined(recipe, new, kept)

    finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
    sums = {
        **_sums(recipe, outputs, each, batch),
        "first_bad_step": jnp.where(finite, _NEVER, state.step),
    }
    state = State(state.step + 1, params, collections, opt_state, ema, state.key)
    return state, sums


HEAD = "logits/"  # path of the last layer's parameters in every classifier
_NEVER = np.int32(2**31 - 1)


def augmented(recipe, hparams, batch, key):
    """The batch as the model and the loss see it in training."""
    batch = {**batch, "inputs": floats(batch["inputs"])}
    if recipe.augment:
        images, partner, share = augment.augment(recipe.augment, key, batch["inputs"], hparams)
        batch["inputs"] = images
        if {"mixup", "cutmix"} & set(recipe.augment):
            batch |= {"partner": partner, "share": share}
    batch = _with_targets(recipe, batch)
    if "noise" in recipe.augment:  # after the targets: a denoising autoencoder is to remove it
        batch["inputs"] = augment.noise(key, batch["inputs"], hparams.noise)
    return batch


def averaged(recipe: Recipe, state: State):
    """The parameters to evaluate with."""
    return state.ema if recipe.ema else state.params


def _with_targets(recipe, batch):
    return {**batch, "targets": batch["inputs"]} if recipe.loss == "reconstruction" else batch


def _sums(recipe, outputs, each, batch):
    mask = batch["mask"]
    # padding may be anything, NaN included: select, do not multiply
    sums = {"loss": jnp.sum(jnp.where(mask > 0, each, 0.0)), "count": mask.sum()}
    if recipe.loss.endswith("cross_entropy"):
        right = metrics.predictions(outputs) == batch["targets"]
        sums["correct"] = jnp.sum(right * mask)
    if recipe.loss == "mean_squared_error":
        error = losses.mean_absolute_error(outputs, batch["targets"])
        sums["absolute_error"] = jnp.sum(jnp.where(mask > 0, error, 0.0))
    return sums


def _gather(data, index):
    """The batch at index (n,) int32; a negative one, -1 - i, is example i as padding: mask 0."""
    at = jnp.where(index < 0, -1 - index, index)
    batch = {name: jnp.take(leaf, at, axis=0) for name, leaf in data.items()}
    return {**batch, "mask": (index >= 0).astype(jnp.float32)}


def zero_sums(recipe: Recipe):
    """The sums of no examples."""
    more = "correct" if recipe.loss.endswith("cross_entropy") else "absolute_error"
    names = ("loss", "count") + ((more,) if recipe.loss != "reconstruction" else ())
    return {**{name: np.float32(0) for name in names}, "first_bad_step": _NEVER}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(recipe: Recipe, state: State, hparams, data, batches, sums, start, stop):
    """Steps `start` to `stop` of one epoch in one compiled call, over device-resident data.

    data: {"inputs": (N, ...), "targets": (N, ...)}; batches: int32 (steps, batch_size) from
    `epoch_batches`; sums: those of the epoch so far. start and stop are traced, so a whole epoch
    and a part of one (for a progress bar) are the same program and give the same bits.
    """

    def batch(i):
        return _gather(data, parallel.cut(batches[i]))

    return _steps(recipe, state, hparams, batch, sums, start, stop)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_piece(recipe: Recipe, state: State, hparams, piece, sums, start, stop):
    """`train_steps` of batches that are there as such: arrays (steps, batch_size, ...), from
    `data.stream`."""

    def batch(i):
        return {name: leaf[i] for name, leaf in piece.items()}

    return _steps(recipe, state, hparams, batch, sums, start, stop)


def _steps(recipe, state, hparams, batch, sums, start, stop):
    def body(i, carry):
        state, sums = carry
        state, new = step(recipe, state, hparams, parallel.cut(batch(i)))
        bad = jnp.minimum(sums["first_bad_step"], new.pop("first_bad_step"))
        sums = {**{name: sums[name] + new[name] for name in new}, "first_bad_step": bad}
        return parallel.keep(state), parallel.whole(sums)

    return lax.fori_loop(start, stop, body, (state, sums))


def evaluate(recipe: Recipe, state: State, data, batch_size: int = 256):
    """Scores data (as in `train_steps`) with dropout off, every example once.

    Returns (sums, outputs): sums hold loss, count and for classifiers correct and confusion int32
    (k, k); outputs are float32 (N, ...). The averaged weights are used where there are any. Data on
    disk (`Rows`) are read in pieces.
    """
    data = {name: data[name] for name in ("inputs", "targets")}
    if isinstance(data["inputs"], jax.Array):
        return _evaluate(recipe, state, data, batch_size)
    if fits(data):
        return _evaluate(recipe, state, parallel.put(data), batch_size)
    parts = [
        jax.device_get(_evaluate(recipe, state, parallel.put(part), batch_size))
        for part in slices(data)
    ]
    sums = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *(sums for sums, _ in parts))
    return sums, np.concatenate([outputs for _, outputs in parts])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _evaluate(recipe, state, data, batch_size):
    n = data["inputs"].shape[0]
    batch_size = -(-min(batch_size, n) // parallel.size()) * parallel.size()
    batches = math.ceil(n / batch_size)
    index = np.arange(batches * batch_size, dtype=np.int32)
    index = np.where(index < n, index, -1).reshape(batches, batch_size)
    dtype = jnp.dtype(recipe.compute_dtype)
    params = _cast(averaged(recipe, state), dtype)

    def one(index):
        batch = parallel.cut(_gather(data, parallel.cut(index)))
        batch = _with_targets(recipe, {**batch, "inputs": floats(batch["inputs"])})
        inputs = _cast(batch["inputs"], dtype)
        outputs = recipe.model.apply({"params": params, **state.collections}, inputs, train=False)
        outputs = _cast(outputs, jnp.float32)
        each = getattr(losses, recipe.loss)(outputs, batch["targets"])
        sums = _sums(recipe, outputs, each, batch)
        if recipe.loss == "cross_entropy":
            sums["confusion"] = metrics.confusion(outputs, batch["targets"], batch["mask"])
        return parallel.whole((sums, outputs))

    sums, outputs = lax.map(one, index)
    return (
        jax.tree.map(lambda leaf: leaf.sum(0), sums),
        outputs.reshape(-1, *outputs.shape[2:])[:n],
    )


@dataclasses.dataclass
class Fit:
    """What `fit` returns, and hands to `on_epoch` after every epoch."""

    state: State
    """After the last epoch."""
    best: State | None
    """A copy of the State with the lowest validation loss; None if that epoch lies before a resume
    (its checkpoint has it). Without validation, when all is done, a copy of the last State."""
    history: History
    """One row an epoch."""
    compile_seconds: float
    """Tracing and compiling, or reading the compilation cache, and a first evaluation."""
    partial: dict[str, float] | None = None
    """The sums of an epoch in whose middle `should_stop` was true."""


def best_epoch(history: History) -> int:
    """0-based index of the row with the lowest validation loss, the first on a tie; of the last
    row where there is no validation."""
    if "val_loss" not in history[-1]:
        return len(history) - 1
    return min(range(len(history)), key=lambda i: history[i]["val_loss"])


def finished(history: History, epochs: int, patience: int = 0) -> bool:
    """Whether a run is over: all epochs are done, or `patience` of them (0 never stops) brought no
    new lowest validation loss. Without validation patience does nothing."""
    if patience and history and len(history) - 1 - best_epoch(history) >= patience:
        return True
    return len(history) >= epochs


def plateau_factor(val_losses: list[float], patience: int, factor: float = 0.5) -> float:
    """What reduce-on-plateau has multiplied the learning rate by after these epochs: `factor` for
    every `patience` epochs in a row without a new lowest loss (Keras' ReduceLROnPlateau with
    min_delta 0). A function of the history alone, so that a resume needs nothing more."""
    lowest, wait, scale = math.inf, 0, 1.0
    for loss in val_losses:
        lowest, wait = (loss, 0) if loss < lowest else (lowest, wait + 1)
        if wait >= patience:
            scale, wait = scale * factor, 0
    return scale


def fit(
    recipe: Recipe,
    hparams: optim.Hparams,
    train,
    val=None,
    *,
    epochs: int,
    seed: int = 0,
    patience: int = 0,
    reduce_on_plateau: int = 0,
    pretrained=None,
    state: State | None = None,
    history: History = (),
    partial: dict[str, float] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_steps: Callable[[int, int, dict], None] | None = None,
    on_epoch: Callable[[Fit], None] | None = None,
) -> Fit:
    """Trains for `epochs` epochs, or until the validation loss has not improved for `patience`.

    train, val: {"inputs": (n, ...), "targets": (n, ...)} NumPy or jax arrays, which are put on the
    device whole, or `Rows` on disk, which are read in pieces, to the same result to the bit; train
    may have "weight" (n,). Without val there are no val_* columns, the last epoch counts as the
    best, and patience and reduce_on_plateau do nothing. pretrained: as for `init`. state, history
    and partial continue an earlier fit, whose later steps come out the same to the bit. patience
    and reduce_on_plateau count epochs, 0 is off. should_stop() is asked every few seconds (with
    several hosts after every epoch), and ends the fit, in the middle of an epoch too.
    on_steps(epoch, step, sums) is called a few times a second while an epoch runs. Raises RunError
    when the loss is not finite.
    """
    n = len(train["targets"])
    steps_per_epoch = math.ceil(n / recipe.batch_size)
    hparams = hparams.replace(total_steps=float(epochs * steps_per_epoch))
    if state is None:
        state = _init(recipe, as_traced(hparams), train["inputs"][:1], np.uint32(seed), pretrained)
    streamed = not fits(train)
    train = train if streamed else parallel.put(train)
    val = parallel.put(val) if val is not None and fits(val) else val
    progress = Fit(state, None, list(history), 0.0)

    clock = time.perf_counter()
    batches = epoch_batches(n, recipe.batch_size, seed, 0)
    none, zero = np.int32(0), zero_sums(recipe)
    # a call of no steps compiles the program and changes nothing
    if streamed:
        piece = parallel.put_share(next(stream(train, batches))[0])
        state, _ = train_piece(recipe, state, as_traced(hparams), piece, zero, none, none)
    else:
        batches = parallel.put(batches)
        state, _ = train_steps(recipe, state, as_traced(hparams), train, batches, zero, none, none)
    jax.block_until_ready(state)
    progress.state, progress.compile_seconds = state, time.perf_counter() - clock
    warm = False

    while not finished(progress.history, epochs, patience) and not should_stop():
        epoch = len(progress.history)
        past = [row["val_loss"] for row in progress.history if "val_loss" in row]
        factor = plateau_factor(past, reduce_on_plateau) if reduce_on_plateau else 1.0
        scaled = hparams.replace(learning_rate=hparams.learning_rate * factor)

        clock = time.perf_counter()
        batches = epoch_batches(n, recipe.batch_size, seed, epoch)
        numbers, sums, done = as_traced(scaled), zero, 0
        if partial:
            sums = {name: np.asarray(partial[name], leaf.dtype) for name, leaf in zero.items()}
            done, partial = int(state.step) - epoch * steps_per_epoch, None
        if streamed:
            pieces = stream(train, batches[done:])
            laps = ((parallel.put_share(piece), 0, stop) for piece, stop in pieces)
        else:
            whole = train, parallel.put(batches)
            lap = 0.2 if on_steps else 5.0
            # a short epoch is one call: nothing comes back to the host before its end
            short = bool(progress.history) and progress.history[-1]["seconds"] < lap
            laps = ((whole, *each) for each in _laps(done, len(batches), lap, short))
        for part, start, stop in laps:
            start, stop = np.int32(start), np.int32(stop)
            if streamed:
                state, sums = train_piece(recipe, state, numbers, part, sums, start, stop)
            else:
                state, sums = train_steps(recipe, state, numbers, *part, sums, start, stop)
            sums = jax.device_get(sums)
            progress.state, done = state, done + int(stop - start)
            if sums["first_bad_step"] != _NEVER:
                _diverged(recipe, scaled, int(sums["first_bad_step"]))
            if on_steps:
                on_steps(epoch, done, sums)
            if done < steps_per_epoch and jax.process_count() == 1 and should_stop():
                progress.partial = {name: float(value) for name, value in sums.items()}
                return progress
        seconds = time.perf_counter() - clock
        if not warm and val is not None:  # only now, so that the first step comes sooner
            lap = time.perf_counter()
            jax.block_until_ready(evaluate(recipe, state, val))
            progress.compile_seconds += time.perf_counter() - lap
            clock, warm = clock + time.perf_counter() - lap, True
        scores = {"train": sums}
        if val is not None:
            scores["val"], _ = jax.device_get(evaluate(recipe, state, val))
        row = {
            "epoch": epoch + 1,
            "step": int(state.step),
            "learning_rate": float(
                optim.learning_rate(recipe.schedule, scaled, np.float32(state.step - 1))
            ),
            **{
                f"{split}_{name}": value
                for split, each in scores.items()
                for name, value in metrics.summary(each).items()
            },
            "seconds": time.perf_counter() - clock,
            "examples_per_second": n / seconds,
        }
        progress.history.append(row)
        if val is not None and not math.isfinite(row["val_loss"]):
            _diverged(recipe, scaled, row["step"] - 1)
        if val is not None and best_epoch(progress.history) == epoch:
            progress.best = jax.tree.map(jnp.copy, state)
        if on_epoch:
            on_epoch(progress)
    if val is None:
        progress.best = jax.tree.map(jnp.copy, state)
    return progress


def _laps(done, steps, seconds, short):
    """(start, stop) for the calls of one epoch, of so many seconds each, after which progress is
    shown and SIGTERM seen. One call where several hosts must make the same."""
    chunk = steps if short or jax.process_count() > 1 else 1
    while done < steps:
        stop, lap = min(done + chunk, steps), time.perf_counter()
        yield done, stop
        lap = max(time.perf_counter() - lap, 0.01)
        done, chunk = stop, max(1, int((stop - done) * seconds / lap))


def as_traced(hparams: optim.Hparams) -> optim.Hparams:
    """Every number as a float32 scalar, so that 1 and 1.0 are the same program."""
    return jax.tree.map(np.float32, hparams)


def _diverged(recipe, hparams, bad_step: int):
    rate = float(optim.learning_rate(recipe.schedule, hparams, np.float32(bad_step)))
    raise RunError(
        f"the loss became NaN or infinite at step {bad_step + 1} (learning rate {rate:g}): try a "
        f"smaller --hparams.learning-rate, for example {rate / 10:g}, or --hparams.clip-norm 1; "
        "checkpoints of earlier epochs are kept."
    )
