"""Features of pictures by a frozen model, computed once and kept on disk."""

import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dlflax.files import cache_folder, replacing
from dlflax.models.minilm import cut_lengths
from dlflax.report.progress import progress_bar
from dlflax.train.augment import augment, numbers
from dlflax.train.batch import floats
from dlflax.train.hparams import Hparams, as_traced

BATCH = 32  # pictures a call; always this many, so that a picture's features depend on it alone
KEPT = 1024  # pictures a file of the cache: what a kill loses


class Features:
    """Features of pictures by a frozen model, computed once: each is kept on disk by the weights,
    the model, the picture's pixels and what augmentation made of them."""

    def __init__(self, model, variables, sha256: str, log=print, cache_dir: Path | None = None):
        self.model, self.log = model, log
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
        fields = {k: v for k, v in fields.items() if k not in ("parent", "name", "num_outputs")}
        key = [1, type(model).__name__, fields, sha256]  # 1: the version of this format
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = (cache_dir or cache_folder()) / "features" / name
        local = jax.local_devices()  # every host computes all: they are few, and once
        mesh = jax.make_mesh((len(local),), ("batch",), (AxisType.Auto,), devices=local)
        self._mesh, self._cut = mesh, NamedSharding(mesh, P("batch"))
        self._variables = jax.device_put(variables, NamedSharding(mesh, P()))
        self._known = self._load()
        self.computed = 0
        """Pictures whose features were not on disk."""

    def __call__(self, images, view: int = 0, augmentations=(), hparams=None) -> np.ndarray:
        """float32 (n, d) of uint8 images (n, h, w, 3). view: number of the augmented view by
        `augmentations` under the strengths in hparams; 0 is the picture as it is."""
        strengths = [float(getattr(hparams, n)) for n in numbers(augmentations, hparams)]
        how = [view, *map(repr, augmentations), *strengths]
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
        with progress_bar("features", len(missing)) as advance:
            for start in range(0, len(missing), KEPT):
                found = {}
                for some in _batches(missing[start : start + KEPT], images):
                    pictures = images[np.array([i for _, i in some])]
                    keys = np.frombuffer(b"".join(d[:4] for d, _ in some), np.uint32)
                    rows = self._compute(pictures, keys, augmentations if view else (), hparams)
                    found |= dict(zip((digest for digest, _ in some), rows, strict=True))
                    advance(len(some))
                self._known |= found
                self._save(found)
        self.computed += len(missing)
        return np.stack([self._known[digest] for digest in digests])

    def _compute(self, pictures, keys, augmentations, hparams):
        n = len(pictures)
        full = -(-BATCH // self._mesh.size) * self._mesh.size
        pictures, keys = (np.resize(each, (full, *each.shape[1:])) for each in (pictures, keys))
        arrays = jax.device_put((pictures, keys), self._cut)
        hparams = as_traced(hparams or Hparams())
        rows = _features(self.model, augmentations, self._mesh, self._variables, *arrays, hparams)
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
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, digests=digests, features=np.stack(list(found.values())))
        except OSError as error:
            self.log(f"features cannot be kept in {self.folder} ({error.strerror or error}).")


def _batches(missing, inputs):
    """[(digest, place)] cut into batches. Of tokens (n, t) each has texts of one of the lengths
    that a model is cut to, so that a text's features depend on it alone."""
    groups = [missing]
    if inputs.ndim == 2 and inputs.dtype.kind == "i":
        used = np.sum(inputs[np.array([i for _, i in missing])] > 0, 1)
        cuts = np.searchsorted(cut_lengths(inputs.shape[1]), used)
        groups = [[missing[k] for k in np.flatnonzero(cuts == cut)] for cut in np.unique(cuts)]
    for group in groups:
        for at in range(0, len(group), BATCH):
            yield group[at : at + BATCH]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(model, augmentations, mesh, variables, pictures, keys, hparams):
    def view(picture, key):
        batch = {"inputs": picture[None]}
        return augment(augmentations, jax.random.key(key), batch, hparams)["inputs"][0]

    def on_device(variables, pictures, keys, hparams):
        def piece(pictures, keys):
            pictures = floats(pictures)
            if augmentations:
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
        on_device, mesh=mesh, in_specs=(whole, cut, cut, whole), out_specs=cut, check_vma=False
    )
    return mapped(variables, pictures, keys, hparams)
