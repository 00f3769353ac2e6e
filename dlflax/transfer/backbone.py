"""The frozen backbone of a head: read from pretrained weights, kept beside the State, saved.

safetensors is imported where it is used: start-up time counts.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from dlflax import train
from dlflax.errors import InputError, RunError
from dlflax.files import atomic_write
from dlflax.transfer import weights

FILE = "backbone.safetensors"  # in a run's folder, where it is to be used elsewhere


def with_backbone(state: train.State, backbone: dict[str, Any] | None) -> train.State:
    """The State of a head with its frozen backbone's variables; without one as it is."""
    if not backbone:
        return state
    params, collections = backbone["params"], dict(backbone)
    del collections["params"]
    return state.replace(
        params=_joined(params, state.params),
        ema=state.ema and _joined(params, state.ema),
        collections=_joined(collections, state.collections),
        ema_collections=state.ema_collections and _joined(collections, state.ema_collections),
    )


def _joined(tree, other):
    """Two trees of dicts with different leaves as one."""
    flat = (traverse_util.flatten_dict(each) for each in (tree, other))
    return traverse_util.unflatten_dict({k: v for each in flat for k, v in each.items()})


def with_features(model):
    """Where a model's backbone is: (its module, its path in the variables). Of an ensemble of heads
    the first one has it."""
    return (model.members[0], "members_0") if isinstance(model, train.Ensemble) else (model, None)


def placed(variables, path):
    """The backbone's variables where the model has them."""
    return {name: {path: tree} for name, tree in variables.items()} if path else variables


def backbone(transfer, model, inputs, sha256: str | None, folder: Path, log=print):
    """The variables of a run's frozen backbone, for inputs such as these: those that its folder
    has, else the weights that it was trained with; None where all is in the checkpoint. InputError
    when they are not there or, by sha256, not those."""
    if transfer is None or not transfer.frozen:
        return None
    if transfer.self_contained and (folder / FILE).exists():
        return _load(folder / FILE, model, inputs)
    module, path = with_features(model)
    variables, found = read(transfer.weights, module, inputs, log)
    if found != sha256:
        raise InputError(
            f"--weights {transfer.weights} are not those that the run was trained with (sha256 "
            f"{found[:12]} in place of {str(sha256)[:12]}): bring back that file."
        )
    return placed(variables, path)


def save(variables, folder: Path) -> None:
    """Writes a frozen backbone's variables into the run's folder. RunError where the disk does not
    take them."""
    import safetensors.numpy

    flat = {
        path: np.asarray(leaf)
        for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()
    }
    try:
        with atomic_write(folder / FILE) as temporary:
            temporary.write_bytes(safetensors.numpy.save(flat, {"sha256": _sha256(flat)}))
    except OSError as error:
        raise RunError(f"could not write {folder / FILE}: {error.strerror}.") from error


def _load(path: Path, model, inputs):
    """What `save` wrote, if it is whole and fits the model."""
    import safetensors.numpy

    try:
        with safetensors.safe_open(path, "np") as file:
            wanted = (file.metadata() or {}).get("sha256")
        flat = safetensors.numpy.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged: it is not what a run writes.") from error
    fresh = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), one(inputs))
    shapes = {n: v.shape for n, v in traverse_util.flatten_dict(fresh, sep="/").items()}
    if wanted != _sha256(flat) or any(shapes.get(n) != v.shape for n, v in flat.items()):
        raise InputError(f"{path} is damaged, or of another run: bring back the run's own.")
    return traverse_util.unflatten_dict(flat, sep="/")


def _sha256(flat) -> str:
    digest = hashlib.sha256()
    for name in sorted(flat):
        digest.update(f"{name} {flat[name].dtype} {flat[name].shape}".encode())
        digest.update(np.ascontiguousarray(flat[name]))
    return digest.hexdigest()


def head_inputs(model, inputs) -> np.ndarray:
    """Zeros in the shape of what a head sees of one of such inputs: (1, d)."""

    def features(x):
        return model.init_with_output(jax.random.key(0), x, method="features")[0]

    seen = jax.eval_shape(features, one(inputs))
    return np.zeros(seen.shape, np.float32)


def one(inputs):
    """One of them, abstract, as a model sees it."""
    return jax.eval_shape(train.floats, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype))


def read(name, model, inputs, log):
    """(variables of everything but the last layer, sha256 of the file)."""
    loaded, sha256, what = weights.read(model, name, log)
    log(what)
    fresh = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), one(inputs))
    try:
        variables = weights.graft(fresh, loaded)
    except InputError as error:
        if inputs.ndim != 4:
            raise
        height, width = inputs.shape[1:3]
        raise InputError(f"{error} The pictures have {height} x {width} pixels.") from error
    del variables["params"]["logits"]
    return variables, sha256
