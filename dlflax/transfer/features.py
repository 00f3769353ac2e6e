"""Feature cache: features of a frozen model, computed once and saved on disk."""

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

from dlflax import cache
from dlflax.models.minilm import bucket_lengths
from dlflax.report.progress import progress_bar
from dlflax.train.augment import augment, strength_names
from dlflax.train.batch import floats
from dlflax.train.hparams import Hparams, as_float32

BATCH = 32  # images per call; constant, so that an image's features do not depend on the others
FILE_SIZE = 1024  # images per file of the cache: a kill loses at most one file


class Features:
    """Feature extractor with a cache on disk. Its key is the weights, the model, the input and the
    augmentation."""

    def __init__(self, model, variables, sha256: str, log=print, cache_dir: Path | None = None):
        self.model, self.log = model, log
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
        fields = {k: v for k, v in fields.items() if k not in ("parent", "name", "num_outputs")}
        name = cache.digest([type(model).__name__, fields, sha256])[:16]
        self.folder = (cache_dir or cache.cache_folder()) / "features" / name
        local = jax.local_devices()  # every host computes all features, once
        mesh = jax.make_mesh((len(local),), ("batch",), (AxisType.Auto,), devices=local)
        self._mesh, self._sharding = mesh, NamedSharding(mesh, P("batch"))
        self._variables = jax.device_put(variables, NamedSharding(mesh, P()))
        self._features: dict[str, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.json")):
            if entry := cache.read(path.with_suffix("")):
                features = np.array(entry[1]["features"])
                self._features |= dict(zip(entry[0], features, strict=True))
        self._is_writable = True
        self.computed = 0
        """Number of images whose features were not on disk."""

    def __call__(self, images, view: int = 0, augmentations=(), hparams=None) -> np.ndarray:
        """Returns features, float32 (n, d), of uint8 images (n, h, w, 3). view: index of an
        augmented view by `augmentations` and their hparams; 0 is the unchanged image."""
        strengths = [float(getattr(hparams, n)) for n in strength_names(augmentations, hparams)]
        salt = [view, *map(repr, augmentations), *strengths] if view else []
        salt = json.dumps(salt).encode()
        # read by chunks, as the images may be on disk
        digests = [
            hashlib.sha256(salt + image.tobytes()).hexdigest()
            for start in range(0, len(images), FILE_SIZE)
            for image in images[start : start + FILE_SIZE]
        ]
        rows: dict[str, int] = {}
        for row, digest in enumerate(digests):
            if digest not in self._features:
                rows.setdefault(digest, row)
        missing = list(rows.items())
        with progress_bar("features", len(missing)) as advance:
            for start in range(0, len(missing), FILE_SIZE):
                computed = {}
                for batch in _batches(missing[start : start + FILE_SIZE], images):
                    inputs = images[np.array(list(batch.values()))]
                    keys = bytes.fromhex("".join(digest[:8] for digest in batch))
                    keys = np.frombuffer(keys, np.uint32)
                    features = self._compute(inputs, keys, augmentations if view else (), hparams)
                    computed |= dict(zip(batch, features, strict=True))
                    advance(len(batch))
                self._features |= computed
                if self._is_writable:
                    path = self.folder / cache.digest(list(computed))[:16]
                    arrays = {"features": [np.stack(list(computed.values()))]}
                    self._is_writable = cache.write(path, list(computed), arrays, self.log)
        self.computed += len(missing)
        return np.stack([self._features[digest] for digest in digests])

    def _compute(self, images, keys, augmentations, hparams):
        n, size = len(images), -(-BATCH // self._mesh.size) * self._mesh.size
        images, keys = (np.resize(array, (size, *array.shape[1:])) for array in (images, keys))
        arrays = jax.device_put((images, keys), self._sharding)
        hparams = as_float32(hparams or Hparams())
        rows = _features(self.model, augmentations, self._mesh, self._variables, *arrays, hparams)
        return np.asarray(rows)[:n]


def _batches(missing, inputs):
    """Yields batches {digest: row}. Texts of a batch are in one length bucket of MiniLM, so that
    features of a text do not depend on the others."""
    groups = [missing]
    if inputs.ndim == 2 and inputs.dtype.kind == "i":
        lengths = np.sum(inputs[np.array([row for _, row in missing])] > 0, 1)
        buckets = np.searchsorted(bucket_lengths(inputs.shape[1]), lengths)
        groups = [[missing[k] for k in np.flatnonzero(buckets == b)] for b in np.unique(buckets)]
    for group in groups:
        for start in range(0, len(group), BATCH):
            yield dict(group[start : start + BATCH])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(model, augmentations, mesh, variables, images, keys, hparams):
    def view(image, key):
        batch = {"inputs": image[None]}
        return augment(augmentations, jax.random.key(key), batch, hparams)["inputs"][0]

    def on_device(variables, images, keys, hparams):
        def chunk(images, keys):
            images = floats(images)
            if augmentations:
                images = jax.vmap(view)(images, keys)
            return model.apply(variables, images, method="features").astype(jnp.float32)

        if jax.default_backend() != "cpu":
            return chunk(images, keys)
        # chunks that stay in a CPU's cache are faster
        size = math.gcd(len(images), 8)
        chunks = [array.reshape(-1, size, *array.shape[1:]) for array in (images, keys)]
        rows = lax.map(lambda arrays: chunk(*arrays), chunks)
        return rows.reshape(-1, rows.shape[-1])

    specs = (P(), P("batch"), P("batch"), P())
    mapped = jax.shard_map(
        on_device, mesh=mesh, in_specs=specs, out_specs=P("batch"), check_vma=False
    )  # fmt: skip
    return mapped(variables, images, keys, hparams)
