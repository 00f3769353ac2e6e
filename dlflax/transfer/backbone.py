"""Frozen backbone of a head: read from pretrained weights, merged into the State, saved.

safetensors is imported where it is used, to start up faster.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from dlflax import train
from dlflax.errors import InputError, RunError
from dlflax.files import atomic_write, max_file_bytes
from dlflax.transfer import weights

FILE = "backbone.safetensors"  # in the folder of a run with --save-backbone


def merge_backbone(state: train.State, backbone: dict[str, Any] | None) -> train.State:
    """Merges a frozen backbone's variables, if any, into the State of its head."""
    if not backbone:
        return state
    params, collections = backbone["params"], dict(backbone)
    del collections["params"]
    return state.replace(
        params=_merge_trees(params, state.params),
        ema=state.ema and _merge_trees(params, state.ema),
        collections=_merge_trees(collections, state.collections),
        ema_collections=state.ema_collections and _merge_trees(collections, state.ema_collections),
    )


def _merge_trees(a, b):
    """Merges two trees of dicts with different leaves."""
    flat = traverse_util.flatten_dict(a) | traverse_util.flatten_dict(b)
    return traverse_util.unflatten_dict(flat)


def backbone_module(model):
    """Returns (module, path in the variables) of the backbone, that of an ensemble's first head."""
    return (model.members[0], "members_0") if isinstance(model, train.Ensemble) else (model, None)


def nest_variables(variables, path):
    """Nests a backbone's variables under the path of `backbone_module`, if any."""
    return {name: {path: tree} for name, tree in variables.items()} if path else variables


def load_backbone(transfer, model, inputs, sha256: str | None, folder: Path, log=print):
    """Loads a run's frozen backbone from its folder, else from the pretrained weights; None if the
    checkpoint has all variables. InputError if the weights are missing or have another sha256."""
    if transfer is None or not transfer.is_frozen:
        return None
    if transfer.save_backbone and (folder / FILE).exists():
        abstract = weights.initial.eval_shape(model, _abstract_example(inputs))
        return read_variables(folder / FILE, abstract, is_subset=True)
    module, path = backbone_module(model)
    inputs = model.parts(inputs)[0] if path else inputs
    variables, actual = read(transfer.weights, module, inputs, log)
    if actual != sha256:
        raise InputError(
            f"--weights {transfer.weights} are not the weights of the run (sha256 {actual[:12]}, "
            f"expected {str(sha256)[:12]}): restore that file."
        )
    return nest_variables(variables, path)


def save_backbone(variables, folder: Path) -> None:
    """Writes a frozen backbone's variables into the run folder. RunError if the disk is full or
    not writable."""
    write_variables(folder / FILE, variables)


def write_variables(path: Path, variables) -> None:
    """Writes variables, {"params": ..., ...}, as safetensors with a checksum. RunError if the disk
    is full or not writable."""
    import safetensors.numpy

    flat = {
        path: np.asarray(leaf)
        for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()
    }
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(safetensors.numpy.save(flat, {"sha256": _sha256(flat)}))
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror}.") from error


def read_variables(path: Path, abstract, is_subset: bool = False) -> dict[str, Any]:
    """Reads a file of `write_variables`. abstract: the tree of expected shapes; is_subset: the file
    may lack some of them. InputError, before any array is read, for other shapes and for a
    file larger than a quarter of the memory; for a damaged file."""
    import safetensors.numpy

    expected = traverse_util.flatten_dict(abstract, sep="/")
    shapes = {name: list(leaf.shape) for name, leaf in expected.items()}
    try:
        if path.stat().st_size > max_file_bytes():
            raise InputError(f"{path} is larger than a quarter of the memory.")
        with safetensors.safe_open(path, "np") as file:
            digest = (file.metadata() or {}).get("sha256")
            saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        fits = all(shapes.get(name) == shape for name, shape in saved.items())
        if not fits or not is_subset and len(saved) != len(shapes):
            raise InputError(f"{path} does not have the arrays of the model in config.json.")
        flat = safetensors.numpy.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: restore the file of the run.") from error
    if digest != _sha256(flat):
        raise InputError(f"{path} is damaged, or of another run: restore the file of the run.")
    return traverse_util.unflatten_dict(flat, sep="/")


def _sha256(flat) -> str:
    digest = hashlib.sha256()
    for name in sorted(flat):
        digest.update(f"{name} {flat[name].dtype} {flat[name].shape}".encode())
        digest.update(np.ascontiguousarray(flat[name]))
    return digest.hexdigest()


def head_inputs(model, inputs) -> np.ndarray:
    """Returns zeros (1, d) in the shape of the features of one example."""

    def features(x):
        return model.init_with_output(jax.random.key(0), x, method="features")[0]

    return np.zeros(jax.eval_shape(features, _abstract_example(inputs)).shape, np.float32)


def _abstract_example(inputs):
    return jax.eval_shape(train.floats, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype))


def read(name, model, inputs, log):
    """Reads pretrained weights: (variables without the last layer, sha256 of the file)."""
    loaded, sha256, description = weights.read(model, name, log)
    log(description)
    abstract = weights.initial.eval_shape(model, _abstract_example(inputs))
    try:
        variables = weights.graft(abstract, loaded)
    except InputError as error:
        if inputs.ndim != 4:
            raise
        height, width = inputs.shape[1:3]
        raise InputError(f"{error} The images have {height} x {width} pixels.") from error
    del variables["params"]["logits"]
    return variables, sha256
