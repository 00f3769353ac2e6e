"""Transfer learning: what is taken from pretrained weights, what is trained, features kept on disk.

A frozen backbone computes the same features in every epoch, so they are computed once: a head is
then trained from numbers instead of pictures, by the same `train.step`.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dlflax import augment, data, logs, optim, train, weights
from dlflax.errors import InputError

BATCH = 32  # pictures a call; always this many, so that a picture's features depend on it alone
KEPT = 1024  # pictures a file of the cache: what a kill loses
PAIRED = {"mixup", "cutmix"}  # operations that need a second picture, and its label


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What is taken from pretrained weights, and what of it is trained on."""

    weights: str = "imagenet"
    """imagenet, the name of a published set, a file (.safetensors, .pth), or none: from scratch."""
    finetune: Literal["none", "head", "last-blocks", "all"] = "head"
    """What is trained of a pretrained model: its last layer, its last blocks too, or all of it;
    none takes no weights, as --weights none."""
    head_epochs: int = 5
    """--finetune last-blocks and all: so many epochs of the last layer alone come first."""
    views: int = 0
    """--finetune head: so many augmented views (--augment) of every training picture, besides the
    picture itself."""

    @property
    def pretrained(self) -> bool:
        """Whether weights are read."""
        return "none" not in (self.weights, self.finetune)

    @property
    def frozen(self) -> bool:
        """Whether the last layer alone is trained, from features."""
        return self.pretrained and self.finetune == "head"


@dataclasses.dataclass(frozen=True)
class Start:
    """What training begins with: `prepare`'s answer."""

    recipe: train.Recipe
    splits: data.Splits
    """Pictures, or of a frozen backbone their features, float32 (n, d)."""
    pretrained: dict[str, Any] | None = None
    """Variables for `train.init`, which go into the State."""
    backbone: dict[str, Any] | None = None
    """Variables of a frozen backbone, which stay outside of it."""

    def whole(self, state: train.State) -> train.State:
        """A State of all the model, for pictures, whatever was trained."""
        return whole(state, self.backbone)


def whole(state: train.State, backbone: dict[str, Any] | None) -> train.State:
    """The State of a head with its frozen backbone's variables; without one as it is."""
    if not backbone:
        return state
    params, collections = backbone["params"], dict(backbone)
    del collections["params"]
    return state.replace(
        params={**params, **state.params},
        ema=state.ema and {**params, **state.ema},
        collections={**state.collections, **collections},
    )


def check(transfer: Transfer | None, recipe: train.Recipe) -> None:
    """InputError for what does not go together."""
    if transfer is None:
        return
    for name in ("head_epochs", "views"):
        if getattr(transfer, name) < 0:
            flag = f"--{name.replace('_', '-')} {getattr(transfer, name)}"
            raise InputError(f"{flag} must be 0 or more.")
    if transfer.views and not transfer.frozen:
        raise InputError(
            "--views is for --finetune head, whose features are computed once; elsewhere --augment "
            "changes the pictures in every epoch: leave it out."
        )
    if transfer.views and not recipe.augment:
        raise InputError("--views needs --augment, such as --augment crop flip.")
    if transfer.frozen and (both := PAIRED & set(recipe.augment)):
        raise InputError(f"--augment {both.pop()} has no meaning with --finetune head: leave it.")
    if transfer.pretrained and not hasattr(recipe.model, "LAST_BLOCKS"):
        raise InputError(
            f"--weights {transfer.weights}: there are none for a {type(recipe.model).__name__}; "
            "use --weights none to train it from scratch."
        )


def trained(transfer: Transfer | None, recipe: train.Recipe) -> train.Recipe:
    """The recipe of what is trained: which parameters; a frozen backbone's head sees no pictures,
    so there is nothing to augment."""
    if transfer is None or not transfer.pretrained:
        return recipe
    if transfer.frozen:
        return _of_head(recipe)
    chosen = recipe.model.LAST_BLOCKS if transfer.finetune == "last-blocks" else "."
    return dataclasses.replace(recipe, trainable=recipe.trainable or chosen)


def _of_head(recipe):
    return dataclasses.replace(recipe, augment=(), trainable="")


def prepare(
    transfer: Transfer | None,
    recipe: train.Recipe,
    hparams: optim.Hparams,
    splits: data.Splits,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Start:
    """What to train on and from. Reads the weights; computes features, unless they are on disk;
    trains a first head where the rest follows. Raises InputError as `check` and `weights.read` do.
    """
    check(transfer, recipe)
    if transfer is None or not transfer.pretrained:
        return Start(recipe, splits)
    shape = splits.train["inputs"].shape[1:]
    variables, sha256 = _read(transfer.weights, recipe.model, shape, say)
    splits = dataclasses.replace(splits, info={**splits.info, "weights_sha256": sha256})
    frozen = _on_features(transfer, recipe, hparams, splits, variables, sha256, say)
    if transfer.finetune == "head":
        return dataclasses.replace(frozen, backbone=variables)
    if transfer.head_epochs:
        say(f"training the last layer alone, {transfer.head_epochs} epochs")
        head = dataclasses.replace(frozen.recipe, schedule="constant", ema=False)
        parts = frozen.splits
        fit = train.fit(
            head, hparams.replace(warmup=0.0), parts.train, parts.val,
            epochs=transfer.head_epochs, seed=seed,
        )  # fmt: skip
        row = fit.history[train.best_epoch(fit.history)]
        score = "val_accuracy" if parts.val else "train_accuracy"
        say(f"which reached a {score.replace('_', ' ')} of {row[score]:.4f}")
        variables = {**variables, "params": {**variables["params"], **fit.best.params}}
    return Start(trained(transfer, recipe), splits, pretrained=jax.device_get(variables))


def backbone(transfer: Transfer | None, model, shape, sha256: str | None, say=print):
    """The variables of a run's frozen backbone, for pictures of `shape` (h, w, c); None where all
    is in the checkpoint. InputError when the weights are not those, by sha256, that the run was
    trained with."""
    if transfer is None or not transfer.frozen:
        return None
    variables, found = _read(transfer.weights, model, shape, say)
    if found != sha256:
        raise InputError(
            f"--weights {transfer.weights} are not those that the run was trained with (sha256 "
            f"{found[:12]} in place of {str(sha256)[:12]}): bring back that file."
        )
    return variables


def head_inputs(model, shape) -> np.ndarray:
    """Zeros in the shape of what a head sees of one picture of `shape` (h, w, c): (1, d)."""

    def features(picture):
        return model.init_with_output(jax.random.key(0), picture, method="features")[0]

    seen = jax.eval_shape(features, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return np.zeros(seen.shape, np.float32)


def _read(name, model, shape, say):
    """(variables of everything but the last layer, sha256 of the file)."""
    loaded, sha256, what = weights.read(model, name, say)
    say(what)
    picture = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    fresh = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), picture)
    try:
        variables = weights.graft(fresh, loaded)
    except InputError as error:
        raise InputError(f"{error} The pictures have {shape[0]} x {shape[1]} pixels.") from error
    del variables["params"]["logits"]
    return variables, sha256


def _on_features(transfer, recipe, hparams, splits, variables, sha256, say):
    """The head's recipe, without augmentation, on features of all splits."""
    if transfer.finetune != "head" and not transfer.head_epochs:
        return None
    compute = Features(recipe.model, variables, sha256, say)
    parts = {}
    for name in ("train", "val", "test"):
        part = getattr(splits, name)
        if part is None or (name == "test" and transfer.finetune != "head"):
            parts[name] = None
            continue
        rows = [{**part, "inputs": compute(part["inputs"])}]
        for view in range(1, transfer.views + 1) if name == "train" else ():
            seen = compute(part["inputs"], view, recipe.augment, hparams)
            rows.append({**part, "inputs": seen})
        parts[name] = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    return Start(_of_head(recipe), dataclasses.replace(splits, **parts))


class Features:
    """Features of pictures by a frozen model, computed once: each is kept on disk by the weights,
    the model, the picture's pixels and what augmentation made of them."""

    def __init__(self, model, variables, sha256: str, say=print, cache_dir: Path | None = None):
        self.model, self.say = model, say
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
        fields = {k: v for k, v in fields.items() if k not in ("parent", "name", "num_outputs")}
        key = [1, type(model).__name__, fields, sha256]  # 1: the version of this format
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = (cache_dir or data.cache_folder()) / "features" / name
        local = jax.local_devices()  # every host computes all: they are few, and once
        mesh = jax.make_mesh((len(local),), ("batch",), (AxisType.Auto,), devices=local)
        self._mesh, self._cut = mesh, NamedSharding(mesh, P("batch"))
        self._variables = jax.device_put(variables, NamedSharding(mesh, P()))
        self._known = self._load()
        self.computed = 0
        """Pictures whose features were not on disk."""

    def __call__(self, images, view: int = 0, operations=(), hparams=None) -> np.ndarray:
        """float32 (n, d) of uint8 images (n, h, w, 3). view: number of the augmented view by
        `operations` under the strengths in hparams; 0 is the picture as it is."""
        numbers = [name for operation in operations for name in augment.STRENGTHS[operation]]
        how = [view, *operations, *(float(getattr(hparams, name)) for name in numbers)]
        salt = json.dumps(how if view else []).encode()
        # a thousand pictures at a time: they may lie on disk
        digests = [
            hashlib.sha256(salt + image.tobytes()).digest()
            for start in range(0, len(images), KEPT)
            for image in images[start : start + KEPT]
        ]
        places: dict[bytes, int] = {}
        for i, digest in enumerate(digests):
            if digest not in self._known:
                places.setdefault(digest, i)
        missing = list(places.items())
        with logs.counting("features", len(missing)) as advance:
            for start in range(0, len(missing), KEPT):
                found = {}
                for at in range(start, min(start + KEPT, len(missing)), BATCH):
                    some = missing[at : min(at + BATCH, start + KEPT)]
                    pictures = images[np.array([i for _, i in some])]
                    keys = np.frombuffer(b"".join(d[:4] for d, _ in some), np.uint32)
                    rows = self._compute(pictures, keys, operations if view else (), hparams)
                    found |= dict(zip((digest for digest, _ in some), rows, strict=True))
                    advance(len(some))
                self._known |= found
                self._save(found)
        self.computed += len(missing)
        return np.stack([self._known[digest] for digest in digests])

    def _compute(self, pictures, keys, operations, hparams):
        n = len(pictures)
        full = -(-BATCH // self._mesh.size) * self._mesh.size
        pictures, keys = (np.resize(each, (full, *each.shape[1:])) for each in (pictures, keys))
        arrays = jax.device_put((pictures, keys), self._cut)
        hparams = train.as_traced(hparams or optim.Hparams())
        rows = _features(self.model, operations, self._mesh, self._variables, *arrays, hparams)
        return np.asarray(rows)[:n]

    def _load(self):
        known = {}
        for path in sorted(self.folder.glob("*.npz")):
            try:
                # a zip file, which has checksums
                with open(path, "rb") as file, np.load(file) as saved:
                    digests = [row.tobytes() for row in saved["digests"]]
                    known |= dict(zip(digests, saved["features"], strict=True))
            except Exception:  # damaged bytes can raise anything; it costs computing again
                path.unlink(missing_ok=True)
        return known

    def _save(self, found):
        digests = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)
        path = self.folder / f"{hashlib.sha256(digests.tobytes()).hexdigest()[:16]}.npz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with logs.replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, digests=digests, features=np.stack(list(found.values())))
        except OSError as error:
            self.say(f"features cannot be kept in {self.folder} ({error.strerror or error}).")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(model, operations, mesh, variables, pictures, keys, hparams):
    def view(picture, key):
        return augment.augment(operations, jax.random.key(key), picture[None], hparams)[0][0]

    def share(variables, pictures, keys, hparams):
        def piece(pictures, keys):
            pictures = train.floats(pictures)
            if operations:
                pictures = jax.vmap(view)(pictures, keys)
            return model.apply(variables, pictures, method="features").astype(jnp.float32)

        if jax.default_backend() != "cpu":
            return piece(pictures, keys)
        # on a CPU what stays in the cache is faster
        size = math.gcd(len(pictures), 8)
        pieces = [each.reshape(-1, size, *each.shape[1:]) for each in (pictures, keys)]
        rows = lax.map(lambda each: piece(*each), pieces)
        return rows.reshape(-1, rows.shape[-1])

    cut, whole = P("batch"), P()
    mapped = jax.shard_map(
        share, mesh=mesh, in_specs=(whole, cut, cut, whole), out_specs=cut, check_vma=False
    )
    return mapped(variables, pictures, keys, hparams)
