"""Seconds a step of `experiments.sentiment --preset best`, all of MiniLM trained, beside PyTorch
with transformers on the same batches, in turns: in bfloat16, as the preset and `torch.autocast`
have it, and in float32.

python benchmarks/text_finetuning.py --data-dir rt-polarity         (pip install torch transformers)

Both begin with random weights, which take as long. PyTorch pads each batch to its longest text.
--torch-python names another Python that has it.
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

STEPS, SKIPPED = 40, 16  # of so many steps the first few, of which some compile, do not count
RATE = 1e-4
DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass
class Options:
    data_dir: Path
    """Texts and labels, as for the experiment."""
    rounds: int = 3
    """How often each is measured."""
    torch_python: Path = Path(sys.executable)
    """The Python that has PyTorch and transformers."""
    one: Literal["", "dlflax", "torch"] = ""
    """Measures one of them, on the batches in a folder, --data-dir."""
    compute_dtype: Literal[DTYPES] = "bfloat16"
    """With --one: in which numbers."""


def timed(step, batches) -> list[float]:
    """Seconds of each step after those that are skipped."""
    seconds = []
    for tokens, targets in batches:
        clock = time.perf_counter()
        step(tokens, targets)
        seconds.append(time.perf_counter() - clock)
    return seconds[SKIPPED:]


def dlflax(batches, compute_dtype):
    """`train.step`, compiled once."""
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

    return timed(step, batches)


def torch(batches, compute_dtype):
    """Adam on the mean of the last layer's outputs, as sentence-transformers has it, eager."""
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

    return timed(step, batches)


def write_batches(data_dir: Path, folder: Path) -> None:
    """The first batches of an epoch of the experiment."""
    from dlflax.data import epoch_batches, make_splits
    from experiments.sentiment import PRESETS

    config = PRESETS["best"]
    source = dataclasses.replace(config.data, data_dir=data_dir)
    splits = make_splits(source, source.load(print), config.validation, 0)
    texts, size = splits.train, config.recipe.batch_size
    rows = epoch_batches(len(texts["inputs"]), size, 0, 0, texts.get("length"))[: STEPS + SKIPPED]
    np.savez(folder / "batches.npz", tokens=texts["inputs"][rows], targets=texts["targets"][rows])


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.one:
        with np.load(options.data_dir / "batches.npz") as saved:
            batches = list(zip(saved["tokens"], saved["targets"], strict=True))
        measure = {"dlflax": dlflax, "torch": torch}[options.one]
        print(json.dumps(measure(batches, options.compute_dtype)))
        return
    turns = [(name, dtype) for dtype in DTYPES for name in ("dlflax", "torch")]
    found = {turn: [] for turn in turns}
    with tempfile.TemporaryDirectory() as folder:
        write_batches(options.data_dir, Path(folder))
        for name, dtype in turns * options.rounds:
            python = sys.executable if name == "dlflax" else options.torch_python
            words = [python, __file__, "--data-dir", folder, "--one", name]
            words += ["--compute-dtype", dtype]
            ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            seconds = json.loads(ran.stdout.splitlines()[-1])
            found[name, dtype].append(statistics.mean(seconds))
            print(f"{name} {dtype}: {found[name, dtype][-1]:.3f} s a step of {len(seconds)}")
    for dtype in DTYPES:
        ours, theirs = (statistics.median(found[name, dtype]) for name in ("dlflax", "torch"))
        print(
            f"{dtype}: PyTorch takes {theirs / ours:.2f} times as long ({theirs:.3f} s, dlflax "
            f"{ours:.3f} s)"
        )


if __name__ == "__main__":
    main()
