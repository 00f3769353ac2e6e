"""Memory that one training step needs besides parameters and data, by micro-batch, in MB.

python benchmarks/memory.py

Compiles only: the figures are XLA's own, of this machine's platform.
"""

import functools

import jax
import numpy as np

from dlflax import train
from dlflax.models import MiniLM, ResNet

BATCH = 64
MODELS = {
    "ResNet-50, 160 px": (ResNet("50", num_outputs=2), np.zeros((BATCH, 160, 160, 3), np.uint8)),
    "MiniLM, 128 tokens": (MiniLM(), np.ones((BATCH, 128), np.int32)),
}


def memory(model, inputs, micro_batch: int) -> float:
    """Returns the megabytes of temporary arrays of a step on inputs (n, ...)."""
    recipe = train.Recipe(model, batch_size=BATCH, micro_batch=micro_batch)
    hparams = train.as_float32(train.Hparams())
    state = train.abstract(recipe, hparams, inputs[:1])
    batch = {"inputs": inputs, "targets": np.zeros(BATCH, np.int32), "mask": np.ones(BATCH)}
    step = jax.jit(functools.partial(train.step, recipe), donate_argnums=0)
    compiled = step.lower(state, hparams, jax.tree.map(jax.typeof, batch)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


if __name__ == "__main__":
    for name, (model, inputs) in MODELS.items():
        sizes = [f"{memory(model, inputs, size):,.0f}" for size in (0, 16, 8)]
        print(f"| {name} | {BATCH} | {' | '.join(sizes)} |", flush=True)
