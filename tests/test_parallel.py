"""Eight virtual devices give what one gives; checkpoints move between numbers of devices."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlflax import parallel
from dlflax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ROOT / "tests/plain.py"

# In one process, because devices are made when JAX starts.
EIGHT = """
import json, logging, re
import jax, numpy as np
from dlflax import data, parallel, train
from dlflax.train.checkpoint import Checkpoints
from dlflax.data import stream
from dlflax.data.dataset import DiskArray
from dlflax.models import CNN, SmallResNet
from dlflax.train import Hparams
from dlflax.train import Recipe
from dlflax.train.augment import Brightness, Flip
from dlflax.train.recipe import init_on_devices

jax.config.update("jax_numpy_rank_promotion", "raise")
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (61, 12, 12, 3)).astype(np.uint8)
targets = np.int32(np.arange(61) % 3)
images[targets == 1, :6] //= 4
train_set = {"inputs": images, "targets": targets}
val = {"inputs": images[:37], "targets": targets[:37]}  # odd, to be padded
hparams = Hparams(dropout=0.3, l2=1e-3, flip_probability=0.5, brightness=0.2, learning_rate=3e-3)
recipes = {
    "cnn": Recipe(model=CNN(features=(8,), implementation="lax", num_outputs=3), batch_size=16,
                  augment=(Flip(), Brightness()), ema=True),
    "matmul": Recipe(
        model=CNN(features=(8,), implementation="matmul", num_outputs=3), batch_size=16
    ),
    "norms": Recipe(model=SmallResNet((8,), 1, "lax", num_outputs=3), batch_size=16),
}

def numbers(fit):
    rows = [[row["train_loss"], row["val_loss"], row["val_macro_f1"]] for row in fit.history]
    leaves = jax.tree.leaves((fit.state.params, fit.state.collections, fit.state.ema))
    return np.array(rows), [np.asarray(leaf) for leaf in leaves]

def difference(a, b):
    return [float(np.abs(a[0] - b[0]).max()),
            max(float(np.abs(x - y).max()) for x, y in zip(a[1], b[1], strict=True))]

def fit(recipe, devices, fsdp=False, train_set=train_set, **more):
    with parallel.use_devices(devices, fsdp):
        return train.fit(recipe, hparams, train_set, val, epochs=2, seed=1, **more)

compiled = []
logger = logging.getLogger("jax._src.interpreters.pxla")
logger.addFilter(lambda record: compiled.append(record.getMessage()))
jax.config.update("jax_log_compiles", True)
logging.getLogger("jax").propagate = False

answers = {"devices": len(jax.devices())}
for name, recipe in recipes.items():
    one = numbers(fit(recipe, 1))
    compiled.clear()
    answers[name] = difference(one, numbers(fit(recipe, 8)))
    answers[name + " compiled"] = sum("jit(train_steps)" in text for text in compiled)
    if name == "cnn":
        parallel.LARGE = 64
        sharded = fit(recipe, 8, fsdp=True)
        answers["fsdp"] = difference(one, numbers(sharded))
        shards = [leaf.addressable_shards[0].data.size / leaf.size
                  for leaf in jax.tree.leaves(sharded.state.params) if leaf.size > 1000]
        answers["shares"] = sorted(set(shards))
        stream.CHUNK_BYTES = 2 * 16 * 450
        rows = {**train_set, "inputs": DiskArray(images, np.arange(61))}
        answers["streamed"] = difference(one, numbers(fit(recipe, 8, train_set=rows)))

# what moves between the devices: gradients are summed, the data are not gathered
recipe = recipes["cnn"]
with parallel.use_devices(8):
    state = init_on_devices(recipe, train.as_float32(hparams), images[:1], np.uint32(0), None)
    big = {"inputs": np.zeros((4096, 12, 12, 3), np.uint8), "targets": np.zeros(4096, np.int32)}
    batches = data.epoch_batches(4096, 16, 0, 0)
    zero = np.int32(0)
    text = train.train_steps.lower(
        recipe, state, train.as_float32(hparams), *map(parallel.put_on_all, (big, batches)),
        train.zero_sums(recipe, hparams, big), zero, zero,
    ).compile().as_text()
moved = re.findall(r"= (\\S+) all-(gather|reduce|to-all)", text)
answers["moved"] = sorted({kind for _, kind in moved})
sizes = [int(np.prod([int(n) for n in shape.split(",") if n]))
         for kinds, _ in moved for shape in re.findall(r"\\[([0-9,]*)\\]", kinds)]
answers["largest moved"] = max(sizes)

# a checkpoint goes from 8 devices to 4, 2 and 1, and back
def through(counts, folder):
    abstract = train.abstract(recipe, hparams, images[:1])
    for epoch, count in enumerate(counts):
        with parallel.use_devices(count):
            checkpoints = Checkpoints(folder, recipe.task)
            saved = checkpoints.restore_last(parallel.with_shardings(abstract))
            done = train.fit(recipe, hparams, train_set, val, epochs=epoch + 1, seed=1,
                             resume=saved)
            checkpoints.save(done.checkpoint())
    return numbers(done)

answers["moving"] = difference(through([1] * 5, "one"), through([8, 4, 1, 2, 8], "many"))
print(json.dumps(answers))
"""


def environment(tmp_path, devices):
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(tmp_path / "cache")}  # fmt: skip


@pytest.mark.slow
def test_eight_devices_are_one(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", EIGHT], capture_output=True, text=True, cwd=tmp_path,
        env=environment(tmp_path, 8), timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    answers = json.loads(ran.stdout.splitlines()[-1])
    assert answers["devices"] == 8
    for name in ("cnn", "matmul", "norms", "fsdp", "streamed", "moving"):
        losses, leaves = answers[name]
        assert losses < 2e-5 and leaves < 2e-4, (name, answers[name])
    for name in ("cnn", "matmul", "norms"):
        assert answers[f"{name} compiled"] == 1
    assert answers["shares"] == [1 / 8]
    assert answers["moved"] == ["reduce"]
    assert answers["largest moved"] <= 8 * 6 * 6 * 64  # a gradient, and never the data set


def hosts(tmp_path, *flags):
    """`python -m experiments.mnist` as two hosts, which see each other's files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, PLAIN, "experiments.mnist", "--dataset", "digits", "--model", "mlp"]
    command += ["--batch-size", "128", "--distributed", "--run-dir", "run", "--baseline", "none"]
    command += flags
    return [
        subprocess.Popen(
            command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**environment(tmp_path, 1), "JAX_COORDINATOR_ADDRESS": address,
                 "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process)},
        )
        for process in (0, 1)
    ]  # fmt: skip


@pytest.mark.slow
def test_two_hosts_and_one_dies(tmp_path):
    """The other says so at once, the run goes on with both, and ends as on one device."""
    first, second = hosts(tmp_path, "--epochs", "400")
    metrics, deadline = tmp_path / "run" / "metrics.csv", time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert first.poll() is None and second.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    second.kill()
    out, err = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 1 and "on 2 x cpu of 2 hosts" in out
    (sentence,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "another host has stopped" in sentence and "continue with --resume" in sentence

    done = len(metrics.read_text().splitlines()) - 1
    pair = hosts(tmp_path, "--epochs", str(done + 2), "--resume")
    (out, err), (out_second, _) = (process.communicate(timeout=120) for process in pair)
    assert [process.returncode for process in pair] == [0, 0], err
    assert f"resuming after epoch {done}" in out
    assert "epoch" not in out_second  # one prints and writes
    flags = ["--dataset", "digits", "--model", "mlp", "--batch-size", "128", "--run-dir", "alone"]
    flags += ["--baseline", "none"]
    subprocess.run(
        [sys.executable, PLAIN, "experiments.mnist", *flags, "--epochs", str(done + 2)],
        cwd=tmp_path, env=environment(tmp_path, 1), check=True, capture_output=True,
    )  # fmt: skip
    two, one = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "alone")
    )
    assert two["val"]["loss"] == pytest.approx(one["val"]["loss"], rel=1e-4)
    assert two["test"]["accuracy"] == pytest.approx(one["test"]["accuracy"], abs=0.003)


@pytest.mark.slow
def test_two_hosts_stop_in_the_middle_of_an_epoch(tmp_path):
    """Within seconds of SIGTERM to one of them, and go on from there."""
    flags = ["--batch-size", "2", "--model.features", "512", "512", "--epochs", "2"]
    pair = hosts(tmp_path, *flags)
    metrics, deadline = tmp_path / "run" / "metrics.csv", time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:  # the first epoch's
        assert pair[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    pair[1].send_signal(signal.SIGTERM)
    (out, err), _ = (process.communicate(timeout=60) for process in pair)
    assert [process.returncode for process in pair] == [75, 75], err
    assert time.monotonic() - began < 30  # five for the steps that were begun, and saving
    step = int(re.search(r"terminated; step ([0-9,]+) is saved", err)[1].replace(",", ""))
    assert 647 < step < 2 * 647


@pytest.mark.parametrize(
    "wanted, batch_size, sentence",
    [(3, 32, "--devices 3: there are 2"), (2, 7, "--batch-size 7 must be a multiple")],
)
def test_devices_are_checked(wanted, batch_size, sentence):
    with pytest.raises(InputError, match=sentence):
        parallel.num_devices(wanted, batch_size)
    assert parallel.num_devices(0, 32) == 1 and parallel.num_devices(2, 32, fsdp=True) == 2
    with pytest.raises(InputError, match="--fsdp needs several devices, and this run uses one"):
        parallel.num_devices(0, 32, fsdp=True)
