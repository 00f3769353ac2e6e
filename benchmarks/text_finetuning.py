"""Seconds per step of fine-tuning all of MiniLM by dlflax, and by PyTorch with transformers.

python benchmarks/text_finetuning.py --data rt-polarity         (pip install torch transformers)

Same batches of `experiments.sentiment --preset best`, alternating, in bfloat16 (the preset,
`torch.autocast`) and float32. Weights are random, as they do not affect the time. PyTorch pads each
batch to its longest text. --torch-python is another Python with PyTorch.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

STEPS, WARMUP = 40, 16  # measured steps, and steps before, some of which compile
RATE = 1e-4
DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass
class Options:
    data: Path
    """Texts and labels of the experiment."""
    rounds: int = 3
    """Measurements per library and dtype."""
    torch_python: Path = Path(sys.executable)
    """Python with PyTorch and transformers."""
    one: Literal["", "dlflax", "torch"] = ""
    """Measure one library on the batches in the folder --data."""
    compute_dtype: Literal[DTYPES] = "bfloat16"
    """Dtype of --one."""


def measure_steps(step, batches) -> list[float]:
    """Measures the seconds of each step after the warm-up."""
    seconds = []
    for tokens, targets in batches:
        clock = time.perf_counter()
        step(tokens, targets)
        seconds.append(time.perf_counter() - clock)
    return seconds[WARMUP:]


def dlflax(batches, compute_dtype):
    """Measures `train.step`, compiled once."""
    import functools

    import jax

    from dlflax import train
    from experiments.sentiment import PRESETS

    config = PRESETS["best"]
    recipe = dataclasses.replace(config.recipe, trainable=".", compute_dtype=compute_dtype)
    state = train.init(recipe, config.hparams, batches[0][0], jax.random.key(0))
    hparams = train.as_float32(config.hparams.replace(total_steps=1000.0))
    compiled = jax.jit(functools.partial(train.step, recipe), donate_argnums=0)

    def step(tokens, targets):
        nonlocal state
        batch = {"inputs": tokens, "targets": targets, "mask": np.ones(len(targets), np.float32)}
        state, sums = compiled(state, hparams, batch)
        jax.block_until_ready((state, sums))

    return measure_steps(step, batches)


def torch(batches, compute_dtype):
    """Measures eager Adam steps with mean pooling, as in sentence-transformers."""
    import torch
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    encoder = BertModel(BertConfig(vocab_size=30522, **sizes), add_pooling_layer=False)
    head = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(384, 2))
    model = torch.nn.ModuleList([encoder, head]).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def step(tokens, targets):
        tokens = torch.from_numpy(tokens[:, : int((tokens > 0).sum(1).max())].astype(np.int64))
        mask = (tokens > 0).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=compute_dtype == "bfloat16"):
            outputs = encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        mean = (outputs * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        loss = torch.nn.functional.cross_entropy(head(mean), torch.from_numpy(targets).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return measure_steps(step, batches)


def write_batches(data_dir: Path, folder: Path) -> None:
    """Writes the first batches of an epoch of the experiment."""
    from dlflax.data import epoch_batches, make_splits
    from experiments.sentiment import PRESETS

    config = PRESETS["best"]
    source = dataclasses.replace(config.data, data=data_dir)
    splits = make_splits(source, source.load(print), config.val_split, 0)
    texts, size = splits.train, config.recipe.batch_size
    rows = epoch_batches(len(texts["inputs"]), size, 0, 0, texts.get("length"))[: STEPS + WARMUP]
    np.savez(folder / "batches.npz", tokens=texts["inputs"][rows], targets=texts["targets"][rows])


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.one:
        with np.load(options.data / "batches.npz") as saved:
            batches = list(zip(saved["tokens"], saved["targets"], strict=True))
        measure = {"dlflax": dlflax, "torch": torch}[options.one]
        print(json.dumps(measure(batches, options.compute_dtype)))
        return
    turns = [(name, dtype) for dtype in DTYPES for name in ("dlflax", "torch")]
    means = {turn: [] for turn in turns}
    with tempfile.TemporaryDirectory() as folder:
        write_batches(options.data, Path(folder))
        for name, dtype in turns * options.rounds:
            python = sys.executable if name == "dlflax" else options.torch_python
            words = [python, __file__, "--data", folder, "--one", name]
            words += ["--compute-dtype", dtype]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            seconds = json.loads(done.stdout.splitlines()[-1])
            means[name, dtype].append(statistics.mean(seconds))
            print(f"{name} {dtype}: {means[name, dtype][-1]:.3f} s per step of {len(seconds)}")
    for dtype in DTYPES:
        jax, pytorch = (statistics.median(means[name, dtype]) for name in ("dlflax", "torch"))
        print(
            f"{dtype}: PyTorch takes {pytorch / jax:.2f} times as long ({pytorch:.3f} s, dlflax "
            f"{jax:.3f} s)"
        )


if __name__ == "__main__":
    main()
