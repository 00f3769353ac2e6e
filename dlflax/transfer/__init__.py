"""Transfer learning: pretrained weights, what of them is trained, features kept on disk."""

from dlflax.transfer.features import Features
from dlflax.transfer.prepare import (
    Start,
    Transfer,
    backbone,
    check,
    head_inputs,
    numbers_of_start,
    prepare,
    trained,
    with_backbone,
)

__all__ = [
    "Features", "Start", "Transfer", "backbone", "check", "head_inputs", "numbers_of_start",
    "prepare", "trained", "with_backbone",
]  # fmt: skip
